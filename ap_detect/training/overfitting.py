"""Learning a few images by heart: the first thing that a config must be able to do.

Where it cannot, something is wrong that more images will not mend. What the network
answers is compared with what a perfect one would, part by part, to say what.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from ap_detect import boxes as box_ops
from ap_detect.data import pipeline
from ap_detect.models.retinanet import Outputs
from ap_detect.runs import data as data_lib
from ap_detect.runs import folder
from ap_detect.runs import model as model_lib
from ap_detect.training import evaluation, measurements, trainer, views

# AP is looked at after so many steps, and that so often at most.
STEPS_PER_ROUND, MAX_ROUNDS = 100, 20
# How much less than a perfect network's AP counts as reached.
TOLERANCE = 0.005
# A perfect network's logits of what is there and of what is not.
_SURE = 10.0
# How far the norm of the weights may go, as shares of the one at first.
_BLOWN_UP, _UNMOVED = 2.0, 0.002
# Whose box it is: an object counts as found by a box of this IoU.
_SAME_BOX_IOU = 0.95


class Parts(NamedTuple):
  """AP on the images, of the network and of what is perfect in parts; each in [0, 1].

  Attributes:
    network: as validation has it.
    perfect_boxes: with the network's scores, but the boxes that it should have learned.
    perfect_scores: with the network's boxes, but the scores.
    batch_statistics: with every batch's own statistics in batch normalisation.
    all_scores: with eval.score_threshold 0.
    perfect: of a network that has learned all that it was to.
  """

  network: float
  perfect_boxes: float
  perfect_scores: float
  batch_statistics: float
  all_scores: float
  perfect: float


class Outcome(NamedTuple):
  """What came of it.

  Attributes:
    model_dir: the folder of the run; "" where nothing can be learned.
    is_reached: whether AP came within TOLERANCE of 1.
    lines: what to tell of it.
  """

  model_dir: str
  is_reached: bool
  lines: list[str]


def overfit(config, model_dir, num_images, *, strategy=None) -> Outcome:
  """Trains on a few images without augmentation until AP is as good as it can be.

  Validated are the same images, after every STEPS_PER_ROUND steps; after MAX_ROUNDS times
  as many it is given up. The learning rate falls along a half cosine over all of them.
  Weights are not averaged.

  Args:
    config: Config.
    model_dir: folder of the run that the config is meant for, which is left alone. The
      run of the few images lies beside it, in a new folder each time.
    num_images: the first so many images of the training split that have objects.
    strategy: tf.distribute strategy; None for all GPUs, or the CPU.

  Returns:
    Outcome.

  Raises:
    ValueError, NonFiniteError: as trainer.train.
  """
  config = adapt_config(config)
  dataset = _first_images(data_lib.open_training_split(config), num_images)
  names = [f"{model_dir}-overfit-{num_images}"]
  names += [f"{names[0]}-{number}" for number in range(2, 1000)]
  model_dir = next(name for name in names if not os.path.exists(name))
  answers = _Answers(config, dataset)
  perfect = answers.average_precision([answer.perfect for answer in answers.all])
  lost = answers.describe_lost()
  for line in _head(dataset, perfect, lost):
    logging.info("%s", line)
  if perfect <= TOLERANCE:
    return Outcome("", False, _unreachable(perfect, lost))
  watch = _Watch(perfect - TOLERANCE)
  trainer.train(
    config,
    model_dir,
    strategy=strategy,
    datasets=(_repeated(dataset, config, strategy), dataset),
    callbacks=[watch],
  )
  best: Any = folder.load_best(model_dir)  # the last round always validates
  reached = best["metrics"]["AP"]
  is_reached = reached >= perfect - TOLERANCE
  if is_reached and lost:
    return Outcome(model_dir, False, _unreachable(reached, lost))
  if is_reached:
    text = f"AP {reached:.3f} after {best['step']} steps: this config can learn these "
    return Outcome(model_dir, True, [f"{text}{len(dataset.records)} images by heart"])
  restored = model_lib.restore(model_dir, "latest", strategy=strategy)
  parts = answers.measure(restored.network)
  lines = explain(config, parts, watch.first, read_rows(model_dir), lost)
  return Outcome(model_dir, False, lines)


def adapt_config(config):
  """The Config with which images are learned by heart: what is in the way is left out."""
  return dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data, augmentation="none", zoom_range=(1.0, 1.0), service_address=""
    ),
    train=dataclasses.replace(
      config.train,
      epochs=MAX_ROUNDS,
      schedule="cosine",
      warmup_steps=min(config.train.warmup_steps, STEPS_PER_ROUND),
      validate_every_epochs=1,
      keep_checkpoints=1,
      patience=0,
      ema_decay=0.0,
      callbacks=(),
    ),
    eval=dataclasses.replace(config.eval, test_scales=(), horizontal_flip=False),
  )


def _first_images(dataset, number):
  records = [record for record in dataset.records if not record.ignored.all()]
  if len(records) < number:
    logging.info("only %d images have objects that count", len(records))
  return dataclasses.replace(dataset, records=tuple(records[:number]))


def _repeated(dataset, config, strategy):
  """The images again and again, so that an epoch is a round."""
  replicas = strategy.num_replicas_in_sync if strategy else 1
  number = STEPS_PER_ROUND * config.train.images_per_replica * replicas
  records = itertools.islice(itertools.cycle(dataset.records), number)
  return dataclasses.replace(dataset, records=tuple(records))


class _Watch(tf.keras.callbacks.Callback):
  """Stops a training whose validation AP reaches a goal, and knows how it began.

  Attributes:
    first: what was logged of the first step, and the norm of the weights before it.
  """

  def __init__(self, goal):
    super().__init__()
    self.first: dict[str, float] = {}
    self._goal = goal

  def on_train_begin(self, logs=None):
    self.first["weight_norm"] = measurements.make_weight_norm(self.model)()

  def on_train_batch_end(self, batch, logs=None):
    self.first = {**(logs or {}), **self.first}

  def on_epoch_end(self, epoch, logs=None):
    if (logs or {}).get("val_AP", 0.0) >= self._goal:
      self.model.stop_training = True


class _Answer(NamedTuple):
  """A batch of images, and what a perfect network answers."""

  pictures: dict[str, Any]
  is_positive: Any
  perfect: Outputs


class _Answers:
  """What networks answer for some images, and what AP that is."""

  def __init__(self, config, dataset):
    self._config = config
    self._dataset = dataset
    assign_targets = trainer.make_assign_targets(config)
    (group,) = views.group_by_views(dataset.records, config)
    size = min(config.train.batch_size, len(dataset.records))
    batches = pipeline.evaluation_batches(dataset.records, views=group, batch_size=size)
    most = max(len(record.boxes) for record in dataset.records)
    self.all = []
    for number, (pictures,) in enumerate(batches):
      # The last batch is filled up with its last image.
      records = dataset.records[number * size : (number + 1) * size]
      records += records[-1:] * (size - len(records))
      targets = assign_targets(_truth(records, pictures["scale"].numpy(), most))
      self.all.append(self._make_answer(pictures, targets))

  def _make_answer(self, pictures, targets):
    num_classes = len(self._dataset.class_names)
    is_own = tf.one_hot(targets.labels - 1, num_classes, on_value=True, off_value=False)
    perfect = Outputs(tf.where(is_own, _SURE, -_SURE), targets.box_targets)
    return _Answer(pictures, targets.labels[..., tf.newaxis] > 0, perfect)

  def average_precision(self, outputs, **eval_changes):
    """AP of a list of Outputs, one a batch; with fields of the config's eval changed."""
    config = dataclasses.replace(
      self._config, eval=dataclasses.replace(self._config.eval, **eval_changes)
    )
    found = self._detect(config, outputs)
    judged, _, _ = evaluation.judge(self._dataset, found)
    return judged.metrics["AP"]

  def measure(self, network) -> Parts:
    """Parts of a network, whose moving statistics are not the same afterwards."""
    call = tf.function(network, autograph=False)
    images = [answer.pictures["image"] for answer in self.all]
    outputs = [Outputs(*call(image, training=False)) for image in images]
    pairs = list(zip(outputs, self.all))
    return Parts(
      network=self.average_precision(outputs),
      perfect_boxes=self.average_precision(
        [
          Outputs(
            found.class_logits,
            tf.where(answer.is_positive, answer.perfect.box_outputs, found.box_outputs),
          )
          for found, answer in pairs
        ]
      ),
      perfect_scores=self.average_precision(
        [
          Outputs(answer.perfect.class_logits, found.box_outputs)
          for found, answer in pairs
        ]
      ),
      all_scores=self.average_precision(outputs, score_threshold=0.0),
      perfect=self.average_precision([answer.perfect for answer in self.all]),
      batch_statistics=self.average_precision(
        [Outputs(*call(image, training=True)) for image in images]
      ),
    )

  def describe_lost(self) -> list[str]:
    """A line for each object that a perfect network does not find, with the reason."""
    found = self._detect(self._config, [answer.perfect for answer in self.all])
    positive_boxes = self._positive_boxes()
    lines = []
    for record, image, learned in zip(self._dataset.records, found, positive_boxes):
      is_free = np.ones(len(image.boxes), bool)  # a detection finds one object
      for number in np.flatnonzero(~record.ignored):
        class_id, box = record.classes[number], record.boxes[number]
        finds = is_free & (image.classes == class_id)
        finds &= _iou(image.boxes, box) >= _SAME_BOX_IOU
        is_free[np.flatnonzero(finds)[:1]] = False
        if not finds.any():
          name = self._dataset.class_names[class_id - 1]
          reason = self._reason(record, number, learned)
          lines.append(
            f"{name} {np.round(box, 1).tolist()} in {record.image_id}: {reason}"
          )
    return lines

  def _reason(self, record, number, learned):
    classes, boxes = learned
    box, class_id = record.boxes[number], record.classes[number]
    if not (_iou(boxes[classes == class_id], box) >= _SAME_BOX_IOU).any():
      return (
        "no anchor is to learn it: none reaches model.positive_iou, or all that do "
        "belong to other objects"
      )
    others = (record.classes == class_id) & (np.arange(len(record.boxes)) != number)
    overlaps = _iou(record.boxes[others], box)
    if overlaps.size and overlaps.max() > self._config.eval.nms_iou:
      return (
        f"another one overlaps it by an IoU of {overlaps.max():.2f}, more than "
        f"eval.nms_iou, {self._config.eval.nms_iou:g}"
      )
    return (
      f"eval.max_detections ({self._config.eval.max_detections}) or "
      "eval.candidates_per_level cuts it off"
    )

  def _positive_boxes(self):
    """(classes, boxes in pixels of the image) that each image's positive anchors learn."""
    anchors, found = model_lib.make_anchors(self._config), []
    for answer in self.all:
      boxes = box_ops.decode(answer.perfect.box_outputs, anchors).numpy()
      classes = tf.argmax(answer.perfect.class_logits, axis=-1).numpy() + 1
      for positive, box, class_id, scale in zip(
        answer.is_positive.numpy()[..., 0],
        *(boxes, classes, answer.pictures["scale"].numpy()),
      ):
        found.append((class_id[positive], box[positive] / scale))
    return found

  def _detect(self, config, outputs):
    """ImageDetections of every image."""
    detect, found = model_lib.make_detect(config), []
    for answer, output in zip(self.all, outputs):
      pictures = answer.pictures
      detections = detect(output, pictures["content_size"])
      boxes = detections.boxes / pictures["scale"][:, tf.newaxis, tf.newaxis]
      for image, count in enumerate(detections.num_detections.numpy()):
        parts = (boxes, detections.scores, detections.classes)
        found.append(
          evaluation.ImageDetections(*(part[image, :count].numpy() for part in parts))
        )
    return found[: len(self._dataset.records)]


