"""What happens beside the updates: logs, finite checks, checkpoints, validation."""

from __future__ import annotations

import math
import os
import time

import numpy as np
import tensorflow as tf
from absl import logging

from ap_detect.training import evaluation as evaluation_lib
from ap_detect.training import run as run_lib

LOG_EVERY_STEPS = 10
NUM_TENSORBOARD_PICTURES = 6


class NonFiniteLossError(ValueError):
  """A loss, gradient or weight became infinite or NaN."""


class StepLogger(tf.keras.callbacks.Callback):
  """Writes TensorBoard scalars, and stops training at the first non-finite loss.

  Args:
    writer: tf.summary writer.
    schedule: learning rate of a step's number.
    images_per_step: over all replicas.
    image_ids_of_step: function of a step's number to its images' ids.
  """

  def __init__(self, writer, *, schedule, images_per_step, image_ids_of_step):
    super().__init__()
    self._writer = writer
    self._schedule = schedule
    self._images_per_step = images_per_step
    self._image_ids_of_step = image_ids_of_step
    self._step = 0
    # Time and step that the next speed is measured from; None before the first step,
    # which builds the graph and is no training time.
    self._since: tuple[float, int] | None = None
    self._unwritten: dict[str, float] = {}

  def on_train_begin(self, logs=None):
    self._step = int(self.model.optimizer.iterations.numpy())
    self._since = None

  def on_epoch_begin(self, epoch, logs=None):
    if self._since is not None:  # nor is what lies between two epochs
      self._since = (time.monotonic(), self._step)

  def on_train_batch_end(self, batch, logs=None):
    for name in ("total_loss", "gradient_norm"):
      if not math.isfinite(logs[name]):
        raise NonFiniteLossError(
          f"{name} is {logs[name]} at step {self._step}, images "
          f"{self._image_ids_of_step(self._step)}; training stopped, and the last "
          "checkpoint is from before it. A lower train.learning_rate or "
          "train.clip_norm=10 often helps"
        )
    self._step += 1
    self._unwritten = logs
    if self._step % LOG_EVERY_STEPS == 0:
      self._write()
    if self._since is None:
      self._since = (time.monotonic(), self._step)

  def on_epoch_end(self, epoch, logs=None):
    """Writes the last step, so that short epochs show too."""
    if self._unwritten:
      self._write()

  def _write(self):
    logs, self._unwritten = self._unwritten, {}
    with self._writer.as_default(step=self._step):
      for name, value in logs.items():
        is_train = name.endswith("loss") or name == "gradient_norm"
        tf.summary.scalar(f"train/{name}" if is_train else name, value)
      # The rate of the step that these losses are of, the one before `_step`.
      tf.summary.scalar("learning_rate", self._schedule(self._step - 1))
      if self._since is not None and self._step > self._since[1]:
        started, step = self._since
        seconds = max(time.monotonic() - started, 1e-9)
        rate = (self._step - step) * self._images_per_step / seconds
        tf.summary.scalar("images_per_second", rate)
        self._since = (time.monotonic(), self._step)


class EpochLogger(tf.keras.callbacks.Callback):
  """One line an epoch: mean losses, rate, time to go."""

  def __init__(self, *, epochs, steps_per_epoch, images_per_step):
    super().__init__()
    self._epochs = epochs
    self._images_per_epoch = steps_per_epoch * images_per_step
    self._seconds = []
    self._first_epoch = None

  def on_epoch_begin(self, epoch, logs=None):
    if self._first_epoch is None:
      self._first_epoch, self._started = epoch, time.monotonic()
    self._epoch_started = time.monotonic()
    self._losses = []

  def on_train_batch_end(self, batch, logs=None):
    self._losses.append({k: v for k, v in logs.items() if k.endswith("loss")})

  def on_epoch_end(self, epoch, logs=None):
    seconds = time.monotonic() - self._epoch_started
    done = epoch + 1 - self._first_epoch
    to_go = (time.monotonic() - self._started) / done * (self._epochs - epoch - 1)
    means = {k: np.mean([step[k] for step in self._losses]) for k in self._losses[0]}
    logging.info(
      "epoch %d/%d: %s, %.1f images/s, about %d min %02d s to go",
      epoch + 1,
      self._epochs,
      ", ".join(f"{name} {value:.4f}" for name, value in means.items()),
      self._images_per_epoch / seconds,
      *divmod(int(to_go), 60),
    )


