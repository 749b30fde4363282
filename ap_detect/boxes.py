"""Box maths. Boxes are `yxyx`: [ymin, xmin, ymax, xmax], continuous coordinates."""

from __future__ import annotations

import tensorflow as tf

# Standard deviations of the box targets in the authors' release (and Fast R-CNN).
BOX_VARIANCES = (0.1, 0.1, 0.2, 0.2)

# exp() of a larger size offset is taken for this one (torchvision and Detectron use
# the same bound), so that a box stays finite whatever the network says.
MAX_LOG_SIZE_RATIO = 4.135166556742356  # log(1000 / 16)


def area(boxes):
  """Area of boxes; 0 where a box is degenerate.

  Args:
    boxes: [..., 4] float, yxyx.

  Returns:
    [...] of the same type, in squared units of the boxes.

  Example:
    >>> area(tf.constant([[0.0, 0.0, 2.0, 3.0]])).numpy().tolist()
    [6.0]
  """
  height = tf.maximum(boxes[..., 2] - boxes[..., 0], 0)
  width = tf.maximum(boxes[..., 3] - boxes[..., 1], 0)
  return height * width


def mirror(boxes, width):
  """Boxes of an image whose left and right are exchanged.

  Args:
    boxes: [..., 4] float, yxyx.
    width: of the image, in units of the boxes; broadcasts against [...].

  Returns:
    [..., 4] of the same type.

  Example:
    >>> mirror(tf.constant([[0.0, 1.0, 2.0, 4.0]]), 10.0).numpy().tolist()
    [[0.0, 6.0, 2.0, 9.0]]
  """
  ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
  return tf.stack([ymin, width - xmax, ymax, width - xmin], axis=-1)


def turn(boxes, orientation, height, width):
  """Boxes of an image that is turned as `images.turn` does.

  Args:
    boxes: [..., 4] float, yxyx.
    orientation: EXIF's, 1..8; an integer.
    height: of the image before, in units of the boxes.
    width: likewise.

  Returns:
    [..., 4] of the same type.

  Example:
    >>> turn(tf.constant([[0.0, 1.0, 2.0, 4.0]]), 6, 5.0, 10.0).numpy().tolist()
    [[1.0, 3.0, 4.0, 5.0]]
  """
  ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
  if orientation >= 5:
    ymin, xmin, ymax, xmax = xmin, ymin, xmax, ymax
    height, width = width, height
  if orientation in (3, 4, 7, 8):
    ymin, ymax = height - ymax, height - ymin
  if orientation in (2, 3, 6, 7):
    xmin, xmax = width - xmax, width - xmin
  return tf.stack([ymin, xmin, ymax, xmax], axis=-1)


def intersection(boxes_a, boxes_b):
  """Intersection area of every pair of boxes.

  Args:
    boxes_a: [..., M, 4] float, yxyx.
    boxes_b: [..., N, 4] float, yxyx.

  Returns:
    [..., M, N], in squared units of the boxes.

  Example:
    >>> a = tf.constant([[0.0, 0.0, 2.0, 2.0]])
    >>> intersection(a, tf.constant([[1.0, 1.0, 3.0, 3.0]])).numpy().tolist()
    [[1.0]]
  """
  a = boxes_a[..., :, tf.newaxis, :]
  b = boxes_b[..., tf.newaxis, :, :]
  height = tf.minimum(a[..., 2], b[..., 2]) - tf.maximum(a[..., 0], b[..., 0])
  width = tf.minimum(a[..., 3], b[..., 3]) - tf.maximum(a[..., 1], b[..., 1])
  return tf.maximum(height, 0) * tf.maximum(width, 0)


def iou(boxes_a, boxes_b):
  """Intersection over union of every pair of boxes; 0 where the union is empty.

  Args:
    boxes_a: [..., M, 4] float, yxyx.
    boxes_b: [..., N, 4] float, yxyx.

  Returns:
    [..., M, N] in [0, 1].

  Example:
    >>> a = tf.constant([[0.0, 0.0, 2.0, 2.0]])
    >>> b = tf.constant([[0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 6.0, 6.0]])
    >>> [round(v, 4) for v in iou(a, b).numpy()[0].tolist()]
    [0.3333, 0.0]
  """
  shared = intersection(boxes_a, boxes_b)
  union = area(boxes_a)[..., :, tf.newaxis] + area(boxes_b)[..., tf.newaxis, :] - shared
  return tf.math.divide_no_nan(shared, union)


def clip(boxes, height, width):
  """Boxes cut to the image [0, height] x [0, width].

  Args:
    boxes: [..., 4] float, yxyx, in pixels.
    height: scalar or broadcastable to boxes[..., 0]; pixels.
    width: the same.

  Returns:
    [..., 4], in pixels.

  Example:
    >>> clip(tf.constant([-1.0, 2.0, 9.0, 30.0]), 8.0, 20.0).numpy().tolist()
    [0.0, 2.0, 8.0, 20.0]
  """
  ymin, xmin, ymax, xmax = tf.unstack(boxes, axis=-1)
  return tf.stack(
    [
      tf.clip_by_value(ymin, 0, height),
      tf.clip_by_value(xmin, 0, width),
      tf.clip_by_value(ymax, 0, height),
      tf.clip_by_value(xmax, 0, width),
    ],
    axis=-1,
  )


def encode(boxes, anchors, variances=BOX_VARIANCES):
  """Offsets from anchors to boxes (Faster R-CNN, eq. 2), divided by `variances`.

  Args:
    boxes: [..., 4] float, yxyx, of positive height and width.
    anchors: [..., 4] float, yxyx, of positive height and width.
    variances: divisors of the four offsets (dy, dx, log height, log width).

  Returns:
    [..., 4] offsets (dy, dx, log height ratio, log width ratio).

  Example:
    >>> anchor = tf.constant([0.0, 0.0, 10.0, 10.0])
    >>> encode(tf.constant([1.0, 0.0, 11.0, 10.0]), anchor).numpy().tolist()
    [1.0, 0.0, 0.0, 0.0]
  """
  center, size = _center_and_size(boxes)
  anchor_center, anchor_size = _center_and_size(anchors)
  offsets = [(center - anchor_center) / anchor_size, tf.math.log(size / anchor_size)]
  return tf.concat(offsets, axis=-1) / tf.constant(variances, boxes.dtype)


def decode(offsets, anchors, variances=BOX_VARIANCES):
  """Boxes from offsets: the inverse of `encode`.

  Args:
    offsets: [..., 4] float, as `encode` returns them.
    anchors: [..., 4] float, yxyx.
    variances: as in `encode`.

  Returns:
    [..., 4] boxes, yxyx, in the anchors' unit; not clipped to the image. Size ratios
    are at most 1000 / 16.

  Example:
    >>> anchor = tf.constant([0.0, 0.0, 10.0, 10.0])
    >>> decode(tf.constant([1.0, 0.0, 0.0, 0.0]), anchor).numpy().tolist()
    [1.0, 0.0, 11.0, 10.0]
  """
  offsets = offsets * tf.constant(variances, offsets.dtype)
  anchor_center, anchor_size = _center_and_size(anchors)
  center = offsets[..., :2] * anchor_size + anchor_center
  half = 0.5 * anchor_size * tf.exp(tf.minimum(offsets[..., 2:], MAX_LOG_SIZE_RATIO))
  return tf.concat([center - half, center + half], axis=-1)


def _center_and_size(boxes):
  low, high = boxes[..., :2], boxes[..., 2:]
  return (low + high) / 2, high - low
