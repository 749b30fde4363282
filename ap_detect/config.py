"""Typed configuration of a run: the fields, their defaults, and their checks."""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any

import ml_collections

DATA_FORMATS = ("auto", "voc", "coco", "tfrecord", "shapes")
AUGMENTATIONS = ("zoom", "ssd")
CLASSIFICATION_LOSSES = ("ap_loss", "auc_loss", "focal_loss")
OPTIMIZERS = ("sgd", "adam", "sgdw", "lamb")
SCHEDULES = ("constant", "step", "cosine")
HEAD_INITIALIZERS = ("normal", "he")

# Fields and what holds of them.
_POSITIVE = (
  "model.fpn_channels",
  "model.head_convolutions",
  "model.anchor_base_scale",
  "data.max_image_pixels",
  "data.shapes_train_images",
  "data.shapes_val_images",
  "train.batch_size",
  "train.epochs",
  "train.delta",
  "train.learning_rate",
  "train.decay_factor",
  "train.validate_every_epochs",
  "train.keep_checkpoints",
  "eval.batch_size",
  "eval.candidates_per_level",
  "eval.max_detections",
)
_NOT_NEGATIVE = (
  "train.box_loss_weight",
  "train.weight_decay",
  "train.clip_norm",
  "train.warmup_steps",
  "eval.num_pictures",
)
# Lowest and highest value.
_RANGES = {
  "model.frozen_levels": (0, 5),
  "data.horizontal_flip": (0, 1),
  # Contrast is 1 plus or minus half of the strength.
  "data.color_jitter": (0, 2),
  "train.momentum": (0, 1),
  "train.warmup_start_factor": (0, 1),
  "eval.nms_iou": (0, 1),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The network and its anchors. Defaults: the paper's R50 (authors' release).

  Attributes:
    backbone: one of models.backbones.BACKBONES.
    backbone_weights: "" for none, "imagenet", or the path of a weights file.
    initial_checkpoint: "" or another run's folder or checkpoint, whose weights a new run
      starts from. The backbone must be the same; what else does not fit, as the class
      head's output for another number of classes, is left as it is and listed. The file
      of backbone_weights is not needed then; but only where that is not "" is the
      backbone frozen as a pretrained one.
    frozen_levels: pretrained layers up to the end of C<n> stay as they are; 0 for none.
    fpn_channels: channels of the pyramid and the heads.
    head_convolutions: hidden convolutions of each head.
    head_initializer: of the hidden convolutions, "normal" (N(0, 0.01)) or "he".
    anchor_base_scale: side of a level's smallest square anchor, in its strides.
    anchor_octave_scales: factors of that side.
    anchor_aspect_ratios: height / width.
    positive_iou: IoU with an object from which an anchor is positive.
    negative_iou: IoU below which it is background; between the two it is ignored.
    force_match: whether an object's best anchors are positive at any IoU.
  """

  backbone: str = "resnet50"
  backbone_weights: str = "imagenet"
  initial_checkpoint: str = ""
  frozen_levels: int = 2
  fpn_channels: int = 256
  head_convolutions: int = 4
  head_initializer: str = "normal"
  anchor_base_scale: float = 4.0
  anchor_octave_scales: tuple = (1.0, 2**0.5)
  anchor_aspect_ratios: tuple = (0.5, 1.0, 2.0)
  positive_iou: float = 0.5
  negative_iou: float = 0.4
  force_match: bool = True


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where the pictures come from and how they reach the network.

  Attributes:
    format: "voc", "coco", "tfrecord" (as commands.write_tfrecords writes it), "shapes"
      (made on the fly), or "auto": found from the folder.
    root: the folder of the dataset.
    train_split: name of the split to train on. Several are joined by "+"; each may
      begin with a folder below root and end with a file that lists the images to take:
      "VOC2007/trainval+VOC2012/trainval", "train2014@lists/mine.txt".
    val_split: name of the split to validate on, in the same way.
    class_names: the classes 1..K in order; () for all that the data has.
    voc_one_based_inclusive: whether VOC boxes count pixels from 1, last one included, as
      PASCAL's own files do; else they are plain coordinates, as most tools write them.
    drop_empty_images: whether images without objects are left out of training, as the
      authors' release does; the paper does not say.
    drop_ignored_objects: whether difficult and crowd objects become background in
      training, as in the authors' release, instead of being ignored.
    image_size_px: (height, width) of the network's input; multiples of 32.
    augmentation: "zoom" (colour, mirroring, zoom with the aspect kept) or "ssd" (the
      paper's: colour, expansion, cropping, mirroring, warped to the input's size).
    horizontal_flip: probability of a mirrored training picture.
    zoom_range: in "zoom", training pictures are scaled by a factor drawn from here,
      about a random point; (1.0, 1.0) for none.
    color_jitter: strength of the random colours; 1 is the paper's ranges (SSD's), 0
      none. In "zoom" brightness, contrast and saturation; in "ssd" hue and lighting too.
    check_images: whether every file is decoded once before training.
    max_image_pixels: a larger picture is taken for a faulty file.
    skip_faulty: whether to leave faulty images and objects out, counted and reported,
      instead of stopping.
    service_address: "" or the address of a tf.data service, "grpc://host:port", whose
      workers read and augment the training pictures. They must see data.root.
    shapes_train_images: number of "shapes" pictures to train on.
    shapes_val_images: number of "shapes" pictures to validate and to test on.
    shapes_size_px: (height, width) of a "shapes" picture.
    shapes_seed: what "shapes" pictures are drawn from.
  """

  format: str = "auto"
  root: str = ""
  train_split: str = "train"
  val_split: str = "val"
  class_names: tuple = ()
  voc_one_based_inclusive: bool = False
  drop_empty_images: bool = False
  drop_ignored_objects: bool = False
  image_size_px: tuple = (512, 512)
  augmentation: str = "zoom"
  horizontal_flip: float = 0.5
  zoom_range: tuple = (1.0, 1.0)
  color_jitter: float = 0.0
  check_images: bool = True
  max_image_pixels: int = 50_000_000
  skip_faulty: bool = False
  service_address: str = ""
  shapes_train_images: int = 2000
  shapes_val_images: int = 200
  shapes_size_px: tuple = (128, 128)
  shapes_seed: int = 0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Loss, optimiser and course of the training. Defaults: the paper's.

  Attributes:
    batch_size: images a replica (GPU) and step.
    epochs: passes over the training split.
    classification_loss: "ap_loss", "auc_loss" or "focal_loss".
    delta: half-width of AP-loss's and AUC-loss's step, in logits.
    interpolated: whether AP-loss uses interpolated precision.
    images_per_ranking: how many images of a replica's batch AP-loss and AUC-loss rank
      together; 0 for all of them.
    box_loss_weight: weight of the box loss beside the classification loss.
    optimizer: "sgd" (with momentum), "adam", or tensorflow-addons' "sgdw" and "lamb".
    learning_rate: after warm-up.
    momentum: of sgd and sgdw.
    weight_decay: L2 in the gradient for sgd and adam; decoupled for sgdw and lamb.
    clip_norm: bound of the gradient's global norm; 0 for none.
    schedule: "constant", "step" or "cosine" (to 0 at the last step).
    decay_epochs: where "step" multiplies the rate by decay_factor.
    decay_factor: see decay_epochs.
    warmup_steps: steps of linear warm-up.
    warmup_start_factor: the first step's rate, as a share of learning_rate.
    seed: of initialisation, data order and augmentation.
    validate_every_epochs: how often the validation split is evaluated; the last epoch
      always is.
    keep_checkpoints: how many of the latest checkpoints stay, beside the best.
    jit_compile: "auto" (on GPU), "always" or "never": whether XLA compiles the forward
      and backward pass.
  """

  batch_size: int = 8
  epochs: int = 160
  classification_loss: str = "ap_loss"
  delta: float = 1.0
  interpolated: bool = True
  images_per_ranking: int = 0
  box_loss_weight: float = 1.0
  optimizer: str = "sgd"
  learning_rate: float = 1e-3
  momentum: float = 0.9
  weight_decay: float = 1e-4
  clip_norm: float = 0.0
  schedule: str = "step"
  decay_epochs: tuple = (110, 140)
  decay_factor: float = 0.1
  warmup_steps: int = 500
  warmup_start_factor: float = 1 / 3
  seed: int = 0
  validate_every_epochs: int = 1
  keep_checkpoints: int = 2
  jit_compile: str = "auto"


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Post-processing and evaluation. Defaults: the authors' release.

  Attributes:
    batch_size: images a replica.
    score_threshold: detections need a score above it.
    candidates_per_level: anchor-class pairs that a pyramid level may bring to NMS.
    nms_iou: overlap above which the worse of two boxes of a class goes.
    max_detections: an image. COCO's figures count the best 100 of them, VOC's all.
    test_scales: sizes that pictures are tested at, with their aspect kept: "500/833" is
      a shorter side of 500 px unless the longer one then passes 833. Detections of
      several are merged before NMS. () for data.image_size_px.
    horizontal_flip: whether mirrored pictures are tested too, and merged.
    num_pictures: pictures with boxes that an evaluation writes.
  """

  batch_size: int = 8
  score_threshold: float = 0.01
  candidates_per_level: int = 1000
  nms_iou: float = 0.5
  max_detections: int = 100
  test_scales: tuple = ()
  horizontal_flip: bool = False
  num_pictures: int = 12


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_SECTIONS = {
  "model": ModelConfig,
  "data": DataConfig,
  "train": TrainConfig,
  "eval": EvalConfig,
}


