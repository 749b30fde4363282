"""Runs a network over a split and has pycocotools judge it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from ap_detect import charts, drawing
from ap_detect import config as config_lib
from ap_detect import images as image_ops
from ap_detect.data import encoded, pipeline
from ap_detect.metrics import coco, curves, submissions, voc
from ap_detect.metrics import results as results_lib
from ap_detect.runs import data as data_lib
from ap_detect.runs import files, folder
from ap_detect.runs import model as model_lib
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
  """

  def __init__(self, network, config, strategy):
    self._network = network
    self._config = config
    self._strategy = strategy
    self._batch_size = config.eval.batch_size * strategy.num_replicas_in_sync
    self._functions = {}

  def detect(self, records):
    """ImageDetections of every ImageRecord, in their order."""
    found: list = [None] * len(records)
    speed = _Speed()
    groups = views_lib.group_by_views(records, self._config)
    for views, indices in groups.items():
      batches = pipeline.evaluation_batches(
        [records[i] for i in indices], views=views, batch_size=self._batch_size
      )
      for index, image in zip(indices, self._detect(batches, views, speed)):
        found[index] = image
    logging.info("detection: %d images%s", len(records), speed)
    return found

  def _detect(self, batches, views, speed):
    """Yields the ImageDetections of every image, those of the filled-up batch too."""
    if views not in self._functions:
      self._functions[views] = self._make_function(views)
    since = None
    for batch in self._strategy.experimental_distribute_dataset(batches):
      parts = self._functions[views](batch)
      found = []
      for replica in zip(*map(self._strategy.experimental_local_results, parts)):
        found += _split_batch(*(part.numpy() for part in replica))
      since = speed.add(len(found), since)
      yield from found

  def _make_function(self, views):
    detect = views_lib.make_detect(self._network, views, self._config)
    return tf.function(lambda batch: self._strategy.run(detect, args=(batch,)))

  def evaluate(self, dataset):
    """(CocoEvaluation, list of ImageDetections, COCO results) of a DetectionDataset."""
    found = self.detect(dataset.records)
    results = _coco_results(dataset, found)
    return coco.evaluate_coco(dataset, results), found, results


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


def load_pixels(record):
  """[H, W, 3] uint8 of an ImageRecord."""
  if isinstance(record.image, np.ndarray):
    return record.image
  return image_ops.decode_image(encoded.read(record.image)).numpy()


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


