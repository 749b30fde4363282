"""A trained run opened again, wherever it is and whatever became of it."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.runs import files, folder, scores
from ap_detect.runs import model as model_lib
from ap_detect.training import optimizers


@pytest.fixture
def said(hear):
  """Warnings."""
  return hear("warning")


@pytest.fixture
def copy(trained_run, tmp_path):
  """Path of a copy of trained_run."""
  path = str(tmp_path / "copy")
  shutil.copytree(trained_run, path)
  return path


def values_in(path):
  """The network's values in a checkpoint, sorted by size; all differ."""
  reader = tf.train.load_checkpoint(path)
  keys = [
    key for key in reader.get_variable_to_shape_map() if key.startswith("network/")
  ]
  return sorted((reader.get_tensor(key) for key in keys), key=_order)


def values_of(network):
  return sorted((variable.numpy() for variable in network.variables), key=_order)


def _order(value):
  return value.size, float(value.sum())


def assert_restored(network, path):
  expected, found = values_in(path), values_of(network)
  assert len(found) == len(expected)
  for one, other in zip(expected, found):
    np.testing.assert_array_equal(one, other)


class TestErrors:
  def test_no_run(self, tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no .*config\.json"):
      model_lib.restore(str(tmp_path))

  def test_no_checkpoint_yet(self, make_config, tmp_path):
    config = dataclasses.asdict(make_config())
    files.write_json(str(tmp_path / "config.json"), config)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
      model_lib.restore(str(tmp_path))

  def test_no_such_checkpoint(self, trained_run):
    with pytest.raises(ValueError, match="there is no checkpoint nowhere/epoch-7"):
      model_lib.restore(trained_run, "nowhere/epoch-7")

  @pytest.mark.parametrize("checkpoint", ["", "latest"])
  def test_checkpoint_of_another_network(self, checkpoint, copy):
    path = os.path.join(copy, "config.json")
    values = files.read_json(path)
    values["model"]["head_convolutions"] = 2
    files.write_json(path, values)
    name = "step-9-validated" if checkpoint else r"epoch-\d"
    with pytest.raises(ValueError, match=f"{name} .*does not fit the network"):
      model_lib.restore(copy, checkpoint)


def damage(path, how):
  """Damages a checkpoint as a crash or a full disk does."""
  index, data = f"{path}.index", f"{path}.data-00000-of-00001"
  if how == "no data":
    os.remove(data)
  else:
    whole, part = how.split()
    changed = index if part == "index" else data
    size = os.path.getsize(changed) // 2 if whole == "half" else 0
    os.truncate(changed, size)


DAMAGES = ["half index", "empty index", "half data", "empty data", "no data"]


class TestDamagedCheckpoint:
  @pytest.mark.parametrize("how", DAMAGES)
  def test_the_one_before_the_latest_is_used(self, how, copy, said):
    latest, before = folder.checkpoint_paths(copy)
    damage(latest, how)
    restored = model_lib.restore(copy, "latest")
    assert restored.checkpoint == before
    assert_restored(restored.network, before)
    (line,) = said
    assert line.startswith(f"checkpoint {latest} is damaged or does not fit")
    assert line.endswith(f"; using the one before it, {before}")

  def test_where_nothing_was_evaluated_yet(self, copy, said):
    os.remove(os.path.join(copy, "best.json"))
    latest, before = folder.checkpoint_paths(copy)
    damage(latest, "empty data")
    assert model_lib.restore(copy).checkpoint == before
    assert len(said) == 1

  def test_none_is_sound(self, copy):
    paths = folder.checkpoint_paths(copy)
    for path, how in zip(paths, ("empty data", "half index")):
      damage(path, how)
    with pytest.raises(ValueError) as caught:
      model_lib.restore(copy, "latest")
    lines = str(caught.value).split("\n  ")
    assert len(lines) == 2
    for path, line in zip(paths, lines):
      assert line.startswith(f"checkpoint {path} is damaged")

  def test_one_that_was_asked_for_has_no_substitute(self, copy):
    latest = folder.checkpoint_paths(copy)[0]
    damage(latest, "empty data")
    with pytest.raises(ValueError, match="step-9-validated is damaged"):
      model_lib.restore(copy, latest)
    best = folder.find_checkpoint(copy)
    damage(best, "half index")
    with pytest.raises(ValueError, match=r"best/epoch-\d is damaged"):
      model_lib.restore(copy)


def test_a_moved_run_is_the_same_run(copy):
  for checkpoint in ("latest", ""):
    restored = model_lib.restore(copy, checkpoint)
    assert restored.checkpoint.startswith(copy)
    assert_restored(restored.network, restored.checkpoint)


# Fields that runs of the earlier version do not have in their config.json.
NEW_FIELDS = (
  *("log_every_steps", "steps_per_execution", "checkpoint_every_minutes"),
  *("box_loss_normalizer", "deterministic", "callbacks"),
)


@pytest.fixture(scope="module")
def earlier_run(make_config, trained_run, tmp_path_factory):
  """A folder as the version before step-<n> checkpoints left it: two epochs, the best 1."""
  model_dir = str(tmp_path_factory.mktemp("earlier") / "run")
  os.makedirs(model_dir)
  config = make_config()
  network = model_lib.build_network(config, 6, pretrained=False)
  optimizer = optimizers.make_optimizer("adam", 0.1)
  optimizers.create_state(optimizer, network.trainable_variables)
  epoch = tf.Variable(0, trainable=False, dtype=tf.int64)
  latest, best = (
    tf.train.CheckpointManager(
      checkpoint,
      os.path.join(model_dir, name),
      max_to_keep=2,
      checkpoint_name="epoch",
    )
    for name, checkpoint in (
      (
        "checkpoints",
        tf.train.Checkpoint(network=network, optimizer=optimizer, epoch=epoch),
      ),
      ("best", tf.train.Checkpoint(network=network)),
    )
  )
  rng = np.random.default_rng(0)
  for number in range(3):
    for variable in network.variables:
      variable.assign(rng.uniform(0.1, 1, variable.shape))
    epoch.assign(number)
    latest.save(checkpoint_number=number)
    if number == 1:
      best.save(checkpoint_number=number)
  values = dataclasses.asdict(config)
  for name in NEW_FIELDS:
    del values["train"][name]
  files.write_json(os.path.join(model_dir, "config.json"), values)
  shutil.copy(os.path.join(trained_run, "classes.json"), model_dir)
  entry = files.read_json(os.path.join(trained_run, "best.json"))
  files.write_json(
    os.path.join(model_dir, "best.json"),
    {
      "checkpoint": "epoch-1",
      "epoch": 1,
      "metrics": entry["metrics"],
      "score_thresholds": entry["score_thresholds"],
    },
  )
  return model_dir


class TestRunOfTheEarlierVersion:
  @pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
      ("", "best/epoch-1"),
      ("latest", "checkpoints/epoch-2"),
      ("{}/checkpoints/epoch-1.index", "checkpoints/epoch-1"),
    ],
  )
  def test_is_restored(self, earlier_run, checkpoint, expected):
    restored = model_lib.restore(earlier_run, checkpoint.format(earlier_run))
    assert restored.checkpoint == os.path.join(earlier_run, expected)
    assert_restored(restored.network, restored.checkpoint)

  def test_its_thresholds(self, earlier_run, said):
    best = folder.find_checkpoint(earlier_run)
    expected = scores.load_judgement(earlier_run)
    assert expected.calibration is None
    assert scores.load_judgement(earlier_run, best) == expected
    assert said == []
    latest = folder.find_checkpoint(earlier_run, "latest")
    assert scores.load_judgement(earlier_run, latest) == expected
    assert "epoch-2 has no score thresholds of its own" in said[0]

  def test_is_not_continued(self, earlier_run):
    with pytest.raises(ValueError, match="holds a run of an earlier version"):
      folder.is_unused(earlier_run)


@pytest.mark.parametrize(
  ("changes", "parts"),
  [
    ({}, []),
    ({"eval.test_scales": ("96/128",)}, ["test scales ('96/128',); here"]),
    ({"eval.horizontal_flip": True}, ["test scales (128, 128), mirrored too; here"]),
  ],
)
def test_serving_says_that_it_has_one_view(make_config, said, changes, parts):
  model_lib.make_detect(make_config(changes))
  assert len(said) == len(parts)
  assert all(part in warning for part, warning in zip(parts, said))
