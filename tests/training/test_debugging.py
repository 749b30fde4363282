"""Steps gone through op by op: those of the training, which stays as it is."""

import csv
import dataclasses
import os

import numpy as np
import pytest

from ap_detect.training import debugging, failed_batch, state, trainer


def contents(folder):
  """{path: (time of change, bytes)} of all files below a folder."""
  found = {}
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      with open(path, "rb") as file:
        found[path] = os.stat(path).st_mtime_ns, file.read()
  return found


def numbers(examined):
  """{name: value} of the losses of an ExaminedStep."""
  ranges = examined.examination.ranges
  return {found.name: found.low for found in ranges if found.group == "losses"}


def test_a_new_run_s_steps(make_config, trained_run, tmp_path):
  """The third one's losses as the training logged them; nothing is written."""
  config = make_config({"train.classification_loss": "ap_loss"})
  examined = list(debugging.debug(config, str(tmp_path / "new")))
  assert [part.step for part in examined] == [0, 1, 2]
  assert os.listdir(tmp_path) == []
  with open(f"{trained_run}/metrics.csv", newline="") as file:
    logged = next(csv.DictReader(file))
  assert logged["step"] == "3"
  found = numbers(examined[2])
  for name in ("total_loss", "ap_loss", "box_loss", "num_positive_anchors"):
    assert found[name] == pytest.approx(float(logged[name]), rel=1e-3)
  assert sorted(image for part in examined for image in part.images) == [*range(1, 13)]


def test_the_steps_that_a_run_would_go_on_with(make_config, trained_run):
  config = make_config({"train.classification_loss": "ap_loss"})
  before = contents(trained_run)
  (examined,) = debugging.debug(config, trained_run, num_steps=1)
  assert contents(trained_run) == before
  assert examined.step == 9
  with open(f"{trained_run}/metrics.csv", newline="") as file:
    first, *_ = csv.DictReader(file)
  assert numbers(examined)["total_loss"] < float(first["total_loss"])  # it is trained
  said = debugging.report(examined)
  assert said.startswith("step 9, images ") and said.endswith("all tensors are finite")


def test_a_config_that_the_run_refuses(make_config, trained_run):
  config = make_config({"train.optimizer": "sgd"})
  with pytest.raises(ValueError, match="holds a run of another config"):
    next(debugging.debug(config, trained_run))


@pytest.mark.slow
def test_a_training_that_diverges(make_config, make_strategy, tmp_path):
  """Two replicas. The file has what the steps that were done again came to."""
  config = make_config(
    {
      "train.optimizer": "sgd",
      "train.learning_rate": 1e30,
      "train.clip_norm": 0.0,
      "train.warmup_steps": 0,
      "train.batch_size": 2,
      "train.jit_compile": "never",
    }
  )
  with pytest.raises(state.NonFiniteError) as caught:
    trainer.train(config, str(tmp_path), strategy=make_strategy(2))
  (name,) = os.listdir(tmp_path / "non_finite")
  path = str(tmp_path / "non_finite" / name)
  assert f"To see which tensor was the first: ap_detect debug_batch {path}. " in str(
    caught.value
  )
  failed = failed_batch.read(path)
  step = failed.about["step"]
  assert step > 0 and failed.about["weights_step"] == step
  assert f"at step {step}, images {failed.about['images']}" in str(caught.value)
  assert failed.batch["image"].shape == (4, 128, 128, 3)
  assert max(np.abs(value).max() for value in failed.weights) > 1e20
  one, two = debugging.debug_batch(failed)
  assert one.images + two.images == failed.about["images"]
  assert (one.replica, two.replica) == (0, 1)
  first = one.examination.first_non_finite
  assert first.group == "forward pass" and "layer " in first.name
  assert "replica 2 of 2" in debugging.report(two, 2)


def test_weights_of_another_network(make_config):
  about = {
    "config": dataclasses.asdict(make_config()),
    "class_names": ["a"],
    **{"replicas": 1, "step": 0, "images": []},
  }
  failed = failed_batch.FailedBatch({}, [np.zeros(3, np.float32)], about)
  with pytest.raises(ValueError, match="not those of its config's network"):
    next(debugging.debug_batch(failed))
