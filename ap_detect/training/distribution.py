"""Which devices a run uses."""

from __future__ import annotations

import tensorflow as tf
from absl import logging


def make_strategy():
  """MirroredStrategy over all visible GPUs, or on the CPU where there are none."""
  num_gpus = len(tf.config.list_logical_devices("GPU"))
  if num_gpus:
    logging.info("using %d GPU(s)", num_gpus)
  else:
    logging.info("no GPU found; using the CPU")
  return tf.distribute.MirroredStrategy(None if num_gpus else ["CPU:0"])


def compiles_by_default(strategy):
  """Whether XLA pays for a training step: on GPUs; on CPUs compilation takes longer."""
  return "GPU" in strategy.extended.worker_devices[0]