def default_config() -> ml_collections.ConfigDict:
  """The fields and defaults above, for a config file's get_config() to change."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def resolve(values: Any) -> Config:
  """A checked Config from nested values.

  Args:
    values: nested mapping, such as get_config() or a saved config's JSON holds.

  Returns:
    Config.

  Raises:
    ValueError: unknown field, wrong type, or a value out of its range; all faults.
  """
  faults: list[str] = []
  sections = {}
  if not hasattr(values, "keys"):
    raise ValueError(f"a config must be a mapping of its sections, got {values!r}")
  for name in values:
    if name not in _SECTIONS:
      faults.append(unknown_field(name))
  for name, section_type in _SECTIONS.items():
    section = values.get(name, {})
    sections[name] = _resolve_section(name, section_type, section, faults)
  if not faults:
    config = Config(**sections)
    faults = _faults(config)
  if faults:
    raise ValueError("\n  ".join(["the config has faults:", *faults]))
  return config


def load(path: str) -> Config:
  """Config from the JSON file that a run saved; ValueError where it is none."""
  try:
    with open(path, encoding="utf-8") as file:
      return resolve(json.load(file))
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def field_names() -> list[str]:
  """Names of all fields, "section.field"."""
  return [
    f"{name}.{field.name}"
    for name, section_type in _SECTIONS.items()
    for field in dataclasses.fields(section_type)
  ]


def _values(config: Config) -> dict[str, Any]:
  """{"section.field": value} of all fields."""
  return {
    f"{section}.{field}": value
    for section, fields in dataclasses.asdict(config).items()
    for field, value in fields.items()
  }


def unknown_field(name: str) -> str:
  """Message for a field that does not exist."""
  valid = field_names()
  near = difflib.get_close_matches(name, valid, n=1)
  guess = f"; did you mean {near[0]!r}?" if near else "."
  return "\n    ".join(
    [f"there is no config field {name!r}{guess} The fields are:", *valid]
  )


def _resolve_section(name, section_type, values, faults):
  fields = {field.name: field for field in dataclasses.fields(section_type)}
  resolved = {}
  if not hasattr(values, "keys"):
    faults.append(f"{name} must be a mapping of its fields, got {values!r}")
    values = {}
  for key in values:
    if key not in fields:
      faults.append(unknown_field(f"{name}.{key}"))
      continue
    default = getattr(section_type(), key)
    try:
      resolved[key] = _cast(values[key], default)
    except (TypeError, ValueError):
      faults.append(
        f"{name}.{key} must be of type {_type_name(default)}, got {values[key]!r}"
      )
  return section_type(**resolved)


def _cast(value, default):
  """The value in the default's type; integers pass for floats, lists for tuples."""
  if isinstance(default, tuple):
    if isinstance(value, str):
      raise TypeError
    return tuple(_cast(item, _element(default)) for item in value)
  if (
    isinstance(default, float)
    and isinstance(value, int)
    and not isinstance(value, bool)
  ):
    return float(value)
  if type(value) is not type(default):
    raise TypeError
  return value


