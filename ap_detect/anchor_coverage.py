"""How well anchors cover objects, and which anchors would cover them better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ap_detect import anchors as anchor_ops
from ap_detect import boxes as box_ops

# What a search tries, rounded so that it reads well as an override. Octave scales: none,
# the authors' release's, RetinaNet's.
BASE_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
OCTAVE_SCALES = ((1.0,), (1.0, 1.414), (1.0, 1.26, 1.587))
ASPECT_RATIOS = ((1.0,), (0.5, 1.0, 2.0), (0.333, 0.5, 1.0, 2.0, 3.0))

# Shares of objects whose aspect ratios a search tries too, for data of odd shapes.
_RATIO_QUANTILES = (0.1, 0.5, 0.9)

# Objects a search looks at, as many of each class as possible; more would change hardly
# any share by a percent.
MAX_SEARCHED_OBJECTS = 20_000

# How much less of the classes' objects a setting with fewer anchors may cover than the
# best one and still be recommended.
TOLERANCE = 0.02

# Objects compared at once, to bound the memory.
_CHUNK = 4096


class AnchorSetting(NamedTuple):
  """The anchors of a cell, as `anchors.generate_anchors` takes them.

  Attributes:
    base_scale: side of the smallest square anchor, in strides of its level.
    octave_scales: factors of the side.
    aspect_ratios: height / width.
  """

  base_scale: float
  octave_scales: tuple[float, ...]
  aspect_ratios: tuple[float, ...]

  @property
  def anchors_per_cell(self) -> int:
    return len(self.octave_scales) * len(self.aspect_ratios)


class Coverage(NamedTuple):
  """How well a setting's anchors cover a set of objects.

  Attributes:
    setting: AnchorSetting.
    share: of the objects that some anchor covers at the IoU asked for.
    mean_iou: mean over the objects of the best IoU with any anchor.
    class_shares: the same as `share` for each class that has objects.
  """

  setting: AnchorSetting
  share: float
  mean_iou: float
  class_shares: tuple[float, ...]

  @property
  def mean_class_share(self) -> float:
    """Mean over the classes, in which a rare one counts as much as a frequent one."""
    return sum(self.class_shares) / len(self.class_shares)

  @property
  def worst_class_share(self) -> float:
    return min(self.class_shares)

  def covers_less_than(self, other: Coverage) -> bool:
    """Whether it covers fewer objects, in all or in the class that is covered worst."""
    return self.share < other.share or self.worst_class_share < other.worst_class_share


def best_iou(boxes, image_size, setting: AnchorSetting, *, levels=(3, 4, 5, 6, 7)):
  """Each object's best IoU with any anchor.

  The intersection of two boxes of given sizes only shrinks as their centres move apart,
  along either axis. So the best anchor of a level and shape is that of the cell nearest
  to the object's centre, and no other need be looked at.

  Args:
    boxes: [G, 4] float, yxyx, pixels of the network's input.
    image_size: (height, width) of the network's input, pixels.
    setting: AnchorSetting.
    levels: pyramid levels.

  Returns:
    [G] float32.

  Example: the anchor of the one cell, [0, 0, 8, 8], covers half of the object
    >>> setting = AnchorSetting(1.0, (1.0,), (1.0,))
    >>> best_iou([[0, 0, 8, 16]], (8, 8), setting, levels=(3,)).tolist()
    [0.5]
  """
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  anchors = anchor_ops.generate_anchors(image_size, levels=levels, **setting._asdict())
  found = [np.zeros([0], np.float32)]
  for start in range(0, len(boxes), _CHUNK):
    chunk = boxes[start : start + _CHUNK]
    nearest = _nearest_anchors(chunk, image_size, levels, setting.anchors_per_cell)
    iou = box_ops.iou(chunk[:, np.newaxis], anchors[nearest])
    found.append(iou.numpy().max(axis=(1, 2)))
  return np.concatenate(found)


def search_settings(
  boxes,
  image_size,
  current: AnchorSetting,
  *,
  classes=None,
  positive_iou=0.5,
  levels=(3, 4, 5, 6, 7),
) -> list[Coverage]:
  """How well standard anchors cover a set of objects.

  Args:
    boxes: [G, 4] float, yxyx, pixels of the network's input; at least one. Of more than
      MAX_SEARCHED_OBJECTS, about so many are drawn, as many of each class as it has or
      as fit, always the same; shares are of all objects nevertheless.
    image_size: (height, width) of the network's input, pixels.
    current: the anchors in use.
    classes: [G] integer; None where all are of one class.
    positive_iou: IoU from which an anchor covers an object.
    levels: pyramid levels.

  Returns:
    Coverage of `current`, then of every pair of octave scales and aspect ratios above
    (and of the objects' own ratios), each with the base scale that covers the largest
    share in the mean over the classes, of those that cover no less than `current`.

  Raises:
    ValueError: no object.
  """
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  if not len(boxes):
    raise ValueError("a search for anchors requires at least one object, got none")
  if classes is None:
    classes = np.zeros(len(boxes), np.int64)
  groups = _draw(np.asarray(classes))
  weights = np.array([count / len(classes) for _, count in groups])
  drawn = np.concatenate([indices for indices, _ in groups])
  ends = np.cumsum([len(indices) for indices, _ in groups])[:-1]
  boxes = boxes[drawn]

  def measure(setting):
    per_class = np.split(best_iou(boxes, image_size, setting, levels=levels), ends)
    shares = [float((iou >= positive_iou).mean()) for iou in per_class]
    means = [float(iou.mean()) for iou in per_class]
    return Coverage(
      setting, float(weights @ shares), float(weights @ means), tuple(shares)
    )

  def rank(coverage):
    covers_enough = not coverage.covers_less_than(found[0])
    return covers_enough, coverage.mean_class_share, coverage.share, coverage.mean_iou

  found = [measure(current)]
  for ratios in dict.fromkeys([*ASPECT_RATIOS, _ratios_of(boxes)]):
    for octaves in OCTAVE_SCALES:
      tried = [measure(AnchorSetting(base, octaves, ratios)) for base in BASE_SCALES]
      found.append(max(tried, key=rank))
  return found


def recommend(found: Sequence[Coverage], *, tolerance=TOLERANCE) -> Coverage:
  """The setting with the fewest anchors of those that cover nearly as much as the best.

  None is recommended that covers less than the one in use, see
  `Coverage.covers_less_than`. Of the others, those count that come near the best in the
  mean over the classes.

  Args:
    found: as `search_settings` returns them, the one in use first; it wins a tie in the
      number of anchors.
    tolerance: how much less a setting may cover than the best one.

  Returns:
    One of `found`.
  """
  enough = [item for item in found if not item.covers_less_than(found[0])]
  best = max(coverage.mean_class_share for coverage in enough)
  near = [item for item in enough if item.mean_class_share >= best - tolerance]
  return min(
    near,
    key=lambda coverage: (
      coverage.setting.anchors_per_cell,
      coverage is not found[0],
      -coverage.mean_class_share,
      -coverage.share,
      -coverage.mean_iou,
    ),
  )


def _draw(classes):
  """[(indices of the objects that are looked at, number of all)] of each class."""
  members = [np.flatnonzero(classes == k) for k in np.unique(classes)]
  if len(classes) <= MAX_SEARCHED_OBJECTS:
    return [(indices, len(indices)) for indices in members]
  most = max(1, MAX_SEARCHED_OBJECTS // len(members))
  rng = np.random.default_rng(0)
  return [(rng.permutation(indices)[:most], len(indices)) for indices in members]


def _nearest_anchors(boxes, image_size, levels, anchors_per_cell):
  """[G, L * S] indices of the anchors in the cell of each level nearest to each box."""
  centers = (boxes[:, :2] + boxes[:, 2:]) / 2
  nearest, first = [], 0
  for level in levels:
    rows, columns = (math.ceil(side / 2**level) for side in image_size)
    # Cell i has its centre at (i + 1/2) strides, so it is nearest from i to i + 1.
    cells = np.floor(centers / 2**level).astype(np.int64)
    cells = np.clip(cells, 0, [rows - 1, columns - 1])
    cell = first + (cells[:, 0] * columns + cells[:, 1]) * anchors_per_cell
    nearest.append(cell[:, np.newaxis] + np.arange(anchors_per_cell))
    first += rows * columns * anchors_per_cell
  return np.concatenate(nearest, axis=1)


def _ratios_of(boxes):
  """Aspect ratios that stand for the objects' own, each once, small first."""
  height, width = (boxes[:, 2:] - boxes[:, :2]).T
  ratios = np.quantile(height / width, _RATIO_QUANTILES)
  return tuple(sorted({float(f"{ratio:.2g}") for ratio in ratios}))
