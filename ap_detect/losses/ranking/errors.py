"""What a ranking loss makes of the comparisons: the seam between engine and losses."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Comparisons(NamedTuple):
  """How every positive compares with everything else.

  n entries, in ascending order of the positives' scores; entries from the number of
  positives on are not used, and what is computed of them does not count.

  Attributes:
    rank_in_positives: [n] float64; a_i = 1 + sum_{k in P, k != i} f(s_k - s_i).
    negatives_above: [n] float64; b_i = sum_{j in N} f(s_j - s_i); exactly 0 where no
      negative lies above s_i - delta.
    num_negatives: [] float64; |N|.
    scores: [n] float32; +inf where not used.
    is_used: [n] bool.
    shares: [n] float64; w_i / sum w, of the positives' weights.
    qualities: [n] float64, or None where the loss was given none.
    delta: [] float64; half-width of the step f.
  """

  rank_in_positives: tf.Tensor
  negatives_above: tf.Tensor
  num_negatives: tf.Tensor
  scores: tf.Tensor
  is_used: tf.Tensor
  shares: tf.Tensor
  qualities: tf.Tensor | None
  delta: tf.Tensor


class Errors(NamedTuple):
  """Every positive's error, before the positives' weights.

  The loss is sum_i shares_i error_i, and its update adds -shares_i error_i + push_i to
  positive i and sum_i shares_i weight_i f(s_j - s_i) to negative j.

  Attributes:
    error: [n] float64, >= 0; e_i.
    weight: [n] float64, >= 0; what the error puts on a negative that lies wholly above
      the positive. For an update that sums to 0, weight_i b_i is what of e_i is owed to
      negatives.
    push: [n] float64; what errors of other positives put on this one, with their shares;
      None for nothing.
  """

  error: tf.Tensor
  weight: tf.Tensor
  push: tf.Tensor | None = None
