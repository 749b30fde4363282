"""Two workers on this machine, by the command line, beside one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from training import commands

from ap_detect import errors, losses
from ap_detect.runs import files

pytestmark = pytest.mark.slow


class Workers:
  """Two processes of a script that TF_CONFIG makes workers of one run.

  Args:
    model_dir: of both.
    options: of both.
    other: option of the second.
    kwargs: of commands.start.
  """

  def __init__(self, model_dir, *options, other=None, **kwargs):
    self.processes = [
      commands.start(
        model_dir,
        *(*options, *([other] if other and index else [])),
        env={"TF_CONFIG": text},
        **kwargs,
      )
      for index, text in enumerate(tf_configs())
    ]

  def finish(self, statuses=(0, 0)):
    """What each of them prints, which ends with its status, without a traceback."""
    said = [process.communicate(timeout=600)[0] for process in self.processes]
    assert [process.returncode for process in self.processes] == list(statuses), said
    for text in said:
      assert "Traceback" not in text, text
    return said


def tf_configs():
  """TF_CONFIG for each of two workers, on ports that are free."""
  sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
  addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
  for each in sockets:
    each.close()
  tasks = [{"type": "worker", "index": index} for index in range(2)]
  return [
    json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks
  ]


def names(path):
  """Paths of all files below a folder, but for TensorBoard's, whose names have times."""
  return sorted(
    str(file.relative_to(path))
    for file in path.rglob("*")
    if file.is_file() and "tensorboard" not in file.parts
  )


def rows(model_dir):
  """metrics.csv as [{column: text}], without columns of speed and memory."""
  lines = (model_dir / "metrics.csv").read_text().splitlines()
  columns = lines[0].split(",")
  measured = {"images_per_second", "data_wait_share", "host_memory_mib"}
  return [
    {name: text for name, text in zip(columns, line.split(",")) if name not in measured}
    for line in lines[1:]
  ]


OPTIONS = "--config.train.epochs=2", "--config.eval.batch_size=3"


@pytest.fixture(scope="module")
def two_replicas(tmp_path_factory):
  """Folder of a run of one process with two replicas."""
  model_dir = tmp_path_factory.mktemp("runs") / "two_replicas"
  commands.finish(model_dir, *OPTIONS, "--replicas=2")
  return model_dir


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
  """(folder of a run of two workers, which was cut twice, its last outputs)."""
  model_dir = tmp_path_factory.mktemp("runs") / "two_workers"

  # One gets a signal: both stop at the same step, saved, with the signal's status.
  workers = Workers(model_dir, *OPTIONS)
  chief, other = workers.processes
  commands.wait_for(chief, lambda: commands.logged_steps(model_dir))
  other.terminate()
  said = workers.finish((143, 143))
  last = commands.logged_steps(model_dir)[-1]
  for text in said:
    assert f"stopped; saved at step {last}, " in text

  # One is killed: the other ends soon, and says so.
  workers = Workers(model_dir, *OPTIONS)
  chief, other = workers.processes
  commands.wait_for(chief, lambda: commands.logged_steps(model_dir)[-1] >= 4)
  other.kill()
  killed_at = time.monotonic()
  said, said_by_other = workers.finish((errors.LOST_WORKER_STATUS, -signal.SIGKILL))
  assert time.monotonic() - killed_at < 60
  for text in (said, said_by_other):
    assert f"continuing at step {last}, " in text
  line = said.splitlines()[-1]
  assert line.startswith("error: worker 1 of 2, localhost:")
  assert line.endswith("continue from the last checkpoint")
  assert line[len("error: ") :] in (model_dir / "train.log").read_text()

  # Both go on where the last checkpoint is, that of the first epoch's end.
  return model_dir, Workers(model_dir, *OPTIONS).finish()


def test_two_workers_are_two_replicas(two_workers, two_replicas):
  """Each replica sees the same images, whatever comes between; so all is the same."""
  model_dir, said = two_workers
  for text in said:
    assert "continuing at step 3, " in text
  found, expected = rows(model_dir), rows(two_replicas)
  assert len(found) == len(expected) == 6
  for row, expected_row in zip(found, expected):
    assert row.keys() == expected_row.keys()
    for name, text in expected_row.items():
      if text:
        assert float(row[name]) == pytest.approx(float(text), rel=1e-4), name
  found, expected = (commands.read_state(run) for run in (model_dir, two_replicas))
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    if not isinstance(value, bytes):
      np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
  # The chief wrote what one process writes; the other one wrote nothing.
  assert names(model_dir) == names(two_replicas)
  assert "Average Precision" in said[0] and "Next:" in said[0]
  assert "Average Precision" not in said[1] and "Next:" not in said[1]


def test_evaluation_equals_one_workers(two_workers, tmp_path):
  """To the last digit, of 8 images in batches of 3 on each worker."""
  model_dir, _ = two_workers
  commands.finish(
    model_dir, f"--output_dir={tmp_path}", script="evaluate.py", small=False
  )
  for name in ("metrics", "detections"):
    found, expected = (
      files.read_json(str(path / f"{name}.json"))
      for path in (model_dir / "eval" / "val", tmp_path)
    )
    assert found == expected
  assert len(found) > 100


def test_workers_that_differ_are_refused(tmp_path):
  """By both, before anything is written."""
  workers = Workers(tmp_path / "run", other="--config.train.seed=1")
  for text in workers.finish((1, 1)):
    assert "the same config: there is another on worker 1 than on worker 0" in text
  assert not (tmp_path / "run").exists()


def scores():
  """([4, 30, 2] logits, [4, 30] labels); the first half has no positive."""
  random = np.random.default_rng(0)
  logits = random.normal(size=[4, 30, 2]).astype(np.float32)
  labels = random.integers(-1, 3, [4, 30]).astype(np.int32)
  labels[:2] = np.minimum(labels[:2], losses.BACKGROUND)
  return logits, labels


RANK = """
import json
import numpy as np
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
from ap_detect import losses
from training import test_several_workers

def rank(logits, labels):
  with tf.GradientTape() as tape:
    tape.watch(logits)
    value = losses.ap_loss(logits, labels, ranking_scope="global", jit_compile=False)
  return value, tape.gradient(value, logits)

half = strategy.cluster_resolver.task_id
own = [tf.constant(np.split(array, 2)[half]) for array in test_several_workers.scores()]
found = tf.function(lambda: strategy.run(rank, args=own), autograph=False)()
value, gradient = (strategy.experimental_local_results(part)[0] for part in found)
print(json.dumps([value.numpy().item(), gradient.numpy().tolist()]))
"""


def test_a_ranking_of_all_workers_is_that_of_one_replica():
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", RANK],
      cwd=commands.REPOSITORY / "tests",
      env={**os.environ, "PYTHONPATH": str(commands.REPOSITORY), "TF_CONFIG": text},
      stdout=subprocess.PIPE,
      text=True,
    )
    for text in tf_configs()
  ]
  found = [process.communicate(timeout=600)[0] for process in processes]
  values, gradients = zip(*(json.loads(text.splitlines()[-1]) for text in found))
  logits, labels = map(tf.constant, scores())
  value, gradient = losses.ap_loss_and_gradient(logits, labels, jit_compile=False)
  np.testing.assert_allclose(values, [value] * 2, rtol=1e-6)
  # A step has the mean of the replicas' gradients.
  found = np.concatenate(gradients) / 2
  np.testing.assert_allclose(found, gradient, atol=1e-7)
  assert np.abs(gradient).max() > 1e-3
