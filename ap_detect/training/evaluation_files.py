"""Evaluates a run's checkpoint, and draws and writes what came of it."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np

from ap_detect import charts, drawing
from ap_detect import config as config_lib
from ap_detect import images as image_ops
from ap_detect.data import encoded
from ap_detect.metrics import coco, curves, reliability, submissions, voc
from ap_detect.metrics import results as results_lib
from ap_detect.runs import data as data_lib
from ap_detect.runs import files, folder, scores
from ap_detect.runs import memory as memory_lib
from ap_detect.runs import model as model_lib
from ap_detect.runs import workers as workers_lib
from ap_detect.training import evaluation as evaluation_lib

# Of an image's id, in the name of its picture.
_ID_LENGTH = 80


def evaluate_run(
  model_dir,
  *,
  split="",
  checkpoint="",
  averaged_weights=True,
  data_overrides=None,
  output_dir="",
  eval_overrides=None,
  strategy=None,
  exported=None,
):
  """Evaluates a run's checkpoint on a split and writes the results.

  Writes metrics.json (with the split, checkpoint and settings that it is of),
  detections.json (COCO results), charts (precision_recall.png, confusion.png,
  reliability.png) and pictures/. VOC data get VOC's figures too, as "voc" in
  metrics.json. Of a split without labels, or without any object that counts, there are
  only the detections, of VOC data also as comp4_det_<split>_<class>.txt, as the official
  servers take them.

  Metrics and curves are of all detections; the run's score thresholds cut only those
  of the pictures and of the confusion (this evaluation's own where the run has none
  yet), see runs.scores.load_judgement. The JSON files have scores as the network gives
  them; pictures and what is printed have calibrated ones. An exported model's scores are
  everywhere as it serves them.

  Args:
    model_dir: a run's folder.
    split: name of the split; "" for the one the run validates on.
    checkpoint: see runs.folder.find_checkpoint.
    averaged_weights: see runs.model.restore.
    data_overrides: dict of fields of DataConfig that differ from the run's config; None
      as a value keeps it.
    output_dir: folder to write into; "" for <model_dir>/eval/<split>, slashes in the
      split's name written as "_".
    eval_overrides: dict of fields of EvalConfig that differ from the run's config.
    strategy: tf.distribute strategy; None for all GPUs, or the CPU. All workers of one
      detect, each on its share, and the chief writes.
    exported: serving.exported.Exported that detects in place of the run's network; then
      the default of output_dir ends in "_exported".

  Returns:
    CocoEvaluation; None where the split has nothing to judge by, and for other workers
    than the chief.

  Raises:
    ValueError: no such run, checkpoint or split, or `exported` has other classes.
  """
  if exported:
    names, saved_config = _names_for(exported, model_dir), folder.load_config(model_dir)
    source = {"saved_model": exported.path}
  else:
    restored = model_lib.restore(
      model_dir, checkpoint, averaged_weights=averaged_weights, strategy=strategy
    )
    names, saved_config = restored.classes.names, restored.config
    source = {
      "checkpoint": restored.checkpoint,
      "weights": "averaged" if restored.has_averages else "as trained",
    }
  values = dataclasses.asdict(saved_config)
  given = (data_overrides or {}).items()
  values["data"].update({name: value for name, value in given if value is not None})
  values["eval"].update(eval_overrides or {})
  config = config_lib.resolve(values)
  split = split or config.data.val_split
  workers = workers_lib.ONE if exported else workers_lib.Workers(restored.strategy)
  memory = memory_lib.Memory(model_dir)
  dataset = data_lib.open_split(config, split, names, memory=memory)
  workers.require_same_images(split, dataset)
  detector = exported or evaluation_lib.Evaluator(
    restored.network, config, restored.strategy, workers
  )
  name = split.replace("/", "_") + ("_exported" if exported else "")
  output_dir = output_dir or os.path.join(model_dir, "eval", name)
  if workers.is_chief:
    memory.save()
    os.makedirs(output_dir, exist_ok=True)
  found = detector.detect(dataset.records)
  if not workers.is_chief:
    return None
  if not any(results_lib.count_objects(dataset).values()):
    _write_unjudged(output_dir, split, dataset, found)
    return None
  evaluation, found, results = evaluation_lib.judge(dataset, found)
  _write_detections(output_dir, results)
  own = evaluation_lib.judgement(evaluation)
  if exported:
    judgement = own._replace(calibration=None)
    compared = {"as served": evaluation.outcomes.scores}
  else:
    judgement = scores.load_judgement(model_dir, restored.checkpoint) or own
    compared = reliability.calibrate_fairly(
      evaluation.outcomes,
      judgement.calibration,
      fitted_here=judgement is own or split == saved_config.data.val_split,
    )
  reliabilities = reliability.judge_scores(
    evaluation.outcomes, compared, names, judgement.thresholds
  )
  metrics = {
    "split": split,
    **source,
    "eval": dataclasses.asdict(config.eval),
    **evaluation.to_json(),
    "calibration_error": {
      part: {name: found.error for name, found in of_part.items()}
      for part, of_part in reliabilities.items()
    },
  }
  table = coco.format_table(evaluation, judgement.calibration)
  if not dataset.ignored_are_crowds:
    voc_evaluation = voc.evaluate_voc(dataset, results)
    metrics["voc"] = voc_evaluation.to_json()
    table += f"\n\n{voc.format_voc_table(voc_evaluation)}"
  files.write_json(os.path.join(output_dir, "metrics.json"), metrics)
  drawn = {
    **draw_charts(dataset, results, judgement.thresholds),
    "reliability": charts.reliability_picture(reliabilities["all"]),
  }
  for name, chart in drawn.items():
    files.write_png(os.path.join(output_dir, f"{name}.png"), chart)
  pictures = os.path.join(output_dir, "pictures")
  pairs = list(zip(dataset.records, found))[: config.eval.num_pictures]
  _write_pictures(pictures, pairs, names, judgement.shown())
  print(f"{table}\n\n{_describe(reliabilities)}")
  written = {
    "metrics": f"{output_dir}/metrics.json",
    "detections": f"{output_dir}/detections.json",
    "charts": ", ".join(f"{output_dir}/{name}.png" for name in drawn),
    "pictures": f"{pictures}/",
  }
  for name, paths in {**source, **written}.items():
    print(f"{name:<11}  {paths}")
  return evaluation


def _names_for(exported, model_dir):
  """The run's class names, which an exported model's must be."""
  names = folder.load_classes(model_dir).names
  if exported.class_names != names:
    raise ValueError(
      f"{exported.path} must have the classes of {model_dir}, {', '.join(names)}, but has "
      f"{', '.join(exported.class_names)}"
    )
  return names


def load_pixels(record):
  """[H, W, 3] uint8 of an ImageRecord."""
  if isinstance(record.image, np.ndarray):
    return record.image
  return image_ops.decode_image(
    encoded.read(record.image), exif_orientation=record.exif_orientation
  ).numpy()


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


def draw_comparison(record, found, class_names, shown):
  """Ground truth beside the detections that are shown.

  Args:
    record: ImageRecord.
    found: ImageDetections.
    class_names: [K].
    shown: ShownScores.

  Returns:
    [H', W', 3] uint8.
  """
  pixels = load_pixels(record)
  labels = [class_names[k - 1] if k else "" for k in record.classes]
  truth = drawing.draw_detections(pixels, record.boxes, labels, classes=record.classes)
  found = evaluation_lib.to_shown(found, class_names, shown)
  return drawing.side_by_side(truth, draw_found(pixels, found, class_names))


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


def _describe(reliabilities):
  """Calibration errors, before and after, of the detections shown and of all."""
  parts = []
  for part, of in (("shown", "detections shown"), ("all", "all detections")):
    errors = [
      f"{found.error:.4f} {name}"
      for name, found in reliabilities[part].items()
      if found.error is not None
    ]
    parts.append(f"{', '.join(errors) or 'none'} ({of})")
  return f"calibration  error {'; '.join(parts)}"


def _write_unjudged(folder, split, dataset, found):
  """Writes the detections of a split with nothing to judge by, and says what is not."""
  results = evaluation_lib.coco_results(dataset, found)
  path = _write_detections(folder, results)
  lacks = "object that counts" if dataset.has_labels else "labels"
  print(
    f"split {split!r} has no {lacks}: there are detections, but no metrics, charts or "
    f"pictures\ndetections   {path}"
  )
  if not dataset.ignored_are_crowds:
    name = os.path.basename(split.partition("@")[0])
    try:
      paths = submissions.write_comp4(folder, name, dataset, results)
    except ValueError as error:
      print(f"for VOC      not written: {error}")
      return
    print(f"for VOC      {paths[0]} and {len(paths) - 1} more")


def _write_detections(folder, results):
  """Writes COCO results, in one line, for those of a test set are many; the path."""
  path = os.path.join(folder, "detections.json")
  files.write_json(path, results, indent=None)
  return path


def _write_pictures(folder, pairs, class_names, shown):
  """Writes `draw_comparison` of (ImageRecord, ImageDetections) pairs."""
  os.makedirs(folder, exist_ok=True)
  for number, (record, image) in enumerate(pairs, start=1):
    comparison = draw_comparison(record, image, class_names, shown)
    # An id may be a whole address, and two may differ in signs alone.
    name = re.sub(r"[^\w.-]+", "_", str(record.image_id))[-_ID_LENGTH:]
    files.write_png(os.path.join(folder, f"{number:02d}_{name}.png"), comparison)
