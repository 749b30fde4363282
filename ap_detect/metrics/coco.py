"""COCO's figures, by pycocotools, for any dataset of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ap_detect.metrics.calibration import ScoreCalibration, fit_calibration
from ap_detect.metrics.matches import Matches, coco_matches
from ap_detect.metrics.operating_points import OperatingPoints, find_operating_points
from ap_detect.metrics.outcomes import Outcomes, coco_outcomes
from ap_detect.metrics.results import check_dataset, check_results, count_objects
from ap_detect.metrics.score_thresholds import ScoreThresholds, best_f1_thresholds

if TYPE_CHECKING:
  from ap_detect.data.records import DetectionDataset

# In the order of COCOeval.stats. Areas in px^2: small to 32^2, medium to 96^2, large.
METRIC_NAMES = (
  *("AP", "AP50", "AP75", "APs", "APm", "APl"),
  *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)

# pycocotools' figure where no object is there to be found.
_NO_OBJECTS = -1.0


@dataclasses.dataclass(frozen=True)
class CocoEvaluation:
  """What COCO's evaluation says of one set of detections. All figures in [0, 1].

  Attributes:
    metrics: METRIC_NAMES -> figure; None where no object has that size.
    per_class: class name -> {"AP": figure, "AP50": figure}, in the order of the classes
      1..K; None where the class has no objects.
    score_thresholds: where to cut the detections for showing or serving them; best F1.
    calibration: from the scores to the precisions to expect; None where nothing that
      counts was detected.
    operating_points: where else they can be cut.
    outcomes: the detections that count; not part of the JSON.
    matches: all detections, at every IoU threshold; not part of the JSON.
    num_images: of the dataset, all of them counted.
    num_objects: class name -> objects that count: crowd and difficult ones do not.
  """

  metrics: dict[str, float | None]
  per_class: dict[str, dict[str, float | None]]
  score_thresholds: ScoreThresholds
  calibration: ScoreCalibration | None
  operating_points: OperatingPoints
  outcomes: Outcomes
  matches: Matches
  num_images: int
  num_objects: dict[str, int]

  def to_json(self) -> dict[str, Any]:
    """A dict that json.dump takes: the 12 figures at its top, and the other fields."""
    fields = dataclasses.asdict(self)
    del fields["outcomes"], fields["matches"]
    return {**fields.pop("metrics"), **fields}


def coco_results(
  image_id: int | str,
  boxes: np.ndarray,
  scores: np.ndarray,
  classes: np.ndarray,
  category_ids: Sequence[int],
) -> list[dict[str, Any]]:
  """Detections of one image in COCO's results format.

  Args:
    image_id: ImageRecord.image_id.
    boxes: [D, 4] float, yxyx, pixels of the original image.
    scores: [D] float.
    classes: [D] integer, 1..K.
    category_ids: [K] DetectionDataset.category_ids.

  Returns:
    D dicts of image_id, category_id, bbox (x, y, width, height) and score, all of plain
    Python types and unrounded.

  Raises:
    ValueError: shapes do not fit, or a class is not in 1..K.

  Example:
    >>> coco_results(7, [[1.0, 2.0, 4.0, 6.0]], [0.5], [2], category_ids=(10, 30))
    [{'image_id': 7, 'category_id': 30, 'bbox': [2.0, 1.0, 4.0, 3.0], 'score': 0.5}]
  """
  boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
  classes = np.asarray(classes)
  shape = (len(scores), 4)
  if scores.ndim != 1 or classes.shape != scores.shape or boxes.shape != shape:
    raise ValueError(
      "need boxes [D, 4], scores [D], classes [D], "
      f"got {boxes.shape}, {scores.shape}, {classes.shape}"
    )
  if np.any((classes < 1) | (classes > len(category_ids))):
    raise ValueError(f"classes must be in 1..{len(category_ids)}, got {classes}")
  image_id = str(image_id) if isinstance(image_id, str) else int(image_id)
  categories = [int(category_ids[k - 1]) for k in classes.astype(int)]
  columns = zip(categories, _boxes_xywh(boxes).tolist(), scores.tolist())
  return [
    {"image_id": image_id, "category_id": category, "bbox": bbox, "score": score}
    for category, bbox, score in columns
  ]


def evaluate_coco(
  dataset: DetectionDataset, results: list[dict[str, Any]]
) -> CocoEvaluation:
  """COCO's evaluation of boxes. Every image of the dataset counts.

  Ignored objects are neither missed nor, however many detections fall on one, found
  falsely. COCO crowds overlap a detection by intersection over the detection's area,
  VOC difficult objects by IoU. (The VOC devkit gives a detection to the object it
  overlaps most, ignored or not; COCO prefers the objects that count.)

  Args:
    dataset: of distinct image ids, category ids and class names.
    results: as `coco_results` returns, of all images together; may be empty. Left
      unchanged.

  Returns:
    The figures, and what follows for scores and thresholds.

  Raises:
    ValueError: the dataset has no object that counts, ids repeat, or a result names an
      unknown image or category or has a box or score that is none.
  """
  check_dataset(dataset)
  # Plain integers, whatever the dataset's ids, in the order in which pycocotools would
  # sort those: it breaks ties between scores.
  ids = [record.image_id for record in dataset.records]
  image_index = {i: n for n, i in enumerate(sorted(ids, key=_sort_key), 1)}
  category_index = {i: k for k, i in enumerate(dataset.category_ids, 1)}
  check_results(results, image_index, category_index)
  truth = _truth_annotations(dataset, image_index)
  detections = _detection_annotations(results, image_index, category_index)
  evaluator = COCOeval if dataset.ignored_are_crowds else _PlainIouEval
  with contextlib.redirect_stdout(io.StringIO()):
    coco_eval = evaluator(
      _coco(image_index, category_index, truth),
      _coco(image_index, category_index, detections),
      "bbox",
    )
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
  return _evaluation(dataset, coco_eval)


def format_table(
  evaluation: CocoEvaluation, calibration: ScoreCalibration | None = None
) -> str:
  """The 12 figures in pycocotools' wording, then the classes; '-' for no objects.

  Args:
    evaluation: CocoEvaluation.
    calibration: of the scores as they are shown elsewhere; the thresholds' too.

  Returns:
    Lines.
  """
  thresholds = evaluation.score_thresholds.calibrated(calibration)
  objects = evaluation.num_objects
  width = max(len("class"), *(len(name) for name in evaluation.per_class))
  lines = [_metric_line(n, evaluation.metrics[n]) for n in METRIC_NAMES]
  lines += ["", f"  id  {'class':<{width}}  objects     AP   AP50  best F1  at score"]
  for k, (name, figures) in enumerate(evaluation.per_class.items(), 1):
    f1, at = thresholds.per_class_f1[name], thresholds.per_class[name]
    lines.append(f"{k:>4}  {name:<{width}}  " + _row(objects[name], figures, f1, at))
  f1, at, total = thresholds.overall_f1, thresholds.overall, sum(objects.values())
  lines.append(f"{'':>4}  {'all':<{width}}  " + _row(total, evaluation.metrics, f1, at))
  return "\n".join(lines)


class _PlainIouEval(COCOeval):
  """COCOeval whose ignored objects overlap a detection by plain IoU."""

  def computeIoU(self, imgId, catId):
    truth, detections = self._gts[imgId, catId], self._dts[imgId, catId]
    if not truth or not detections:
      return []
    order = np.argsort([-d["score"] for d in detections], kind="stable")
    boxes = [detections[i]["bbox"] for i in order[: self.params.maxDets[-1]]]
    return coco_mask.iou(boxes, [t["bbox"] for t in truth], [0] * len(truth))


def _boxes_xywh(boxes: np.ndarray) -> np.ndarray:
  ymin, xmin, ymax, xmax = np.moveaxis(np.asarray(boxes, np.float64), -1, 0)
  return np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)


def _sort_key(image_id: int | str) -> tuple[bool, int | str]:
  return isinstance(image_id, str), image_id


def _truth_annotations(dataset, image_index) -> list[dict[str, Any]]:
  num_classes = len(dataset.class_names)
  return [
    {
      "image_id": image_index[record.image_id],
      "category_id": int(category),
      "bbox": bbox,
      "area": float(area),
      "iscrowd": int(ignored),
    }
    for record in dataset.records
    for bbox, class_id, area, ignored in zip(
      _truth_boxes(record).tolist(), record.classes, record.areas, record.ignored
    )
    # Class 0 is ignored in all classes.
    for category in ([class_id] if class_id else range(1, num_classes + 1))
  ]


def _truth_boxes(record):
  """[G, 4] (x, y, width, height)."""
  if record.boxes_xywh is not None:
    return record.boxes_xywh
  return _boxes_xywh(record.boxes)


def _detection_annotations(results, image_index, category_index):
  return [
    {
      "image_id": image_index[result["image_id"]],
      "category_id": category_index[result["category_id"]],
      "bbox": result["bbox"],
      "score": result["score"],
      "area": result["bbox"][2] * result["bbox"][3],
      "iscrowd": 0,
    }
    for result in results
  ]


def _coco(image_index, category_index, annotations) -> COCO:
  """pycocotools' index. (Its own loadRes crashes on no results and changes them.)"""
  coco = COCO()
  coco.dataset = {
    "images": [{"id": i} for i in image_index.values()],
    "categories": [{"id": k} for k in category_index.values()],
    # Ids from 1: as a match, 0 means none.
    "annotations": [{**a, "id": i} for i, a in enumerate(annotations, 1)],
  }
  coco.createIndex()
  return coco


