"""Training: what a run leaves behind, and going on after it was stopped anywhere."""

import glob
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.metrics import METRIC_NAMES
from ap_detect.training import callbacks, run, schedules, trainer

STEPS_PER_EPOCH, EPOCHS = 3, 3
# Threads add floats in any order. Runs of 9 steps differed by no bit when this was
# written; a wrong step, rate or batch moves weights by 1e-3.
NOISE = 1e-6


def read_events(model_dir):
  """({tag: {step: value}}, {tag of images}) of a run's TensorBoard files."""
  scalars, images = {}, set()
  for path in sorted(glob.glob(os.path.join(model_dir, "tensorboard", "*"))):
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        if value.metadata.plugin_data.plugin_name == "images":
          images.add(value.tag)
        elif value.metadata.plugin_data.plugin_name == "scalars":
          found = float(tf.make_ndarray(value.tensor))
          scalars.setdefault(value.tag, {})[event.step] = found
  return scalars, images


def read_state(model_dir):
  """{name: array} of the latest checkpoint."""
  path = tf.train.latest_checkpoint(os.path.join(model_dir, "checkpoints"))
  reader = tf.train.load_checkpoint(path)
  # Numbers of checkpoints saved differ, as they may.
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_dtype_map()
    if name != "_CHECKPOINTABLE_OBJECT_GRAPH" and "save_counter" not in name
  }


class Crash(Exception):
  pass


def stop_at_step(step, error):
  """StepLogger.on_train_batch_end that raises after so many steps of all."""
  original = callbacks.StepLogger.on_train_batch_end

  def on_train_batch_end(self, batch, logs=None):
    original(self, batch, logs)
    if self._step == step:
      raise error

  return on_train_batch_end


@pytest.fixture(scope="module")
def uninterrupted(make_config, tmp_path_factory):
  model_dir = str(tmp_path_factory.mktemp("uninterrupted"))
  trainer.train(make_config(), model_dir)
  return model_dir


@pytest.fixture(scope="module")
def interrupted(make_config, tmp_path_factory):
  """Stopped between a checkpoint and its validation, and in the middle of an epoch."""
  model_dir = str(tmp_path_factory.mktemp("interrupted"))
  with pytest.MonkeyPatch.context() as patch:

    def crash(self, epoch):
      raise Crash

    patch.setattr(callbacks.CheckpointAndValidate, "_validate", crash)
    with pytest.raises(Crash):
      trainer.train(make_config(), model_dir)
  assert not os.path.exists(os.path.join(model_dir, "best.json"))
  with pytest.MonkeyPatch.context() as patch:
    in_second_epoch = stop_at_step(STEPS_PER_EPOCH + 2, KeyboardInterrupt)
    patch.setattr(callbacks.StepLogger, "on_train_batch_end", in_second_epoch)
    patch.setattr(trainer.logging, "warning", lambda *parts: said.append(parts))
    said = []
    with pytest.raises(KeyboardInterrupt):
      trainer.train(make_config(), model_dir)
  assert any("interrupted; the checkpoint of epoch" in parts[0] for parts in said)
  halfway = str(tmp_path_factory.mktemp("halfway") / "run")
  shutil.copytree(model_dir, halfway)
  trainer.train(make_config(), model_dir)
  return {"model_dir": model_dir, "halfway": halfway}


