"""Runs that are started again under other circumstances: what may change, and what not."""

import csv
import dataclasses
import os
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.data import shapes
from ap_detect.metrics import OperatingPoints, ScoreCalibration, ScoreThresholds
from ap_detect.runs import data as data_lib
from ap_detect.runs import folder
from ap_detect.runs import model as model_lib
from ap_detect.runs.files import read_json
from ap_detect.training import (
  evaluation_files,
  schedules,
  state,
  step,
  trainer,
  validation,
)
from ap_detect.training.classification_losses import with_defaults

IMAGES = 16


@pytest.fixture(scope="module")
def base(make_config):
  """Config of 4 epochs of 16 images, a row a step; changed by {"section.field": value}."""

  def make(changes=None):
    return make_config(
      {
        "data.shapes_train_images": IMAGES,
        "train.epochs": 4,
        "train.warmup_steps": 3,
        "train.log_every_steps": 1,
        "train.batch_size": 4,
        "train.validate_every_epochs": 2,
        **(changes or {}),
      }
    )

  return make


@pytest.fixture
def said(hear):
  """What is logged, line by line."""
  return hear("info", "warning")


class Stop(tf.keras.callbacks.Callback):
  """Stops training after the epochs that STOP_AFTER counts."""

  def on_epoch_end(self, epoch, logs=None):
    self.model.stop_training = epoch + 1 == int(os.environ["STOP_AFTER"])


STOP = {"train.callbacks": ("training.test_restarts.Stop",)}


@pytest.fixture(scope="module")
def halfway(base, make_strategy, tmp_path_factory):
  """Folder of a run that was stopped after 2 of its 4 epochs. Copy it."""
  model_dir = str(tmp_path_factory.mktemp("runs") / "halfway")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("STOP_AFTER", "2")
    trainer.train(base(STOP), model_dir, strategy=make_strategy(1))
  return model_dir


@pytest.fixture
def run_dir(halfway, tmp_path):
  model_dir = str(tmp_path / "run")
  shutil.copytree(halfway, model_dir)
  return model_dir


def read_rows(model_dir):
  with open(os.path.join(model_dir, "metrics.csv"), newline="") as file:
    return [
      {name: float(value or "nan") for name, value in row.items()}
      for row in csv.DictReader(file)
    ]


def assert_rates_of_schedule(model_dir, learning_rate=0.003, epochs=4, batches=()):
  """Rates of the rows are those of the cosine over epochs done, whatever happened.

  Args:
    batches: images of each step.
  """
  schedule = schedules.Schedule(
    learning_rate, "cosine", epochs=epochs, warmup_images=3 * 4
  )
  rows = read_rows(model_dir)
  assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
  assert len(rows) == len(batches)
  for row, size, seen in zip(rows, batches, np.cumsum(batches)):
    expected = schedule((seen - size) / IMAGES, seen - size)
    assert row["learning_rate"] == pytest.approx(expected, rel=1e-5)
    assert row["images"] == seen
    assert row["epoch"] == pytest.approx(seen / IMAGES)


