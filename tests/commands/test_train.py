"""Ways of looking into a training, by the command line."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from training import commands

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
DIVERGING = [
  *("--config.train.optimizer=sgd", "--config.train.learning_rate=1e30"),
  *("--config.train.clip_norm=0", "--config.train.warmup_steps=0"),
]


def debug_batch(*arguments):
  """subprocess.CompletedProcess of ap_detect debug_batch."""
  return subprocess.run(
    [sys.executable, "-m", "ap_detect", "debug_batch", *arguments],
    capture_output=True,
    text=True,
    check=False,
    cwd=REPOSITORY,
  )


@pytest.mark.parametrize("arguments", [[], ["a.npz", "b.npz"]])
def test_debug_batch_wants_one_file(arguments):
  done = debug_batch(*arguments)
  assert done.returncode == 1
  assert done.stderr.startswith("error: give one file that a training wrote into its ")


@pytest.mark.slow
def test_a_batch_that_fails_is_kept_and_gone_through(tmp_path):
  said = commands.finish(tmp_path / "run", *DIVERGING, status=1)
  path = re.search(r"the first: ap_detect debug_batch (\S+\.npz)\.", said)[1]
  assert os.path.dirname(path) == str(tmp_path / "run" / "non_finite")
  assert path in (tmp_path / "run" / "train.log").read_text()
  done = debug_batch(path)
  assert done.returncode == 0, done.stderr
  first, step, *_, last = done.stdout.splitlines()
  assert first.startswith("in training: total_loss ")
  assert re.match(r"step \d+, images \d+, \d+, \d+, \d+$", step)
  assert last.startswith("the first tensor that is not finite, in the ")
  damaged = tmp_path / "damaged.npz"
  damaged.write_bytes(pathlib.Path(path).read_bytes()[:1000])
  done = debug_batch(str(damaged))
  assert done.returncode == 1 and "must be a file that a training wrote" in done.stderr


@pytest.mark.slow
def test_debug_leaves_nothing(tmp_path):
  said = commands.finish(tmp_path / "run", "--debug")
  assert os.listdir(tmp_path) == []
  assert [said.count(f"step {number}, images ") for number in range(4)] == [1, 1, 1, 0]
  assert said.count("all tensors are finite") == 3
  said = commands.finish(tmp_path / "run", "--debug", *DIVERGING, status=1)
  assert os.listdir(tmp_path) == []
  assert re.search(
    r"error: step [12]: the first tensor that is not finite, in the ", said
  )


@pytest.mark.slow
def test_profiled_steps(tmp_path):
  said = commands.finish(
    tmp_path / "run", "--profile_steps=3:5", "--config.train.epochs=1"
  )
  assert f"steps 3:5 are profiled in {tmp_path}/run/tensorboard/plugins/profile" in said
  profiles = tmp_path / "run" / "tensorboard" / "plugins" / "profile"
  (trace,) = profiles.glob("*/*.xplane.pb")
  assert trace.stat().st_size > 10_000
  said = commands.finish(tmp_path / "run", "--profile_steps=3:5", status=1)
  assert (
    "error: --profile_steps=3:5 begins before step 6, where this run goes on" in said
  )
  said = commands.finish(tmp_path / "other", "--profile_steps=5:3", status=1)
  assert "error: --profile_steps must be a:b with a < b" in said
  assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_two_images_by_heart(tmp_path):
  """In maps of 2 x 2 cells: what batches' own statistics find, moving ones may not."""
  process = commands.start(tmp_path / "run", "--overfit=2")
  said, _ = process.communicate(timeout=900)
  assert "2 images with " in said and "a perfect network has AP 1.000" in said
  if process.returncode == 0:
    reached = re.search(
      r"AP (\S+) after (\d+) steps: this config can learn these 2", said
    )
    assert float(reached[1]) >= 0.995 and int(reached[2]) <= 2000
  else:
    found = re.search(r"AP (\S+) with each batch's own statistics", said)
    assert float(found[1]) >= 0.99
    assert "In the way: batch normalisation: " in said and "Traceback" not in said
  assert os.listdir(tmp_path) == ["run-overfit-2"]