class TestFolder:
  def test_files(self, trained_run):
    files = set(os.listdir(trained_run))
    assert {"config.json", "classes.json", "history.json", "best.json"} <= files
    assert {"checkpoints", "best", "tensorboard"} <= files
    assert not [name for name in files if name.endswith(".tmp")]
    kept = sorted(glob.glob(os.path.join(trained_run, "checkpoints", "*.index")))
    assert [os.path.basename(p) for p in kept] == ["epoch-2.index", "epoch-3.index"]

  def test_best_is_the_best_of_history(self, trained_run):
    history = run.read_json(os.path.join(trained_run, "history.json"))
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert all(set(METRIC_NAMES) <= set(entry) for entry in history)
    best = run.read_json(os.path.join(trained_run, "best.json"))
    assert best["metrics"]["AP"] == max(entry["AP"] for entry in history)
    assert best["checkpoint"] == f"epoch-{best['epoch']}"
    index = os.path.join(trained_run, "best", f"{best['checkpoint']}.index")
    assert os.path.exists(index)
    thresholds = run.load_thresholds(trained_run)
    names = run.load_classes(trained_run).names
    assert tuple(thresholds.per_class) == names
    assert all(0 < at < 1 for at in thresholds.per_class.values())

  def test_tensorboard(self, trained_run):
    scalars, images = read_events(trained_run)
    last_of_epochs = [STEPS_PER_EPOCH * epoch for epoch in range(1, EPOCHS + 1)]
    for tag in (
      *("train/total_loss", "train/ap_loss", "train/box_loss", "learning_rate"),
      *("num_positive_anchors", "gt_without_anchor", "images_per_second"),
      *("validation/AP", "validation/AP50", "validation/best_f1_threshold"),
    ):
      assert sorted(scalars[tag]) == last_of_epochs, tag
    total = scalars["train/ap_loss"][3] + scalars["train/box_loss"][3]
    assert scalars["train/total_loss"][3] == pytest.approx(total, rel=1e-5)
    assert all(rate > 0 for rate in scalars["images_per_second"].values())
    history = run.read_json(os.path.join(trained_run, "history.json"))
    for entry in history:
      step = STEPS_PER_EPOCH * entry["epoch"]
      assert scalars["validation/AP"][step] == pytest.approx(entry["AP"], abs=1e-6)
    pictures = {f"detections/{image_id}" for image_id in (1, 2, 3, 4)}
    assert images == {*pictures, "charts/precision_recall", "charts/confusion"}

  def test_logged_rate_is_the_schedule_s(self, trained_run):
    schedule = schedules.WarmupSchedule(
      0.003, kind="cosine", total_steps=9, warmup_steps=2
    )
    scalars, _ = read_events(trained_run)
    for step, rate in scalars["learning_rate"].items():
      assert rate == pytest.approx(float(schedule(step - 1)), rel=1e-5)


class TestResume:
  def test_interruption_leaves_the_last_epoch(self, interrupted):
    state = read_state(interrupted["halfway"])
    epoch = [value for name, value in state.items() if name.startswith("epoch/")]
    assert epoch == [1]
    # Its validation was made up for by the start that followed.
    history = run.read_json(os.path.join(interrupted["halfway"], "history.json"))
    assert [entry["epoch"] for entry in history] == [1]

  def test_same_weights_and_optimiser_state(self, uninterrupted, interrupted):
    expected, found = read_state(uninterrupted), read_state(interrupted["model_dir"])
    assert set(found) == set(expected)
    assert any("optimizer" in name for name in expected)
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=0, atol=NOISE, err_msg=name)

  def test_the_comparison_could_fail(self, uninterrupted, interrupted):
    early, late = read_state(interrupted["halfway"]), read_state(uninterrupted)
    moved = [np.abs(late[k] - early[k]).max() for k in late if "network" in k]
    assert max(moved) > 1000 * NOISE

  def test_same_metrics_and_thresholds(self, uninterrupted, interrupted):
    for name in ("history.json", "best.json"):
      expected = run.read_json(os.path.join(uninterrupted, name))
      found = run.read_json(os.path.join(interrupted["model_dir"], name))
      assert str(found) == str(expected) or _nearly_equal(found, expected)

  def test_same_rates(self, uninterrupted, interrupted):
    expected, _ = read_events(uninterrupted)
    found, _ = read_events(interrupted["model_dir"])
    assert found["learning_rate"] == expected["learning_rate"]

  def test_finished_run_stays_as_it_is(self, make_config, interrupted):
    before = read_state(interrupted["model_dir"])
    trainer.train(make_config(), interrupted["model_dir"])
    after = read_state(interrupted["model_dir"])
    assert all(np.array_equal(before[name], after[name]) for name in before)

  def test_other_config_is_refused(self, make_config, interrupted):
    with pytest.raises(ValueError, match=r"train\.epochs: 3 -> 4"):
      trainer.train(make_config({"train.epochs": 4}), interrupted["model_dir"])


