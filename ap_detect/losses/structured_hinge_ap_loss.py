"""Structured hinge loss of average precision (Mohapatra et al., "Efficient Optimization
for Rank-Based Loss Functions", CVPR 2018)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ap_detect.losses import compiling
from ap_detect.losses.ranking import entries as entries_lib
from ap_detect.losses.ranking import knots, scans, tables


def structured_hinge_ap_loss(logits, labels, *, jit_compile=True):
  """The convex bound on 1 - AP that structured support vector machines minimise.

  L = max over rankings R of
        1 - AP(R) + 1 / (|P| |N|) sum_{i in P} sum_{j in N} (R_ij - 1) (s_i - s_j)
  with R_ij = 1 where R has positive i above negative j and -1 where not (Yue et al. 2007;
  Mohapatra et al. 2018). It is never below 1 - AP of the ranking by scores. The gradient
  is a true subgradient: the derivative at the ranking that attains the maximum, and where
  scores tie, its mean over their orders.

  The best ranking has both positives and negatives in order of score, so it is known from
  c_p, the number of negatives above the p-th positive, and the sum to maximise is one of
  d_p(n), for p = 1..|P| and n = 1..c_p, over increasing c:

    |P| d_p(n) = p / ((p + n - 1) (p + n)) + 2 / |N| (s_n - s_p)

  Each negative by itself has a best place among the positives, which descends with n (the
  papers' proof). So, as in Mohapatra et al., the middle negative is placed, then the
  middle ones among those above and below it, each only among the positives that are left
  between its neighbours; here all of one depth at once, as sums over segments of the
  positives. That is O(|P| log |N|) time, beside O(|N| log |N|) for sorting the negatives
  and O(|N| log |P|) for the gradient; memory is O(|P| + |N|).

  Args:
    logits: [..., K] float; scores of every anchor for every class. Ranked as one list.
      float16 and bfloat16 are computed in float32.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    jit_compile: as for `smooth_ap_loss`.

  Returns:
    [] float32, >= 0. 0 where there is no positive or no negative. NaN as
    `smooth_ap_loss`.

  Raises:
    ValueError, InvalidArgumentError: as `smooth_ap_loss`, for the labels.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [5.0]])  # a negative is 3 above a positive
    >>> # Best is the positive as the last of three: 1 - 1/3 + (2 (5 - 2) + 2 (0 - 2)) / 2.
    >>> # Above the lower negative: 1 - 1/2 + 2 (5 - 2) / 2, which is more.
    >>> float(structured_hinge_ap_loss(logits, tf.constant([1, 0, 0])))
    3.5
  """
  logits, flat_labels = entries_lib.checked(logits, labels)
  function = _value_and_gradient
  if jit_compile:
    function = compiling.compiled(function)

  @tf.custom_gradient
  def with_gradient(logits):
    value, found = function(tf.stop_gradient(logits), flat_labels)
    return value, lambda upstream: tf.cast(
      tf.cast(upstream, tf.float32) * found, logits.dtype
    )

  return with_gradient(logits)


def _value_and_gradient(logits, labels):
  """(loss [], its subgradient [..., K] float32)."""
  entries = entries_lib.Entries.of(logits, labels)
  number = tf.reduce_sum(tf.cast(entries.is_negative, tf.int32))
  negatives = tf.where(entries.is_negative, entries.scores, -knots.INFINITY)
  # One more, so that the table is not empty.
  negatives = tf.pad(
    tf.reshape(negatives, [-1]), [[0, 1]], constant_values=-knots.INFINITY
  )
  descending = tf.sort(negatives, direction="DESCENDING")
  place = entries.count - tf.range(tables.length(entries.is_used))
  place = tf.cast(tf.maximum(place, 1), tf.float64)  # p, which descends with the score
  above = _best_ranking(entries, place, descending, number)

  # |P| and |N|, at least 1.
  count, num_negatives = (
    tf.maximum(tf.cast(x, tf.float64), 1.0) for x in (entries.count, number)
  )
  weight = 2.0 / (count * num_negatives)
  below = _positives_below(entries.scores, above, descending)
  below = tf.where(entries.is_negative, below, 0.0)
  above = tf.cast(above, tf.float64)
  missing = tf.where(entries.is_used, above / (place + above), 0.0)  # 1 - precision
  value = tf.reduce_sum(missing) / count
  # The scores relative to one of them, for the sum of the gradient is 0.
  origin = entries.positive_scores[0]
  of_positives = above * tf.cast(entries.positive_scores - origin, tf.float64)
  of_negatives = tf.reduce_sum(below * (entries.scores - origin), 1)
  value += weight * (
    tf.reduce_sum(tf.cast(of_negatives, tf.float64))
    - tf.reduce_sum(tf.where(entries.is_used, of_positives, 0.0))
  )
  above = _mean_over_ties(entries.positives.scores, above)
  gradient = entries.gradient(tf.cast(weight, tf.float32) * below, -weight * above)
  return entries.value(value), tf.reshape(gradient, tf.shape(logits))


def _best_ranking(entries, place, descending, number):
  """c: how many negatives the best ranking has above each positive.

  Args:
    entries: Entries.
    place: [R + 1] float64; p of every positive.
    descending: [...] float32; the scores of the negatives, and -inf after them.
    number: [] int32, of negatives.

  Returns:
    [R + 1] int32; 0 where not used.
  """
  size = tables.length(place)
  index = tf.range(size)
  scores = tf.cast(entries.positive_scores, tf.float64)
  scale = 2.0 / tf.maximum(tf.cast(number, tf.float64), 1.0)

  def middle(low, high):
    return low + (high - low + 1) // 2

  def gains(low, high):
    """Of placing the middle negative above the lowest so many positives."""
    n = middle(low, high)
    score = tf.gather(descending, tf.maximum(n - 1, 0))
    n = tf.cast(n, tf.float64)
    gain = place / ((place + n - 1.0) * (place + n))
    gain += scale * (tf.cast(score, tf.float64) - scores)
    return scans.sum_up_to(tf.where(low < high, gain, 0.0))

  def place_middle(low, high, gains_up_to):
    # Positives with the same bounds are those between the same two placed negatives.
    is_first = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    is_first = tf.pad(is_first, [[1, 0]], constant_values=True)
    segment = scans.sum_up_to(tf.cast(is_first, tf.int32)) - 1
    before = tf.pad(gains_up_to[:-1], [[1, 0]])

    def of_segment(values):
      return tf.gather(tf.math.unsorted_segment_max(values, segment, size), segment)

    best = of_segment(gains_up_to)
    none = of_segment(tf.where(is_first, before, -np.inf))
    is_best = (gains_up_to == best) & (best > none)
    is_below = index <= of_segment(tf.where(is_best, index, -1))
    n, is_open = middle(low, high), low < high
    low = tf.where(is_open & is_below, n, low)
    high = tf.where(is_open & ~is_below, n - 1, high)
    # Sums that the loop carries are the same to the bit in all that is made of them.
    return low, high, gains(low, high)

  low = tf.zeros_like(index)
  high = tf.where(entries.is_used, number, 0)
  return tf.while_loop(
    lambda low, high, _: tf.reduce_any(low < high),
    place_middle,
    [low, high, gains(low, high)],
  )[0]


def _positives_below(scores, above, descending):
  """How many positives the best ranking has below an entry, if it is a negative.

  Args:
    scores: [R, K] float32.
    above: [R + 1] int32; c, which descends.
    descending: as for `_best_ranking`.

  Returns:
    [R, K] float32; for negatives whose scores tie, the mean over them.
  """
  # The lowest negative above each positive: all above it are, and of its ties a part.
  lowest = tf.gather(descending, tf.maximum(above - 1, 0))
  lowest = tf.where(above > 0, lowest, knots.INFINITY)
  ascending = tf.reverse(descending, [0])
  up_to = scans.search_in_loop(lowest, ascending)
  ties = up_to - scans.search_in_loop(lowest, ascending, strictly=True)
  higher = tables.length(descending) - up_to
  part = tf.where(above > 0, (above - higher) / tf.maximum(ties, 1), 0.0)
  first = scans.search_in_loop(lowest, lowest, strictly=True)
  parts = tf.pad(scans.sum_up_to(part), [[1, 0]])
  at_tie = tf.cast(first, tf.float64) + parts[1:] - tf.gather(parts, first)

  position = scans.search_in_loop(scores, lowest)
  is_tie = tf.gather(tf.pad(lowest, [[1, 0]]), position) == scores
  is_tie &= position > 0
  at_tie = tf.pad(tf.cast(at_tie, tf.float32), [[1, 0]])
  return tf.where(is_tie, tf.gather(at_tie, position), tf.cast(position, tf.float32))


def _mean_over_ties(ascending, values):
  """Values [n] float64, with their mean where entries of `ascending` [n] tie."""
  begin = scans.search_in_loop(ascending, ascending, strictly=True)
  end = scans.search_in_loop(ascending, ascending)
  sums = tf.pad(scans.sum_up_to(values), [[1, 0]])
  sums = tf.gather(sums, end) - tf.gather(sums, begin)
  return sums / tf.cast(end - begin, tf.float64)
