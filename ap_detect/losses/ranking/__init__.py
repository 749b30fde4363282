"""The engine of the ranking losses: all comparisons with positives, no pair formed.

The step f (Chen et al. 2019, eq. 14) is piecewise linear with two knots for a positive
i, at s_i - delta and s_i + delta. With R(t) = sum_j max(s_j - t, 0) over the negatives,

  b_i = sum_j f(s_j - s_i) = (R(s_i - delta) - R(s_i + delta)) / (2 delta),

and R follows from the number and the sum of the scores between every two neighbouring
knots; what all positives together do to a negative, sum_i w_i f(s_j - s_i), is a
straight line between every two knots. So two passes over the scores are enough.

Four things keep this exact, and its bits the same every time. Knots are rounded up to
float32, so that comparing float32 scores with them is comparing with the true knots;
what the rounding moved is added in float64. Scores are summed relative to the knot
below them: one after another on CPUs, and on GPUs, where the order is nobody's, as
integers, which add up the same in any. All other sums run over
terms that are not negative, from the end at which they are small: counting R from the
top, a positive above most negatives does not inherit the rounding of theirs. And
nothing is rounded to float32 and widened again, for XLA folds that away on GPUs.

  engine      from logits and labels to the loss and its update
  knots       the sorted positives and where their windows begin and end
  intervals   which interval between knots a score lies in
  tables      number and sum of the scores in every interval: the pass over all logits
  entries     positives and negatives, for losses that do without the engine
  errors      what a loss makes of the comparisons: the seam between engine and losses
  scans       prefix sums and searches on small tables
  branching   choosing between branches inside the graph
  across_replicas  the same for what several replicas hold, by tables that add up

The passes over all logits have two forms. "cpu": a loop over chunks that stay in the
cache, outside of conditionals, which XLA runs on one core; "gpu": whole slices at once,
with static lengths, so that nothing waits for the host but one conditional.
"""
