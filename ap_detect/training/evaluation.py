"""Runs a network over a split and has pycocotools judge it."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from ap_detect import drawing
from ap_detect import images as image_ops
from ap_detect.data import pipeline
from ap_detect.metrics import coco
from ap_detect.training import run as run_lib


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
  """

  def __init__(self, network, config, strategy):
    self._strategy = strategy
    self._image_size = config.data.image_size_px
    self._batch_size = config.eval.batch_size * strategy.num_replicas_in_sync
    post_process = run_lib.make_detect(config)

    @tf.function
    def detect(batch):
      def replica_detect(batch):
        outputs = network(batch["image"], training=False)
        found = post_process(outputs, batch["content_size"])
        # Pixels of the original image, where clipping left at most a rounding error.
        boxes = found.boxes / batch["scale"][:, tf.newaxis, tf.newaxis]
        return found._replace(boxes=boxes)

      return strategy.run(replica_detect, args=(batch,))

    self._detect = detect

  def detect(self, records):
    """ImageDetections of every ImageRecord, in their order."""
    batches = pipeline.evaluation_batches(
      records, image_size=self._image_size, batch_size=self._batch_size
    )
    found = []
    for batch in self._strategy.experimental_distribute_dataset(batches):
      for replica in zip(
        *(
          self._strategy.experimental_local_results(part)
          for part in self._detect(batch)
        )
      ):
        found.extend(_split_batch(*(part.numpy() for part in replica)))
    return found[: len(records)]

  def evaluate(self, dataset):
    """(CocoEvaluation, list of ImageDetections, COCO results) of a DetectionDataset."""
    found = self.detect(dataset.records)
    results = []
    for record, image in zip(dataset.records, found):
      results += coco.coco_results(
        record.image_id, image.boxes, image.scores, image.classes, dataset.category_ids
      )
    return coco.evaluate_coco(dataset, results), found, results


def load_pixels(record):
  """[H, W, 3] uint8 of an ImageRecord."""
  if isinstance(record.image, str):
    return image_ops.decode_image(tf.io.read_file(record.image)).numpy()
  return record.image


def draw_found(pixels, found, class_names):
  """Picture with boxes, labels and scores.

  Args:
    pixels: [H, W, 3] uint8.
    found: ImageDetections.
    class_names: [K].

  Returns:
    [H', W', 3] uint8.
  """
  labels = [class_names[k - 1] for k in found.classes]
  return drawing.draw_detections(
    pixels, found.boxes, labels, classes=found.classes, scores=found.scores
  )


def draw_comparison(record, found, class_names, thresholds):
  """Ground truth beside the detections that reach their class's score threshold.

  Args:
    record: ImageRecord.
    found: ImageDetections.
    class_names: [K].
    thresholds: ScoreThresholds.

  Returns:
    [H', W', 3] uint8.
  """
  pixels = load_pixels(record)
  labels = [class_names[k - 1] for k in record.classes]
  truth = drawing.draw_detections(pixels, record.boxes, labels, classes=record.classes)
  confident = keep_confident(found, class_names, thresholds)
  return drawing.side_by_side(truth, draw_found(pixels, confident, class_names))


def keep_confident(found, class_names, thresholds):
  """The ImageDetections whose score reaches their class's threshold."""
  at_least = np.array([thresholds.per_class[name] for name in class_names])
  kept = found.scores >= at_least[found.classes - 1]
  return ImageDetections(*(part[kept] for part in found))


def evaluate_run(model_dir, *, split="", checkpoint=""):
  """Evaluates a run's checkpoint on a split and writes the results beside it.

  Writes <model_dir>/eval/metrics.json, detections.json (COCO results) and pictures/.
  Detections are never cut by the run's score thresholds; only pictures are (by this
  evaluation's own where the run has none yet).

  Args:
    model_dir: a run's folder.
    split: name of the split; "" for the one the run validates on.
    checkpoint: see run.restore.

  Returns:
    CocoEvaluation.
  """
  restored = run_lib.restore(model_dir, checkpoint)
  config, names = restored.config, restored.classes.names
  dataset = run_lib.open_split(config, split or config.data.val_split, names)
  evaluator = Evaluator(restored.network, config, restored.strategy)
  evaluation, found, results = evaluator.evaluate(dataset)
  folder = os.path.join(model_dir, "eval")
  os.makedirs(folder, exist_ok=True)
  run_lib.write_json(os.path.join(folder, "metrics.json"), evaluation.to_json())
  run_lib.write_json(os.path.join(folder, "detections.json"), results)
  thresholds = evaluation.score_thresholds
  if os.path.exists(os.path.join(model_dir, run_lib.BEST)):
    thresholds = run_lib.load_thresholds(model_dir)
  pictures = os.path.join(folder, "pictures")
  os.makedirs(pictures, exist_ok=True)
  for record, image in list(zip(dataset.records, found))[: config.eval.num_pictures]:
    comparison = draw_comparison(record, image, names, thresholds)
    Image.fromarray(comparison).save(os.path.join(pictures, f"{record.image_id}.png"))
  print(coco.format_table(evaluation))
  print(f"\ncheckpoint   {restored.checkpoint}\nmetrics      {folder}/metrics.json")
  print(f"detections   {folder}/detections.json\npictures     {pictures}/")
  return evaluation


def _split_batch(boxes, scores, classes, counts):
  """ImageDetections of each image of a padded batch."""
  return [
    ImageDetections(boxes[i, :count], scores[i, :count], classes[i, :count])
    for i, count in enumerate(counts)
  ]
