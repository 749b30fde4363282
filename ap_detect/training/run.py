"""A run's folder: what it holds, and how it is opened again.

config.json       the resolved config
classes.json      the classes 1..K and their ids in the dataset's own files
history.json      validation metrics, an entry an evaluated epoch
best.json         the best checkpoint, its metrics and score thresholds
checkpoints/      the latest epochs: weights, optimiser, epoch
best/             weights of the best epoch
tensorboard/      event files
eval/<split>/     what evaluate.py writes
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from ap_detect import anchors as anchor_ops
from ap_detect import config as config_lib
from ap_detect.data import shapes, splits
from ap_detect.metrics.score_thresholds import ScoreThresholds
from ap_detect.models import backbones, detections, retinanet
from ap_detect.training import distribution

CONFIG, CLASSES, HISTORY, BEST = (
  f"{name}.json" for name in ("config", "classes", "history", "best")
)


class Classes(NamedTuple):
  """The one mapping of class ids: class k is names[k - 1].

  Attributes:
    names: [K].
    category_ids: [K], ids in the files of the dataset that the run was trained on.
  """

  names: tuple[str, ...]
  category_ids: tuple[int, ...]


def write_json(path: str, value: Any, *, indent: int | None = 2) -> None:
  """Writes a file that is, at any moment, either its old self or its new one."""
  temporary = f"{path}.tmp"
  with open(temporary, "w", encoding="utf-8") as file:
    json.dump(value, file, indent=indent)
    file.write("\n")
  os.replace(temporary, path)


def read_json(path: str) -> Any:
  """What a JSON file holds."""
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def start(model_dir: str, config: config_lib.Config, classes: Classes) -> None:
  """Claims a folder for a run, or checks that it holds an earlier start of it.

  A start that failed before its first checkpoint, for a missing weights file say, left
  nothing to continue: the folder is claimed anew.

  Raises:
    ValueError: the folder belongs to a run of another config or of other classes.
  """
  config_path = os.path.join(model_dir, CONFIG)
  if not (os.path.exists(config_path) and latest_checkpoint(model_dir)):
    os.makedirs(model_dir, exist_ok=True)
    write_json(os.path.join(model_dir, CLASSES), classes._asdict())
    write_json(config_path, json.loads(config.to_json()))
    return
  saved = load_classes(model_dir)
  if saved != classes:
    raise ValueError(
      f"{model_dir} holds a run with {len(saved.names)} classes {saved}, but the data "
      f"now has {len(classes.names)} classes {classes}; use another --model_dir"
    )
  changed = config_lib.differences(config_lib.load(config_path), config)
  if changed:
    raise ValueError(
      "\n  ".join(
        [f"{model_dir} holds a run of another config (saved -> now):", *changed]
      )
      + "\nUse another --model_dir, or the saved values to resume."
    )


def load_config(model_dir: str) -> config_lib.Config:
  """The config that a run was started with.

  Raises:
    ValueError: the folder holds no run.
  """
  path = os.path.join(model_dir, CONFIG)
  if not os.path.isfile(path):
    raise ValueError(f"--model_dir={model_dir} holds no run: there is no {path}")
  return config_lib.load(path)


def load_classes(model_dir: str) -> Classes:
  """The classes that a run was started with."""
  saved = read_json(os.path.join(model_dir, CLASSES))
  return Classes(tuple(saved["names"]), tuple(saved["category_ids"]))


def load_thresholds(model_dir: str, score_threshold: float | None = None):
  """Scores that detections need to be shown or served.

  Args:
    model_dir: a run's folder.
    score_threshold: one threshold for all classes; None for the run's own, which were
      best by F1 on its validation split at the best checkpoint.

  Returns:
    ScoreThresholds.

  Raises:
    ValueError: the run has none yet.
  """
  names = load_classes(model_dir).names
  if score_threshold is not None:
    same = dict.fromkeys(names, score_threshold)
    return ScoreThresholds(score_threshold, 0.0, same, dict.fromkeys(names))
  path = os.path.join(model_dir, BEST)
  if not os.path.exists(path):
    raise ValueError(
      f"{model_dir} was not validated yet, so that it has no score thresholds; train on, "
      "or give --score_threshold"
    )
  return ScoreThresholds.from_json(read_json(path)["score_thresholds"])


def open_split(config: config_lib.Config, split: str, class_names=()):
  """Reads one split of a config's dataset, and says what was left out of it.

  Args:
    config: Config.
    split: name of the split, or of several, see splits.read_split.
    class_names: the classes 1..K; () for data.class_names, and where that is empty too,
      all that the data has.

  Returns:
    DetectionDataset.

  Raises:
    DataError: faults in the data, all that were found.
  """
  dataset = _read_split(config.data, split, tuple(class_names))
  for line in dataset.skipped:
    logging.warning("skipped: %s", line)
  logging.info(
    "%s: %d images, %d objects of %d classes%s%s",
    split,
    len(dataset.records),
    sum(len(record.boxes) for record in dataset.records),
    len(dataset.class_names),
    "" if dataset.has_labels else "; without labels",
    f"; {len(dataset.skipped)} faults skipped" if dataset.skipped else "",
  )
  return dataset


def _read_split(data, split, class_names):
  if data.format == "shapes":
    is_train = split == data.train_split
    return shapes.make_shapes(
      split,
      num_images=data.shapes_train_images if is_train else data.shapes_val_images,
      image_size_px=data.shapes_size_px,
      seed=data.shapes_seed,
    )
  return splits.read_split(
    data.root,
    split,
    data_format=data.format,
    voc_one_based_inclusive=data.voc_one_based_inclusive,
    class_names=class_names or data.class_names or None,
    skip_faulty=data.skip_faulty,
    check_images=data.check_images,
    max_image_pixels=data.max_image_pixels,
  )


def make_anchors(config: config_lib.Config, image_size=None):
  """The anchors of a config's network.

  Args:
    config: Config.
    image_size: (height, width) of the network's input, pixels; None for the config's.

  Returns:
    [A, 4] float32, yxyx, pixels of the input.
  """
  model = config.model
  return anchor_ops.generate_anchors(
    image_size or config.data.image_size_px,
    levels=retinanet.LEVELS,
    base_scale=model.anchor_base_scale,
    octave_scales=model.anchor_octave_scales,
    aspect_ratios=model.anchor_aspect_ratios,
  )


def build_network(config: config_lib.Config, num_classes: int, *, pretrained: bool):
  """A config's RetinaNet.

  Args:
    config: Config.
    num_classes: K.
    pretrained: whether to read model.backbone_weights; a network whose checkpoint
      follows needs none.

  Returns:
    tf.keras.Model, see retinanet.build_retinanet.
  """
  model = config.model
  backbone = backbones.build_backbone(
    model.backbone,
    weights=model.backbone_weights if pretrained else "",
    frozen_levels=model.frozen_levels if model.backbone_weights else 0,
    freeze_batch_norm=bool(model.backbone_weights),
  )
  return retinanet.build_retinanet(
    backbone,
    num_classes=num_classes,
    anchors_per_cell=_anchors_per_cell(config),
    fpn_channels=model.fpn_channels,
    head_convolutions=model.head_convolutions,
    head_initializer=model.head_initializer,
  )


def level_sizes(config: config_lib.Config, image_size=None) -> list[int]:
  """Number of anchors of each pyramid level; arguments as `make_anchors`."""
  return anchor_ops.anchors_per_level(
    image_size or config.data.image_size_px,
    levels=retinanet.LEVELS,
    anchors_per_cell=_anchors_per_cell(config),
  )


def make_detect(config: config_lib.Config):
  """Post-processing of a config's network for serving, where a picture has one view.

  That is data.image_size_px; where the config tests at other scales or mirrored, the log
  says that they are not part of it.

  Args:
    config: Config.

  Returns:
    Function (Outputs, content_size [B, 2]) -> Detections.
  """
  anchors, sizes, evaluation = make_anchors(config), level_sizes(config), config.eval
  if evaluation.test_scales or evaluation.horizontal_flip:
    logging.warning(
      "the run was validated, and its score thresholds chosen, at test scales %s%s; "
      "here every picture is fitted into %s pixels, once, whose accuracy is that of "
      'evaluate.py --eval.test_scales="()" --eval.horizontal_flip=False',
      evaluation.test_scales or config.data.image_size_px,
      ", mirrored too" if evaluation.horizontal_flip else "",
      config.data.image_size_px,
    )

  def detect(outputs, content_size):
    return detections.detect(
      outputs,
      anchors,
      level_sizes=sizes,
      content_size=content_size,
      score_threshold=evaluation.score_threshold,
      candidates_per_level=evaluation.candidates_per_level,
      nms_iou=evaluation.nms_iou,
      max_detections=evaluation.max_detections,
    )

  return detect


class RestoredRun(NamedTuple):
  """A trained network and what belongs to it.

  Attributes:
    config: Config.
    classes: Classes.
    network: tf.keras.Model of images -> Outputs.
    strategy: the tf.distribute strategy that holds its variables.
    checkpoint: path of the weights.
  """

  config: config_lib.Config
  classes: Classes
  network: tf.keras.Model
  strategy: tf.distribute.Strategy
  checkpoint: str


def restore(model_dir: str, checkpoint: str = "", *, strategy=None) -> RestoredRun:
  """Opens a run at a checkpoint.

  Args:
    model_dir: the run's folder.
    checkpoint: "" for the best (the latest where none was evaluated yet), "latest", or
      a checkpoint's path.
    strategy: tf.distribute strategy; None for all GPUs, or the CPU.

  Raises:
    ValueError: no such run or checkpoint, or the checkpoint does not fit.
  """
  config, path = load_config(model_dir), find_checkpoint(model_dir, checkpoint)
  classes = load_classes(model_dir)
  strategy = strategy or distribution.make_strategy()
  with strategy.scope():
    network = build_network(config, len(classes.names), pretrained=False)
  try:
    status = tf.train.Checkpoint(network=network).restore(path)
    status.assert_existing_objects_matched().expect_partial()
  except (AssertionError, ValueError) as error:
    raise ValueError(f"checkpoint {path} does not fit the network: {error}") from error
  logging.info("restored %s", path)
  return RestoredRun(config, classes, network, strategy, path)


def find_checkpoint(model_dir: str, checkpoint: str = "") -> str:
  """Path of a run's checkpoint; arguments and errors as `restore`."""
  path = checkpoint
  best = os.path.join(model_dir, BEST)
  if not checkpoint and os.path.exists(best):
    path = os.path.join(model_dir, "best", read_json(best)["checkpoint"])
  elif checkpoint in ("", "latest"):
    path = latest_checkpoint(model_dir)
  if not os.path.exists(f"{path}.index"):
    raise ValueError(
      f"there is no checkpoint {path}" if path else f"{model_dir} has no checkpoint yet"
    )
  return path


def latest_checkpoint(model_dir):
  """Path of the latest epoch's checkpoint; "" for none."""
  return tf.train.latest_checkpoint(os.path.join(model_dir, "checkpoints")) or ""


def _anchors_per_cell(config):
  return len(config.model.anchor_octave_scales) * len(config.model.anchor_aspect_ratios)
