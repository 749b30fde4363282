"""Focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017)."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import labels as labels_lib


def focal_loss(logits, labels, *, alpha=0.25, gamma=2.0):
  """Alpha-balanced focal loss, normalised by the number of positive anchors.

  L = 1 / max(|P|, 1) * sum_{anchors, classes} -alpha_t (1 - p_t)^gamma log(p_t)
  (Lin et al. 2017, eq. 5), with p_t = sigmoid(logit) and alpha_t = alpha for an
  anchor's own class, 1 - sigmoid(logit) and 1 - alpha for every other class.

  Args:
    logits: [..., K] float; scores of every anchor for every class.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    alpha: weight of the positive terms, in [0, 1].
    gamma: focusing exponent, >= 0.

  Returns:
    [] float32, >= 0. Ignored anchors have no influence. NaN, as is the gradient, where
    a label is out of range in a traced function.

  Raises:
    ValueError: shapes do not fit, or alpha or gamma is out of range, or a label that is
      not a tensor is.
    InvalidArgumentError: a label of an eager tensor is out of range.

  Example:
    >>> loss = focal_loss(tf.zeros([1, 1]), tf.constant([1]))  # 1/4 * 1/4 * log(2)
    >>> round(float(loss), 5)
    0.04332
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
  if not gamma >= 0:
    raise ValueError(f"gamma must not be negative, got {gamma}")
  logits, labels = labels_lib.checked(logits, labels)
  return sum_per_positive(
    logits,
    labels,
    lambda logits: _terms(logits, labels, alpha, gamma),
    lambda logits: _slopes(logits, labels, alpha, gamma),
  )


def sum_per_positive(logits, labels, terms, slopes):
  """A loss that is a sum of terms, divided by the number of positive anchors.

  Args:
    logits: [..., K] float.
    labels: [...] int32.
    terms, slopes: functions of the logits to the term of every entry and its derivative,
      [..., K] float32.

  Returns:
    [] float32; sum of terms / max(|P|, 1). NaN where a label is out of range.
  """
  positives = tf.reduce_sum(tf.cast(labels > labels_lib.BACKGROUND, tf.float32))
  are_valid = (labels >= labels_lib.IGNORED) & (labels <= logits.shape[-1])
  scale = 1.0 / tf.maximum(positives, 1.0)
  scale = tf.where(tf.reduce_all(are_valid), scale, float("nan"))

  @tf.custom_gradient
  def loss(logits):
    def gradient(upstream):
      factor = tf.cast(upstream, tf.float32) * scale
      return tf.cast(factor * slopes(logits), logits.dtype)

    # Sums of rows first: XLA spreads those over the processor's cores.
    return scale * tf.reduce_sum(tf.reduce_sum(terms(logits), -1)), gradient

  return loss(logits)


def _wrong_logits(logits, labels, alpha):
  """The logit of the wrong answer, its weight alpha_t, and which entries count."""
  keep = (labels != labels_lib.IGNORED)[..., tf.newaxis]
  logits = tf.where(keep, tf.cast(logits, tf.float32), 0.0)
  # A comparison with the classes, which XLA fuses, instead of a one-hot tensor.
  sign = tf.where(
    labels[..., tf.newaxis] == tf.range(1, logits.shape[-1] + 1), 1.0, -1.0
  )
  weight = tf.where(sign > 0, alpha, 1.0 - alpha)
  return -sign * logits, tf.where(keep, weight, 0.0), sign


def _power(probability, gamma):
  return tf.square(probability) if gamma == 2 else tf.pow(probability, gamma)


def _terms(logits, labels, alpha, gamma):
  # With z the logit of the wrong answer, 1 - p_t = sigmoid(z), -log(p_t) = softplus(z).
  z, weight, _ = _wrong_logits(logits, labels, alpha)
  small = tf.exp(-tf.abs(z))
  wrong = tf.where(z >= 0, 1.0, small) / (1.0 + small)
  return weight * _power(wrong, gamma) * (tf.maximum(z, 0.0) + tf.math.log1p(small))


def _slopes(logits, labels, alpha, gamma):
  # d/dz of sigmoid(z)^gamma softplus(z), by the same formulas. exp(-|z|) is written
  # differently here: XLA would keep the one of the value in memory to use it twice,
  # which takes longer than to compute it anew.
  z, weight, sign = _wrong_logits(logits, labels, alpha)
  small = tf.exp(tf.minimum(z, -z))
  share = 1.0 / (1.0 + small)
  wrong = tf.where(z >= 0, share, small * share)
  softplus = tf.maximum(z, 0.0) + tf.math.log1p(small)
  slope = _power(wrong, gamma) * (gamma * (1.0 - wrong) * softplus + wrong)
  return -sign * weight * slope