def evaluate_run(
  model_dir,
  *,
  split="",
  checkpoint="",
  data_root="",
  output_dir="",
  eval_overrides=None,
  strategy=None,
):
  """Evaluates a run's checkpoint on a split and writes the results.

  Writes metrics.json (with the split, checkpoint and settings that it is of),
  detections.json (COCO results), charts (precision_recall.png, confusion.png) and
  pictures/. VOC data get VOC's figures too, as "voc" in metrics.json. Of a split without
  labels, or without any object that counts, there are only the detections, of VOC data
  also as comp4_det_<split>_<class>.txt, as the official servers take them.

  Metrics and curves are of all detections; the run's score thresholds cut only those
  of the pictures and of the confusion (this evaluation's own where the run has none
  yet), see runs.folder.load_thresholds.

  Args:
    model_dir: a run's folder.
    split: name of the split; "" for the one the run validates on.
    checkpoint: see runs.folder.find_checkpoint.
    data_root: where the data lies now; "" for data.root of the run's config.
    output_dir: folder to write into; "" for <model_dir>/eval/<split>, slashes in the
      split's name written as "_".
    eval_overrides: dict of fields of EvalConfig that differ from the run's config.
    strategy: tf.distribute strategy; None for all GPUs, or the CPU.

  Returns:
    CocoEvaluation; None where the split has nothing to judge by.
  """
  restored = model_lib.restore(model_dir, checkpoint, strategy=strategy)
  names = restored.classes.names
  values = dataclasses.asdict(restored.config)
  values["data"]["root"] = data_root or restored.config.data.root
  values["eval"].update(eval_overrides or {})
  config = config_lib.resolve(values)
  split = split or config.data.val_split
  dataset = data_lib.open_split(config, split, names)
  evaluator = Evaluator(restored.network, config, restored.strategy)
  output_dir = output_dir or os.path.join(model_dir, "eval", split.replace("/", "_"))
  os.makedirs(output_dir, exist_ok=True)
  if not any(results_lib.count_objects(dataset).values()):
    _write_unjudged(output_dir, split, dataset, evaluator.detect(dataset.records))
    return None
  evaluation, found, results = evaluator.evaluate(dataset)
  _write_detections(output_dir, results)
  metrics = {
    "split": split,
    "checkpoint": restored.checkpoint,
    "eval": dataclasses.asdict(config.eval),
    **evaluation.to_json(),
  }
  table = coco.format_table(evaluation)
  if not dataset.ignored_are_crowds:
    voc_evaluation = voc.evaluate_voc(dataset, results)
    metrics["voc"] = voc_evaluation.to_json()
    table += f"\n\n{voc.format_voc_table(voc_evaluation)}"
  files.write_json(os.path.join(output_dir, "metrics.json"), metrics)
  thresholds = evaluation.score_thresholds
  with contextlib.suppress(ValueError):
    thresholds = folder.load_thresholds(model_dir, checkpoint=restored.checkpoint)
  for name, chart in draw_charts(dataset, results, thresholds).items():
    Image.fromarray(chart).save(os.path.join(output_dir, f"{name}.png"))
  pictures = os.path.join(output_dir, "pictures")
  shown = list(zip(dataset.records, found))[: config.eval.num_pictures]
  _write_pictures(pictures, shown, names, thresholds)
  print(f"{table}\n\ncheckpoint   {restored.checkpoint}")
  print(
    f"metrics      {output_dir}/metrics.json\ndetections   {output_dir}/detections.json"
  )
  print(f"charts       {output_dir}/precision_recall.png, {output_dir}/confusion.png")
  print(f"pictures     {pictures}/")
  return evaluation


def draw_charts(dataset, results, thresholds):
  """Charts of an evaluation at IoU 0.5, by name.

  Args:
    dataset: DetectionDataset.
    results: COCO results of all its images.
    thresholds: ScoreThresholds that the confusion's detections must reach.

  Returns:
    {"precision_recall": picture, "confusion": picture}, each [H, W, 3] uint8.
  """
  confusion = curves.confusion(dataset, results, thresholds)
  return {
    "precision_recall": charts.precision_recall_picture(
      curves.precision_recall(dataset, results)
    ),
    "confusion": charts.confusion_picture(confusion, dataset.class_names),
  }


def _write_unjudged(folder, split, dataset, found):
  """Writes the detections of a split with nothing to judge by, and says what is not."""
  results = _coco_results(dataset, found)
  path = _write_detections(folder, results)
  lacks = "object that counts" if dataset.has_labels else "labels"
  print(
    f"split {split!r} has no {lacks}: there are detections, but no metrics, charts or "
    f"pictures\ndetections   {path}"
  )
  if not dataset.ignored_are_crowds:
    name = os.path.basename(split.partition("@")[0])
    files = submissions.write_comp4(folder, name, dataset, results)
    print(f"for VOC      {files[0]} and {len(files) - 1} more")


def _write_detections(folder, results):
  """Writes COCO results, in one line, for those of a test set are many; the path."""
  path = os.path.join(folder, "detections.json")
  files.write_json(path, results, indent=None)
  return path


def _write_pictures(folder, shown, class_names, thresholds):
  """Writes `draw_comparison` of (ImageRecord, ImageDetections) pairs."""
  os.makedirs(folder, exist_ok=True)
  for record, image in shown:
    comparison = draw_comparison(record, image, class_names, thresholds)
    name = str(record.image_id).replace("/", "_")  # of joined splits, see splits.join
    Image.fromarray(comparison).save(os.path.join(folder, f"{name}.png"))


def _coco_results(dataset, found):
  """COCO results of all images' ImageDetections."""
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