def _element(default: tuple):
  """An element as a tuple field's must be; the one field empty by default has names."""
  return default[0] if default else ""


def _type_name(default) -> str:
  if isinstance(default, tuple):
    return f"tuple of {type(_element(default)).__name__}"
  return type(default).__name__


def _faults(config: Config) -> list[str]:
  model, data, train, evaluation = config.model, config.data, config.train, config.eval
  choices = [
    ("data.format", data.format, DATA_FORMATS),
    ("data.augmentation", data.augmentation, AUGMENTATIONS),
    ("model.head_initializer", model.head_initializer, HEAD_INITIALIZERS),
    ("train.classification_loss", train.classification_loss, CLASSIFICATION_LOSSES),
    ("train.optimizer", train.optimizer, OPTIMIZERS),
    ("train.schedule", train.schedule, SCHEDULES),
    ("train.jit_compile", train.jit_compile, ("auto", "always", "never")),
  ]
  faults = [
    f"{name} must be one of {allowed}, got {value!r}"
    for name, value, allowed in choices
    if value not in allowed
  ]
  checks = [
    (
      len(data.image_size_px) == 2
      and all(isinstance(s, int) and s > 0 and s % 32 == 0 for s in data.image_size_px),
      "data.image_size_px must be (height, width), multiples of 32, "
      f"got {data.image_size_px}",
    ),
    (
      len(data.zoom_range) == 2 and 0 < data.zoom_range[0] <= data.zoom_range[1],
      f"data.zoom_range must be (low, high) with 0 < low <= high, got {data.zoom_range}",
    ),
    (
      data.augmentation == "zoom" or data.zoom_range == (1.0, 1.0),
      f"data.zoom_range must be (1.0, 1.0) with augmentation {data.augmentation!r}, "
      f"which does not use it, got {data.zoom_range}",
    ),
    (
      len(data.shapes_size_px) == 2 and min(data.shapes_size_px) > 0,
      "data.shapes_size_px must be (height, width), positive, "
      f"got {data.shapes_size_px}",
    ),
    (
      data.train_split and data.val_split,
      "data.train_split and data.val_split must name splits, got "
      f"{data.train_split!r} and {data.val_split!r}",
    ),
    (
      data.format == "shapes" or data.root,
      "data.root must name the dataset's folder: --config.data.root=...",
    ),
    (
      data.format != "shapes" or not data.class_names,
      f"data.class_names must be empty for shapes, got {data.class_names}",
    ),
    (
      0 <= model.negative_iou <= model.positive_iou <= 1 and model.positive_iou > 0,
      "0 <= model.negative_iou <= model.positive_iou <= 1 must hold, got "
      f"{model.negative_iou} and {model.positive_iou}",
    ),
    (
      model.anchor_octave_scales and min(model.anchor_octave_scales) > 0,
      f"model.anchor_octave_scales must be positive, got {model.anchor_octave_scales}",
    ),
    (
      model.anchor_aspect_ratios and min(model.anchor_aspect_ratios) > 0,
      f"model.anchor_aspect_ratios must be positive, got {model.anchor_aspect_ratios}",
    ),
    (
      train.images_per_ranking >= 0
      and train.batch_size % (train.images_per_ranking or 1) == 0,
      "train.images_per_ranking must divide train.batch_size, got "
      f"{train.images_per_ranking} and {train.batch_size}",
    ),
    (
      all(_is_test_scale(scale) for scale in evaluation.test_scales),
      "eval.test_scales must be of the form '500/833', the shorter side first, got "
      f"{evaluation.test_scales}",
    ),
    (
      0 <= evaluation.score_threshold < 1,
      f"eval.score_threshold must lie in [0, 1), got {evaluation.score_threshold}",
    ),
  ]
  values = _values(config)
  checks += [
    (values[name] > 0, f"{name} must be positive, got {values[name]}")
    for name in _POSITIVE
  ]
  checks += [
    (values[name] >= 0, f"{name} must not be negative, got {values[name]}")
    for name in _NOT_NEGATIVE
  ]
  checks += [
    (low <= values[name] <= high, f"{name} must be {low} to {high}, got {values[name]}")
    for name, (low, high) in _RANGES.items()
  ]
  return faults + [message for holds, message in checks if not holds]


def parse_test_scale(text: str) -> tuple[int, int]:
  """(500, 833), pixels of the shorter side and at most of the longer, of "500/833".

  Raises:
    ValueError: it is not of that form.
  """
  shorter, longer = map(int, text.split("/"))
  if not 0 < shorter <= longer:
    raise ValueError(f"the shorter side comes first, got {text!r}")
  return shorter, longer


def _is_test_scale(text):
  try:
    return bool(parse_test_scale(text))
  except ValueError:
    return False


def differences(saved: Config, current: Config) -> list[str]:
  """Fields that differ, "section.field: saved -> current", of those that shape a run.

  What may change between two starts of one run is left out: evaluation, where the data
  lies and whether it is checked.
  """
  free = {
    *("data.root", "data.check_images", "data.service_address"),
    "train.keep_checkpoints",
  }
  before, after = _values(saved), _values(current)
  return [
    f"{name}: {before[name]!r} -> {after[name]!r}"
    for name in before
    if not (name.startswith("eval.") or name in free) and before[name] != after[name]
  ]
