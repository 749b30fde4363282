"""What is in a split: counts, and its objects as the network's input will hold them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ap_detect import images as image_ops
from ap_detect.data import image_headers
from ap_detect.data.records import DetectionDataset


class Objects(NamedTuple):
  """The objects of a split that count: those neither difficult nor crowd.

  Attributes:
    image_index: [G] place of each object's image in the dataset's records.
    classes: [G], 1..K.
    boxes: [G, 4] float64, yxyx, pixels of the image.
    placed_boxes: [G, 4] float64, yxyx, pixels of the network's input.
  """

  image_index: np.ndarray
  classes: np.ndarray
  boxes: np.ndarray
  placed_boxes: np.ndarray


class ClassCount(NamedTuple):
  """How many objects a class has, and how many images have any."""

  name: str
  objects: int
  images: int


def describe_images(records) -> list[str]:
  """What is done to some images of a split that differ from the others, as sentences.

  Args:
    records: ImageRecords.
  """
  headers = [record.header for record in records if record.header]
  formats = [header.format for header in headers]
  numbers = {
    "images are turned as their EXIF data says": sum(
      header.orientation > 1 for header in headers
    ),
    "of these have annotations of the stored image, by the size that these give; their "
    "boxes are turned with them": sum(record.boxes_were_turned for record in records),
    "PNGs of 16 bits are each scaled by the smallest 2^n - 1 that holds the image's "
    "maximum": formats.count(image_headers.DEEP_PNG),
    "images are converted to PNG": formats.count(image_headers.CONVERTED),
    "boxes reach past an edge of their image and are clipped": sum(
      record.num_clipped for record in records
    ),
  }
  return [f"{number} {text}" for text, number in numbers.items() if number]


def gather_objects(dataset: DetectionDataset, image_size, *, warp=False):
  """A split's objects that count, also as they lie in the network's input.

  Args:
    dataset: DetectionDataset with at least one image.
    image_size: (height, width) of the network's input, pixels.
    warp: whether images are warped to that size; else they are scaled to fit into its
      top left corner, as in evaluation.

  Returns:
    Objects, in the order of the records.
  """
  records = dataset.records
  kept = [~record.ignored for record in records]
  boxes = np.concatenate([r.boxes.reshape(-1, 4)[k] for r, k in zip(records, kept)])
  classes = np.concatenate([r.classes[k] for r, k in zip(records, kept)])
  image_index = np.repeat(np.arange(len(records)), [k.sum() for k in kept])
  sizes = np.array([(r.height, r.width) for r in records], np.float32)
  scales = np.asarray(image_size, np.float32) / sizes
  if not warp:
    scales[:] = image_ops.scale_to_fit(sizes, image_size).numpy()[:, np.newaxis]
  placed_boxes = boxes * np.tile(scales, [1, 2])[image_index]
  return Objects(image_index, classes, boxes, placed_boxes)


def count(dataset: DetectionDataset) -> dict[str, int]:
  """Numbers of images and objects of a split, by name."""
  records = dataset.records
  return {
    "images": len(records),
    "empty_images": sum(not len(record.boxes) for record in records),
    "objects": sum(int((~record.ignored).sum()) for record in records),
    "ignored_objects": sum(int(record.ignored.sum()) for record in records),
  }


def count_classes(objects: Objects, class_names) -> list[ClassCount]:
  """The objects that count of every class, in the classes' order."""
  per_object = np.bincount(objects.classes, minlength=len(class_names) + 1)
  pairs = np.unique(np.stack([objects.image_index, objects.classes]), axis=1)
  per_image = np.bincount(pairs[1], minlength=len(class_names) + 1)
  return [
    ClassCount(name, int(per_object[k]), int(per_image[k]))
    for k, name in enumerate(class_names, start=1)
  ]
