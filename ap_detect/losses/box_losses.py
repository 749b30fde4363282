"""Box-regression losses over the positive anchors of a mini-batch."""

from __future__ import annotations

import tensorflow as tf


def smooth_l1(box_outputs, box_targets, is_positive, *, beta=1.0, normalizer=None):
  """Smooth-L1 loss: mean over the four offsets of all positive anchors.

  L = 1 / (4 max(|P|, 1)) * sum_{positives, 4 offsets} h(output - target),
  h(x) = x^2 / (2 beta) for |x| < beta; |x| - beta / 2 otherwise.

  |P| counts the positives of everything passed in, so pass the whole mini-batch. The
  authors' release does so for each GPU's own mini-batch.

  Args:
    box_outputs: [..., 4] float; encoded offsets from the network.
    box_targets: [..., 4] float; encoded offsets of the matched boxes. Entries of
      anchors that are not positive have no influence, whatever they hold.
    is_positive: [...] bool; which anchors have a box to regress to.
    beta: where the quadratic part ends, in units of the encoded offsets; > 0.
    normalizer: [] float > 0, what stands in for max(|P|, 1), as for a mean over several
      replicas' mini-batches; None for that.

  Returns:
    [] float32, >= 0. 0 where there is no positive.

  Raises:
    ValueError: shapes do not fit, or beta is not positive.

  Example:
    >>> outputs = tf.constant([[0.5, 0.0, 0.0, 3.0], [9.0, 9.0, 9.0, 9.0]])
    >>> is_positive = tf.constant([True, False])
    >>> round(float(smooth_l1(outputs, tf.zeros([2, 4]), is_positive)), 5)
    0.65625
  """
  if not beta > 0:
    raise ValueError(f"beta must be positive, got {beta}")
  box_outputs = tf.cast(tf.convert_to_tensor(box_outputs), tf.float32)
  box_targets = tf.cast(tf.convert_to_tensor(box_targets), tf.float32)
  is_positive = tf.convert_to_tensor(is_positive)
  _check_shapes(box_outputs, box_targets, is_positive)
  # The inputs are replaced, not the result: 0 times a NaN gradient would be NaN.
  keep = is_positive[..., tf.newaxis]
  difference = tf.where(keep, box_outputs, 0.0) - tf.where(keep, box_targets, 0.0)
  distance = tf.abs(difference)
  loss = tf.where(
    distance < beta, 0.5 * tf.square(difference) / beta, distance - 0.5 * beta
  )
  if normalizer is None:
    normalizer = tf.maximum(tf.reduce_sum(tf.cast(is_positive, tf.float32)), 1.0)
  return tf.reduce_sum(loss) / (4.0 * normalizer)


def _check_shapes(box_outputs, box_targets, is_positive):
  if is_positive.dtype != tf.bool:
    raise ValueError(f"is_positive must be bool, got {is_positive.dtype.name}")
  expected = is_positive.shape.concatenate([4])
  for name, tensor in (("box_outputs", box_outputs), ("box_targets", box_targets)):
    if not tensor.shape.is_compatible_with(expected):
      raise ValueError(
        f"{name} must have the shape of is_positive and 4 offsets, {expected}, "
        f"got {tensor.shape}"
      )
