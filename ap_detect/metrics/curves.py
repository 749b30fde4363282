"""Precision-recall curves, and which classes are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ap_detect.metrics import results as results_lib
from ap_detect.metrics import voc

if TYPE_CHECKING:
  from ap_detect.data.records import DetectionDataset
  from ap_detect.metrics.score_thresholds import ScoreThresholds


class PrecisionRecall(NamedTuple):
  """One class's curve: a point for every detection that counts, best score first.

  Attributes:
    recall: [N] float64, in [0, 1]; does not fall.
    precision: [N] float64, in [0, 1].
    average_precision: the area by VOC 2010's rule, see `voc.area_ap`.
  """

  recall: np.ndarray
  precision: np.ndarray
  average_precision: float


def precision_recall(
  dataset: DetectionDataset, results: list[dict[str, Any]], iou: float = 0.5
) -> dict[str, PrecisionRecall]:
  """Curves of the classes that have objects that count, by `voc.match`'s hits.

  Args:
    dataset: of distinct image ids, category ids and class names.
    results: as `coco_results` returns, of all images together; may be empty.
    iou: overlap that a hit needs at least; in (0, 1].

  Returns:
    Class name -> PrecisionRecall, in the order of the classes.

  Raises:
    ValueError: as `evaluate_coco` raises it, or iou is not in (0, 1].
  """
  results_lib.check_dataset(dataset)
  hits_of_classes = voc.match(dataset, results).hits(iou)
  counts = results_lib.count_objects(dataset)
  return {
    name: PrecisionRecall(
      recall=np.cumsum(hits) / count,
      precision=np.cumsum(hits) / np.arange(1, len(hits) + 1),
      average_precision=voc.area_ap(hits, count),
    )
    for (name, count), hits in zip(counts.items(), hits_of_classes)
    if count
  }


def confusion(
  dataset: DetectionDataset,
  results: list[dict[str, Any]],
  thresholds: ScoreThresholds,
  iou: float = 0.5,
) -> np.ndarray:
  """Which class objects are found as, of the detections that would be shown.

  Takes the detections that reach their class's threshold, image by image, best score
  first and of equal scores in their order in `results`. Each takes, of the objects of
  any class that count and that no other has taken, the one that it overlaps most, if
  that is by IoU `iou` or more. A detection left without an object is one of the
  background, unless it overlaps an ignored object by that much: then it is nowhere in
  the matrix, as the ignored objects are.

  Args:
    dataset: of distinct image ids, category ids and class names.
    results: as `coco_results` returns, of all images together; may be empty.
    thresholds: ScoreThresholds of the dataset's classes.
    iou: overlap that a match needs at least; in (0, 1].

  Returns:
    [K + 1, K + 1] int64. [i - 1, j - 1] counts objects of class i found as class j,
    [i - 1, K] objects of class i that were missed, [K, j - 1] detections of class j
    where no object is, and [K, K] is 0. Row i sums to the objects of class i.

  Raises:
    ValueError: as `evaluate_coco` raises it, or iou is not in (0, 1].
  """
  results_lib.check_dataset(dataset)
  results_lib.check_iou(iou)
  found = results_lib.result_arrays(dataset, results)
  at_least = np.array([thresholds.per_class[name] for name in dataset.class_names])
  kept = np.flatnonzero(found.scores >= at_least[found.classes - 1])
  # By image, best score first.
  kept = kept[np.lexsort((-found.scores[kept], found.images[kept]))]
  ends = np.searchsorted(found.images[kept], np.arange(len(dataset.records) + 1))
  num_classes = len(dataset.class_names)
  matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
  for record, start, end in zip(dataset.records, ends, ends[1:]):
    here = kept[start:end]
    overlaps = results_lib.overlaps(
      record, found.boxes[here], ignored_are_crowds=dataset.ignored_are_crowds
    )
    objects, detections = _found_as(overlaps, record.ignored, iou)
    # Index -1, of none, is that of the last row or column.
    labels = np.append(record.classes, num_classes + 1)[objects] - 1
    guesses = np.append(found.classes[here], num_classes + 1)[detections] - 1
    np.add.at(matrix, (labels, guesses), 1)
  return matrix


def _found_as(
  overlaps: np.ndarray, ignored: np.ndarray, iou: float
) -> tuple[list[int], list[int]]:
  """Pairs of object and detection, index -1 for none, as (objects, detections).

  Args:
    overlaps: [D, G], the detections best score first.
    ignored: [G] bool.
    iou: see `confusion`.
  """
  free = np.where(ignored, 0.0, overlaps)
  on_ignored = np.any((overlaps >= iou) & ignored, axis=-1)
  missed = set(np.flatnonzero(~ignored).tolist())
  objects, detections = [], []
  for d in range(len(overlaps)):
    best = int(free[d].argmax()) if missed else -1
    if best >= 0 and free[d, best] >= iou:
      missed.remove(best)
      free[:, best] = 0.0
    elif on_ignored[d]:
      continue
    else:
      best = -1
    objects.append(best)
    detections.append(d)
  return objects + sorted(missed), detections + [-1] * len(missed)