class CheckpointAndValidate(tf.keras.callbacks.Callback):
  """After every epoch: a checkpoint, then validation, then perhaps a new best.

  Args:
    manager: CheckpointManager of the whole training state.
    best_manager: CheckpointManager of the network alone.
    epoch_variable: tf.Variable in the checkpoint; the number of finished epochs.
    evaluator: evaluation.Evaluator.
    dataset: DetectionDataset to validate on.
    class_names: [K].
    model_dir: the run.
    writer: tf.summary writer.
    epochs: of the whole training.
    every_epochs: how often to validate; the last epoch always is.
  """

  def __init__(
    self,
    *,
    manager,
    best_manager,
    epoch_variable,
    evaluator,
    dataset,
    class_names,
    model_dir,
    writer,
    epochs,
    every_epochs,
  ):
    super().__init__()
    self._manager = manager
    self._best_manager = best_manager
    self._epoch = epoch_variable
    self._evaluator = evaluator
    self._dataset = dataset
    self._class_names = class_names
    self._model_dir = model_dir
    self._writer = writer
    self._epochs = epochs
    self._every_epochs = every_epochs
    path = os.path.join(model_dir, run_lib.HISTORY)
    self._history = run_lib.read_json(path) if os.path.exists(path) else []

  def on_train_begin(self, logs=None):
    """Makes up for a validation that an interrupted start did not finish."""
    epoch = int(self._epoch.numpy())
    self._history = [entry for entry in self._history if entry["epoch"] <= epoch]
    if epoch and self._is_due(epoch) and epoch not in self._validated_epochs():
      self._validate(epoch)

  def on_epoch_end(self, epoch, logs=None):
    self._refuse_non_finite_weights(epoch + 1)
    self._epoch.assign(epoch + 1)
    self._manager.save(checkpoint_number=epoch + 1)
    if self._is_due(epoch + 1):
      self._validate(epoch + 1)

  def _refuse_non_finite_weights(self, epoch):
    """The last update may have broken what its own loss could not show yet."""
    for weight in self.model.weights:
      if not np.isfinite(weight.numpy()).all():
        raise NonFiniteLossError(
          f"{weight.name} is not finite after epoch {epoch}; training stopped, and the "
          "last checkpoint is from before it. A lower train.learning_rate or "
          "train.clip_norm=10 often helps"
        )

  def _is_due(self, epoch):
    return epoch % self._every_epochs == 0 or epoch == self._epochs

  def _validated_epochs(self):
    return [entry["epoch"] for entry in self._history]

  def _validate(self, epoch):
    evaluation, found, results = self._evaluator.evaluate(self._dataset)
    best = max((entry["AP"] for entry in self._history), default=-1.0)
    metrics = evaluation.metrics
    if metrics["AP"] > best:
      self._save_best(epoch, evaluation)
    # Last, so that an interruption before it repeats the validation.
    self._history.append({"epoch": epoch, **metrics})
    run_lib.write_json(os.path.join(self._model_dir, run_lib.HISTORY), self._history)
    self._write_summaries(evaluation, found, results)
    logging.info(
      "epoch %d/%d: validation AP %.3f, AP50 %.3f, AP75 %.3f%s",
      *(epoch, self._epochs, metrics["AP"], metrics["AP50"], metrics["AP75"]),
      " (best so far)" if metrics["AP"] > best else f" (best {best:.3f})",
    )

  def _save_best(self, epoch, evaluation):
    path = self._best_manager.save(checkpoint_number=epoch)
    run_lib.write_json(
      os.path.join(self._model_dir, run_lib.BEST),
      {
        "checkpoint": os.path.basename(path),
        "epoch": epoch,
        "metrics": evaluation.metrics,
        "score_thresholds": evaluation.score_thresholds.to_json(),
      },
    )

  def _write_summaries(self, evaluation, found, results):
    step = int(self.model.optimizer.iterations.numpy())
    with self._writer.as_default(step=step):
      for name, value in evaluation.metrics.items():
        if value is not None:
          tf.summary.scalar(f"validation/{name}", value)
      tf.summary.scalar(
        "validation/best_f1_threshold", evaluation.score_thresholds.overall
      )
      records = self._dataset.records[:NUM_TENSORBOARD_PICTURES]
      for record, image in zip(records, found):
        picture = evaluation_lib.draw_comparison(
          record, image, self._class_names, evaluation.score_thresholds
        )
        tf.summary.image(f"detections/{record.image_id}", picture[np.newaxis])
      pictures = evaluation_lib.draw_charts(
        self._dataset, results, evaluation.score_thresholds
      )
      for name, picture in pictures.items():
        tf.summary.image(f"charts/{name}", picture[np.newaxis])
    self._writer.flush()
