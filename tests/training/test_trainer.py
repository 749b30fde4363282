"""Training: what a run leaves behind, and going on after it was stopped anywhere."""

import csv
import glob
import os
import shutil
import signal

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

from ap_detect import config as config_lib
from ap_detect.metrics import METRIC_NAMES
from ap_detect.runs import data as data_lib
from ap_detect.runs import files, folder, scores
from ap_detect.training import (
  failed_batch,
  loop,
  restarts,
  schedules,
  state,
  trainer,
  validation,
)
from ap_detect.training import step as step_lib
from ap_detect.training.classification_losses import with_defaults

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


def read_rows(model_dir):
  """The rows of metrics.csv, {column: number}."""
  with open(os.path.join(model_dir, "metrics.csv"), newline="") as file:
    return [
      {name: float(text) for name, text in row.items() if text}
      for row in csv.DictReader(file)
    ]


def read_state(model_dir):
  """{name: array} of the latest checkpoint, all but its record."""
  reader = tf.train.load_checkpoint(folder.checkpoint_paths(model_dir)[0])
  # Numbers of checkpoints saved differ, as they may.
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_dtype_map()
    if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    and not name.startswith(("record/", "save_counter"))
  }


def read_record(model_dir):
  return folder.read_record(folder.checkpoint_paths(model_dir)[0])


class Crash(Exception):
  pass


def interrupt_after_step(step):
  """TrainingLoop._execute that has Ctrl-C pressed when so many steps are done."""
  original = loop.TrainingLoop._execute

  def execute(self, iterator, steps):
    original(self, iterator, steps)
    if self._clock.step == step:
      signal.raise_signal(signal.SIGINT)

  return execute


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

    def crash(self):
      raise Crash

    patch.setattr(validation.Validator, "validate", crash)
    with pytest.raises(Crash):
      trainer.train(make_config(), model_dir)
  assert not os.path.exists(os.path.join(model_dir, "best.json"))
  with pytest.MonkeyPatch.context() as patch:
    in_second_epoch = interrupt_after_step(STEPS_PER_EPOCH + 2)
    patch.setattr(loop.TrainingLoop, "_execute", in_second_epoch)
    patch.setattr(trainer.logging, "warning", lambda *parts: said.append(parts))
    said = []
    with pytest.raises(KeyboardInterrupt):
      trainer.train(make_config(), model_dir)
  text = "stopped; saved at step 5, epoch 1.67 of 3"
  assert any((line % tuple(parts)).startswith(text) for line, *parts in said)
  halfway = str(tmp_path_factory.mktemp("halfway") / "run")
  shutil.copytree(model_dir, halfway)
  trainer.train(make_config(), model_dir)
  return {"model_dir": model_dir, "halfway": halfway}


