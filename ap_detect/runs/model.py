"""Network, anchors and post-processing of a config, and a trained run opened again."""

from __future__ import annotations

import contextlib
import functools
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from ap_detect import anchors as anchor_ops
from ap_detect import config as config_lib
from ap_detect import errors
from ap_detect.models import backbones, detections, retinanet
from ap_detect.runs import folder, replicas
from ap_detect.runs import workers as workers_lib

# Of a checkpoint: the averages of the network's trained weights, where they are kept.
AVERAGED = "averaged_weights"


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


def build_network(
  config: config_lib.Config,
  num_classes: int,
  *,
  pretrained: bool,
  precision: str = "float32",
):
  """A config's RetinaNet.

  Args:
    config: Config.
    num_classes: K.
    pretrained: whether to read model.backbone_weights; a network whose checkpoint
      follows needs none.
    precision: what hidden layers compute in, "float32" or "bfloat16". Weights, statistics
      of normalisation, the normalised input and the outputs are float32 in both.

  Returns:
    tf.keras.Model, see retinanet.build_retinanet.
  """
  model = config.model
  with _precision(precision):
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
      score_prior=model.score_prior,
    )


@contextlib.contextmanager
def _precision(name):
  """Layers that are made in this context compute in a precision."""
  mixed_precision = tf.keras.mixed_precision
  before = mixed_precision.global_policy()
  mixed_precision.set_global_policy("float32" if name == "float32" else f"mixed_{name}")
  try:
    yield
  finally:
    mixed_precision.set_global_policy(before)


def level_sizes(config: config_lib.Config, image_size=None) -> list[int]:
  """Number of anchors of each pyramid level; arguments as `make_anchors`."""
  return anchor_ops.anchors_per_level(
    image_size or config.data.image_size_px,
    levels=retinanet.LEVELS,
    anchors_per_cell=_anchors_per_cell(config),
  )


def make_detect(config: config_lib.Config):
  """Post-processing of a config's network for serving, where an image has one view.

  That is data.image_size_px; where the config tests at other scales or mirrored, the log
  says that they are not part of it.

  Args:
    config: Config.

  Returns:
    Function (Outputs, content_size [B, 2], class_thresholds [B, K], calibrate) ->
    Detections, see detections.detect.
  """
  anchors, sizes, evaluation = make_anchors(config), level_sizes(config), config.eval
  if evaluation.test_scales or evaluation.horizontal_flip:
    logging.warning(
      "the run was validated, and its score thresholds chosen, at test scales %s%s; "
      "here every picture is fitted into %s pixels, once, whose accuracy is that of "
      'ap_detect evaluate --eval.test_scales="()" --eval.horizontal_flip=False',
      evaluation.test_scales or config.data.image_size_px,
      ", mirrored too" if evaluation.horizontal_flip else "",
      config.data.image_size_px,
    )

  def detect(outputs, content_size, class_thresholds=None, calibrate=None):
    return detections.detect(
      outputs,
      anchors,
      level_sizes=sizes,
      content_size=content_size,
      score_threshold=evaluation.score_threshold,
      class_thresholds=class_thresholds,
      calibrate=calibrate,
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
    has_averages: whether the trained weights are averages over the training's steps.
  """

  config: config_lib.Config
  classes: folder.Classes
  network: tf.keras.Model
  strategy: tf.distribute.Strategy
  checkpoint: str
  has_averages: bool = False


def restore(
  model_dir: str, checkpoint: str = "", *, averaged_weights=True, strategy=None
) -> RestoredRun:
  """Opens a run at a checkpoint, the same one on all workers of a strategy.

  Args:
    model_dir: the run's folder.
    checkpoint: see folder.find_checkpoint. Where the latest one is damaged, the one
      before it is used, and the log says so.
    averaged_weights: whether the network gets averaged weights, where the run keeps them
      (train.ema_decay).
    strategy: tf.distribute strategy; None for all GPUs, or the CPU.

  Raises:
    ValueError: no such run or checkpoint, or the checkpoint does not fit or is damaged.
  """
  workers = workers_lib.Workers(strategy)

  def find():
    config, path = (
      folder.load_config(model_dir),
      folder.find_checkpoint(model_dir, checkpoint),
    )
    return config, path, folder.load_classes(model_dir)

  config, path, classes = workers.ask_chief(find)
  strategy = strategy or replicas.make_strategy()
  with strategy.scope():
    network = build_network(config, len(classes.names), pretrained=False)
  candidates = workers.ask_chief(lambda: folder.checkpoint_paths(model_dir))
  if path not in candidates or checkpoint not in ("", "latest"):
    candidates = [path]
  try:
    path = restore_first(
      candidates,
      lambda path: restore_network(network, path, averaged_weights=averaged_weights),
      workers=workers,
    )
  except ValueError as error:
    others = folder.list_checkpoints(model_dir, but=path)
    raise ValueError(f"{error}{others if candidates == [path] else ''}") from error
  has_averages = averaged_weights and _has_averages(path)
  logging.info("restored %s%s", path, ", its averaged weights" if has_averages else "")
  return RestoredRun(config, classes, network, strategy, path, has_averages)


def restore_network(network, path: str, *, averaged_weights=True) -> None:
  """Gives a network all its weights from a checkpoint, or raises one of UNREADABLE.

  Args:
    network: tf.keras.Model.
    path: of the checkpoint.
    averaged_weights: whether of the trained weights it gets averages, where there are any.
  """
  status = tf.train.Checkpoint(network=network).read(path)
  status.assert_existing_objects_matched().expect_partial()
  if averaged_weights and _has_averages(path):
    averages = tf.train.Checkpoint(**{AVERAGED: network.trainable_weights})
    averages.read(path).assert_existing_objects_matched().expect_partial()


def _has_averages(path):
  first = f"{AVERAGED}/0/.ATTRIBUTES/VARIABLE_VALUE"
  return tf.train.load_checkpoint(path).has_tensor(first)


def restore_first(paths, restore_path, *, workers=workers_lib.ONE) -> str:
  """Restores the first of some checkpoints that can be, and says which could not.

  Args:
    paths: of checkpoints, newest first; at least one.
    restore_path: function of a path that restores it, or raises one of UNREADABLE.
    workers: Workers that restore the same one.

  Returns:
    The path that was restored.

  Raises:
    ValueError: none could be.
  """
  problems = []
  for path in paths:
    try:
      workers.together(functools.partial(restore_path, path), folder.UNREADABLE)
    except folder.UNREACHABLE:
      raise  # it may be sound
    except folder.UNREADABLE as error:
      reason = errors.first_line(error)
      problems.append(
        f"checkpoint {path} is damaged or does not fit the network: {reason}"
      )
      continue
    for problem in problems:
      logging.warning("%s; using the one before it, %s", problem, path)
    return path
  raise ValueError("\n  ".join(problems))


def _anchors_per_cell(config):
  return len(config.model.anchor_octave_scales) * len(config.model.anchor_aspect_ratios)