class TestTheClock:
  """Finding: the rate was 0, or never reached 0, for all remaining epochs."""

  @pytest.mark.slow
  def test_two_replicas_then_one(
    self, base, make_strategy, tmp_path, monkeypatch, said
  ):
    model_dir = str(tmp_path / "run")
    monkeypatch.setenv("STOP_AFTER", "2")
    trainer.train(base(STOP), model_dir, strategy=make_strategy(2))
    said.clear()
    monkeypatch.setenv("STOP_AFTER", "9")
    trainer.train(base(STOP), model_dir, strategy=make_strategy(1))
    batches = [8] * 4 + [4] * 8
    schedule = schedules.Schedule(0.003, "cosine", epochs=4, warmup_images=3 * 8)
    rows = read_rows(model_dir)
    assert [row["images"] for row in rows] == np.cumsum(batches).tolist()
    for row, size in zip(rows, batches):
      before = row["images"] - size
      expected = schedule(before / IMAGES, before)
      assert row["learning_rate"] == pytest.approx(expected, rel=1e-5)
    assert rows[-1]["learning_rate"] < 0.003 / 20
    history = read_json(f"{model_dir}/history.json")
    assert [entry["epoch"] for entry in history] == [2, 4]
    assert "changed at step 4: replicas is 1 now, 2 before" in said
    assert "continuing at step 4, epoch 2.00 of 4, learning rate 0.0015" in said
    record = folder.read_record(folder.checkpoint_paths(model_dir)[0])
    assert record["replicas"] == 1
    assert record["changes"] == [{"step": 4, "changes": {"replicas": [2, 1]}}]

  @pytest.mark.slow
  def test_another_batch_size(self, base, run_dir, make_strategy):
    config = base({"train.batch_size": 8})
    trainer.train(config, run_dir, strategy=make_strategy(1))
    assert_rates_of_schedule(run_dir, batches=[4] * 8 + [8] * 4)

  @pytest.mark.slow
  @pytest.mark.parametrize("images", [8, 32])
  def test_another_number_of_images(self, base, run_dir, make_strategy, images, said):
    """Of data that may change in number, such as a folder that pictures are added to."""
    saved = base({"data.shapes_train_images": images})
    rewrite_config(run_dir, dataclasses.asdict(saved))
    config = base({"data.shapes_train_images": images})
    trainer.train(config, run_dir, strategy=make_strategy(1))
    rows = read_rows(run_dir)
    per_epoch = images // 4
    assert len(rows) == 8 + 2 * per_epoch
    assert [row["epoch"] for row in rows[8:]] == pytest.approx(
      [2 + (number + 1) / per_epoch for number in range(2 * per_epoch)]
    )
    schedule = schedules.Schedule(0.003, "cosine", epochs=4)
    for number, row in enumerate(rows[8:]):
      expected = schedule(2 + number / per_epoch, 0)
      assert row["learning_rate"] == pytest.approx(expected, rel=1e-5)
    words = f"images of the training split is {images} now, 16 before"
    assert any(words in line for line in said)

  def test_more_epochs_and_another_rate(self, base, run_dir, make_strategy, said):
    changes = {"train.epochs": 6, "train.learning_rate": 0.001, "train.clip_norm": 5.0}
    trainer.train(base(changes), run_dir, strategy=make_strategy(1))
    schedule = schedules.Schedule(0.001, "cosine", epochs=6)
    rows = read_rows(run_dir)
    assert len(rows) == 24
    for row in rows[8:]:
      expected = schedule(row["epoch"] - 4 / IMAGES, 99)
      assert row["learning_rate"] == pytest.approx(expected, rel=1e-5)
    assert "changed at step 8: train.epochs is 6 now, 4 before" in said
    saved = read_json(f"{run_dir}/changes.json")
    assert saved == [
      {
        "step": 8,
        "changes": {
          "train.epochs": [4, 6],
          "train.learning_rate": [0.003, 0.001],
          "train.clip_norm": [10.0, 5.0],
          "train.callbacks": [["training.test_restarts.Stop"], []],
        },
      }
    ]
    # Used everywhere afterwards.
    assert folder.load_config(run_dir) == with_defaults(base(changes))


def rewrite_config(run_dir, config):
  """Makes a run's record that of another config (nested values)."""
  saved = folder.load_config(run_dir)
  network = model_lib.build_network(saved, 6, pretrained=False)
  optimizer = trainer.make_optimizer(saved.train, step.Feed(), network)
  record = state.Record(state.Clock(1), {}, {}, 1)
  run_state = state.TrainingState(
    run_dir, network, optimizer, record, keep_checkpoints=2
  )
  path = run_state.restore_latest()
  run_state.record.config = config
  shutil.rmtree(os.path.dirname(path))
  run_state.save()


