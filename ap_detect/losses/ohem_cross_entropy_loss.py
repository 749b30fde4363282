"""Cross-entropy with hard negative mining (Liu et al., "SSD", ECCV 2016)."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import labels as labels_lib
from ap_detect.losses.focal_loss import focal_loss


def ohem_cross_entropy_loss(logits, labels, *, negatives_per_positive=3.0):
  """Cross-entropy of all positive anchors and of each image's hardest background anchors.

  L = 1 / max(|P|, 1) * sum_{mined anchors, classes} -log(p_t)
  with p_t = sigmoid(logit) for an anchor's own class, 1 - sigmoid(logit) for every other:
  the sum over classes stands for SSD's softmax over classes and background.

  Mined are the positive anchors and, as in SSD, background anchors of the highest loss of
  their own, summed over classes: in every image, so many times as many as it has positive
  anchors, rounded down, or all of them. An image without positive anchors contributes
  nothing. Where the losses of anchors tie, the first ones are taken. |P| counts the
  positive anchors of all images.

  Args:
    logits: [B, ..., K] float; scores of every anchor for every class. Without a dimension
      between the first and the last, [A, K], they are those of one image.
    labels: [B, ...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    negatives_per_positive: background anchors for each positive one, >= 0.

  Returns:
    [] float32, >= 0. Ignored anchors have no influence. A background anchor with a NaN
    is always mined. NaN as `focal_loss`.

  Raises:
    ValueError: shapes do not fit, or negatives_per_positive is out of range, or a label
      as in `focal_loss`.
    InvalidArgumentError: as `focal_loss`.

  Example:
    >>> labels = tf.constant([1, 0, 0, 0, 0])
    >>> loss = ohem_cross_entropy_loss(tf.zeros([5, 1]), labels)  # 4 of the 5 anchors
    >>> round(float(loss), 5)  # 4 log(2)
    2.77259
  """
  if not 0 <= negatives_per_positive < float("inf"):
    raise ValueError(
      "negatives_per_positive must be finite and not negative, got "
      f"{negatives_per_positive}"
    )
  logits, labels = labels_lib.checked(logits, labels)
  mined = _mined(tf.stop_gradient(logits), labels, negatives_per_positive)
  # Focal loss without focus, in which either side weighs half.
  return 2.0 * focal_loss(logits, mined, alpha=0.5, gamma=0.0)


def _mined(logits, labels, negatives_per_positive):
  """The labels, with IGNORED for background anchors that do not count."""
  images = tf.shape(labels)[0] if labels.shape.rank > 1 else 1
  rows = tf.reshape(labels, [images, tf.size(labels) // tf.maximum(images, 1)])
  is_background = rows == labels_lib.BACKGROUND
  losses = tf.reduce_sum(tf.math.softplus(tf.cast(logits, tf.float32)), -1)
  losses = tf.reshape(losses, tf.shape(rows))
  is_nan = is_background & tf.math.is_nan(losses)
  losses = tf.where(is_background & ~is_nan, losses, -1.0)  # these come last
  positives = tf.reduce_sum(tf.cast(rows > labels_lib.BACKGROUND, tf.float32), 1)
  wanted = tf.floor(negatives_per_positive * positives)
  order = tf.argsort(losses, direction="DESCENDING", stable=True)
  place = tf.argsort(order)
  is_hard = tf.cast(place, tf.float32) < wanted[:, tf.newaxis]
  is_left_out = is_background & ~is_hard & ~is_nan
  return tf.reshape(tf.where(is_left_out, labels_lib.IGNORED, rows), tf.shape(labels))
