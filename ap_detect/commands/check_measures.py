"""What `check` measures of the splits of a config."""

from __future__ import annotations

import collections
import os
from typing import NamedTuple

import numpy as np

from ap_detect import anchor_coverage
from ap_detect import config as config_lib
from ap_detect.data import summary
from ap_detect.data.readers.listing import Listing
from ap_detect.data.records import DetectionDataset
from ap_detect.models import retinanet


class Split(NamedTuple):
  """A split, its objects, and how well the config's anchors cover them.

  Attributes:
    role: "training" or "validation".
    name: in the config.
    dataset: DetectionDataset.
    objects: summary.Objects.
    best_iou: [G] float32, of each object with any anchor.
    orientations: how many images EXIF turns or mirrors, by its orientation, 2 to 8.
  """

  role: str
  name: str
  dataset: DetectionDataset
  objects: summary.Objects
  best_iou: np.ndarray
  orientations: dict[int, int]


class Findings(NamedTuple):
  """All that is reported.

  Attributes:
    config: Config.
    splits: of training, and of validation where it can be read.
    settings: as `anchor_coverage.search_settings` found them on the training split.
    recommended: one of them.
    unused_images: paths, relative to data.root, of the image files there that are in
      none of these splits.
  """

  config: config_lib.Config
  splits: tuple[Split, ...]
  settings: list[anchor_coverage.Coverage]
  recommended: anchor_coverage.Coverage
  unused_images: list[str]


class Axis(NamedTuple):
  """Of a histogram: the edges of its bins, the values to number, and its scale."""

  edges: np.ndarray
  ticks: np.ndarray
  log_scale: bool = False


class Quantity(NamedTuple):
  """Something that objects or images have.

  Attributes:
    name: in report.json.
    title: for people.
    values: [N] for each split.
    axis: of the histogram.
    marks: values to mark in it.
    marked: what they are.
  """

  name: str
  title: str
  values: list[np.ndarray]
  axis: Axis
  marks: tuple[float, ...] = ()
  marked: str = ""


class Uncovered(NamedTuple):
  """An object that no anchor covers; its box in pixels of the image."""

  split: str
  image_id: int | str
  class_name: str
  box_yxyx: list[float]
  input_height_px: float
  input_width_px: float
  best_iou: float


_SIZES = Axis(2.0 ** np.arange(1, 11.1, 0.5), 2.0 ** np.arange(1, 12), log_scale=True)
_RATIOS = Axis(2.0 ** np.arange(-4, 4.1, 0.5), 2.0 ** np.arange(-4, 5), log_scale=True)
_SHARES = Axis(np.linspace(0, 1, 21), np.linspace(0, 1, 11))


class ClassCoverage(NamedTuple):
  """How many objects a class has, in how many images, and how many anchors cover."""

  name: str
  objects: int
  images: int
  covered: int

  @property
  def share(self) -> float | None:
    """Of the objects that are covered; None without any."""
    return self.covered / self.objects if self.objects else None


def measure(config, datasets) -> Findings:
  """Measures the training and the validation split of a config.

  Args:
    config: Config.
    datasets: DetectionDatasets by role, "training" and maybe "validation", each with an
      object that counts.

  Returns:
    Findings.
  """
  model, data = config.model, config.data
  current = anchor_coverage.AnchorSetting(
    model.anchor_base_scale, model.anchor_octave_scales, model.anchor_aspect_ratios
  )
  anchors = {"image_size": data.image_size_px, "levels": retinanet.LEVELS}
  names = {"training": data.train_split, "validation": data.val_split}
  splits = []
  for role, dataset in datasets.items():
    objects = summary.gather_objects(
      dataset, data.image_size_px, warp=data.augmentation == "ssd"
    )
    iou = anchor_coverage.best_iou(objects.placed_boxes, setting=current, **anchors)
    is_turned = data.exif_orientation
    orientations = _count_orientations(dataset.records) if is_turned else {}
    splits.append(Split(role, names[role], dataset, objects, iou, orientations))
  settings = anchor_coverage.search_settings(
    splits[0].objects.placed_boxes,
    current=current,
    classes=splits[0].objects.classes,
    positive_iou=model.positive_iou,
    **anchors,
  )
  recommended = anchor_coverage.recommend(settings)
  unused_images = _find_unused_images(data.root, datasets.values())
  return Findings(config, tuple(splits), settings, recommended, unused_images)