class TestWhatMayChange:
  def test_refused_with_the_command_for_a_new_run(self, base, run_dir):
    before = folder.read_record(folder.checkpoint_paths(run_dir)[0])
    config = base({"train.momentum": 0.5, "model.fpn_channels": 8, "train.epochs": 9})
    with pytest.raises(ValueError) as caught:
      trainer.train(config, run_dir)
    message = str(caught.value)
    assert "train.momentum: 0.9 -> 0.5" in message
    assert "model.fpn_channels: 16 -> 8" in message
    assert "train.epochs" not in message
    assert f"--config.model.initial_checkpoint={run_dir}" in message
    assert "--model_dir=<another folder>" in message
    assert folder.read_record(folder.checkpoint_paths(run_dir)[0]) == before

  def test_finished_run_says_so(self, trained_run, make_config, tmp_path, said):
    model_dir = str(tmp_path / "run")
    shutil.copytree(trained_run, model_dir)
    before = sorted(os.listdir(os.path.join(model_dir, "checkpoints")))
    config = make_config({"train.classification_loss": "ap_loss"})
    trainer.train(config, model_dir)
    assert (
      "this run is finished: 3.00 of 3 epochs are done. To train on, give more: "
      "--config.train.epochs=6"
    ) in said
    assert sorted(os.listdir(os.path.join(model_dir, "checkpoints"))) == before

  def test_record_with_old_names(self, trained_run, make_config, tmp_path, said):
    """Earlier versions had train.delta, interpolated and images_per_ranking."""
    model_dir = str(tmp_path / "run")
    shutil.copytree(trained_run, model_dir)
    config = make_config({"train.classification_loss": "ap_loss"})
    old = dataclasses.asdict(config)
    del old["train"]["loss_options"], old["train"]["box_loss"]
    old["train"] |= {"delta": 1.0, "interpolated": True, "images_per_ranking": 0}
    rewrite_config(model_dir, old)
    for options in ({}, {"delta": 1, "interpolated": True}, {"delta": 0.5}):
      changes = {"train.classification_loss": "ap_loss", "train.loss_options": options}
      if options == {"delta": 0.5}:
        with pytest.raises(ValueError, match=r"loss_options\.delta: 1\.0 -> 0\.5\n"):
          trainer.train(make_config(changes), model_dir)
      else:
        trainer.train(make_config(changes), model_dir)
        assert "this run is finished" in said[-1]
    record = folder.read_record(folder.checkpoint_paths(model_dir)[0])
    assert record["changes"] == []

  def test_a_run_that_broke_continues_with_a_lower_rate(self, base, run_dir):
    """Finding: the message advised it, and the folder refused it."""
    broken = base({"train.learning_rate": 1e30, "train.clip_norm": 0.0})
    with pytest.raises(state.NonFiniteError, match=r"train\.learning_rate or"):
      trainer.train(broken, run_dir)
    trainer.train(base({"train.learning_rate": 1e-4}), run_dir)
    assert [row["step"] for row in read_rows(run_dir)] == list(range(1, 17))
    rates = [row["learning_rate"] for row in read_rows(run_dir)[8:]]
    assert max(rates) <= 1e-4


