"""AP-loss and its error-driven update (Chen et al., CVPR 2019)."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import pairwise, scans


def ap_loss(
  logits,
  labels,
  *,
  delta=1.0,
  interpolated=True,
  images_per_ranking=None,
  jit_compile=True,
):
  """AP-loss: one minus the average precision of the ranking of all box-class pairs.

  L = 1/|P| sum_{i in P} sum_{j in N} L_ij                     (Chen et al. 2019, eq. 5)
  The gradient is the error-driven update (eqs. 9, 13), not the derivative of the value.
  It is computed only where it is asked for, and then takes O((|P| + |N|) log |P|) time
  and O(|P| + |N|) memory like the value: beside the gradient itself about 60 bytes an
  anchor, or 260 where more than 16,384 are positive, whatever K.

  Args:
    logits: [..., K] float; scores of every anchor for every class. Ranked as one list.
      float16 and bfloat16 are computed in float32.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K. For a binary
      ranking K is 1 and the labels are -1, 0 and 1.
    delta: half-width of the smoothed step (eq. 14), in logit units; > 0.
    interpolated: whether to use interpolated precision (Algorithm 1).
    images_per_ranking: rank groups of so many entries of the first dimension apart,
      and take the mean of their losses; must divide that dimension. A group without
      positives counts 0. None ranks everything together.
    jit_compile: whether to compile the loss with XLA when it is called outside of a
      function that is compiled itself. False runs it op by op: slower, for debugging.

  Returns:
    [] float32 in [0, 1]. 0 where there is no positive. NaN, as is the gradient of all
    entries that are not ignored, where a logit that is not ignored is not finite or a
    label of a traced function is out of range. The same input always gives the same
    bits on a CPU.

  Raises:
    ValueError: shapes do not fit, delta is not positive, or a label that is not a
      tensor is out of range.
    InvalidArgumentError: a label of an eager tensor is out of range.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [5.0]])  # a negative is 3 above a positive
    >>> float(ap_loss(logits, tf.constant([1, 0, 0])))  # ranked second of two
    0.5
  """
  return pairwise.loss(
    logits,
    labels,
    interpolated_errors if interpolated else plain_errors,
    delta=delta,
    images_per_ranking=images_per_ranking,
    jit_compile=jit_compile,
  )


def ap_loss_and_gradient(
  logits,
  labels,
  *,
  delta=1.0,
  interpolated=True,
  images_per_ranking=None,
  jit_compile=True,
):
  """AP-loss and its error-driven update as plain values, for use outside of Keras.

  g_i = -1/|P| sum_{j in N} L_ij for positives, g_j = 1/|P| sum_{i in P} L_ij for
  negatives, 0 for ignored entries                            (Chen et al. 2019, eq. 13)

  Args:
    logits, labels, delta, interpolated, images_per_ranking, jit_compile: as `ap_loss`.

  Returns:
    (loss [] float32, gradient [..., K] of the logits' type).

  Raises:
    ValueError, InvalidArgumentError: as `ap_loss`.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [5.0]])
    >>> loss, gradient = ap_loss_and_gradient(logits, tf.constant([1, 0, 0]))
    >>> gradient.numpy().ravel().tolist()
    [-0.5, 0.0, 0.5]
  """
  return pairwise.loss_and_gradient(
    logits,
    labels,
    interpolated_errors if interpolated else plain_errors,
    delta=delta,
    images_per_ranking=images_per_ranking,
    jit_compile=jit_compile,
  )


def plain_errors(rank_in_positives, negatives_above, negatives):
  """1 - precision of every positive, and its weight on a negative wholly above it.

  e_i = b_i / (a_i + b_i), w_i = 1 / (a_i + b_i)               (Chen et al. 2019, eq. 3)

  Args:
    rank_in_positives: [n] float64; a_i, 1 plus the other positives above.
    negatives_above: [n] float64; b_i.
    negatives: [] float64; |N|. Not needed here.

  Returns:
    (e [n], w [n]) float64; both 0 where b_i is 0.
  """
  del negatives
  has_error = negatives_above > 0
  weight = tf.where(has_error, 1.0 / (rank_in_positives + negatives_above), 0.0)
  return negatives_above * weight, weight


def interpolated_errors(rank_in_positives, negatives_above, negatives):
  """As `plain_errors`, with interpolated precision (Algorithm 1).

  The precision of a positive is the best one down from it, so its error is the
  least of those of the positives at or below it. Entries ascend by score.
  """
  error, _ = plain_errors(rank_in_positives, negatives_above, negatives)
  error = scans.minimum_up_to(error)
  has_error = negatives_above > 0
  divisor = tf.where(has_error, negatives_above, 1.0)
  return error, tf.where(has_error, error / divisor, 0.0)
