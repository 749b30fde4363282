"""The loop by its clock, with a step, a state and a validation that only take notes."""

import contextlib
import os
import signal
import types

import numpy as np
import pytest
import tensorflow as tf
from runs import fellows

from ap_detect.runs import workers as workers_lib
from ap_detect.training import loop, monitoring, schedules, signals, state

SPLIT = 20


class Number:
  """A number on a device, which knows when it is read."""

  def __init__(self, values, reads):
    self._values, self._reads = np.array(values, np.float32), reads

  def numpy(self):
    self._reads.append(len(self._values))
    return self._values


class Notes:
  """What happened, in order, and the parts of a loop that note it."""

  def __init__(self, clock, losses=lambda step: 1.0 + step):
    self.said, self.reads, self.rates, self.positions = [], [], [], []
    self.record = state.Record(clock, {}, {}, 1)
    self.rows = []
    self._losses = losses

  def step(self, batches, rates, first_step):
    self.said.append(("steps", first_step, list(batches)))
    self.rates += rates
    losses = [self._losses(first_step + index) for index in range(len(rates))]
    return {
      "total_loss": Number(losses, self.reads),
      "is_finite": Number(np.isfinite(losses), []),
    }

  def save(self):
    record = self.record
    mark = "*" if record.is_epoch_end else "v" if record.is_validated else ""
    self.said.append(("save", f"{record.clock.step}{mark}"))

  def batches(self, position):
    self.positions.append(position)
    return iter(range(position, 10**9))

  def validate(self):
    clock = self.record.clock
    self.said.append(("validate", clock.epoch))
    self.record.validation = {"epoch": clock.epoch, "step": clock.step}
    return {"AP": 0.5, "APs": None}

  def write(self, row):
    self.rows.append(row)


class Recorder(tf.keras.callbacks.Callback):
  """Notes its calls; stops training at the end of an epoch, if told."""

  def __init__(self, stop_after=None):
    super().__init__()
    self.calls, self._stop_after = [], stop_after

  def on_train_begin(self, logs=None):
    self.calls.append(("train begin",))

  def on_epoch_begin(self, epoch, logs=None):
    self.calls.append(("epoch begin", epoch))

  def on_train_batch_end(self, batch, logs=None):
    self.calls.append(("batch", batch, logs["total_loss"]))

  def on_epoch_end(self, epoch, logs=None):
    self.calls.append(("epoch end", epoch, logs))
    if epoch == self._stop_after:
      self.model.stop_training = True

  def on_train_end(self, logs=None):
    self.calls.append(("train end",))


def run(
  notes, *callbacks, schedule=None, stop_signals=None, workers=workers_lib.ONE, **pace
):
  pace = {"epochs": 2, "batch_size": 4, "log_every_steps": 2, **pace}
  model = tf.keras.Sequential()
  writer = types.SimpleNamespace(
    as_default=lambda step: contextlib.nullcontext(), flush=lambda: None
  )
  loop.TrainingLoop(
    notes.step,
    notes,
    schedule=schedule or schedules.Schedule(1.0),
    batches=notes.batches,
    validate=notes.validate,
    pace=loop.Pace(**pace),
    signals=stop_signals or signals.StopSignals(),
    metrics_file=notes,
    writer=writer,
    callbacks=tf.keras.callbacks.CallbackList(list(callbacks), model=model),
    image_ids=lambda position, count: list(range(position, position + count)),
    workers=workers,
  ).run()


@pytest.fixture(autouse=True)
def no_tensorboard(monkeypatch):
  monkeypatch.setattr(monitoring, "write_scalars", lambda writer, row: None)


def kinds(notes, *wanted):
  return [entry[:2] for entry in notes.said if entry[0] in wanted]


