"""AUC-loss, the ranking loss that AP-loss is compared with (Chen et al., CVPR 2019)."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import ranking_loss as ranking_loss_lib
from ap_detect.losses.ranking.errors import Errors


@ranking_loss_lib.with_ranking_options
def auc_loss(logits, labels, **options):
  """AUC-loss: the share of positive-negative pairs that are in the wrong order.

  L = 1/(|P| |N|) sum_{i in P} sum_{j in N} f(s_j - s_i)       (Chen et al. 2019, eq. 7)
  The gradient is the error-driven update (eqs. 9, 13), not the derivative of the value.

  Args:
    logits: [..., K] float; scores of every anchor for every class. Ranked as one list.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    **options: as for `ap_loss`.

  Returns:
    [] float32 in [0, 1]. 0 where there is no positive or no negative. NaN as `ap_loss`.

  Raises:
    ValueError, InvalidArgumentError: as `ap_loss`.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [5.0]])  # a negative is 3 above a positive
    >>> float(auc_loss(logits, tf.constant([1, 0, 0])))  # one of two pairs is wrong
    0.5
  """
  return ranking_loss_lib.ranking_loss(logits, labels, errors, **options)


def auc_loss_and_gradient(logits, labels, **options):
  """AUC-loss and its error-driven update as plain values, for use outside of Keras.

  Args:
    logits, labels, **options: as `auc_loss`.

  Returns:
    (loss [] float32, gradient [..., K] of the logits' type).

  Raises:
    ValueError, InvalidArgumentError: as `ap_loss`.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [5.0]])
    >>> loss, gradient = auc_loss_and_gradient(logits, tf.constant([1, 0, 0]))
    >>> gradient.numpy().ravel().tolist()
    [-0.5, 0.0, 0.5]
  """
  return ranking_loss_lib.loss_and_gradient(auc_loss, logits, labels, **options)


def errors(positives):
  """Share of the negatives above every positive, and its weight on each of them.

  e_i = b_i / |N|, w_i = 1 / |N|                               (Chen et al. 2019, eq. 7)

  Args:
    positives: ranking.errors.Comparisons.

  Returns:
    ranking.errors.Errors.
  """
  above = positives.negatives_above
  weight = 1.0 / tf.maximum(positives.num_negatives, 1.0)
  return Errors(above * weight, tf.fill(tf.shape(above), weight))
