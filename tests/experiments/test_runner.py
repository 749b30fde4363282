"""The command that trains all runs: what is due, one after another, stopped, gone on."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]

CATALOG = """
from plan import *
SHAPES = Dataset("shapes", {}, {}, (Evaluation("val", "val"),))
FILES = Dataset("own_data", {"data.root": "bccd_dir"}, {}, (Evaluation("val", "val"),))
DATASETS = {"shapes": SHAPES, "files": FILES}
EXPERIMENTS = (
  Experiment("tuning", "Which rate?", "shapes", (Row("a", {}),), (0,), 2.0,
             stages=(Stage("rate", "train.learning_rate", (0.1, 0.2)),)),
  Experiment("comparison", "Which loss?", "shapes",
             (Row("a", {}, tuned_as="a"), Row("b", {"train.epochs": 2})), (0, 1), 30.0,
             tuning="tuning"),
  Experiment("with_files", "What of files?", "files", (Row("c", {}),), (0,), 1.0),
)
"""

# In place of a training: takes a while, heeds SIGTERM, knows what it did before.
ONE_RUN = """
import json, os, pathlib, sys, time
import plan, settings
from absl import app, flags
experiment, name = (flags.DEFINE_string(flag, "", "") for flag in ("experiment", "run"))

def main(_):
  experiments = settings.make_catalog()
  run = experiments.find(experiment.value, name.value)
  folder = pathlib.Path(plan.model_dir(settings.RUNS_DIR.value, run))
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "starts", "a") as file:
    file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none") + "\\n")
  if (folder / "fails").exists():
    sys.exit("error: it failed")
  if (folder / "in_use").exists():
    sys.exit(75)
  time.sleep(float(os.environ.get("SECONDS_OF_A_RUN", "0")))
  rate = run.overrides.get("train.learning_rate", 0)
  result = {"overrides": run.overrides, "seed": run.seed, "metrics": {"val": {"AP": rate}}}
  path = experiments.path(run)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result))

app.run(main)
"""


class Room:
  """experiments/ with a small catalog and runs that do not train."""

  def __init__(self, folder):
    self.folder = folder
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    (folder / "experiments/catalog.py").write_text(CATALOG, encoding="utf-8")
    (folder / "experiments/one_run.py").write_text(ONE_RUN, encoding="utf-8")
    self.runs, self.results = folder / "runs", folder / "results"

  def start(self, *arguments, **environment):
    command = [sys.executable, str(self.folder / "experiments/train.py"), *arguments]
    command += [f"--runs_dir={self.runs}", f"--results_dir={self.results}"]
    environment = {"CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.Popen(
      command,
      env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def train(self, *arguments, status=0, **environment):
    process = self.start(*arguments, **environment)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == status, said
    return said

  def done(self):
    return sorted(
      str(p.relative_to(self.results)) for p in self.results.rglob("*.json")
    )

  def starts(self, run):
    return (self.runs / run / "starts").read_text().splitlines()


ALL = [
  *(f"comparison/{row}-seed{seed}.json" for row in "ab" for seed in (0, 1)),
  *("tuning/a-rate0.1.json", "tuning/a-rate0.2.json"),
]


@pytest.fixture
def room(tmp_path):
  return Room(tmp_path)


def test_list_says_what_there_is_and_what_it_takes(room):
  said = " ".join(room.train("--list").split())
  assert "tuning 0 of 2 runs done, 4 minutes left Which rate?" in said
  assert "comparison 0 of 4 runs done, 120 minutes left, needs tuning Which" in said
  assert "with_files 0 of 1 runs done, 1 minutes left, needs --bccd_dir What" in said
  assert "2.1 hours left" in said and not room.done()
  assert "no experiment x; there are" in room.train("--experiments=x", status=1)


def test_all_that_is_due_in_order_once(room):
  said = room.train()
  assert room.done() == ALL
  assert "with_files is left out: it needs --bccd_dir" in said
  assert "6 done, 0 failed, 0 left" in said
  tuned = json.loads((room.results / "comparison/a-seed1.json").read_text())
  assert tuned["overrides"]["train.learning_rate"] == 0.2  # the better one
  (room.results / "comparison/b-seed0.json").unlink()
  assert "1 done, 0 failed, 0 left" in room.train()
  assert len(room.starts("comparison/b-seed0")) == 2
  assert len(room.starts("comparison/a-seed0")) == 1


def test_only_some(room):
  room.train("--experiments=comparison", "--only=*/b-seed1,x/*")
  assert room.done() == ["comparison/b-seed1.json"]


@pytest.mark.slow
def test_a_failed_run_keeps_no_other_from_being_done(room):
  for run, what in (("comparison/b-seed0", "fails"), ("comparison/b-seed1", "in_use")):
    (room.runs / run).mkdir(parents=True)
    (room.runs / run / what).touch()
  said = room.train(status=1)
  assert "comparison/b-seed0 failed: error: it failed" in said
  assert "comparison/b-seed1 is left to another process" in said
  assert "4 done, 1 failed, 2 left" in said
  assert len(room.starts("comparison/b-seed0")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_run_and_the_command_goes_on_later(room, number):
  process = room.start(SECONDS_OF_A_RUN="60")
  started = room.runs / "tuning/a-rate0.1/starts"
  until = time.monotonic() + 60
  while not started.exists() and time.monotonic() < until:
    time.sleep(0.1)
  process.send_signal(number)
  said, _ = process.communicate(timeout=30)
  assert process.returncode == 128 + number
  assert "tuning/a-rate0.1 is stopped; it will go on" in said
  assert not room.done()
  room.train()
  assert room.done() == ALL and len(room.starts("tuning/a-rate0.1")) == 2


@pytest.mark.slow
def test_limit_of_time(room):
  said = room.train("--limit_minutes=0.1", SECONDS_OF_A_RUN="60")
  assert "is stopped; it will go on" in said and "0 done, 0 failed, 6 left" in said


@pytest.mark.slow
def test_two_devices_work_at_a_time(room):
  begun = time.monotonic()
  room.train("--experiments=comparison", "--only=*/b*", SECONDS_OF_A_RUN="0")
  assert room.starts("comparison/b-seed0") == [""]
  room.train(CUDA_VISIBLE_DEVICES="3,5", SECONDS_OF_A_RUN="5")
  used = room.starts("tuning/a-rate0.1") + room.starts("tuning/a-rate0.2")
  assert sorted(used) == ["3", "5"]
  assert time.monotonic() - begun < 60 and room.done() == ALL
