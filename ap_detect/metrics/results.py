"""Detections in COCO's results format: checked, as arrays, and what they overlap."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from ap_detect.data.records import DetectionDataset, ImageRecord


class ResultArrays(NamedTuple):
  """Results as arrays, in their own order.

  Attributes:
    images: [D] integer, indices into DetectionDataset.records.
    classes: [D] integer, 1..K.
    boxes: [D, 4] float64, yxyx, pixels of the image.
    scores: [D] float64.
  """

  images: np.ndarray
  classes: np.ndarray
  boxes: np.ndarray
  scores: np.ndarray


def check_dataset(dataset: DetectionDataset) -> None:
  """Raises ValueError if no object counts, or if ids or class names repeat."""
  if not any(np.any(~np.asarray(r.ignored, bool)) for r in dataset.records):
    raise ValueError(
      f"nothing to evaluate: the {len(dataset.records)} images have no object that "
      "counts (crowd and difficult objects do not)"
    )
  image_ids = [record.image_id for record in dataset.records]
  for noun, values in (
    ("image ids", image_ids),
    ("category ids", dataset.category_ids),
    ("class names", dataset.class_names),
  ):
    repeated = [v for v, count in collections.Counter(values).items() if count > 1]
    if repeated:
      raise ValueError(f"{noun} must be distinct, these repeat: {repeated[:5]}")


def check_results(results, image_index, category_index) -> None:
  """Raises ValueError for results that no evaluation can take.

  Args:
    results: as `coco_results` returns.
    image_index: dict whose keys are the dataset's image ids.
    category_index: dict whose keys are its category ids.
  """
  for field, known in (("image_id", image_index), ("category_id", category_index)):
    unknown = [result[field] for result in results if result[field] not in known]
    if unknown:
      raise ValueError(
        f"{len(unknown)} detections have a {field} that the dataset lacks, "
        f"such as {unknown[0]!r}"
      )
  boxes = np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4)
  scores = np.array([result["score"] for result in results], np.float64)
  # A NaN would match any object.
  good = np.isfinite(boxes).all(-1) & (boxes[:, 2:] >= 0).all(-1)
  good &= (scores >= 0) & (scores <= 1)
  if not good.all():
    raise ValueError(
      f"{np.sum(~good)} detections have a box that is not finite or of negative size, "
      f"or a score outside [0, 1], such as {results[int(np.argmin(good))]}"
    )


def check_iou(iou: float) -> None:
  """Raises ValueError if an IoU threshold is not in (0, 1]."""
  if not 0 < iou <= 1:
    raise ValueError(f"iou must lie in (0, 1], got {iou}")


def result_arrays(
  dataset: DetectionDataset, results: list[dict[str, Any]]
) -> ResultArrays:
  """Results of a dataset as arrays; ValueError as `check_results` raises it."""
  image_index = {record.image_id: n for n, record in enumerate(dataset.records)}
  category_index = {i: k for k, i in enumerate(dataset.category_ids, 1)}
  check_results(results, image_index, category_index)
  boxes = np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4)
  x, y, width, height = boxes.T
  return ResultArrays(
    images=np.array([image_index[r["image_id"]] for r in results], np.int64),
    classes=np.array([category_index[r["category_id"]] for r in results], np.int64),
    boxes=np.stack([y, x, y + height, x + width], axis=-1),
    scores=np.array([result["score"] for result in results], np.float64),
  )


def count_objects(dataset: DetectionDataset) -> dict[str, int]:
  """Class name -> objects that count: crowd and difficult ones do not."""
  counted = np.concatenate(
    [np.asarray(r.classes)[~np.asarray(r.ignored, bool)] for r in dataset.records]
  )
  return {
    name: int(np.sum(counted == k)) for k, name in enumerate(dataset.class_names, 1)
  }


def overlaps(
  record: ImageRecord, boxes: np.ndarray, *, ignored_are_crowds: bool
) -> np.ndarray:
  """How much each of an image's detections overlaps each of its objects.

  Args:
    record: of G objects.
    boxes: [D, 4] float64, yxyx, pixels of the image.
    ignored_are_crowds: whether ignored objects overlap by intersection over the
      detection's area, as COCO's crowds do, or by IoU, as all others.

  Returns:
    [D, G] float64 in [0, 1]; 0 where both boxes are of no size.
  """
  boxes, objects = boxes[:, np.newaxis], np.asarray(record.boxes, np.float64)
  low = np.maximum(boxes[..., :2], objects[:, :2])
  high = np.minimum(boxes[..., 2:], objects[:, 2:])
  shared = np.maximum(high - low, 0).prod(-1)
  areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
  whole = areas + (objects[:, 2:] - objects[:, :2]).prod(-1) - shared
  if ignored_are_crowds:
    whole = np.where(record.ignored, areas, whole)
  return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)
