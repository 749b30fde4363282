"""AP-loss and its error-driven update (Chen et al., CVPR 2019)."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import ranking_loss as ranking_loss_lib
from ap_detect.losses.ranking import scans
from ap_detect.losses.ranking.errors import Errors


@ranking_loss_lib.with_ranking_options
def ap_loss(logits, labels, *, interpolated=True, **options):
  """AP-loss: one minus the average precision of the ranking of all box-class pairs.

  L = 1/|P| sum_{i in P} sum_{j in N} L_ij                     (Chen et al. 2019, eq. 5)
  The gradient is the error-driven update (eqs. 9, 13), not the derivative of the value.

  Args:
    logits: [..., K] float; scores of every anchor for every class. Ranked as one list.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K. For a binary
      ranking K is 1 and the labels are -1, 0 and 1.
    interpolated: whether to use interpolated precision (Algorithm 1).
    **options: as for `ranking_loss`: weights, class_weights, delta, images_per_ranking,
      ranking_scope, jit_compile, form.

  Returns:
    [] float32 in [0, 1]. 0 where there is no positive. NaN as `ranking_loss`.

  Raises:
    ValueError: interpolated is neither true nor false.
    ValueError, InvalidArgumentError: as `ranking_loss`.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [5.0]])  # a negative is 3 above a positive
    >>> float(ap_loss(logits, tf.constant([1, 0, 0])))  # ranked second of two
    0.5
  """
  if interpolated not in (True, False):  # as "no" from a command line
    raise ValueError(f"interpolated must be True or False, got {interpolated!r}")
  errors = interpolated_errors if interpolated else plain_errors
  return ranking_loss_lib.ranking_loss(logits, labels, errors, **options)


def ap_loss_and_gradient(logits, labels, **options):
  """AP-loss and its error-driven update as plain values, for use outside of Keras.

  g_i = -1/|P| sum_{j in N} L_ij for positives, g_j = 1/|P| sum_{i in P} L_ij for
  negatives, 0 for ignored entries                            (Chen et al. 2019, eq. 13)

  Args:
    logits, labels, **options: as `ap_loss`.

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
  return ranking_loss_lib.loss_and_gradient(ap_loss, logits, labels, **options)


def plain_errors(positives):
  """1 - precision of every positive, and its weight on a negative wholly above it.

  e_i = b_i / (a_i + b_i), w_i = 1 / (a_i + b_i)               (Chen et al. 2019, eq. 3)

  Args:
    positives: ranking.errors.Comparisons.

  Returns:
    ranking.errors.Errors; both 0 where b_i is 0.
  """
  above = positives.negatives_above
  weight = tf.where(above > 0, 1.0 / (positives.rank_in_positives + above), 0.0)
  return Errors(above * weight, weight)


def interpolated_errors(positives):
  """As `plain_errors`, with interpolated precision (Algorithm 1).

  The precision of a positive is the best one down from it, so its error is the
  least of those of the positives at or below it.
  """
  above = positives.negatives_above
  error = scans.minimum_up_to(plain_errors(positives).error)
  return Errors(
    error, tf.where(above > 0, error / tf.where(above > 0, above, 1.0), 0.0)
  )
