"""Runs a network over a split and has pycocotools judge it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from ap_detect import errors
from ap_detect.data import pipeline
from ap_detect.metrics import coco
from ap_detect.runs import workers as workers_lib
from ap_detect.runs.scores import Judgement
from ap_detect.training import views as views_lib


class ImageDetections(NamedTuple):
  """Detections of one image, best score first.

  Attributes:
    boxes: [D, 4] float32, yxyx, pixels of the original image.
    scores: [D] float32.
    classes: [D] int32, 1..K.
  """

  boxes: np.ndarray
  scores: np.ndarray
  classes: np.ndarray


class Evaluator:
  """Detects on whole splits, batch by batch, on all replicas.

  Args:
    network: tf.keras.Model of images -> Outputs.
    config: Config of the run.
    strategy: the tf.distribute strategy that the network was made under.
    workers: Workers, each of which detects on its share; None for the strategy's.
  """

  def __init__(self, network, config, strategy, workers=None):
    self._network = network
    self._config = config
    self._strategy = strategy
    self._num_replicas = strategy.num_replicas_in_sync
    self._functions = {}
    self._workers = workers or workers_lib.Workers(strategy)

  def detect(self, records):
    """ImageDetections of every ImageRecord, in their order, on every worker."""
    found: dict[int, ImageDetections] = {}
    speed = _Speed()
    groups = views_lib.group_by_views(records, self._config)
    for views, indices in groups.items():
      size = self._batch_size(len(indices))
      own = self._own_share(indices, size)
      chosen = [records[i] for i in own]
      found.update(zip(own, self._detect(chosen, views, size, speed)))
    logging.info("detection: %d images%s", len(records), speed)
    for part in self._workers.gather(found):
      found.update(part)
    return [found[index] for index in range(len(records))]

  def _batch_size(self, count):
    """Images a batch, over all replicas."""
    per_replica = -(-count // self._num_replicas)
    return min(self._config.eval.batch_size, per_replica) * self._num_replicas

  def _own_share(self, indices, size):
    """Of each batch the part that falls to this worker, the last one filled up.

    So each replica has the batches that it would have with all replicas in one worker.
    """
    missing = -len(indices) % size
    filled_up = [*indices, *[indices[-1]] * missing]
    own = size // self._workers.count
    first = self._workers.index * own
    return [
      index
      for start in range(first, len(filled_up), size)
      for index in filled_up[start : start + own]
    ]

  def _detect(self, records, views, size, speed):
    """Yields the ImageDetections of every image of this worker's share."""
    batches = self._workers.distribute(
      lambda size: pipeline.evaluation_batches(records, views=views, batch_size=size),
      size,
    )
    own = size // self._workers.count
    if views not in self._functions:
      self._functions[views] = self._make_function(views)
    since = None
    named = pipeline.naming_unreadable(
      batches, lambda number: records[number * own : (number + 1) * own]
    )
    for batch in itertools.islice(named, len(records) // own):
      found = []
      with errors.blaming_memory_on("eval.batch_size"):
        parts = self._functions[views](batch)
        for replica in zip(*map(self._strategy.experimental_local_results, parts)):
          found += _split_batch(*(part.numpy() for part in replica))
      since = speed.add(len(found) * self._workers.count, since)
      yield from found

  def _make_function(self, views):
    detect = views_lib.make_detect(self._network, views, self._config)
    return tf.function(lambda batch: self._strategy.run(detect, args=(batch,)))

  def evaluate(self, dataset):
    """What `judge` says of a DetectionDataset, to the chief; None to other workers."""
    found = self.detect(dataset.records)
    return judge(dataset, found) if self._workers.is_chief else None


@dataclasses.dataclass
class _Speed:
  """Images a second, without each group's first batch, which may build its graph."""

  images: int = 0
  seconds: float = 0.0

  def add(self, images, since):
    now = time.monotonic()
    if since is not None:
      self.images += images
      self.seconds += now - since
    return now

  def __str__(self):
    return f", {self.images / self.seconds:.1f} images/s" if self.seconds else ""


def judgement(evaluation):
  """What a CocoEvaluation says of scores, as a Judgement."""
  return Judgement(
    evaluation.score_thresholds, evaluation.calibration, evaluation.operating_points
  )


def to_shown(found, class_names, shown):
  """The detections that are shown, with their scores as they are shown.

  Args:
    found: ImageDetections with the network's scores.
    class_names: [K].
    shown: ShownScores.

  Returns:
    ImageDetections of those whose shown score reaches their class's threshold.
  """
  if shown.calibration:
    calibrated = shown.calibration(found.scores).astype(np.float32)
    found = found._replace(scores=calibrated)
  thresholds = [shown.thresholds.per_class[name] for name in class_names]
  at_least = np.array(thresholds, np.float32)  # as they are served
  kept = found.scores >= at_least[found.classes - 1]
  return ImageDetections(*(part[kept] for part in found))


def judge(dataset, found):
  """(CocoEvaluation, found, COCO results) of the ImageDetections of each record."""
  results = coco_results(dataset, found)
  return coco.evaluate_coco(dataset, results), found, results


def coco_results(dataset, found):
  """COCO results of all images.

  Args:
    dataset: DetectionDataset.
    found: ImageDetections of each of its records.

  Returns:
    list of dicts, see `metrics.coco.coco_results`.
  """
  results = []
  for record, image in zip(dataset.records, found):
    results += coco.coco_results(
      record.image_id, image.boxes, image.scores, image.classes, dataset.category_ids
    )
  return results


def _split_batch(boxes, scores, classes, counts):
  """ImageDetections of each image of a padded batch."""
  return [
    ImageDetections(boxes[i, :count], scores[i, :count], classes[i, :count])
    for i, count in enumerate(counts)
  ]