def test_an_epoch_by_hand():
  """20 images in batches of 4: 5 steps an epoch; saved before and after validations."""
  notes = Notes(state.Clock(SPLIT))
  run(notes, validate_every_epochs=2, epochs=3)
  assert kinds(notes, "save", "validate") == [
    ("save", "5*"),
    ("save", "10*"),
    ("validate", 2),
    ("save", "10v"),
    ("save", "15*"),
    ("validate", 3),  # the last epoch always is
    ("save", "15v"),
  ]
  assert [row["step"] for row in notes.rows] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
  assert [row["images"] for row in notes.rows] == [4 * r["step"] for r in notes.rows]
  assert notes.rows[0]["total_loss"] == 2.0  # of its own step, number 1
  assert notes.record.clock == state.Clock(SPLIT, 0, 15, 60, 60)


def test_epochs_that_no_batch_divides():
  """20 images in batches of 8: epochs end at steps 3 (24 images), 5 and 8 (64)."""
  notes = Notes(state.Clock(SPLIT))
  run(notes, batch_size=8, epochs=3)
  assert kinds(notes, "validate") == [("validate", 1), ("validate", 2), ("validate", 3)]
  assert [r["step"] for r in notes.rows if r["step"] in (3, 5, 8)] == [3, 5, 8]
  assert notes.record.clock.step == 8


def test_a_split_smaller_than_a_batch():
  notes = Notes(state.Clock(3))
  run(notes, batch_size=8, epochs=4)
  assert notes.record.clock.step == 2  # 16 images: 5 epochs, at least 4
  assert kinds(notes, "validate") == [("validate", 2), ("validate", 5)]


def test_rates_follow_the_clock():
  schedule = schedules.Schedule(0.5, "cosine", epochs=2, warmup_images=8)
  notes = Notes(state.Clock(SPLIT, warmup_images=8))
  run(notes, schedule=schedule, steps_per_execution=3)
  expected = [
    0.5 * (0.5 + 0.5 * np.cos(np.pi * step / 10)) * min(1 / 3 + step / 3, 1)
    for step in range(10)
  ]
  np.testing.assert_allclose(notes.rates, expected)
  np.testing.assert_allclose(
    [row["learning_rate"] for row in notes.rows],
    [expected[row["step"] - 1] for row in notes.rows],
  )


def test_steps_per_execution_ends_with_the_epoch():
  """5 steps an epoch: 3 in one call, then one by one; the batches follow each other."""
  notes = Notes(state.Clock(SPLIT))
  run(notes, steps_per_execution=3)
  calls = [entry[1:] for entry in notes.said if entry[0] == "steps"]
  assert [(first, len(batches)) for first, batches in calls] == [
    *((0, 3), (3, 1), (4, 1)),
    *((5, 3), (8, 1), (9, 1)),
  ]
  assert [batch for _, batches in calls for batch in batches] == list(range(10))


