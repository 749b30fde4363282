"""The training loop: steps, and what happens at their times by the one clock."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any, Callable, NamedTuple

from absl import logging

from ap_detect import errors
from ap_detect.runs import workers as workers_lib
from ap_detect.training import monitoring, progress
from ap_detect.training import state as state_lib


class Pace(NamedTuple):
  """How far a training goes, and how often something happens in it.

  Attributes:
    epochs: where it ends.
    batch_size: images per step, over all replicas.
    steps_per_execution: steps per call of the step function.
    log_every_steps: how often numbers are read from the device and written.
    checkpoint_every_minutes: how often the state is saved within an epoch.
    validate_every_epochs: how often the network is validated; at the end it always is.
    patience: it ends after so many validations without a better one; 0 for never.
  """

  epochs: int
  batch_size: int
  steps_per_execution: int = 1
  log_every_steps: int = 10
  checkpoint_every_minutes: float = 10.0
  validate_every_epochs: int = 1
  patience: int = 0


class _Execution(NamedTuple):
  """Steps that were started, and whose numbers were not read yet.

  Attributes:
    clocks: Clock before each step, and after the last one.
    rates: learning rate of each step.
    logs: dict of [steps] tensors.
  """

  clocks: list
  rates: list
  logs: dict[str, Any]


class TrainingLoop:
  """Trains from the state's clock to the end.

  Numbers stay on the device until `log_every_steps` steps are done, an epoch ends or the
  state is saved. Only then are they checked, so that nothing is saved after a loss that
  is not finite, and only then do callbacks hear of the steps. Of several workers, all
  stop and save at the same step, if one of them asks to: they agree on it whenever
  numbers are read, and between epochs.

  Args:
    step: training.step.TrainingStep.
    state: state.TrainingState.
    schedule: schedules.Schedule.
    batches: function of a position to an endless iterable of batches from there on.
    validate: function of no arguments that evaluates the present weights, enters the
      result into the record, and returns its metrics, by name.
    pace: Pace.
    signals: signals.StopSignals.
    metrics_file: monitoring.MetricsFile.
    writer: tf.summary writer.
    callbacks: tf.keras.callbacks.CallbackList.
    image_ids: function (position, count) to the ids of a batch's images.
    measure: function of no arguments to further numbers of a row, by column.
    keep_failed: function (Clock before a step that is not finite, its numbers) to a
      sentence on what was kept of it; weights and record are not the present ones after.
    workers: Workers that train together, each by such a loop.
  """

  def __init__(
    self,
    step: Callable,
    state: state_lib.TrainingState,
    *,
    schedule,
    batches,
    validate,
    pace: Pace,
    signals,
    metrics_file,
    writer,
    callbacks,
    image_ids,
    measure=dict,
    keep_failed=None,
    workers=workers_lib.ONE,
  ):
    self._step = step
    self._state = state
    self._schedule = schedule
    self._batches = batches
    self._validate = validate
    self._pace = pace
    self._signals = signals
    self._metrics_file = metrics_file
    self._writer = writer
    self._callbacks = callbacks
    self._image_ids = image_ids
    self._measure = measure
    self._keep_failed = keep_failed
    self._workers = workers
    self._unread: list[_Execution] = []
    self._speed = monitoring.Speed()
    self._last_row: dict[str, Any] = {}
    self._is_built = False
    self._saved = state.record.clock
    self._saved_at = time.monotonic()

  def run(self) -> None:
    """Trains, validates and saves until the last epoch is done.

    Raises:
      NonFiniteError: a loss, gradient or weight is not; the checkpoints are from before.
      KeyboardInterrupt, SystemExit: a signal came; the state is saved.
    """
    self._progress = progress.make_progress(self._pace.epochs)
    # One of several workers must not end by itself.
    is_alone = self._workers.count == 1
    held = contextlib.nullcontext() if is_alone else self._signals.deferred()
    try:
      with held:
        self._callbacks.on_train_begin()
        self._run_epochs()
        self._callbacks.on_train_end()
    except (KeyboardInterrupt, SystemExit):
      logging.warning(
        "stopped; saved at step %d, epoch %.2f of %d, where the same command continues",
        *(self._saved.step, self._saved.epochs_done, self._pace.epochs),
      )
      raise
    finally:
      self._progress.close()

  def _run_epochs(self):
    if self._record.is_epoch_end:
      self._end_epoch()  # an earlier start was stopped in the midst of it
    iterator = None
    while not self._is_done():
      if iterator is None:
        self._progress.starting(self._clock.epochs_done)
        iterator = iter(self._batches(self._clock.position))
      self._callbacks.on_epoch_begin(self._clock.epoch)
      with self._signals.deferred():
        self._run_to_epoch_end(iterator)
        if self._record.is_epoch_end:
          self._save()
      self._raise_received()
      if self._record.is_epoch_end:
        self._end_epoch()
    if not self._record.is_validated and not self._is_stopped_by_callback():
      self._validate_and_save()

  @property
  def _record(self):
    return self._state.record

  @property
  def _clock(self):
    return self._record.clock

  def _is_done(self):
    self._agree()
    return (
      self._clock.epochs_done >= self._pace.epochs
      or self._is_stopped_by_callback()
      or self._record.is_out_of_patience(self._pace.patience)
    )

  def _is_stopped_by_callback(self):
    return bool(getattr(self._callbacks.model, "stop_training", False))

  def _agree(self):
    """(a signal's name or "", whether a callback stops, whether to save), of any worker."""
    own = self._signals.received, self._is_stopped_by_callback(), self._is_saving_due()
    signal, is_stopped, is_saving_due = map(max, zip(*self._workers.gather(own)))
    if is_stopped:
      self._callbacks.model.stop_training = True
    return signal, is_stopped, is_saving_due

  def _raise_received(self):
    signal, _, _ = self._agree()
    if signal:
      self._signals.note(signal)
      self._signals.raise_received()

  def _run_to_epoch_end(self, iterator):
    """Steps until the epoch ends, or something asks to stop, which is then saved."""
    epoch_end = self._clock.epoch + 1
    if self._is_built:
      self._speed.start()
    while missing := self._clock.steps_to(epoch_end, self._pace.batch_size):
      whole = self._pace.steps_per_execution
      steps = whole if missing >= whole else 1
      self._execute(iterator, steps)
      is_last = missing == steps
      is_read = is_last or self._is_logging_due(steps)
      if is_read:
        self._read()
      elif self._workers.count > 1:
        continue
      signal, is_stopped, is_saving_due = self._agree()
      if signal or is_stopped:
        self._read()
        self._save()
        return
      if not is_last and is_saving_due:
        self._read()
        self._save()

  def _execute(self, iterator, steps):
    clock, size = self._clock, self._pace.batch_size
    clocks = [clock.after(number, size) for number in range(steps + 1)]
    rates = [self._schedule(at.epochs_done, at.images) for at in clocks[:-1]]
    started = time.monotonic()
    batches = [next(iterator) for _ in range(steps)]
    waited = time.monotonic() - started
    with errors.blaming_memory_on("train.batch_size"):
      logs = self._step(batches, rates, clock.step)
    self._record.clock = clocks[-1]
    self._record.is_epoch_end = clocks[-1].epoch > clock.epoch
    self._unread.append(_Execution(clocks, rates, logs))
    self._progress.advance(self._clock.epochs_done)
    if self._is_built:
      self._speed.add(steps * size, waited)
    else:  # the first one builds the graph, which is no training time
      self._is_built = True
      self._speed.start()

  def _is_logging_due(self, steps):
    every = self._pace.log_every_steps
    return self._clock.step // every > (self._clock.step - steps) // every

  def _is_saving_due(self):
    minutes = (time.monotonic() - self._saved_at) / 60
    return minutes >= self._pace.checkpoint_every_minutes

  def _save(self):
    with self._signals.deferred():
      self._state.save()
      self._saved, self._saved_at = self._clock, time.monotonic()

  def _read(self):
    """Reads the numbers of all steps since the last time, and tells of them."""
    executions, self._unread = self._unread, []
    for execution in executions:
      logs = {name: value.numpy() for name, value in execution.logs.items()}
      for index, rate in enumerate(execution.rates):
        numbers = {name: float(values[index]) for name, values in logs.items()}
        before, after = execution.clocks[index : index + 2]
        self._check_finite(numbers, before)
        self._tell(numbers, rate, before, after)

  def _check_finite(self, numbers, before):
    if numbers.pop("is_finite"):
      return
    broken = [
      f"{name} is {value}"
      for name, value in numbers.items()
      if not math.isfinite(value)
    ]
    images = self._image_ids(before.position, self._pace.batch_size)
    what = f"{', '.join(broken)} at step {before.step}, images {images}"
    kept = ""
    if self._keep_failed:
      logging.warning("%s", what)
      kept = f"{self._keep_failed(before, numbers)}. "
    raise state_lib.NonFiniteError(
      f"{what}; training stopped, and the last checkpoint is from before it. "
      f"{kept}{state_lib.REMEDY}"
    )

  def _tell(self, numbers, rate, before, after):
    """Has callbacks, sums and, where a row is due, files know of a step."""
    in_epoch = before.position % before.split_size // self._pace.batch_size
    self._callbacks.on_train_batch_begin(in_epoch)
    self._callbacks.on_train_batch_end(in_epoch, dict(numbers))
    sums = self._record.epoch_sums
    for name, value in numbers.items():
      total, count = sums.get(name, (0.0, 0))
      sums[name] = [total + value, count + 1]
    is_epoch_end = after.epoch > before.epoch
    if after.step % self._pace.log_every_steps and not is_epoch_end:
      return
    images_per_second, data_wait_share = self._speed.take()
    row = {
      "step": after.step,
      "images": after.images,
      "epoch": after.epochs_done,
      "learning_rate": rate,
      **numbers,
      "images_per_second": images_per_second,
      "data_wait_share": data_wait_share,
      **self._measure(),
    }
    self._metrics_file.write(row)
    monitoring.write_scalars(self._writer, row)
    self._progress.row(row)
    self._last_row = row

  def _end_epoch(self):
    """Validates if it is time, and tells of the epoch, whose last step is saved."""
    epoch, sums = self._clock.epoch, self._record.epoch_sums
    means = {name: total / count for name, (total, count) in sums.items()}
    if self._last_row:
      self._progress.epoch(epoch, means, self._last_row)
    self._record.epoch_sums, self._record.is_epoch_end = {}, False
    logs = dict(means)
    if self._is_validation_due(epoch):
      metrics = self._validate_and_save()
      known = {name: value for name, value in metrics.items() if value is not None}
      logs.update({f"val_{name}": value for name, value in known.items()})
    self._speed.restart()
    self._callbacks.on_epoch_end(epoch - 1, logs)

  def _is_validation_due(self, epoch):
    every = self._pace.validate_every_epochs
    last = self._record.validation["epoch"] if self._record.validation else 0
    return epoch // every > last // every or epoch >= self._pace.epochs

  def _validate_and_save(self):
    self._progress.validating()
    metrics = self._validate()
    self._save()
    self._raise_received()
    return metrics