def _truth(records, scales, most):
  """The objects of images as a batch has them, in pixels of the network's input."""
  boxes = np.zeros([len(records), most, 4], np.float32)
  classes = np.zeros([len(records), most], np.int32)
  ignored = np.zeros([len(records), most], bool)
  for number, (record, scale) in enumerate(zip(records, scales)):
    count = len(record.boxes)
    boxes[number, :count] = record.boxes * scale
    classes[number, :count] = np.maximum(record.classes, 1)
    ignored[number, :count] = record.ignored
  return {"boxes": boxes, "classes": classes, "ignored": ignored}


def _iou(boxes, box):
  boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
  return box_ops.iou(boxes, np.asarray([box], np.float32)).numpy()[:, 0]


def read_rows(model_dir):
  """The rows of a run's metrics.csv, {column: number}."""
  with open(os.path.join(model_dir, folder.METRICS), newline="") as file:
    return [
      {name: float(text) for name, text in row.items() if text}
      for row in csv.DictReader(file)
    ]


def _head(dataset, perfect, lost):
  """Lines on what can be reached."""
  objects = sum(int((~record.ignored).sum()) for record in dataset.records)
  yield (
    f"{len(dataset.records)} images with {objects} objects; with these anchors and this "
    f"non-maximum suppression, a perfect network has AP {perfect:.3f}"
  )
  yield from (f"out of reach: {line}" for line in lost)