def _nearly_equal(found, expected):
  """Whether nested values agree to NOISE."""
  if isinstance(expected, dict):
    return found.keys() == expected.keys() and all(
      _nearly_equal(found[key], expected[key]) for key in expected
    )
  if isinstance(expected, list):
    return len(found) == len(expected) and all(map(_nearly_equal, found, expected))
  if isinstance(expected, float):
    return abs(found - expected) <= 1e-4
  return found == expected


class TestNonFinite:
  def test_names_step_and_images_and_keeps_the_checkpoint(
    self, make_config, tmp_path, monkeypatch
  ):
    """The loss of the fifth batch, in the middle of the second epoch, is NaN."""
    original = callbacks.StepLogger.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
      broken = {**logs, "total_loss": float("nan")} if self._step == 4 else logs
      original(self, batch, broken)

    monkeypatch.setattr(callbacks.StepLogger, "on_train_batch_end", on_train_batch_end)
    seen = []
    original_batches = trainer.make_batches

    def make_batches(config, dataset, batch_size, first_step, **options):
      means = {
        float(np.mean(record.image)): record.image_id for record in dataset.records
      }

      def remember(images):
        for image in images:
          value = float(np.mean(image))
          seen.append(means[min(means, key=lambda mean: abs(mean - value))])
        return np.float32(0)

      def watch(batch):
        zero = tf.numpy_function(remember, [batch["image"]], tf.float32)
        return {**batch, "image": batch["image"] + tf.reshape(zero, [])}

      batches = original_batches(config, dataset, batch_size, first_step, **options)
      return batches.map(watch, num_parallel_calls=1, deterministic=True)

    monkeypatch.setattr(trainer, "make_batches", make_batches)
    model_dir = str(tmp_path / "run")
    with pytest.raises(callbacks.NonFiniteLossError) as caught:
      trainer.train(make_config({"data.horizontal_flip": 0.0}), model_dir)
    assert "total_loss is nan at step 4, images " in str(caught.value)
    assert str(seen[16:20]) in str(caught.value)
    assert isinstance(caught.value, ValueError)  # a message, not a traceback
    state = read_state(model_dir)
    assert [v for k, v in state.items() if k.startswith("epoch/")] == [1]
    assert all(np.isfinite(v).all() for v in state.values() if v.dtype.kind == "f")

  def test_weights_broken_by_the_epoch_s_last_update(self, make_config, tmp_path):
    """Losses and gradients of the only step are finite; its update is not."""
    config = make_config(
      {
        "train.optimizer": "sgd",
        "train.learning_rate": 3e38,
        "train.weight_decay": 1e3,
        "train.clip_norm": 0.0,
        "train.schedule": "constant",
        "train.warmup_steps": 0,
        "data.shapes_train_images": 4,
      }
    )
    model_dir = str(tmp_path / "run")
    with pytest.raises(callbacks.NonFiniteLossError, match="not finite after epoch 1"):
      trainer.train(config, model_dir)
    state = read_state(model_dir)
    assert [v for k, v in state.items() if k.startswith("epoch/")] == [0]
    assert all(np.isfinite(v).all() for v in state.values() if v.dtype.kind == "f")


def test_split_without_objects(make_config, tmp_path, monkeypatch):
  import dataclasses

  original = run.open_split

  def without_objects(config, split, class_names=()):
    dataset = original(config, split, class_names)
    if split != "val":
      return dataset
    ignored = [
      dataclasses.replace(record, ignored=np.ones(len(record.boxes), bool))
      for record in dataset.records
    ]
    return dataclasses.replace(dataset, records=tuple(ignored))

  monkeypatch.setattr(run, "open_split", without_objects)
  with pytest.raises(ValueError, match="split 'val' requires at least one object"):
    trainer.train(make_config(), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
