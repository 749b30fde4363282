"""What `check` measures of the two splits of a config."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ap_detect import anchor_coverage
from ap_detect import config as config_lib
from ap_detect.data import dataset as dataset_lib
from ap_detect.data import summary
from ap_detect.models import retinanet


class Split(NamedTuple):
  """A split, its objects, and how well the config's anchors cover them.

  Attributes:
    role: "training" or "validation".
    name: in the config.
    dataset: DetectionDataset.
    objects: summary.Objects.
    best_iou: [G] float32, of each object with any anchor.
  """

  role: str
  name: str
  dataset: dataset_lib.DetectionDataset
  objects: summary.Objects
  best_iou: np.ndarray


class Findings(NamedTuple):
  """All that is reported.

  Attributes:
    config: Config.
    splits: of training and of validation.
    settings: as `anchor_coverage.search_settings` found them on the training split.
    recommended: one of them.
  """

  config: config_lib.Config
  splits: tuple[Split, Split]
  settings: list[anchor_coverage.Coverage]
  recommended: anchor_coverage.Coverage


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


def measure(config, datasets) -> Findings:
  """Measures the training and the validation split of a config.

  Args:
    config: Config.
    datasets: their DetectionDatasets; that of training has an object that counts.

  Returns:
    Findings.
  """
  model, data = config.model, config.data
  current = anchor_coverage.AnchorSetting(
    model.anchor_base_scale, model.anchor_octave_scales, model.anchor_aspect_ratios
  )
  anchors = {"image_size": data.image_size_px, "levels": retinanet.LEVELS}
  roles = (("training", data.train_split), ("validation", data.val_split))
  splits = []
  for (role, name), dataset in zip(roles, datasets):
    objects = summary.gather_objects(
      dataset, data.image_size_px, warp=data.augmentation == "ssd"
    )
    iou = anchor_coverage.best_iou(objects.placed_boxes, setting=current, **anchors)
    splits.append(Split(role, name, dataset, objects, iou))
  settings = anchor_coverage.search_settings(
    splits[0].objects.placed_boxes,
    current=current,
    positive_iou=model.positive_iou,
    **anchors,
  )
  recommended = anchor_coverage.recommend(settings)
  return Findings(config, (splits[0], splits[1]), settings, recommended)


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
      "size in the picture, pixels",
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