def _unreachable(reached, lost):
  """Lines where nothing else is in the way than objects that no network finds."""
  return [
    f"AP {reached:.3f}, which is all that is possible",
    *(f"  out of reach: {line}" for line in lost),
    "In the way: the objects that are out of reach, for the reasons given. Where it is "
    "anchors, ap_detect check recommends some that cover more",
  ]


def explain(config, parts, first, rows, lost) -> list[str]:
  """Lines on what is in the way of AP.

  Args:
    config: Config.
    parts: Parts.
    first: losses of the first step, and "weight_norm" before it.
    rows: of the run's metrics.csv, see `read_rows`.
    lost: lines on the objects that no network finds.
  """
  lines = [
    f"AP {parts.network:.3f} after {rows[-1]['step']:.0f} steps; {parts.perfect:.3f} is "
    "possible",
    f"  AP {parts.perfect_boxes:.3f} if its boxes were perfect",
    f"  AP {parts.perfect_scores:.3f} if its scores were perfect",
    f"  AP {parts.batch_statistics:.3f} with each batch's own statistics in batch "
    "normalisation",
    f"  AP {parts.all_scores:.3f} with eval.score_threshold=0",
    *(f"  out of reach: {line}" for line in lost),
  ]
  last = {
    name: float(np.mean([row[name] for row in rows[-(len(rows) // 20 + 1) :]]))
    for name in first
    if name.endswith(("_loss", "_norm"))
  }
  lines += [
    f"  {name} {first[name]:.4g} at first, {value:.4g} at last"
    for name, value in last.items()
  ]
  missing = parts.perfect - parts.network
  found = []
  if last["total_loss"] > 0.5 * first["total_loss"]:
    found.append(_on_rate(config, first["weight_norm"], last["weight_norm"]))
  if parts.batch_statistics - parts.network > 0.3 * missing:
    found.append(
      "batch normalisation: its moving statistics, which evaluation uses, are not those "
      "of the batches. Train longer, with larger batches, or from pretrained weights "
      "(model.backbone_weights), whose statistics stay as they are"
    )
  if parts.all_scores - parts.network > 0.3 * missing:
    found.append(
      f"eval.score_threshold={config.eval.score_threshold:g} cuts off what is right: "
      "lower it"
    )
  by_boxes = parts.perfect_boxes - parts.network
  by_scores = parts.perfect_scores - parts.network
  if not found and by_boxes >= by_scores:
    found.append(
      "the boxes: scores rank well, boxes are not exact. Raise train.box_loss_weight, or "
      "take anchors that lie closer to the objects (ap_detect check recommends some)"
    )
  if not found:
    found.append(
      "the scores: boxes are exact, but objects do not rank above the background, or "
      "have the wrong class. Look at the images (ap_detect preview): labels that "
      "contradict each other, objects that are missing, or too small at data.image_size_px"
    )
  return [*lines, *(f"In the way: {text}" for text in found)]


def _on_rate(config, before, after):
  rate = f"train.learning_rate={config.train.learning_rate:g}"
  if after > _BLOWN_UP * before:
    verdict = f"and the weights blow up: {rate} is too high, try a tenth of it"
  elif abs(after - before) < _UNMOVED * before:
    verdict = f"and the weights hardly move: {rate} is too low, try ten times as much"
  else:
    verdict = f"though the weights move: try a tenth of {rate}, and ten times as much"
  return f"the loss does not fall, {verdict}"