class TestFolder:
  def test_files(self, trained_run):
    # No .tmp file, and nothing of changes, for there were none.
    assert sorted(os.listdir(trained_run)) == sorted(
      [
        *("config.json", "classes.json", "history.json", "best.json", "metrics.csv"),
        *("checkpoints", "best", "tensorboard", ".lock", "train.log", "training.png"),
      ]
    )
    # Whole ones, and of each of the last two steps one.
    checkpoints = os.listdir(os.path.join(trained_run, "checkpoints"))
    assert sorted(checkpoints) == [
      f"step-{step}-validated.{ending}"
      for step in (6, 9)
      for ending in ("data-00000-of-00001", "index")
    ]

  def test_config_and_classes(self, make_config, trained_run):
    config = make_config({"train.classification_loss": "ap_loss"})
    assert folder.load_config(trained_run) == with_defaults(config)
    data = data_lib.open_training_split(config)
    classes = folder.Classes(data.class_names, tuple(data.category_ids))
    assert folder.load_classes(trained_run) == classes

  def test_best_is_the_best_of_history(self, trained_run):
    history = files.read_json(os.path.join(trained_run, "history.json"))
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert all(set(METRIC_NAMES) <= set(entry) for entry in history)
    best = files.read_json(os.path.join(trained_run, "best.json"))
    assert best["metrics"]["AP"] == max(entry["AP"] for entry in history)
    assert best["checkpoint"] == f"epoch-{best['epoch']}"
    index = os.path.join(trained_run, "best", f"{best['checkpoint']}.index")
    assert os.path.exists(index)
    thresholds = scores.load_judgement(trained_run).thresholds
    names = folder.load_classes(trained_run).names
    assert tuple(thresholds.per_class) == names
    assert all(0 < at < 1 for at in thresholds.per_class.values())

  def test_tensorboard(self, trained_run):
    scalars, images = read_events(trained_run)
    last_of_epochs = [STEPS_PER_EPOCH * epoch for epoch in range(1, EPOCHS + 1)]
    for tag in (
      *("train/total_loss", "train/ap_loss", "train/box_loss", "learning_rate"),
      *("num_positive_anchors", "objects_without_anchor", "images_per_second"),
      *("validation/AP", "validation/AP50", "validation/best_f1_threshold"),
    ):
      assert sorted(scalars[tag]) == last_of_epochs, tag
    total = scalars["train/ap_loss"][3] + scalars["train/box_loss"][3]
    assert scalars["train/total_loss"][3] == pytest.approx(total, rel=1e-5)
    assert all(rate > 0 for rate in scalars["images_per_second"].values())
    history = files.read_json(os.path.join(trained_run, "history.json"))
    for entry in history:
      step = STEPS_PER_EPOCH * entry["epoch"]
      assert scalars["validation/AP"][step] == pytest.approx(entry["AP"], abs=1e-6)
      for name, figure in entry["AP_per_class"].items():
        found = scalars.get(f"validation_AP_per_class/{name}", {}).get(step)
        assert found == (None if figure is None else pytest.approx(figure, abs=1e-6))
    assert tuple(history[0]["AP_per_class"]) == folder.load_classes(trained_run).names
    pictures = {f"detections/{image_id}" for image_id in (1, 2, 3, 4)}
    assert images == {*pictures, "charts/precision_recall", "charts/confusion"}

  def test_histograms_and_hyper_parameters_as_tensorboard_reads_them(self, trained_run):
    reader = plugin_event_accumulator.EventAccumulator(f"{trained_run}/tensorboard")
    reader.Reload()
    ranges = []
    for kind, least in (("positives", 12), ("negatives", 4 * 1000)):
      events = reader.Tensors(f"logits/{kind}")
      assert [event.step for event in events] == [3, 6, 9]
      bins = [tf.make_ndarray(event.tensor_proto) for event in events]
      # Always of the same batch, whose scores move.
      totals = {part[:, 2].sum() for part in bins}
      assert len(totals) == 1 and min(totals) > least
      assert bins[0].tolist() != bins[2].tolist()
      for part in bins:
        assert (part[:, 1] - part[:, 0] == 0.25).all()
        assert (part[1:, 0] == part[:-1, 1]).all()
      ranges.append([(part[0, 0], part[-1, 1]) for part in bins])
    assert ranges[0] == ranges[1] and ranges[0][0][0] > -16
    assert "logits/positives" in reader.PluginTagToContent("histograms")
    content = reader.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    session = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert session.hparams["train.learning_rate"].number_value == 0.003
    assert session.hparams["train.classification_loss"].string_value == "ap_loss"
    assert len(session.hparams) == len(config_lib.field_names())
    assert session.group_name == "trained"

  def test_metrics_file_has_what_tensorboard_has(self, trained_run):
    scalars, _ = read_events(trained_run)
    rows = read_rows(trained_run)
    assert [row["step"] for row in rows] == [3, 6, 9]
    for row in rows:
      assert row["images"] == 4 * row["step"]
      assert row["epoch"] == row["step"] / STEPS_PER_EPOCH
      for tag in ("total_loss", "ap_loss", "box_loss", "gradient_norm", "weight_norm"):
        assert row[tag] == pytest.approx(scalars[f"train/{tag}"][row["step"]])
      for tag in ("learning_rate", "num_positive_anchors", "host_memory_mib"):
        assert row[tag] == pytest.approx(scalars[tag][row["step"]])
      assert 0 <= row["data_wait_share"] <= 1

  def test_logged_rate_is_the_schedule_s(self, trained_run):
    schedule = schedules.Schedule(0.003, "cosine", epochs=3, warmup_images=2 * 4)
    scalars, _ = read_events(trained_run)
    for step, rate in scalars["learning_rate"].items():
      images = 4 * (step - 1)  # before the step, of 12 images
      assert rate == pytest.approx(schedule(images / 12, images), rel=1e-5)


