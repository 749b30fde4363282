"""Runs that are stopped: by Ctrl-C, SIGTERM, kill -9, a full stop anywhere."""

import csv
import os
import signal

import pytest
import tensorflow as tf
from training import commands

from ap_detect.runs import files, folder
from ap_detect.training import schedules, trainer, validation


class StopAt(tf.keras.callbacks.Callback):
  """Sends this process a signal at the step that STOP_AT names, "12:SIGINT"."""

  def __init__(self):
    super().__init__()
    step, _, name = os.environ["STOP_AT"].partition(":")
    self._signal = getattr(signal, name, None)
    self._step = int(step) if name else None
    self._seen = None

  def on_epoch_begin(self, epoch, logs=None):
    self._epoch = epoch

  def on_train_batch_end(self, batch, logs=None):
    if self._epoch * commands.STEPS_PER_EPOCH + batch + 1 == self._step:
      os.kill(os.getpid(), self._signal)


@pytest.mark.parametrize(
  "stops_at",
  [
    ("7:SIGINT", "validation"),
    pytest.param(
      ("2:SIGTERM", "7:SIGINT", "9:SIGTERM", "validation", "15:SIGTERM"),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_cut_equals_uncut(
  make_config, random_backbone, tmp_path, monkeypatch, stops_at
):
  """Weights, optimiser, record and rows to the bit; once in the midst of a validation."""
  config = make_config(
    {
      "model.backbone": random_backbone,
      "data.shapes_train_images": 4 * commands.STEPS_PER_EPOCH,
      "train.deterministic": True,
      "train.log_every_steps": 2,
      "train.steps_per_execution": 2,
      "train.callbacks": ("training.test_interruptions.StopAt",),
    }
  )
  cut, uncut = str(tmp_path / "cut"), str(tmp_path / "uncut")
  monkeypatch.setenv("STOP_AT", "")
  trainer.train(config, uncut)
  validate = validation.Validator.validate

  def stop_and_validate(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return validate(self)

  for stop_at in stops_at:
    monkeypatch.setenv("STOP_AT", stop_at)
    if stop_at == "validation":
      monkeypatch.setattr(validation.Validator, "validate", stop_and_validate)
    is_interrupted = stop_at.endswith("SIGINT")
    with pytest.raises(KeyboardInterrupt if is_interrupted else SystemExit) as stopped:
      trainer.train(config, cut)
    assert is_interrupted or stopped.value.code == 143
    monkeypatch.setattr(validation.Validator, "validate", validate)
  monkeypatch.setenv("STOP_AT", "")
  trainer.train(config, cut)
  commands.assert_same_state(cut, uncut)
  commands.assert_same_metrics(cut, uncut)
  for name in ("history.json", "best.json"):
    assert files.read_json(f"{cut}/{name}") == files.read_json(f"{uncut}/{name}")


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
  model_dir = tmp_path_factory.mktemp("runs") / "uncut"
  commands.finish(model_dir)
  return model_dir


@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_signal_saves_and_says_so(uncut, tmp_path, number, status):
  model_dir = tmp_path / "run"
  process = commands.start(model_dir)
  commands.wait_for(process, lambda: len(commands.logged_steps(model_dir)) >= 8)
  process.send_signal(number)
  said, _ = process.communicate(timeout=120)
  assert process.returncode == status, said
  assert "Traceback" not in said
  assert "stopped; saved at step " in said
  assert "where the same command continues" in said
  last = commands.logged_steps(model_dir)[-1]
  assert f"saved at step {last}, " in said  # nothing was lost
  said = commands.finish(model_dir)
  assert f"continuing at step {last}, " in said
  commands.assert_same_state(model_dir, uncut)
  commands.assert_same_metrics(model_dir, uncut)


@pytest.mark.slow
def test_kills(uncut, tmp_path):
  """Three kills -9, each some steps after its start's first; the bits of the uncut run."""
  model_dir = tmp_path / "run"
  every_step = "--config.train.checkpoint_every_minutes=0.0001"
  for steps in (2, 4, 5):
    before = max(commands.logged_steps(model_dir), default=0)
    process = commands.start(model_dir, every_step)
    commands.wait_for(
      process,
      lambda wanted=before + steps: wanted in commands.logged_steps(model_dir),
    )
    process.kill()
    process.communicate(timeout=60)
  commands.finish(model_dir, every_step)
  found, expected = (commands.read_state(run) for run in (model_dir, uncut))
  record = "record/.ATTRIBUTES/py_state"  # of these, the records' configs differ
  found, expected = (
    {name: value.tobytes() for name, value in state.items() if name != record}
    for state in (found, expected)
  )
  assert found == expected
  commands.assert_same_metrics(model_dir, uncut)


@pytest.mark.slow
def test_second_process_is_refused(tmp_path):
  model_dir = tmp_path / "run"
  process = commands.start(model_dir)
  commands.wait_for(process, (model_dir / ".lock").exists)
  said = commands.finish(model_dir, status=1)
  assert f"process {process.pid} is training in {model_dir}" in said
  process.kill()
  process.communicate(timeout=60)
  commands.finish(model_dir, "--config.train.epochs=1")  # the lock died with it


@pytest.mark.slow
def test_two_replicas_then_one(tmp_path):
  """The learning rate of every row is the schedule's, of epochs and images as they were."""
  model_dir = tmp_path / "run"
  process = commands.start(model_dir, "--replicas=2")
  commands.wait_for(process, lambda: len(commands.logged_steps(model_dir)) >= 4)
  process.terminate()
  said, _ = process.communicate(timeout=120)
  assert process.returncode == 143, said
  said = commands.finish(model_dir, "--replicas=1")
  assert "replicas is 1 now, 2 before" in said
  with open(model_dir / "metrics.csv", newline="") as file:
    rows = [
      {name: float(row[name]) for name in ("images", "epoch", "learning_rate")}
      for row in csv.DictReader(file)
    ]
  images = [0.0, *(row["images"] for row in rows)]
  sizes = [after - before for before, after in zip(images, images[1:])]
  assert set(sizes) == {8.0, 4.0} and sizes == sorted(sizes, reverse=True)
  saved = folder.load_config(str(model_dir)).train
  schedule = schedules.Schedule(
    saved.learning_rate,
    saved.schedule,
    epochs=saved.epochs,
    warmup_images=saved.warmup_steps * 8,
    warmup_start_factor=saved.warmup_start_factor,
  )
  for row, before in zip(rows, images):
    epochs_done = before / (4 * commands.STEPS_PER_EPOCH)
    expected = schedule(epochs_done, before)
    assert row["learning_rate"] == pytest.approx(expected, rel=1e-5)
  assert rows[-1]["epoch"] == saved.epochs
  assert rows[-1]["learning_rate"] < saved.learning_rate / 50
