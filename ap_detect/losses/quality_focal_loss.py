"""Quality focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020)."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import labels as labels_lib
from ap_detect.losses.focal_loss import sum_per_positive


def quality_focal_loss(logits, labels, *, qualities, beta=2.0):
  """Focal loss whose target for an anchor's own class is how good its box is.

  L = 1 / max(|P|, 1) * sum_{anchors, classes}
        -|y - p|^beta ((1 - y) log(1 - p) + y log(p))             (Li et al. 2020, QFL)
  with p = sigmoid(logit), and y the anchor's quality for its own class, 0 for every
  other class and for background.

  Args:
    logits: [..., K] float; scores of every anchor for every class.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    qualities: [...] float in [0, 1]; the IoU of every positive anchor's predicted box
      with its object. A constant: nothing is differentiated by it. Entries of other
      anchors have no influence, whatever they hold.
    beta: focusing exponent, >= 1; the paper's is 2.

  Returns:
    [] float32, >= 0. Ignored anchors have no influence. NaN as `focal_loss`.

  Raises:
    ValueError: shapes do not fit, or beta is out of range, or a label as in `focal_loss`.
    InvalidArgumentError: as `focal_loss`.

  Example:
    >>> labels, half = tf.constant([1]), tf.constant([0.5])
    >>> loss = quality_focal_loss(tf.zeros([1, 2]), labels, qualities=half)
    >>> round(float(loss), 5)  # 1/4 * log(2) for the other class, 0 for its own
    0.17329
  """
  if not beta >= 1:
    raise ValueError(f"beta must be at least 1, got {beta}")
  logits, labels = labels_lib.checked(logits, labels)
  qualities = tf.cast(tf.stop_gradient(qualities), tf.float32)
  labels_lib.check_shape("qualities", qualities, labels.shape)
  counted, targets = _counted_and_targets(labels, qualities, logits.shape[-1])
  return sum_per_positive(
    logits,
    labels,
    lambda logits: _terms(logits, counted, targets, beta),
    lambda logits: _slopes(logits, counted, targets, beta),
  )


def _counted_and_targets(labels, qualities, classes):
  """Which anchors count [..., 1], and y of every entry [..., K]."""
  labels = labels[..., tf.newaxis]
  # A comparison with the classes, which XLA fuses, instead of a one-hot tensor.
  is_own = labels == tf.range(1, classes + 1)
  targets = tf.where(is_own, qualities[..., tf.newaxis], 0.0)
  return labels != labels_lib.IGNORED, targets


def _parts(logits, counted, targets):
  """(p (1 - p), p - y, cross-entropy) of every entry."""
  logits = tf.where(counted, tf.cast(logits, tf.float32), 0.0)
  small = tf.exp(-tf.abs(logits))
  larger, smaller = 1.0 / (1.0 + small), small / (1.0 + small)
  p = tf.where(logits >= 0, larger, smaller)
  one_minus_p = tf.where(logits >= 0, smaller, larger)
  # As p - y, but without cancellation where p and y are both next to 1.
  difference = (1.0 - targets) * p - targets * one_minus_p
  log = tf.math.log1p(small)
  entropy = (1.0 - targets) * (tf.maximum(logits, 0.0) + log) + targets * (
    tf.maximum(-logits, 0.0) + log
  )
  return p * one_minus_p, difference, entropy


def _power(distance, exponent):
  if exponent in (1, 2):  # much faster than tf.pow where XLA does not compile
    return distance if exponent == 1 else tf.square(distance)
  return tf.pow(distance, exponent)


def _terms(logits, counted, targets, beta):
  _, difference, entropy = _parts(logits, counted, targets)
  return tf.where(counted, _power(tf.abs(difference), beta) * entropy, 0.0)


def _slopes(logits, counted, targets, beta):
  # dp/dlogit = p (1 - p), and the cross-entropy's derivative by the logit is p - y:
  # beta |p - y|^(beta - 1) sign(p - y) p (1 - p) entropy + |p - y|^beta (p - y).
  slope, difference, entropy = _parts(logits, counted, targets)
  distance = tf.abs(difference)
  sign = tf.sign(difference)
  by_weight = beta * _power(distance, beta - 1.0) * sign * slope * entropy
  return tf.where(counted, by_weight + _power(distance, beta) * difference, 0.0)
