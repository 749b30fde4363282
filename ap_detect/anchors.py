"""Anchors: the boxes of fixed size and shape that the network classifies and moves."""

from __future__ import annotations

import math

import numpy as np


def generate_anchors(
  image_size,
  *,
  levels=(3, 4, 5, 6, 7),
  base_scale=4.0,
  octave_scales=(1.0, 2**0.5),
  aspect_ratios=(0.5, 1.0, 2.0),
):
  """Anchors of a feature pyramid, level by level, row by row, cell by cell.

  A cell of level l has its centre at (i + 1/2) * 2^l pixels and one anchor for every
  octave scale and aspect ratio, of area (base_scale * 2^l * octave scale)^2. Level l
  has ceil(image size / 2^l) cells a side. Defaults as in the authors' release.

  Args:
    image_size: (height, width) of the network's input, pixels.
    levels: pyramid levels.
    base_scale: side of the smallest square anchor, in strides of its level.
    octave_scales: factors of the side.
    aspect_ratios: height / width.

  Returns:
    [A, 4] float32, yxyx, pixels; not clipped to the image.

  Example: one level, one cell
    >>> generate_anchors((8, 8), levels=(3,), octave_scales=(1.0,),
    ...                  aspect_ratios=(1.0,)).tolist()
    [[-12.0, -12.0, 20.0, 20.0]]
  """
  sizes = np.array(
    [
      (scale * math.sqrt(ratio), scale / math.sqrt(ratio))
      for scale in octave_scales
      for ratio in aspect_ratios
    ]
  )
  return np.concatenate(
    [_level_anchors(image_size, 2**level, base_scale * sizes) for level in levels]
  ).astype(np.float32)


def anchors_per_level(image_size, *, levels=(3, 4, 5, 6, 7), anchors_per_cell=6):
  """Number of anchors of each pyramid level.

  Example:
    >>> sum(anchors_per_level((512, 512)))
    32736
  """
  height, width = image_size
  return [
    math.ceil(height / 2**level) * math.ceil(width / 2**level) * anchors_per_cell
    for level in levels
  ]


def _level_anchors(image_size, stride, sizes_in_strides):
  """[cells * S, 4] for sizes_in_strides [S, 2] (height, width)."""
  rows, columns = (math.ceil(side / stride) for side in image_size)
  y, x = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
  centers = np.stack([y, x], axis=-1).reshape(-1, 1, 2) * stride
  half = 0.5 * stride * sizes_in_strides[np.newaxis]
  return np.concatenate([centers - half, centers + half], axis=-1).reshape(-1, 4)
