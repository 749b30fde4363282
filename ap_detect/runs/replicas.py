"""Which devices a run uses."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import tensorflow as tf
from absl import logging

from ap_detect.runs import cluster as cluster_lib


def make_strategy(
  num_replicas: int = 0, cluster: cluster_lib.Cluster = cluster_lib.ALONE
):
  """MirroredStrategy over GPUs, or over the CPU where there are none.

  With several workers it is MultiWorkerMirroredStrategy over those of all of them. It
  waits until all are there, and must come before anything that TensorFlow computes.

  GPUs give memory to this process as it needs it, not all at once. On a CPU, several
  replicas are logical devices that share it: slower than one, and good for trying what
  several do. Devices are fixed once TensorFlow has started them.

  Args:
    num_replicas: the first so many GPUs or, where there is none, so many logical CPU
      devices; 0 for all GPUs, or the CPU. Of each worker.
    cluster: Cluster of the workers; all must have as many GPUs.

  Raises:
    ValueError: there are fewer GPUs, or TensorFlow has started with fewer CPU devices, or
      several workers shall have several replicas on a CPU.
  """
  gpus = tf.config.list_physical_devices("GPU")
  if gpus:
    if num_replicas > len(gpus):
      raise ValueError(
        f"{num_replicas} replicas need as many GPUs, there are {len(gpus)}"
      )
    used = gpus[: num_replicas or len(gpus)]
    _try(lambda: tf.config.set_visible_devices(used, "GPU"))
    for gpu in used:
      _try(lambda gpu=gpu: tf.config.experimental.set_memory_growth(gpu, True))
    logging.info("using %d GPU(s)", len(used))
    if cluster.count > 1:
      return _join(cluster)
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(len(used))])
  num_replicas = num_replicas or 1
  if num_replicas > 1 and cluster.count > 1:
    raise ValueError(
      f"without GPUs, each of the {cluster.count} workers of TF_CONFIG has one replica, "
      f"got {num_replicas} replicas"
    )
  if num_replicas > 1:
    _try(lambda: _split_cpu(num_replicas))
  if cluster.count == 1:
    _check_cpu_devices(num_replicas)
  reason = _why_no_gpu()
  logging.info(
    "no GPU found%s; using the CPU%s",
    f" ({reason})" if reason else "",
    f" as {num_replicas} devices" * (num_replicas > 1),
  )
  if cluster.count > 1:
    return _join(cluster)
  return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_replicas)])


def _check_cpu_devices(num_replicas):
  num_devices = len(tf.config.list_logical_devices("CPU"))
  if num_replicas > num_devices:
    raise ValueError(
      f"{num_replicas} replicas need as many CPU devices, but TensorFlow has started "
      f"with {num_devices} in this process"
    )


def _join(cluster):
  """The strategy of all workers, once all are there."""
  logging.info(
    "worker %d of %d: waiting for the others, %s",
    *(cluster.index, cluster.count),
    ", ".join(address for _, address in cluster.addresses),
  )
  with _signals_as_before():
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
  logging.info(
    "all %d workers are here, with %d replicas%s",
    *(cluster.count, strategy.num_replicas_in_sync),
    "" if cluster.is_chief else "; worker 0 writes the run's files",
  )
  return strategy


@contextlib.contextmanager
def _signals_as_before():
  """Handlers of signals are afterwards as before; Ctrl-C ends the process meanwhile.

  TensorFlow keeps Python from running while it waits for other workers, and takes SIGTERM
  for itself for good.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = {
    number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
  }
  if before[signal.SIGINT] is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
  try:
    yield
  finally:
    for number, handler in before.items():
      if handler is not None:  # of one that was not made in Python
        signal.signal(number, handler)


def compiles_by_default(strategy):
  """Whether XLA pays for a training step: on GPUs; on CPUs compilation takes longer."""
  return "GPU" in strategy.extended.worker_devices[0]


def distribute(strategy, batches):
  """Batches for all replicas as an iterable of what each of them gets.

  They are brought to devices ahead of time, but not to a single CPU, where they are: that
  takes a tf.data pipeline of its own, which tunes itself (see `data.pipeline`).

  Args:
    strategy: tf.distribute strategy.
    batches: tf.data.Dataset of batches for all replicas together.
  """
  if strategy.num_replicas_in_sync == 1 and not compiles_by_default(strategy):
    return batches
  return strategy.experimental_distribute_dataset(batches)


# Of a new process, for this one has told TensorFlow to be silent.
_LIST_GPUS = "import tensorflow as tf; tf.config.list_physical_devices('GPU')"
_LINE = re.compile(r"[^\]]* [\w./]+:\d+\] (.*)")
_ON_GPUS = re.compile(r"cuda|gpu|nvidia|libcu|driver", re.IGNORECASE)


def _why_no_gpu():
  """Why TensorFlow uses no GPU, where the machine seems to have one; else ""."""
  if not tf.test.is_built_with_gpu_support():
    return "this TensorFlow is built without support for them"
  chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
  if chosen is not None and chosen.strip() in ("", "-1"):
    return f"CUDA_VISIBLE_DEVICES={chosen} hides them"
  if not (chosen or shutil.which("nvidia-smi") or glob.glob("/dev/nvidia[0-9]*")):
    return ""
  reasons = _reasons(_ask_new_process())
  return f"TensorFlow says: {reasons}" if reasons else ""


@functools.cache
def _ask_new_process():
  """What TensorFlow writes when it looks for GPUs; seconds."""
  try:
    return subprocess.run(
      [sys.executable, "-c", _LIST_GPUS],
      env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
      capture_output=True,
      text=True,
      errors="replace",
      timeout=60,
      check=False,
    ).stderr
  except (OSError, subprocess.TimeoutExpired):
    return ""


def _reasons(said):
  """What TensorFlow's log lines say of GPUs, in one line."""
  found = [match[1] for match in map(_LINE.match, said.splitlines()) if match]
  noise = ("Unable to register", "TensorRT", "rebuild TensorFlow")
  reasons = [
    line.rstrip(".")
    for line in found
    if _ON_GPUS.search(line) and not any(part in line for part in noise)
  ]
  return "; ".join(dict.fromkeys(reasons))


def _split_cpu(number):
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * number,
  )


def _try(configure):
  """Configures devices unless TensorFlow has started them, when they are as they are."""
  try:
    configure()
  except RuntimeError:
    logging.debug("TensorFlow's devices were started before", exc_info=True)