def test_numbers_are_read_when_they_are_logged():
  notes = Notes(state.Clock(100))
  reads_before_steps = []
  step = notes.step

  def count(batches, rates, first_step):
    reads_before_steps.append(len(notes.reads))
    return step(batches, rates, first_step)

  notes.step = count
  run(notes, epochs=1, log_every_steps=10)
  assert reads_before_steps == [10 * (number // 10) for number in range(25)]


class TestCallbacks:
  def test_every_step_and_epoch(self):
    notes, recorder = Notes(state.Clock(SPLIT)), Recorder()
    run(notes, recorder, validate_every_epochs=2)
    steps = [("batch", number % 5, 1.0 + number) for number in range(10)]
    means = [{"total_loss": 3.0}, {"total_loss": 8.0, "val_AP": 0.5}]
    assert recorder.calls == [
      ("train begin",),
      *(("epoch begin", 0), *steps[:5], ("epoch end", 0, means[0])),
      *(("epoch begin", 1), *steps[5:], ("epoch end", 1, means[1])),
      ("train end",),
    ]

  def test_stop_training(self):
    notes = Notes(state.Clock(SPLIT))
    run(notes, Recorder(stop_after=1), epochs=9)
    assert notes.record.clock.step == 10
    assert notes.said[-1] == ("save", "10v")

  def test_stop_within_an_epoch_is_saved(self):
    class Stop(tf.keras.callbacks.Callback):
      def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = batch == 2

    notes = Notes(state.Clock(SPLIT))
    run(notes, Stop(), epochs=9, log_every_steps=1)
    assert kinds(notes, "save", "validate") == [("save", "3")]


class TestWorkers:
  """Two loops, one of which is asked to do something."""

  def run(self, *, of_second=(), **pace):
    """(what each noted, what each raised)."""
    notes = [Notes(state.Clock(SPLIT)), Notes(state.Clock(SPLIT))]

    def work(fellow):
      callbacks = [] if fellow.is_chief else of_second
      stops = signals.StopSignals()
      for callback in callbacks:
        callback.stops = stops
      try:
        run(notes[fellow.index], *callbacks, stop_signals=stops, workers=fellow, **pace)
      except (SystemExit, KeyboardInterrupt) as error:
        return type(error), getattr(error, "code", None)

    return notes, fellows.run_all(work)

  @pytest.mark.parametrize("every", [1, 2, 3])
  def test_stop_at_the_same_step(self, every):
    """Wherever the second one is asked, both stop where numbers are read next."""

    class Stop(tf.keras.callbacks.Callback):
      def on_train_batch_begin(self, batch, logs=None):
        self.stops.note("SIGTERM")

    notes, raised = self.run(of_second=[Stop()], log_every_steps=every)
    assert raised == [(SystemExit, 143)] * 2
    for note in notes:
      assert kinds(note, "save", "validate") == [("save", str(every))]

  def test_stop_training(self):
    notes, raised = self.run(of_second=[Recorder(stop_after=0)], epochs=9)
    assert raised == [None, None]
    for note in notes:
      assert note.said[-1] == ("save", "5v")

  def test_save_by_the_clock_of_one(self, monkeypatch):
    """That of the second is always due; the first one's never is."""
    due = loop.TrainingLoop._is_saving_due
    monkeypatch.setattr(
      loop.TrainingLoop,
      "_is_saving_due",
      lambda self: self._workers.index == 1 and due(self),
    )
    notes, _ = self.run(checkpoint_every_minutes=0.0, epochs=1)
    for note in notes:
      assert kinds(note, "save") == [("save", text) for text in ("2", "4", "5*", "5v")]


class TestPatience:
  def run(self, values, patience, epochs=10):
    notes, values = Notes(state.Clock(4)), iter(values)

    def validate():
      value, clock = next(values), notes.record.clock
      notes.record.validation = {"epoch": clock.epoch, "step": clock.step, "AP": value}
      notes.record.history.append(notes.record.validation)
      if value > (notes.record.best or {"AP": -1})["AP"]:
        notes.record.best = notes.record.validation
      return {"AP": value}

    notes.validate = validate
    run(notes, epochs=epochs, patience=patience)
    return notes

  @pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
      ([0.1, 0.2, 0.2, 0.1], 2, 4),
      ([0.1, 0.0, 0.2, 0.1, 0.2, 0.0], 3, 6),
      ([0.1, 0.0], 1, 2),
      ([0.1] * 10, 0, 10),
      ([0.1, 0.2] + [0.2] * 8, 9, 10),
    ],
  )
  def test_ends_after_so_many_validations_that_are_no_better(
    self, values, patience, epochs
  ):
    assert self.run(values, patience).record.clock.epoch == epochs

  def test_started_again_does_nothing_without_more_patience(self):
    notes = self.run([0.1, 0.0, 0.0, 0.0], 2)
    steps = len(kinds(notes, "steps"))
    run(notes, epochs=10, patience=2)
    assert len(kinds(notes, "steps")) == steps
    run(notes, epochs=4, patience=3)
    assert notes.record.clock.epoch == 4


class TestNonFinite:
  def test_names_the_step_that_was_and_saves_nothing_after(self):
    """NaN from step 7 on, read after step 10: images 28 to 31."""
    notes = Notes(state.Clock(100), lambda step: float("nan") if step >= 7 else 1.0)
    recorder = Recorder()
    with pytest.raises(state.NonFiniteError) as caught:
      run(notes, recorder, log_every_steps=10)
    message = str(caught.value)
    assert "total_loss is nan at step 7, images [28, 29, 30, 31]" in message
    assert "train.learning_rate" in message
    assert not kinds(notes, "save")
    assert [call for call in recorder.calls if call[0] == "batch"][-1][1] == 6

  def test_is_seen_before_saving(self):
    notes = Notes(state.Clock(100), lambda step: float("inf"))
    with pytest.raises(state.NonFiniteError, match="total_loss is inf at step 0"):
      run(notes, log_every_steps=1000, checkpoint_every_minutes=1e-9)
    assert not kinds(notes, "save")


