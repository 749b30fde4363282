"""The commands, each in a process of its own, from kill -9 to predictions."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from ap_detect.data import shapes

pytestmark = pytest.mark.slow

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EPOCHS, STEPS_PER_EPOCH = 3, 6
SMALL = [
  "--config=configs/shapes.py",
  "--config.model.backbone=csp_darknet_nano",
  "--config.model.fpn_channels=16",
  "--config.model.head_convolutions=1",
  "--config.data.image_size_px=(128, 128)",
  "--config.data.shapes_train_images=24",
  "--config.data.shapes_val_images=8",
  "--config.train.batch_size=4",
  f"--config.train.epochs={EPOCHS}",
  "--config.train.warmup_steps=2",
  "--config.train.validate_every_epochs=1",
]
# Detections of two trainings that differ by the order of float additions alone.
NOISE_AP = 0.01

SERVE = """
import json, sys
for name in ("ap_detect", "keras_cv", "keras", "tf_keras"):
  sys.modules[name] = None
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
files = [tf.io.read_file(path) for path in sys.argv[2:]]
found = model.signatures["image_bytes"](image_bytes=tf.stack(files))
found = {name: value.numpy() for name, value in found.items()}
del found["detection_names"]
print(json.dumps({name: value.tolist() for name, value in found.items()}))
"""


def start(*arguments):
  return subprocess.Popen(
    [sys.executable, *map(str, arguments)],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(*arguments):
  process = start(*arguments)
  stdout, stderr = process.communicate(timeout=600)
  assert process.returncode == 0, stderr[-3000:]
  assert "Traceback" not in stderr, stderr[-3000:]
  assert ".unfinished-" not in stderr  # a temporary folder of an export
  return stdout


def stop_in_second_epoch(model_dir, signal_number, *options):
  """Starts training and sends a signal once the first epoch has been validated."""
  process = start("train.py", *SMALL, *options, f"--model_dir={model_dir}")
  history = model_dir / "history.json"
  deadline = time.monotonic() + 600
  while not history.exists() and process.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  process.send_signal(signal_number)
  _, stderr = process.communicate(timeout=120)
  return process.returncode, stderr


def checkpoint_steps(model_dir):
  names = [path.stem for path in (model_dir / "checkpoints").glob("*.index")]
  return sorted(int(name.split("-")[1]) for name in names)


def read(path):
  return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("round trip")


@pytest.fixture(scope="module")
def uninterrupted(folder):
  model_dir = folder / "uninterrupted"
  stdout = finish("train.py", *SMALL, f"--model_dir={model_dir}")
  return model_dir, stdout


@pytest.fixture(scope="module")
def killed(folder):
  """A run killed with SIGKILL in its second epoch, then started again."""
  model_dir = folder / "killed"
  code, _ = stop_in_second_epoch(model_dir, signal.SIGKILL)
  assert code == -signal.SIGKILL
  assert max(checkpoint_steps(model_dir)) < EPOCHS * STEPS_PER_EPOCH
  finish("train.py", *SMALL, f"--model_dir={model_dir}")
  return model_dir


def test_training_says_what_comes_next(uninterrupted):
  model_dir, stdout = uninterrupted
  assert "Average Precision  (AP)" in stdout
  commands = map(shlex.split, stdout.partition("Next:\n")[2].splitlines())
  board, *others = commands
  assert board == ["tensorboard", f"--logdir={model_dir}/tensorboard"]
  assert [command[:2] for command in others] == [
    ["ap_detect", name] for name in ("evaluate", "export", "predict")
  ]
  for command in others:
    assert command[2] == f"--model_dir={model_dir}"


def test_killed_run_ends_as_if_nothing_had_been(uninterrupted, killed):
  expected, found = (
    read(model_dir / "history.json") for model_dir in (uninterrupted[0], killed)
  )
  assert [entry["epoch"] for entry in found] == list(range(1, EPOCHS + 1))
  for one, other in zip(expected, found):
    assert abs(one["AP"] - other["AP"]) <= NOISE_AP
    assert abs(one["AP50"] - other["AP50"]) <= NOISE_AP


def test_evaluate_export_serve_predict(killed, folder):
  finish("evaluate.py", f"--model_dir={killed}", "--split=test")
  metrics = read(killed / "eval" / "test" / "metrics.json")
  assert metrics["num_images"] == 8
  finish("evaluate.py", f"--model_dir={killed}")
  metrics = read(killed / "eval" / "val" / "metrics.json")
  assert abs(metrics["AP"] - read(killed / "best.json")["metrics"]["AP"]) < 1e-6

  script = "export/export_saved_model.py"
  finish(script, f"--model_dir={killed}", "--score_threshold=0")
  beside = ["README.md", "batching.config", "models.config"]
  assert sorted(os.listdir(killed / "export")) == ["1", *beside]
  finish("evaluate.py", f"--model_dir={killed}", f"--saved_model={killed / 'export'}")
  served_metrics = read(killed / "eval" / "val_exported" / "metrics.json")
  assert abs(served_metrics["AP"] - metrics["AP"]) < 1e-6

  paths = []
  for seed, size in enumerate([(128, 128), (90, 150)]):
    data = shapes.make_shapes("test", num_images=1, image_size_px=size, seed=seed)
    paths.append(str(folder / f"{seed}.png"))
    Image.fromarray(data.records[0].image).save(paths[-1])
  served = json.loads(finish("-c", SERVE, killed / "export" / "1", *paths))
  finish(
    *("-m", "ap_detect.commands.predict", f"--model_dir={killed}"),
    *(f"--output_dir={folder / 'out'}", "--score_threshold=0", *paths),
  )
  predicted = read(folder / "out" / "predictions.json")
  for index, entry in enumerate(predicted):
    found = entry["detections"]
    assert len(found) == served["num_detections"][index] > 0
    size = [entry["height"], entry["width"]] * 2
    boxes = np.array(served["detection_boxes"][index])[: len(found)] * size
    np.testing.assert_allclose(boxes, [item["box_yxyx"] for item in found], atol=1e-2)
    scores = served["detection_scores"][index][: len(found)]
    np.testing.assert_allclose(scores, [item["score"] for item in found], rtol=1e-4)


def test_ctrl_c_leaves_a_usable_checkpoint(folder):
  model_dir = folder / "interrupted"
  code, stderr = stop_in_second_epoch(model_dir, signal.SIGINT)
  assert code == 130
  assert "stopped; saved at step " in stderr
  assert "where the same command continues" in stderr
  assert STEPS_PER_EPOCH <= max(checkpoint_steps(model_dir)) < 2 * STEPS_PER_EPOCH
  assert "Traceback" not in stderr
  finish("evaluate.py", f"--model_dir={model_dir}", "--checkpoint=latest")


def test_rate_that_breaks_training(folder):
  model_dir = folder / "broken"
  process = start(
    *("train.py", *SMALL, f"--model_dir={model_dir}"),
    *("--config.train.learning_rate=1e30", "--config.train.clip_norm=0"),
    *("--config.train.optimizer=sgd", "--config.train.warmup_steps=0"),
  )
  _, stderr = process.communicate(timeout=600)
  assert process.returncode == 1
  assert "Traceback" not in stderr
  assert "step 1, images [" in stderr
  assert checkpoint_steps(model_dir) == [0]


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["evaluate.py"], "holds no run"),
    (["export/export_saved_model.py"], "holds no run"),
    (["-m", "ap_detect.commands.predict", "setup.py"], "holds no run"),
  ],
)
def test_folder_without_a_run(arguments, said, tmp_path):
  process = start(*arguments, f"--model_dir={tmp_path}")
  _, stderr = process.communicate(timeout=120)
  assert process.returncode == 1
  assert said in stderr
  assert "Traceback" not in stderr
