"""Anchors in float64, one at a time."""

from __future__ import annotations

import math


def generate_anchors(image_size, levels, base_scale, octave_scales, aspect_ratios):
  """List of (level, row, column, anchor of the cell, yxyx box), in order."""
  found = []
  for level in levels:
    stride = 2**level
    for row in range(math.ceil(image_size[0] / stride)):
      for column in range(math.ceil(image_size[1] / stride)):
        shapes = [(scale, ratio) for scale in octave_scales for ratio in aspect_ratios]
        for position, (scale, ratio) in enumerate(shapes):
          side = base_scale * stride * scale
          height, width = side * math.sqrt(ratio), side / math.sqrt(ratio)
          y, x = (row + 0.5) * stride, (column + 0.5) * stride
          box = (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
          found.append((level, row, column, position, box))
  return found