class TestResume:
  def test_interruption_leaves_the_step_that_ran(self, interrupted):
    record = read_record(interrupted["halfway"])
    assert record["step"] == record["clock"]["step"] == 5
    assert record["clock"]["position"] == record["clock"]["images"] == 20
    # The first epoch's validation was made up for by the start that followed.
    history = files.read_json(os.path.join(interrupted["halfway"], "history.json"))
    assert [(entry["epoch"], entry["step"]) for entry in history] == [(1, 3)]

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
      expected = files.read_json(os.path.join(uninterrupted, name))
      found = files.read_json(os.path.join(interrupted["model_dir"], name))
      assert str(found) == str(expected) or _nearly_equal(found, expected)

  def test_same_record(self, uninterrupted, interrupted):
    expected, found = map(read_record, (uninterrupted, interrupted["model_dir"]))
    assert found["clock"] == expected["clock"]
    assert found["clock"]["step"] == STEPS_PER_EPOCH * EPOCHS
    assert found["changes"] == []
    assert _nearly_equal(found, expected)

  def test_same_rates(self, uninterrupted, interrupted):
    expected, _ = read_events(uninterrupted)
    found, _ = read_events(interrupted["model_dir"])
    assert found["learning_rate"] == expected["learning_rate"]
    for name in ("step", "images", "epoch", "learning_rate"):
      rows, others = map(read_rows, (uninterrupted, interrupted["model_dir"]))
      assert [row[name] for row in rows] == [row[name] for row in others]

  def test_finished_run_stays_as_it_is(self, make_config, interrupted):
    before = read_state(interrupted["model_dir"])
    trainer.train(make_config(), interrupted["model_dir"])
    after = read_state(interrupted["model_dir"])
    assert all(np.array_equal(before[name], after[name]) for name in before)

  def test_other_config_is_refused(self, make_config, interrupted):
    with pytest.raises(ValueError, match=r"train\.loss_options\.alpha: 0\.25 -> 0\.5"):
      trainer.train(
        make_config({"train.loss_options": {"alpha": 0.5}}), interrupted["model_dir"]
      )