class TestRestart:
  def test_continues_in_the_midst_of_an_epoch(self):
    clock = state.Clock(SPLIT, step=7, images=28, position=28)
    notes, recorder = Notes(clock), Recorder()
    notes.record.epoch_sums = {"total_loss": [30.0, 2]}
    run(notes, recorder)
    assert notes.positions == [28]
    # (30 + 8 + 9 + 10) / 5, with the two steps of the start before.
    assert recorder.calls[-2] == ("epoch end", 1, {"total_loss": 57 / 5, "val_AP": 0.5})

  def test_makes_up_for_a_validation(self):
    clock = state.Clock(SPLIT, step=5, images=20, position=20)
    notes = Notes(clock)
    notes.record.is_epoch_end = True
    run(notes)
    assert kinds(notes, "validate", "steps")[0] == ("validate", 1)
    assert kinds(notes, "validate") == [("validate", 1), ("validate", 2)]

  def test_finished_run_does_nothing(self):
    clock = state.Clock(SPLIT, step=10, images=40, position=40)
    notes = Notes(clock)
    notes.record.validation = {"epoch": 2, "step": 10}
    run(notes)
    assert notes.said == []

  def test_fewer_epochs_than_were_done_end_with_a_validation(self):
    clock = state.Clock(SPLIT, step=12, images=48, position=48)
    notes = Notes(clock)
    run(notes)
    assert notes.said == [("validate", 2), ("save", "12v")]


def test_saves_by_the_minute(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
  notes = Notes(state.Clock(100))
  step = notes.step

  def slow_step(*arguments):
    now[0] += 60.0
    return step(*arguments)

  notes.step = slow_step
  run(notes, epochs=1, checkpoint_every_minutes=9.5)
  assert kinds(notes, "save") == [
    *(("save", "10"), ("save", "20")),
    *(("save", "25*"), ("save", "25v")),
  ]


def test_signal_saves_after_the_step(monkeypatch):
  notes = Notes(state.Clock(SPLIT))
  step = notes.step

  def interrupted(batches, rates, first_step):
    if first_step == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return step(batches, rates, first_step)

  notes.step = interrupted
  before = signal.getsignal(signal.SIGTERM)
  with signals.StopSignals() as stop_signals, pytest.raises(SystemExit) as stopped:
    run(notes, stop_signals=stop_signals, log_every_steps=100)
  assert stopped.value.code == 143
  assert notes.said[-1] == ("save", "3")
  assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [1, 2])
def test_signal_while_saving_at_the_end_of_an_epoch(number):
  """The save before and after the validation: it is finished, then the run stops."""
  notes = Notes(state.Clock(SPLIT))
  save = notes.save
  saves = []

  def interrupted():
    saves.append(notes.record.clock.step)
    if len(saves) == number:
      os.kill(os.getpid(), signal.SIGTERM)
    save()  # not reached if the signal is raised at once

  notes.save = interrupted
  with signals.StopSignals() as stop_signals, pytest.raises(SystemExit):
    run(notes, stop_signals=stop_signals)
  assert kinds(notes, "save")[-1] == ("save", ["5*", "5v"][number - 1])
  assert len(saves) == number


class TestStopSignals:
  def test_a_repeated_one_is_the_same(self, monkeypatch):
    """As GNU timeout sends it: to the process, and at once to its group."""
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.StopSignals() as stops:
      with stops.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with stops.deferred():
          pass
        assert stops.received == "SIGTERM"
        now[0] = 5.0
        with pytest.raises(SystemExit):  # somebody is in a hurry
          os.kill(os.getpid(), signal.SIGTERM)
      with pytest.raises(SystemExit):
        stops.raise_received()

  def test_ctrl_c_outside_of_steps(self):
    with signals.StopSignals(), pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
