"""metrics.csv, TensorBoard as TensorBoard reads it, speeds, and callbacks by path."""

import csv

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import plugin_event_accumulator

from ap_detect.training import monitoring


def write_rows(model_dir, restored_step, steps, loss):
  rows = monitoring.MetricsFile(str(model_dir), restored_step)
  for step in steps:
    rows.write({"step": step, "total_loss": loss, "images_per_second": None})
  return rows


def read_rows(model_dir):
  with open(model_dir / "metrics.csv", newline="") as file:
    return [
      (int(row["step"]), float(row["total_loss"])) for row in csv.DictReader(file)
    ]


class TestMetricsFile:
  def test_rows_are_there_at_once(self, tmp_path):
    write_rows(tmp_path, 0, [10, 20], 0.5)  # not closed
    text = (tmp_path / "metrics.csv").read_text()
    assert text == "step,total_loss,images_per_second\n10,0.5,\n20,0.5,\n"

  def test_floats_have_7_digits(self, tmp_path):
    row = {"step": 123456789, "total_loss": 0.1 + 0.2, "learning_rate": 1 / 30000}
    rows = monitoring.MetricsFile(str(tmp_path), 0)
    rows.write(row)
    written = (tmp_path / "metrics.csv").read_text().splitlines()[1]
    assert written == "123456789,0.3,3.333333e-05"

  def test_rows_past_the_restored_step_go(self, tmp_path):
    write_rows(tmp_path, 0, [10, 20, 30, 40], 1.0).close()
    write_rows(tmp_path, 25, [30, 40], 2.0).close()
    expected = [(10, 1.0), (20, 1.0), (30, 2.0), (40, 2.0)]
    assert read_rows(tmp_path) == expected

  def test_a_row_that_was_cut_off_goes(self, tmp_path):
    write_rows(tmp_path, 0, [10, 20], 1.0).close()
    with open(tmp_path / "metrics.csv", "a") as file:
      file.write("30,0.")
    write_rows(tmp_path, 100, [40], 2.0).close()
    assert read_rows(tmp_path) == [(10, 1.0), (20, 1.0), (40, 2.0)]

  def test_a_header_that_was_cut_off_is_written_again(self, tmp_path):
    (tmp_path / "metrics.csv").write_text("step,tot")
    write_rows(tmp_path, 0, [10], 1.0).close()
    assert read_rows(tmp_path) == [(10, 1.0)]

  def test_columns_of_a_later_version_are_added(self, tmp_path):
    write_rows(tmp_path, 0, [10, 20], 0.5).close()
    rows = monitoring.MetricsFile(str(tmp_path), 20)
    for step in (30, 40):
      rows.write({"step": step, "total_loss": 1.0, "weight_norm": 2.0})
    text = (tmp_path / "metrics.csv").read_text()
    assert text == (
      "step,total_loss,images_per_second,weight_norm\n"
      "10,0.5,,\n20,0.5,,\n30,1,,2\n40,1,,2\n"
    )


def test_tensorboard_shows_each_step_once_after_a_restart(tmp_path):
  """Steps 10 to 40, then a run that goes on from 20: by TensorBoard's own reader."""
  for restored, steps, value in ((0, (10, 20, 30, 40), 1.0), (20, (30, 50), 2.0)):
    writer = monitoring.open_tensorboard(str(tmp_path), restored)
    for step in steps:
      row = {"step": step, "images": 8 * step, "epoch": 0.5, "total_loss": value}
      monitoring.write_scalars(writer, {**row, "learning_rate": 0.1, "speed": None})
    writer.close()
  reader = plugin_event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
  reader.Reload()
  assert sorted(reader.Tags()["tensors"]) == ["learning_rate", "train/total_loss"]
  found = [
    (event.step, float(tf.make_ndarray(event.tensor_proto)))
    for event in reader.Tensors("train/total_loss")
  ]
  assert found == [(10, 1.0), (20, 1.0), (30, 2.0), (50, 2.0)]


class TestSpeed:
  @pytest.fixture
  def now(self, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(monitoring.time, "monotonic", lambda: now[0])
    return now

  def test_by_hand(self, now):
    speed = monitoring.Speed()
    assert speed.take() == (None, None)  # nothing is measured yet
    speed.start()
    now[0] += 4.0
    speed.add(images=24, waited=1.0)
    assert speed.take() == (6.0, 0.25)
    now[0] += 2.0
    speed.add(images=8, waited=0.0)
    assert speed.take() == (4.0, 0.0)

  def test_a_validation_is_no_training_time(self, now):
    speed = monitoring.Speed()
    speed.start()
    now[0] += 1.0
    speed.add(images=8, waited=0.0)
    speed.restart()
    now[0] += 1000.0
    assert speed.take() == (None, None)
    speed.start()
    now[0] += 2.0
    speed.add(images=8, waited=0.0)
    assert speed.take() == (4.0, 0.0)


class Tracker(tf.keras.callbacks.Callback):
  """A user's callback."""


def make_nothing():
  """A function that makes no callback."""


class TestCallbacks:
  def test_by_import_path(self):
    model = tf.keras.Sequential()
    made = monitoring.make_callbacks(
      ["training.test_monitoring.Tracker", "tensorflow.keras.callbacks.TerminateOnNaN"],
      [],
      model,
      epochs=3,
    )
    assert [type(callback).__name__ for callback in made.callbacks][:2] == [
      *("Tracker", "TerminateOnNaN"),
    ]
    assert made.callbacks[0].model is model
    assert made.callbacks[0].params["epochs"] == 3

  @pytest.mark.parametrize(
    ("path", "said"),
    [
      ("no_such_package.Tracker", "No module named 'no_such_package'"),
      ("training.test_monitoring.NoSuch", "NoSuch"),
      ("Tracker", "package.module.Name"),
      ("tensorflow.keras.callbacks.LambdaCallback.set_model", "LambdaCallback"),
      ("training.test_monitoring.make_nothing", "must make a tf.keras.callbacks"),
      ("tensorflow.keras.callbacks.ReduceLROnPlateau", "follows train.schedule"),
    ],
  )
  def test_what_is_none(self, path, said):
    with pytest.raises(ValueError, match=r"train\.callbacks") as caught:
      monitoring.make_callbacks([path], [], tf.keras.Sequential())
    assert said in str(caught.value)
    assert path in str(caught.value)
