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
    [] float32, >= 0. Ignored anchors have no influence.

  Raises:
    ValueError: shapes do not fit, or alpha or gamma is out of range.

  Example:
    >>> loss = focal_loss(tf.zeros([1, 1]), tf.constant([1]))  # 1/4 * 1/4 * log(2)
    >>> round(float(loss), 5)
    0.04332
  """
  if not 0 <= alpha <= 1:
    raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
  if not gamma >= 0:
    raise ValueError(f"gamma must not be negative, got {gamma}")
  logits = tf.convert_to_tensor(logits)
  labels = tf.convert_to_tensor(labels)
  labels_lib.check_logits_and_labels(logits, labels)
  keep = labels != labels_lib.IGNORED
  logits = tf.where(keep[..., tf.newaxis], tf.cast(logits, tf.float32), 0.0)
  classes = tf.range(1, logits.shape[-1] + 1, dtype=labels.dtype)
  is_positive = labels[..., tf.newaxis] == classes  # a comparison, fused under XLA
  # z is the logit of the wrong answer: 1 - p_t = sigmoid(z), -log(p_t) = softplus(z).
  z = tf.where(is_positive, -logits, logits)
  weight = tf.where(is_positive, alpha, 1.0 - alpha)
  log_wrong = -tf.nn.softplus(-z)
  loss = weight * tf.exp(gamma * log_wrong) * tf.nn.softplus(z)
  loss = tf.where(keep[..., tf.newaxis], loss, 0.0)
  positives = tf.reduce_sum(tf.cast(labels > labels_lib.BACKGROUND, tf.float32))
  return tf.reduce_sum(loss) / tf.maximum(positives, 1.0)
