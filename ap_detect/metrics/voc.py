"""PASCAL VOC's average precision, by the rules of its development kit.

The kit's VOCevaldet.m decides which detections are right, its VOCap.m (and before 2010
VOCevaldet.m itself) what the average precision of their ranking is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ap_detect.metrics import results as results_lib

if TYPE_CHECKING:
  from ap_detect.data.records import DetectionDataset, ImageRecord

# Quotients, not multiples of 0.05: an IoU of exactly 55 / 100 is then this very number.
IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))

_AP50, _AP75 = IOU_THRESHOLDS.index(0.5), IOU_THRESHOLDS.index(0.75)


@dataclasses.dataclass(frozen=True)
class VocEvaluation:
  """What VOC's evaluation says of one set of detections. All figures in [0, 1].

  A set of figures is a dict of AP50 and AP75, at these IoUs in percent, and AP, the
  mean over the IoUs 0.5, 0.55, ... 0.95.

  Attributes:
    eleven_point: figures by VOC 2007's rule; means over the classes that have objects.
    area: the same by the rule of VOC 2010 and later.
    per_class: class name -> {"eleven_point": figures, "area": figures}, in the order of
      the classes 1..K; each figure is None where the class has no objects.
    num_images: of the dataset, all of them counted.
    num_objects: class name -> objects that count: difficult ones do not.
  """

  eleven_point: dict[str, float]
  area: dict[str, float]
  per_class: dict[str, dict[str, dict[str, float | None]]]
  num_images: int
  num_objects: dict[str, int]

  def to_json(self) -> dict[str, Any]:
    """The fields as a dict that json.dump takes."""
    return dataclasses.asdict(self)


def evaluate_voc(
  dataset: DetectionDataset, results: list[dict[str, Any]]
) -> VocEvaluation:
  """VOC's evaluation of boxes, by both of its rules. See `match` for what is a hit.

  Args:
    dataset: of distinct image ids, category ids and class names.
    results: as `coco_results` returns, of all images together; may be empty. All of
      them count.

  Returns:
    The figures.

  Raises:
    ValueError: as `evaluate_coco` raises it.
  """
  results_lib.check_dataset(dataset)
  matches = match(dataset, results)
  num_objects = results_lib.count_objects(dataset)
  # [thresholds][K]
  hits = [matches.hits(iou) for iou in IOU_THRESHOLDS]
  rules = {"eleven_point": eleven_point_ap, "area": area_ap}
  per_class = {
    name: {rule: _figures(ap, of_class, count) for rule, ap in rules.items()}
    for (name, count), of_class in zip(num_objects.items(), zip(*hits))
  }
  return VocEvaluation(
    **{
      rule: _means([figures[rule] for figures in per_class.values()]) for rule in rules
    },
    per_class=per_class,
    num_images=len(dataset.records),
    num_objects=num_objects,
  )


def eleven_point_ap(hits: np.ndarray, num_objects: int) -> float:
  """Average precision of VOC 2007 to 2009.

  The mean, over the recalls 0, 0.1, ... 1, of the best precision at this recall or a
  higher one; 0 where none is as high. Recalls are compared without rounding.

  Args:
    hits: [N] bool, whether each detection is right, best score first.
    num_objects: to be found; > 0.

  Returns:
    The average precision, in [0, 1].

  Example: recall 1/2 is reached with precision 1, recall 1 with 2/3.
    >>> round(eleven_point_ap(np.array([True, False, True]), 2), 6)
    0.848485
  """
  best = np.append(_best_precision_from_here(hits), 0.0)
  # The first detection of recall >= i / 10.
  first = np.searchsorted(10 * np.cumsum(hits), num_objects * np.arange(11))
  return float(best[first].mean())


def area_ap(hits: np.ndarray, num_objects: int) -> float:
  """Average precision of VOC 2010 and later: the area under the best precision.

  Each hit raises recall by 1 / num_objects, at the best precision there or later.

  Args:
    hits: [N] bool, whether each detection is right, best score first.
    num_objects: to be found; > 0.

  Returns:
    The average precision, in [0, 1].

  Example: 1/2 at precision 1, 1/2 at 2/3.
    >>> round(area_ap(np.array([True, False, True]), 2), 6)
    0.833333
  """
  return float(_best_precision_from_here(hits)[hits].sum() / num_objects)


class Matches(NamedTuple):
  """Detections, class by class and best score first, and what each overlaps most.

  Attributes:
    starts: [K + 1] integer; those of class k are starts[k - 1] to starts[k].
    overlaps: [D] float64, with the object that it overlaps most; 0 where it overlaps
      none.
    objects: [D] integer, number of that object in the dataset.
    difficult: [D] bool, whether that object is difficult.
    crowd_overlaps: [D] float64, with the crowd that it overlaps most; 0 for none.
  """

  starts: np.ndarray
  overlaps: np.ndarray
  objects: np.ndarray
  difficult: np.ndarray
  crowd_overlaps: np.ndarray

  def hits(self, iou: float) -> list[np.ndarray]:
    """Which detections are right at an IoU threshold, by the rules of `match`.

    Args:
      iou: overlap that a hit needs at least; in (0, 1].

    Returns:
      For each class 1..K, [N] bool: whether each detection that counts is right, best
      score first. Those that count neither for nor against are left out.

    Raises:
      ValueError: iou is not in (0, 1].
    """
    results_lib.check_iou(iou)
    overlapping = self.overlaps >= iou
    candidates = np.flatnonzero(overlapping & ~self.difficult)
    _, first = np.unique(self.objects[candidates], return_index=True)
    hits = np.zeros(len(overlapping), bool)
    hits[candidates[first]] = True
    counted = ~(overlapping & self.difficult)
    counted &= hits | (self.crowd_overlaps < iou)
    slices = [slice(*ends) for ends in zip(self.starts, self.starts[1:])]
    return [hits[part][counted[part]] for part in slices]


def match(dataset: DetectionDataset, results: list[dict[str, Any]]) -> Matches:
  """Gives every detection to the object that it overlaps most.

  The kit's rules. Detections of a class are taken by descending score; of equal scores
  the one that stands first in `results` is first. A detection is given to the object of
  its image and class that it overlaps most, whether difficult or not, taken or not; of
  equal overlaps to the object that stands first. Where the overlap is at least the
  threshold (the kit's `ovmax>=VOCopts.minoverlap`; a well-known Python version has `>`),
  a detection of a difficult object counts neither for nor against, the first of another
  object is a hit, and any further one is false. All other detections are false.

  Boxes are continuous coordinates here. `read_voc` turns the kit's first and last
  pixels into the pixels' outer edges when told one_based_inclusive, and then IoU is the
  kit's overlap, which counts a box's last row and column (its + 1).

  VOC has no crowds. Where a dataset has, no detection is given to one, and a detection
  that is no hit counts neither for nor against where the threshold share of its area
  lies in one.

  Args:
    dataset: of distinct image ids, category ids and class names.
    results: as `coco_results` returns; may be empty.

  Returns:
    Matches.

  Raises:
    ValueError: a result names an unknown image or category or has a box or score that
      is none.
  """
  found = results_lib.result_arrays(dataset, results)
  most, objects, difficult, crowd_most = (
    np.zeros(len(results), dtype) for dtype in (np.float64, np.int64, bool, np.float64)
  )
  by_image = np.argsort(found.images, kind="stable")
  ends = np.searchsorted(found.images[by_image], np.arange(len(dataset.records) + 1))
  num_before = 0
  for record, start, end in zip(dataset.records, ends, ends[1:]):
    here = by_image[start:end]
    if len(here) and len(record.boxes):
      most[here], nearest, crowd_most[here] = _most_overlapped(
        record, found.boxes[here], found.classes[here], dataset.ignored_are_crowds
      )
      objects[here] = num_before + nearest
      difficult[here] = record.ignored[nearest]
    num_before += len(record.boxes)
  ranked = np.lexsort((-found.scores, found.classes))
  numbers = np.arange(1, len(dataset.class_names) + 2)
  starts = np.searchsorted(found.classes[ranked], numbers)
  return Matches(starts, *(v[ranked] for v in (most, objects, difficult, crowd_most)))


def format_voc_table(evaluation: VocEvaluation) -> str:
  """The figures of both rules, class by class, then their means; '-' for no objects."""
  width = max(len("class"), *(len(name) for name in evaluation.per_class))
  rule = f"{'AP':>5}  {'AP50':>5}  {'AP75':>5}"
  before = " " * (4 + 2 + width + 2 + 7)
  lines = [
    f"{before}  {'VOC 2007, 11 points':<19}  VOC 2010, area",
    f"{'id':>4}  {'class':<{width}}  objects  {rule}  {rule}",
  ]
  rows: list[tuple[str, str, int, Any]] = [
    (str(k), name, evaluation.num_objects[name], figures)
    for k, (name, figures) in enumerate(evaluation.per_class.items(), 1)
  ]
  means = {"eleven_point": evaluation.eleven_point, "area": evaluation.area}
  rows.append(("", "mean", sum(evaluation.num_objects.values()), means))
  for number, name, objects, figures in rows:
    row = "  ".join(
      f"{'-':>5}" if value is None else f"{value:5.3f}"
      for rule in ("eleven_point", "area")
      for value in (figures[rule][key] for key in ("AP", "AP50", "AP75"))
    )
    lines.append(f"{number:>4}  {name:<{width}}  {objects:>7}  {row}")
  return "\n".join(lines)


def _most_overlapped(
  record: ImageRecord, boxes: np.ndarray, classes: np.ndarray, ignored_are_crowds: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(overlaps, indices of the objects, overlaps with crowds), [D] each, in one image."""
  overlaps = results_lib.overlaps(record, boxes, ignored_are_crowds=ignored_are_crowds)
  is_other = (classes[:, np.newaxis] != record.classes) & (record.classes > 0)
  overlaps[is_other] = 0
  crowds = record.ignored & ignored_are_crowds
  crowd_overlaps = np.where(crowds, overlaps, 0).max(-1)
  overlaps[:, crowds] = 0
  return overlaps.max(-1), overlaps.argmax(-1), crowd_overlaps


def _best_precision_from_here(hits: np.ndarray) -> np.ndarray:
  """[N] the best precision of each detection and all later ones."""
  precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
  return np.maximum.accumulate(precision[::-1])[::-1]


def _figures(
  average_precision: Callable[[np.ndarray, int], float],
  hits: tuple[np.ndarray, ...],
  num_objects: int,
) -> dict[str, float | None]:
  """One class's figures by one rule; `hits` at each of IOU_THRESHOLDS."""
  if num_objects == 0:
    return dict.fromkeys(("AP", "AP50", "AP75"))
  values = [average_precision(at_iou, num_objects) for at_iou in hits]
  return {"AP": float(np.mean(values)), "AP50": values[_AP50], "AP75": values[_AP75]}


def _means(figures: list[dict[str, float | None]]) -> dict[str, float]:
  """The means over the classes that have figures."""
  return {
    key: float(np.mean([v for v in (f[key] for f in figures) if v is not None]))
    for key in ("AP", "AP50", "AP75")
  }
