"""Datasets and detections for the metrics' tests."""

import numpy as np

from ap_detect.data.records import DetectionDataset, ImageRecord
from ap_detect.metrics import coco_results


def record(image_id, boxes=(), classes=(), ignored=None, areas=None):
  """An image of 400 x 400 px; boxes yxyx."""
  boxes = np.array(boxes, np.float64).reshape(-1, 4)
  if ignored is None:
    ignored = np.zeros(len(boxes), bool)
  if areas is None:
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  return ImageRecord(
    image_id=image_id,
    image=f"{image_id}.jpg",
    height=400,
    width=400,
    boxes=boxes,
    classes=np.array(classes, np.int32).reshape(-1),
    ignored=np.array(ignored, bool).reshape(-1),
    areas=np.array(areas, np.float64).reshape(-1),
  )


def dataset(*records, num_classes=1, crowds=True):
  """Of the classes a, b, c..., of category ids 3, 10, 17..."""
  return DetectionDataset(
    records=records,
    class_names=tuple("abcdefgh"[:num_classes]),
    category_ids=tuple(3 + 7 * k for k in range(num_classes)),
    ignored_are_crowds=crowds,
  )


def found(data, image_id, boxes, scores, classes=None):
  """Results of one image; class 1 unless told."""
  classes = np.ones(len(boxes), int) if classes is None else np.array(classes)
  boxes = np.array(boxes, np.float64).reshape(-1, 4)
  return coco_results(image_id, boxes, np.array(scores), classes, data.category_ids)


def random_case(seed, crowds=True, num_images=10, num_classes=3):
  """A dataset and results, and the same as the oracle's images, objects, detections.

  Boxes lie on a coarse grid and scores on few values, so that equal overlaps, overlaps
  of exactly a threshold and equal scores occur.
  """
  rng = np.random.default_rng(seed)
  # Ids in an order that is not the sorted one.
  images = [int(i) for i in rng.permutation(50)[:num_images]]
  data = dataset(num_classes=num_classes, crowds=crowds)
  records, results = [], []
  for image in images:
    records.append(_random_record(rng, image, num_classes))
    boxes, labels = _random_guesses(rng, records[-1], num_classes)
    scores = rng.integers(1, 20, len(boxes)) / 20
    results += found(data, image, boxes, scores, labels)
  data = dataset(*records, num_classes=num_classes, crowds=crowds)
  objects = [item for r in records for item in _oracle_objects(r)]
  detections = [_oracle_detection(r, data.category_ids) for r in results]
  return data, results, sorted(images), objects, detections


def _random_record(rng, image, num_classes):
  boxes = _random_boxes(rng, rng.integers(0, 6))
  classes = rng.integers(1, num_classes + 1, len(boxes))
  # A mask's area is less than its box's.
  sizes = boxes[:, 2:] - boxes[:, :2]
  areas = sizes.prod(-1) * rng.uniform(0.5, 1, len(boxes))
  return record(image, boxes, classes, rng.random(len(boxes)) < 0.25, areas)


def _random_guesses(rng, item, num_classes):
  boxes = _random_boxes(rng, 3)
  labels = rng.integers(1, num_classes + 1, 3)
  if len(item.boxes):
    aimed = rng.integers(0, len(item.boxes), 6)
    boxes = np.concatenate([boxes, item.boxes[aimed] + rng.integers(-4, 5, (6, 4))])
    labels = np.concatenate([labels, item.classes[aimed]])
  boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
  return boxes, labels


def _oracle_objects(item):
  for box, class_id, area, ignored in zip(
    item.boxes.tolist(), item.classes, item.areas, item.ignored
  ):
    yield {
      "image": item.image_id,
      "class_id": int(class_id),
      "box": [box[1], box[0], box[3], box[2]],
      "area": float(area),
      "ignored": bool(ignored),
    }


def _oracle_detection(result, category_ids):
  x, y, width, height = result["bbox"]
  return {
    "image": result["image_id"],
    "class_id": category_ids.index(result["category_id"]) + 1,
    "box": [x, y, x + width, y + height],
    "score": result["score"],
  }


def _random_boxes(rng, count):
  top_left = rng.integers(0, 30, (count, 2)) * 8
  size = rng.choice([16, 24, 48, 64], (count, 1)) * rng.choice([1, 2, 3], (count, 2))
  return np.concatenate([top_left, top_left + size], axis=-1)
