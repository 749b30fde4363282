"""Box maths in float64, one box at a time."""

from __future__ import annotations

import math


def area(box):
  """Area of one yxyx box; 0 where a side is not positive."""
  return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def intersection(a, b):
  """Intersection area of two boxes."""
  height = min(a[2], b[2]) - max(a[0], b[0])
  width = min(a[3], b[3]) - max(a[1], b[1])
  if height <= 0 or width <= 0:
    return 0.0
  return height * width


def iou(a, b):
  """Intersection over union of two boxes; 0 where the union is empty."""
  shared = intersection(a, b)
  union = area(a) + area(b) - shared
  return shared / union if union > 0 else 0.0


def clip(box, height, width):
  """One box cut to [0, height] x [0, width]."""
  return [min(max(value, 0.0), limit) for value, limit in zip(box, [height, width] * 2)]


def encode(box, anchor, variances):
  """Faster R-CNN, eq. 2, in the order (y, x, height, width), over the variances."""
  anchor_height, anchor_width = anchor[2] - anchor[0], anchor[3] - anchor[1]
  offsets = (
    ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / anchor_height,
    ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / anchor_width,
    math.log((box[2] - box[0]) / anchor_height),
    math.log((box[3] - box[1]) / anchor_width),
  )
  return [offset / variance for offset, variance in zip(offsets, variances)]


def decode(offsets, anchor, variances):
  """Inverse of `encode`; the size ratio is at most 1000 / 16."""
  dy, dx, log_height, log_width = (
    offset * variance for offset, variance in zip(offsets, variances)
  )
  anchor_height, anchor_width = anchor[2] - anchor[0], anchor[3] - anchor[1]
  y = (anchor[0] + anchor[2]) / 2 + dy * anchor_height
  x = (anchor[1] + anchor[3]) / 2 + dx * anchor_width
  height = anchor_height * math.exp(min(log_height, math.log(1000 / 16)))
  width = anchor_width * math.exp(min(log_width, math.log(1000 / 16)))
  return [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
