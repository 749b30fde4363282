"""Training from the command line, in a process of its own, for tests that stop it."""

import csv
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import tensorflow as tf

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH = 6
SMALL = [
  "--config=configs/shapes.py",
  "--config.model.backbone=csp_darknet_nano",
  "--config.model.fpn_channels=16",
  "--config.model.head_convolutions=1",
  "--config.data.image_size_px=(64, 64)",
  "--config.data.shapes_size_px=(64, 64)",
  f"--config.data.shapes_train_images={4 * STEPS_PER_EPOCH}",
  "--config.data.shapes_val_images=8",
  "--config.train.batch_size=4",
  "--config.train.epochs=3",
  "--config.train.warmup_steps=2",
  "--config.train.validate_every_epochs=1",
  "--config.train.log_every_steps=1",
  # Nothing to compile: a start takes half the time.
  "--config.train.classification_loss=focal_loss",
  "--config.train.deterministic=True",
]


def start(model_dir, *options, script="train.py", small=True, env=None):
  """subprocess.Popen of a script, which has the small config unless told otherwise."""
  return subprocess.Popen(
    [
      *(sys.executable, str(REPOSITORY / script), f"--model_dir={model_dir}"),
      *(SMALL if small else ()),
      *options,
    ],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={
      **os.environ,
      "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}",
      **(env or {}),
    },
  )


def finish(model_dir, *options, status=0, **kwargs):
  """What a script prints that ends with some status, without a traceback."""
  process = start(model_dir, *options, **kwargs)
  said, _ = process.communicate(timeout=900)
  assert process.returncode == status, said[-3000:]
  assert "Traceback" not in said, said[-3000:]
  return said


def wait_for(process, condition):
  """Waits until something holds, while the process runs."""
  deadline = time.monotonic() + 600
  while not condition():
    assert process.poll() is None, process.communicate()[0][-3000:]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def logged_steps(model_dir):
  """Numbers of the steps in a run's metrics.csv."""
  path = pathlib.Path(model_dir) / "metrics.csv"
  lines = path.read_text().splitlines()[1:] if path.exists() else []
  return [int(line.split(",")[0]) for line in lines]


def read_state(model_dir):
  """{name: array} of the newest checkpoint, its record too."""
  from ap_detect.runs import folder

  reader = tf.train.load_checkpoint(folder.checkpoint_paths(str(model_dir))[0])
  return {
    name: reader.get_tensor(name)
    for name in reader.get_variable_to_dtype_map()
    if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
  }


def assert_same_state(found, expected):
  """Asserts that two runs' newest checkpoints hold the same bits."""
  found, expected = read_state(found), read_state(expected)
  assert found.keys() == expected.keys()
  assert any("optimizer" in name for name in expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value, err_msg=name)


def assert_same_metrics(found, expected):
  """Asserts that two runs' rows of metrics.csv are the same, but for speed and memory."""
  rows = []
  for path in (pathlib.Path(found), pathlib.Path(expected)):
    with open(path / "metrics.csv", newline="") as file:
      rows.append([_reproducible(row) for row in csv.DictReader(file)])
  assert rows[0] == rows[1]
  assert list(rows[0][0])[:4] == ["step", "images", "epoch", "learning_rate"]


def _reproducible(row):
  varying = ("images_per_second", "data_wait_share", "host_memory_mib")
  return {name: value for name, value in row.items() if name not in varying}
