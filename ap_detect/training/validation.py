"""Validation in a training: metrics, the best checkpoint, and what shows them."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import tensorflow as tf
from absl import logging

from ap_detect.runs import folder
from ap_detect.training import evaluation_files, monitoring

NUM_TENSORBOARD_IMAGES = 6
# Fields of `eval` that change what is found; the others change how fast, or what is shown.
_FREE_FIELDS = ("batch_size", "num_pictures")


class Validator:
  """Evaluates the network on the validation split, and enters the result.

  Args:
    model_dir: the run's folder.
    state: state.TrainingState.
    evaluator: evaluation.Evaluator of the network that is trained.
    dataset: DetectionDataset to validate on.
    writer: tf.summary writer.
    epochs: of the whole training.
  """

  def __init__(self, model_dir, state, evaluator, dataset, writer, *, epochs):
    self._model_dir = model_dir
    self._state = state
    self._evaluator = evaluator
    self._dataset = dataset
    self._writer = writer
    self._epochs = epochs

  def validate(self):
    """Metrics by name; the caller saves the state, whose record they are in."""
    evaluation, found, results = self._evaluator.evaluate(self._dataset)
    record, metrics = self._state.record, evaluation.metrics
    epoch = record.clock.epoch
    validation = {"epoch": epoch, "step": record.clock.step, **_judgement(evaluation)}
    record.validation = validation
    record.history.append({"epoch": epoch, "step": record.clock.step, **metrics})
    before = record.best["metrics"]["AP"] if record.best else -1.0
    is_best = metrics["AP"] > before
    if is_best:
      record.best = {"checkpoint": f"epoch-{epoch}", **validation}
      self._state.save_best(f"epoch-{epoch}")
    self._state.write_views()
    self._write_summaries(evaluation, found, results)
    logging.info(
      "epoch %d/%d: validation AP %.3f, AP50 %.3f, AP75 %.3f%s",
      *(epoch, self._epochs, metrics["AP"], metrics["AP50"], metrics["AP75"]),
      " (best so far)" if is_best else f" (best {before:.3f})",
    )
    return metrics

  def judge_best_again(self):
    """The record's `best`, evaluated by the present settings; None if it is gone.

    The network has the best checkpoint's weights afterwards.
    """
    record = self._state.record
    name = record.best["checkpoint"]
    path = os.path.join(self._model_dir, folder.BEST_CHECKPOINTS, name)
    try:
      self._state.restore_weights(path)
    except folder.UNREADABLE as error:
      logging.warning("the best checkpoint, %s, is lost: %s", path, error)
      return None
    evaluation, _, _ = self._evaluator.evaluate(self._dataset)
    before = record.best["metrics"]["AP"]
    logging.info(
      "best checkpoint %s evaluated again by the changed eval settings: AP %.3f, before "
      "%.3f",
      *(name, evaluation.metrics["AP"], before),
    )
    return {**record.best, **_judgement(evaluation)}

  def _write_summaries(self, evaluation, found, results):
    dataset, thresholds = self._dataset, evaluation.score_thresholds
    with self._writer.as_default(step=self._state.record.clock.step):
      for name, value in evaluation.metrics.items():
        if value is not None:
          tf.summary.scalar(f"validation/{name}", value)
      tf.summary.scalar("validation/best_f1_threshold", thresholds.overall)
      for record, image in zip(dataset.records[:NUM_TENSORBOARD_IMAGES], found):
        picture = evaluation_files.draw_comparison(
          record, image, dataset.class_names, thresholds
        )
        tf.summary.image(f"detections/{record.image_id}", picture[np.newaxis])
      pictures = evaluation_files.draw_charts(dataset, results, thresholds)
      for name, picture in pictures.items():
        tf.summary.image(f"charts/{name}", picture[np.newaxis])
    self._writer.flush()
    monitoring.write_chart(self._model_dir, self._state.record.history)


def is_judged_alike(config, other) -> bool:
  """Whether validations under two Configs are of the same settings."""
  one, two = (
    {
      name: value
      for name, value in dataclasses.asdict(each.eval).items()
      if name not in _FREE_FIELDS
    }
    for each in (config, other)
  )
  return one == two


def _judgement(evaluation):
  return {
    "metrics": evaluation.metrics,
    "score_thresholds": evaluation.score_thresholds.to_json(),
  }
