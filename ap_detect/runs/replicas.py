"""Which devices a run uses."""

from __future__ import annotations

import tensorflow as tf
from absl import logging


def make_strategy(num_replicas: int = 0):
  """MirroredStrategy over GPUs, or over the CPU where there are none.

  GPUs give memory to this process as it needs it, not all at once. On a CPU, several
  replicas are logical devices that share it: slower than one, and good for trying what
  several do. Devices are fixed once TensorFlow has started them.

  Args:
    num_replicas: the first so many GPUs or, where there is none, so many logical CPU
      devices; 0 for all GPUs, or the CPU.

  Raises:
    ValueError: there are fewer GPUs, or TensorFlow has started with fewer CPU devices.
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
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(len(used))])
  num_replicas = num_replicas or 1
  if num_replicas > 1:
    _try(lambda: _split_cpu(num_replicas))
  num_devices = len(tf.config.list_logical_devices("CPU"))
  if num_replicas > num_devices:
    raise ValueError(
      f"{num_replicas} replicas need as many CPU devices, but TensorFlow has started "
      f"with {num_devices} in this process"
    )
  logging.info(
    "no GPU found; using the CPU%s", f" as {num_replicas} devices" * (num_replicas > 1)
  )
  return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_replicas)])


def compiles_by_default(strategy):
  """Whether XLA pays for a training step: on GPUs; on CPUs compilation takes longer."""
  return "GPU" in strategy.extended.worker_devices[0]


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
