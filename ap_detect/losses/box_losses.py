"""Box-regression losses over the positive anchors of a mini-batch.

Each takes predictions, targets and which anchors are positive. `smooth_l1` and `l1`
compare encoded offsets, `giou` the boxes themselves.
"""

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
  box_outputs, box_targets, is_positive = _of_positives(
    is_positive, box_outputs=box_outputs, box_targets=box_targets
  )
  difference = box_outputs - box_targets
  distance = tf.abs(difference)
  loss = tf.where(
    distance < beta, 0.5 * tf.square(difference) / beta, distance - 0.5 * beta
  )
  return tf.reduce_sum(loss) / (4.0 * _divisor(is_positive, normalizer))


def l1(box_outputs, box_targets, is_positive, *, normalizer=None):
  """L1 loss: mean absolute difference over the four offsets of all positive anchors.

  L = 1 / (4 max(|P|, 1)) * sum_{positives, 4 offsets} |output - target|

  Args:
    box_outputs, box_targets, is_positive, normalizer: as for `smooth_l1`.

  Returns:
    [] float32, >= 0. 0 where there is no positive.

  Raises:
    ValueError: shapes do not fit.

  Example:
    >>> outputs = tf.constant([[0.5, 0.0, 0.0, -3.0], [9.0, 9.0, 9.0, 9.0]])
    >>> float(l1(outputs, tf.zeros([2, 4]), tf.constant([True, False])))
    0.875
  """
  box_outputs, box_targets, is_positive = _of_positives(
    is_positive, box_outputs=box_outputs, box_targets=box_targets
  )
  distance = tf.abs(box_outputs - box_targets)
  return tf.reduce_sum(distance) / (4.0 * _divisor(is_positive, normalizer))


def giou(boxes, target_boxes, is_positive, *, normalizer=None):
  """GIoU loss: mean of 1 - GIoU over all positive anchors.

  GIoU = IoU - |hull minus union| / |hull|, the hull being the smallest box around
  both boxes                                              (Rezatofighi et al. 2019, eq. 1)

  Args:
    boxes: [..., 4] float, yxyx; decoded from the network's outputs. Where a side is not
      positive, the area is 0.
    target_boxes: [..., 4] float, yxyx, in the same unit; the matched boxes. Entries of
      anchors that are not positive have no influence, whatever they or `boxes` hold.
    is_positive, normalizer: as for `smooth_l1`.

  Returns:
    [] float32, >= 0; without `normalizer` at most 2. 0 where there is no positive.

  Raises:
    ValueError: shapes do not fit.

  Example: side by side, touching: IoU 0, and the hull is full
    >>> boxes = tf.constant([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
    >>> targets = tf.constant([[0.0, 2.0, 2.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
    >>> float(giou(boxes, targets, tf.constant([True, True])))
    0.5
  """
  boxes, target_boxes, is_positive = _of_positives(
    is_positive, boxes=boxes, target_boxes=target_boxes
  )
  low, high = boxes[..., :2], boxes[..., 2:]
  target_low, target_high = target_boxes[..., :2], target_boxes[..., 2:]
  shared = _area(tf.maximum(low, target_low), tf.minimum(high, target_high))
  union = _area(low, high) + _area(target_low, target_high) - shared
  hull = tf.maximum(high, target_high) - tf.minimum(low, target_low)
  # One side after the other: the area of the hull of far-off boxes would overflow.
  filled = tf.math.divide_no_nan(
    tf.math.divide_no_nan(union, hull[..., 0]), hull[..., 1]
  )
  # 1 - GIoU = (1 - IoU) + (1 - filled); a hull without area has nothing to be filled.
  loss = 2.0 - tf.math.divide_no_nan(shared, union) - filled
  loss = tf.where(is_positive, loss, 0.0)
  return tf.reduce_sum(loss) / _divisor(is_positive, normalizer)


def _area(low, high):
  sides = tf.maximum(high - low, 0.0)
  return sides[..., 0] * sides[..., 1]


def _of_positives(is_positive, **named):
  """The two tensors, 0 where an anchor is not positive, and is_positive."""
  is_positive = tf.convert_to_tensor(is_positive)
  if is_positive.dtype != tf.bool:
    raise ValueError(f"is_positive must be bool, got {is_positive.dtype.name}")
  expected = is_positive.shape.concatenate([4])
  tensors = []
  for name, value in named.items():
    tensor = tf.cast(tf.convert_to_tensor(value), tf.float32)
    if not tensor.shape.is_compatible_with(expected):
      raise ValueError(
        f"{name} must have the shape of is_positive and 4 numbers, {expected}, got "
        f"{tensor.shape}"
      )
    # The inputs are replaced, not the result: 0 times a NaN gradient would be NaN.
    tensors.append(tf.where(is_positive[..., tf.newaxis], tensor, 0.0))
  return (*tensors, is_positive)


def _divisor(is_positive, normalizer):
  if normalizer is not None:
    return normalizer
  return tf.maximum(tf.reduce_sum(tf.cast(is_positive, tf.float32)), 1.0)