def quantities(findings: Findings) -> list[Quantity]:
  """What is measured of the objects and images."""
  model, splits = findings.config.model, findings.splits
  placed = [split.objects.placed_boxes for split in splits]
  counts = [
    np.bincount(split.objects.image_index, minlength=len(split.dataset.records))
    for split in splits
  ]
  return [
    Quantity(
      "size_in_input_px",
      "size in the network's input, pixels",
      [_size(boxes) for boxes in placed],
      _SIZES,
      anchor_sides(model),
      "the config's anchors",
    ),
    Quantity(
      "size_px",
      "size in the image, pixels",
      [_size(split.objects.boxes) for split in splits],
      _SIZES,
    ),
    Quantity(
      "aspect_ratio",
      "height / width in the network's input",
      [_aspect_ratio(boxes) for boxes in placed],
      _RATIOS,
      model.anchor_aspect_ratios,
      "the config's anchors",
    ),
    Quantity("objects_per_image", "objects of an image", counts, _count_axis(counts)),
    Quantity(
      "best_iou",
      "best IoU of an object with an anchor",
      [split.best_iou for split in splits],
      _SHARES,
      (model.positive_iou,),
      "model.positive_iou",
    ),
  ]


def cover_classes(split: Split, positive_iou: float) -> list[ClassCoverage]:
  """The coverage of every class of a split, in the classes' order."""
  counts = summary.count_classes(split.objects, split.dataset.class_names)
  is_covered = split.best_iou >= positive_iou
  covered = np.bincount(split.objects.classes[is_covered], minlength=len(counts) + 1)
  return [ClassCoverage(*item, int(covered[k])) for k, item in enumerate(counts, 1)]


def find_crowded(split: Split, most: int) -> list[tuple[int | str, int]]:
  """(image id, number of objects) of the images with more than `most`; most first."""
  counts = [(item.image_id, len(item.boxes)) for item in split.dataset.records]
  crowded = [item for item in counts if item[1] > most]
  return sorted(crowded, key=lambda item: -item[1])


def anchor_sides(model) -> tuple[float, ...]:
  """Sizes of the anchors of a ModelConfig, pixels: square roots of their areas."""
  return tuple(
    model.anchor_base_scale * 2**level * octave
    for level in retinanet.LEVELS
    for octave in model.anchor_octave_scales
  )


def find_uncovered(findings: Findings) -> list[Uncovered]:
  """The objects that no anchor of the config covers, the worst first."""
  found = []
  for split in findings.splits:
    objects, records = split.objects, split.dataset.records
    missed = split.best_iou < findings.config.model.positive_iou
    for index in np.flatnonzero(missed):
      height, width = objects.placed_boxes[index, 2:] - objects.placed_boxes[index, :2]
      found.append(
        Uncovered(
          split.role,
          records[objects.image_index[index]].image_id,
          split.dataset.class_names[objects.classes[index] - 1],
          objects.boxes[index].tolist(),
          float(height),
          float(width),
          float(split.best_iou[index]),
        )
      )
  return sorted(found, key=lambda item: item.best_iou)


def _count_orientations(records):
  found = collections.Counter(
    record.header.orientation for record in records if record.header
  )
  return {value: found[value] for value in sorted(found) if value != 1}


def _find_unused_images(root, datasets):
  if not root:
    return []
  used = {
    os.path.realpath(record.image)
    for dataset in datasets
    for record in dataset.records
    if isinstance(record.image, str)
  }
  listing = Listing(root)
  return [
    listing.relative(path)
    for path in listing.images
    if os.path.realpath(path) not in used
  ]


def _size(boxes):
  return np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))


def _aspect_ratio(boxes):
  height, width = (boxes[:, 2:] - boxes[:, :2]).T
  return height / width


def _count_axis(counts):
  """About 30 bins at most, each of so many whole numbers."""
  most = max(map(np.max, counts))
  step = 1 + most // 30
  starts = np.arange(0, most + step, step)
  return Axis(
    np.append(starts, starts[-1] + step) - 0.5, starts[:: 1 + len(starts) // 12]
  )