class TestCheckChanges:
  @pytest.fixture
  def record(self, uninterrupted):
    return folder.read_record(folder.checkpoint_paths(uninterrupted)[0])

  def test_what_may_change(self, make_config, uninterrupted, record):
    restarts.check_changes(uninterrupted, record, make_config())
    changes = {"eval.batch_size": 2, "train.learning_rate": 0.5, "train.epochs": 9}
    restarts.check_changes(uninterrupted, record, make_config(changes))

  def test_another_config_lists_what_differs(self, make_config, uninterrupted, record):
    other = make_config(
      {
        "train.momentum": 0.5,
        "data.image_size_px": (256, 256),
        "train.learning_rate": 0.5,  # which may change
      }
    )
    with pytest.raises(ValueError) as caught:
      restarts.check_changes(uninterrupted, record, other)
    message = str(caught.value)
    assert uninterrupted in message
    assert "train.momentum: 0.9 -> 0.5" in message
    assert "data.image_size_px: (128, 128) -> (256, 256)" in message
    assert "learning_rate" not in message
    assert "--model_dir" in message
    assert f"--config.model.initial_checkpoint={uninterrupted}" in message

  def test_what_is_refused_changes_nothing(self, make_config, uninterrupted):
    def read_all():
      found = {}
      for parent, _, names in os.walk(uninterrupted):
        for name in set(names) - {".lock"}:
          with open(os.path.join(parent, name), "rb") as file:
            found[parent, name] = file.read()
      return found

    before = read_all()
    with pytest.raises(ValueError, match="holds a run of another config"):
      trainer.train(make_config({"train.momentum": 0.5}), uninterrupted)
    assert read_all() == before
    assert folder.load_config(uninterrupted) == with_defaults(make_config())

  def test_other_classes(self, make_config, uninterrupted, record):
    classes = folder.load_classes(uninterrupted)
    others = folder.Classes(("cow", *classes.names), (*classes.category_ids, 7))
    with pytest.raises(ValueError, match=r"6 classes .* now has 7 classes .*cow"):
      restarts.check_classes(uninterrupted, record, others)
    others = folder.Classes(classes.names[::-1], classes.category_ids)
    with pytest.raises(ValueError, match="--model_dir"):
      restarts.check_classes(uninterrupted, record, others)
    others = classes._replace(category_ids=(1, 2, 3, 4, 5, 7))
    with pytest.raises(ValueError, match="--model_dir"):
      restarts.check_classes(uninterrupted, record, others)


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
    """The loss of the fifth batch is NaN; it is read at the end of the second epoch."""
    original = step_lib.TrainingStep.__call__

    weights = []

    def call(self, batches, rates, first_step):
      if first_step == 4:
        weights.append(self._network.get_weights())
      logs = original(self, batches, rates, first_step)
      if first_step != 4:
        return logs
      return {**logs, "total_loss": tf.constant([np.nan]), "is_finite": tf.zeros([1])}

    monkeypatch.setattr(step_lib.TrainingStep, "__call__", call)
    seen = []
    original_batches = data_lib.make_batches

    def make_batches(config, dataset, batch_size, first_position, **options):
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

      batches = original_batches(config, dataset, batch_size, first_position, **options)
      return batches.map(watch, num_parallel_calls=1, deterministic=True)

    monkeypatch.setattr(data_lib, "make_batches", make_batches)
    # It reads a batch of its own.
    monkeypatch.setattr(trainer, "_make_score_counter", lambda *_: None)
    model_dir = str(tmp_path / "run")
    with pytest.raises(state.NonFiniteError) as caught:
      trainer.train(make_config({"data.horizontal_flip": 0.0}), model_dir)
    assert "total_loss is nan at step 4, images " in str(caught.value)
    assert str(seen[16:20]) in str(caught.value)
    assert isinstance(caught.value, ValueError)  # a message, not a traceback
    failed = failed_batch.read(f"{model_dir}/non_finite/step-4.npz")
    assert failed.about["images"] == seen[16:20]
    assert failed.about["weights_step"] == 4
    assert len(weights) == 1  # that step is not done again
    for value, expected in zip(failed.weights, weights[0]):
      np.testing.assert_allclose(value, expected, rtol=0, atol=NOISE)
    assert read_record(model_dir)["step"] == 3
    saved = read_state(model_dir).values()
    assert all(np.isfinite(value).all() for value in saved if value.dtype.kind == "f")

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
    with pytest.raises(state.NonFiniteError, match="not finite after step 1"):
      trainer.train(config, model_dir)
    assert read_record(model_dir)["step"] == 0
    saved = read_state(model_dir).values()
    assert all(np.isfinite(value).all() for value in saved if value.dtype.kind == "f")


def test_split_without_objects(make_config, tmp_path, monkeypatch):
  import dataclasses

  original = data_lib.open_split

  def without_objects(config, split, class_names=(), **_):
    dataset = original(config, split, class_names)
    if split != "val":
      return dataset
    ignored = [
      dataclasses.replace(record, ignored=np.ones(len(record.boxes), bool))
      for record in dataset.records
    ]
    return dataclasses.replace(dataset, records=tuple(ignored))

  monkeypatch.setattr(data_lib, "open_split", without_objects)
  with pytest.raises(ValueError, match="split 'val' requires at least one object"):
    trainer.train(make_config(), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()


def test_the_rate_is_scaled_to_the_batch(make_config, tmp_path, hear):
  said = hear("info")
  changes = {"train.epochs": 1, "train.schedule": "constant", "train.warmup_steps": 0}
  config = make_config({**changes, "train.reference_batch_size": 2})
  trainer.train(config, str(tmp_path))
  rates = [row["learning_rate"] for row in read_rows(tmp_path)]
  assert rates == pytest.approx([2 * config.train.learning_rate] * len(rates))
  line = "learning rate 0.006, for batches of 4 images: 0.003, for 2, scaled linearly"
  assert line in said


def test_patience_ends_a_run_early(make_config, tmp_path, hear):
  """A rate of next to nothing, so that no validation is better than the first."""
  changes = {"train.learning_rate": 1e-12, "train.epochs": 9, "train.patience": 1}
  said = hear("info")
  trainer.train(make_config(changes), str(tmp_path))
  assert len(read_record(tmp_path)["history"]) == 2
  assert any("ended after 1 validations without a better" in line for line in said)
  trainer.train(make_config(changes), str(tmp_path))
  assert any(line.startswith("this run ended early") for line in said)
  trainer.train(make_config({**changes, "train.patience": 2}), str(tmp_path))
  assert len(read_record(tmp_path)["history"]) == 3
