"""Validation in a training: metrics, the best checkpoint, and what shows them."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib

import numpy as np
import tensorflow as tf
from absl import logging

from ap_detect import errors
from ap_detect.runs import folder
from ap_detect.runs import workers as workers_lib
from ap_detect.training import evaluation as evaluation_lib
from ap_detect.training import evaluation_files, measurements, monitoring

NUM_TENSORBOARD_IMAGES = 6
# Fields of `eval` that change what is found; the others change how fast, or what is shown.
_FREE_FIELDS = ("batch_size", "num_pictures")


class Validator:
  """Evaluates the network on the validation split, and enters the result.

  Of several workers, each detects on its share, the chief judges, and all learn of it.

  Args:
    model_dir: the run's folder.
    state: state.TrainingState.
    evaluator: evaluation.Evaluator of the network that is trained.
    dataset: DetectionDataset to validate on.
    writer: tf.summary writer.
    config: Config.
    count_scores: measurements.ScoreCounter of the same network; None for no histograms.
    workers: Workers that validate together.
  """

  def __init__(
    self,
    model_dir,
    state,
    evaluator,
    dataset,
    writer,
    config,
    *,
    count_scores=None,
    workers=workers_lib.ONE,
  ):
    self._model_dir = model_dir
    self._state = state
    self._evaluator = evaluator
    self._workers = workers
    self._dataset = dataset
    self._writer = writer
    self._count_scores = count_scores
    self._epochs = config.train.epochs
    self._judged_by = _judged_by(config, dataset)

  def validate(self):
    """Metrics by name; the caller saves the state, whose record they are in."""
    with self._state.judged_weights():
      judged = self._evaluator.evaluate(self._dataset)
    judgement = self._share(judged)
    record, metrics = self._state.record, judgement["metrics"]
    epoch = record.clock.epoch
    record.validation = {"epoch": epoch, "step": record.clock.step, **judgement}
    record.history.append(
      {
        **{"epoch": epoch, "step": record.clock.step, **metrics},
        "AP_per_class": self._workers.ask_chief(lambda: _ap_per_class(judged[0])),
      }
    )
    before = record.best["metrics"]["AP"] if record.best else -1.0
    is_best = metrics["AP"] > before
    if is_best:
      name = self._workers.ask_chief(
        lambda: folder.next_name(
          self._model_dir, folder.BEST_CHECKPOINTS, f"epoch-{epoch}"
        )
      )
      record.best = {"checkpoint": name, **record.validation}
      self._state.save_best(name)
    self._state.write_views()
    if judged:
      self._write_summaries(judged)
    logging.info(
      "epoch %d/%d: validation AP %.3f, AP50 %.3f, AP75 %.3f%s",
      *(epoch, self._epochs, metrics["AP"], metrics["AP50"], metrics["AP75"]),
      " (best so far)" if is_best else f" (best {before:.3f})",
    )
    return metrics

  def judge_best(self):
    """The record's `best` as later validations will be judged.

    That is None where its checkpoint is gone, and itself where nothing changed. Where the
    settings of `eval` or the validation split did, or an earlier version left its scores
    without a calibration, the best is evaluated again, and the network has its weights
    afterwards.
    """
    best = self._state.record.best
    if not best:
      return None
    path = self._best_path(best["checkpoint"])
    try:
      self._workers.together(lambda: folder.read_record(path), folder.UNREADABLE)
      is_judged_alike = best["judged_by"] == self._judged_by
      if is_judged_alike and "calibration" in best:
        return best
      self._workers.together(
        lambda: self._state.restore_judged_weights(path), folder.UNREADABLE
      )
    except folder.UNREACHABLE:
      raise  # it is not lost
    except folder.UNREADABLE as error:
      logging.warning(
        "the best checkpoint, %s, is lost (%s); the best of the validations from here on "
        "takes its place",
        *(path, errors.first_line(error)),
      )
      return None
    judgement = self._share(self._evaluator.evaluate(self._dataset))
    logging.info(
      "best checkpoint %s evaluated again, for %s: AP %.3f, before %.3f",
      best["checkpoint"],
      "its scores were not calibrated"
      if is_judged_alike
      else "the settings or images of validation changed",
      *(judgement["metrics"]["AP"], best["metrics"]["AP"]),
    )
    return {**best, **judgement}

  def _share(self, judged):
    """What is recorded of the chief's evaluation, to all workers."""

    def judgement():
      evaluation = judged[0]
      return {
        "metrics": evaluation.metrics,
        **evaluation_lib.judgement(evaluation).to_json(),
        "judged_by": self._judged_by,
      }

    return self._workers.ask_chief(judgement)

  def _best_path(self, name):
    return os.path.join(self._model_dir, folder.BEST_CHECKPOINTS, name)

  def _write_summaries(self, judged):
    evaluation, found, results = judged
    dataset, thresholds = self._dataset, evaluation.score_thresholds
    shown = evaluation_lib.judgement(evaluation).shown()
    with self._writer.as_default(step=self._state.record.clock.step):
      for name, value in evaluation.metrics.items():
        if value is not None:
          tf.summary.scalar(f"validation/{name}", value)
      tf.summary.scalar("validation/best_f1_threshold", thresholds.overall)
      for name, value in _ap_per_class(evaluation).items():
        if value is not None:
          tf.summary.scalar(f"validation_AP_per_class/{name}", value)
      if self._count_scores:  # with the weights as trained, which are what is ranked
        counts = self._count_scores()
        monitoring.write_histograms("logits", measurements.bin_edges(), counts)
      for record, image in zip(dataset.records[:NUM_TENSORBOARD_IMAGES], found):
        picture = evaluation_files.draw_comparison(
          record, image, dataset.class_names, shown
        )
        tf.summary.image(f"detections/{record.image_id}", picture[np.newaxis])
      pictures = evaluation_files.draw_charts(dataset, results, thresholds)
      for name, picture in pictures.items():
        tf.summary.image(f"charts/{name}", picture[np.newaxis])
    self._writer.flush()
    monitoring.write_chart(self._model_dir, self._state.record.history)


def _ap_per_class(evaluation):
  return {name: figures["AP"] for name, figures in evaluation.per_class.items()}


def _judged_by(config, dataset):
  """What validations must have in common to be compared, as JSON has it."""
  settings = dataclasses.asdict(config.eval)
  for name in _FREE_FIELDS:
    del settings[name]
  ids = ",".join(str(record.image_id) for record in dataset.records)
  judged_by = {
    "eval": settings,
    "images": len(dataset.records),
    "ids": zlib.crc32(ids.encode()),
    "objects": sum(len(record.boxes) for record in dataset.records),
  }
  return json.loads(json.dumps(judged_by))