class TestTheBest:
  def test_best_is_judged_again(self, base, run_dir, monkeypatch, said):
    """Finding: APs of different settings were compared."""
    old = read_json(f"{run_dir}/best.json")
    config = base({"eval.max_detections": 1, "train.learning_rate": 1e-9})
    trainer.train(config, run_dir)
    assert any("evaluated again, for the settings" in line for line in said)
    best = read_json(f"{run_dir}/best.json")
    again = evaluation_files.evaluate_run(
      run_dir
    )  # of the best, by the run's own settings
    assert best["metrics"] == pytest.approx(again.metrics, nan_ok=True)
    assert best["metrics"]["AR100"] != old["metrics"]["AR100"]
    assert folder.load_config(run_dir).eval.max_detections == 1
    assert len(read_rows(run_dir)) == 16

  def test_once_in_a_finished_run_too(self, trained_run, make_config, tmp_path, said):
    model_dir = str(tmp_path / "run")
    shutil.copytree(trained_run, model_dir)
    changes = {"train.classification_loss": "ap_loss", "eval.max_detections": 5}
    for times in (1, 0):
      said.clear()
      trainer.train(make_config(changes), model_dir)
      assert sum("evaluated again" in line for line in said) == times
    record = folder.read_record(folder.checkpoint_paths(model_dir)[0])
    assert record["config"]["eval"]["max_detections"] == 5
    assert record["changes"] == read_json(f"{model_dir}/changes.json")
    assert record["best"] == read_json(f"{model_dir}/best.json")

  def test_other_images_to_validate_on(self, base, run_dir, monkeypatch, said):
    """As where data.root is another folder, or invalid annotations are left out."""
    open_split = data_lib.open_split

    def without_one(config, split, class_names=(), **_):
      found = open_split(config, split, class_names)
      records = found.records[:-1] if split == "val" else found.records
      return dataclasses.replace(found, records=records)

    monkeypatch.setattr(data_lib, "open_split", without_one)
    trainer.train(base(), run_dir)
    assert any("images of validation changed" in line for line in said)

  def test_lost(self, base, run_dir, said):
    """Later validations had to beat a checkpoint that was gone, and it stayed the best."""
    shutil.rmtree(f"{run_dir}/best")
    trainer.train(base({"train.learning_rate": 1e-9}), run_dir)
    assert any("the best checkpoint" in line and "is lost" in line for line in said)
    best = read_json(f"{run_dir}/best.json")
    assert best["epoch"] == 4
    assert os.path.exists(f"{run_dir}/best/{best['checkpoint']}.index")

  def test_one_that_may_not_be_read_is_not_lost(self, base, tmp_path, monkeypatch):
    def forbidden(path):
      raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(folder, "read_record", forbidden)
    record = types.SimpleNamespace(best={"checkpoint": "epoch-1"})
    validator = validation.Validator(
      str(tmp_path),
      types.SimpleNamespace(record=record),
      evaluator=None,
      dataset=shapes.make_shapes("val", num_images=1, image_size_px=(64, 64)),
      writer=None,
      config=base(),
    )
    with pytest.raises(PermissionError):
      validator.judge_best()
    assert record.best == {"checkpoint": "epoch-1"}

  def test_one_without_a_calibration(self, base, trained_run, said):
    """As an earlier version left it."""
    best = read_json(f"{trained_run}/best.json")
    earlier = {name: best[name] for name in best if name != "calibration"}
    record, restored = types.SimpleNamespace(best=earlier), []
    calibration = ScoreCalibration((0.1, 0.9), (0.2, 0.8))
    judged = types.SimpleNamespace(
      metrics={"AP": 0.5},
      score_thresholds=ScoreThresholds(0.5, 1.0, {}, {}),
      calibration=calibration,
      operating_points=OperatingPoints((), (), ()),
    )
    config = folder.load_config(trained_run)
    validator = validation.Validator(
      trained_run,
      types.SimpleNamespace(record=record, restore_judged_weights=restored.append),
      types.SimpleNamespace(evaluate=lambda dataset: (judged, None, None)),
      data_lib.open_split(config, "val", shapes.CLASS_NAMES),
      writer=None,
      config=config,
    )
    record.best = validator.judge_best()
    assert restored == [f"{trained_run}/best/{best['checkpoint']}"]
    assert record.best["calibration"] == calibration.to_json()
    assert "for its scores were not calibrated: AP 0.500" in said[-1]
    assert validator.judge_best() is record.best

  def test_training_goes_on_from_its_own_weights(self, base, run_dir, tmp_path, said):
    """The evaluation in between leaves no trace in what is trained.

    There is none where the settings of the evaluation change its speed alone.
    """
    other = str(tmp_path / "other")
    shutil.copytree(run_dir, other)
    trainer.train(base({"eval.batch_size": 2, "eval.num_pictures": 1}), run_dir)
    assert not any("evaluated again" in line for line in said)
    trainer.train(base({"eval.max_detections": 1}), other)
    assert any("evaluated again" in line for line in said)
    one, two = (
      tf.train.load_checkpoint(folder.checkpoint_paths(path)[0])
      for path in (run_dir, other)
    )
    for name in one.get_variable_to_shape_map():
      if name.startswith("network/"):
        np.testing.assert_allclose(
          one.get_tensor(name), two.get_tensor(name), atol=1e-6, err_msg=name
        )


def test_data_that_moved_in_mid_run(base, tmp_path, monkeypatch):
  """Finding: it trained to the end, whose evaluation looked in the old folder."""
  for split, number in (("train", IMAGES), ("val", 4)):
    data = shapes.make_shapes(split, num_images=number, image_size_px=(128, 128))
    shapes.write_shapes(data, str(tmp_path / "old"), split)
  model_dir = str(tmp_path / "run")
  where = {"data.format": "coco", "data.root": str(tmp_path / "old")}
  monkeypatch.setenv("STOP_AFTER", "2")
  trainer.train(base({**where, **STOP}), model_dir)
  os.rename(tmp_path / "old", tmp_path / "new")
  trainer.train(base({**where, "data.root": str(tmp_path / "new")}), model_dir)
  assert evaluation_files.evaluate_run(model_dir).num_images == 4
  assert folder.load_config(model_dir).data.root == str(tmp_path / "new")