def _evaluation(dataset: DetectionDataset, coco_eval: COCOeval) -> CocoEvaluation:
  names, outcomes = dataset.class_names, coco_outcomes(coco_eval)
  # [IoU thresholds, recalls, K] at area 'all' and the most detections.
  precision = coco_eval.eval["precision"][:, :, :, 0, -1]
  return CocoEvaluation(
    metrics={n: _known(v) for n, v in zip(METRIC_NAMES, coco_eval.stats)},
    per_class={
      name: {"AP": _known(p.mean()), "AP50": _known(p[0].mean())}
      for name, p in zip(names, np.moveaxis(precision, -1, 0))
    },
    score_thresholds=best_f1_thresholds(outcomes, names),
    calibration=fit_calibration(outcomes.scores, outcomes.hits),
    operating_points=find_operating_points(outcomes),
    outcomes=outcomes,
    matches=coco_matches(coco_eval),
    num_images=len(dataset.records),
    num_objects=count_objects(dataset),
  )


def _known(figure: float) -> float | None:
  return None if figure == _NO_OBJECTS else float(figure)


def _metric_line(name: str, figure: float | None) -> str:
  kind = "Precision  (AP)" if name.startswith("AP") else "Recall     (AR)"
  iou = {"AP50": "0.50", "AP75": "0.75"}.get(name, "0.50:0.95")
  area = {"s": "small", "m": "medium", "l": "large"}.get(name[-1], "all")
  most = {"AR1": 1, "AR10": 10}.get(name, 100)
  where = f"IoU={iou:<9} | area={area:>6} | maxDets={most:>3}"
  return f" Average {kind} @[ {where} ] = {_figure(figure)}"


def _row(objects: int, figures: dict[str, Any], f1: float | None, at: float) -> str:
  average_precisions = f"{_figure(figures['AP'])}  {_figure(figures['AP50'])}"
  return f"{objects:>7}  {average_precisions}    {_figure(f1)}    {at:.4f}"


def _figure(figure: float | None) -> str:
  return f"{'-':>5}" if figure is None else f"{figure:5.3f}"
