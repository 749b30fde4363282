"""The batch at which a training met a loss that is not finite, kept in a file.

The file has all that is needed to go through that step again: the batch, the network's
weights before the step, the config, and the seed by the step's number.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import zipfile
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from ap_detect import errors
from ap_detect.runs import files, folder


class FailedBatch(NamedTuple):
  """What is kept of a step whose loss or gradient was not finite.

  Attributes:
    batch: the arrays of the batch, of all replicas, by name, see data/pipeline.py.
    weights: arrays, as network.get_weights() has them.
    about: "step", its number; "weights_step", the step before which the weights are;
      "numbers", what was logged of the step, as text; "images", their ids; "replicas";
      "class_names"; "config", as nested dicts.
  """

  batch: dict[str, np.ndarray]
  weights: list[np.ndarray]
  about: dict[str, Any]


def write(path: str, failed: FailedBatch) -> None:
  """Writes a file that is whole or not there."""
  os.makedirs(os.path.dirname(path), exist_ok=True)
  about = json.dumps(failed.about).encode("utf-8")
  arrays = {f"batch/{name}": value for name, value in failed.batch.items()}
  arrays |= {f"weights/{n:05}": value for n, value in enumerate(failed.weights)}
  files.write_arrays(path, {"about": np.frombuffer(about, np.uint8), **arrays})


def read(path: str) -> FailedBatch:
  """What `write` wrote.

  Raises:
    ValueError: it is no such file, or damaged.
  """
  try:
    with np.load(path, allow_pickle=False) as arrays:
      about = json.loads(arrays["about"].tobytes())
      parts = {name: arrays[name] for name in sorted(arrays.files)}
  except (EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
    raise ValueError(
      f"{path} must be a file that a training wrote into its folder's "
      f"{folder.NON_FINITE}/: {error}"
    ) from error
  batch = {
    name.partition("/")[2]: value
    for name, value in parts.items()
    if name.startswith("batch/")
  }
  weights = [value for name, value in parts.items() if name.startswith("weights/")]
  return FailedBatch(batch, weights, about)


class Keeper:
  """Writes the batch of a step that failed, and the weights before it.

  Args:
    model_dir: the run's folder.
    config: Config.
    class_names: [K].
    network: tf.keras.Model.
    repeat: function of a state.Clock, see `repeat`, without its other arguments.
    read_batch: function of a position to the batch there, as a dict of tensors.
    image_ids: function (position, count) to the ids of a batch's images.
    batch_size: images per step, over all replicas.
    is_writer: whether it writes the file; of several workers, one does, and the others
      do the rest, which they exchange numbers for.
  """

  def __init__(
    self,
    model_dir,
    config,
    class_names,
    network,
    *,
    repeat,
    read_batch,
    image_ids,
    batch_size,
    is_writer=True,
  ):
    self._model_dir = model_dir
    self._config = config
    self._class_names = class_names
    self._network = network
    self._repeat = repeat
    self._read_batch = read_batch
    self._image_ids = image_ids
    self._batch_size = batch_size
    self._is_writer = is_writer

  def __call__(self, clock, numbers) -> str:
    """Writes the file; what was trained since the last checkpoint is lost.

    Args:
      clock: state.Clock before the step that failed.
      numbers: what was logged of it, by name.

    Returns:
      A sentence on where the file is, or on why there is none.
    """
    if self._config.data.service_address:
      return (
        "Its batch cannot be had again, for a tf.data service keeps no order; without "
        "data.service_address it would have been kept"
      )
    try:
      failed, weights_at = self._repeat(clock)
      path = os.path.join(self._model_dir, folder.NON_FINITE, f"step-{failed.step}.npz")
      collected = self._collect(failed, weights_at, numbers)
      if self._is_writer:
        write(path, collected)
    except (OSError, ValueError, tf.errors.OpError) as error:
      return f"Its batch could not be kept: {errors.describe(error)}"
    command = f"ap_detect debug_batch {shlex.quote(path)}"
    return f"To see which tensor was the first: {command}"

  def _collect(self, clock, weights_at, numbers):
    batch = self._read_batch(clock.position)
    about = {
      "step": clock.step,
      "weights_step": weights_at,
      "numbers": {name: str(value) for name, value in numbers.items()},
      "images": self._image_ids(clock.position, self._batch_size),
      "replicas": self._batch_size // self._config.train.batch_size,
      "class_names": list(self._class_names),
      "config": dataclasses.asdict(self._config),
    }
    return FailedBatch(
      {name: value.numpy() for name, value in batch.items()},
      [weight.numpy() for weight in self._network.weights],
      about,
    )


def repeat(clock, *, state, path, batches, run_step, batch_size, signals):
  """Does the steps from a checkpoint up to one that failed again, but not that one.

  When a loss turns out not to be finite, later steps have spoilt the weights already:
  numbers are read only now and then, and a copy of the weights at every step would cost
  all trainings what few need.

  Args:
    clock: state.Clock before the step that failed.
    state: state.TrainingState, which is restored.
    path: of its last checkpoint.
    batches: function of a position to an endless iterable of batches from there on.
    run_step: function of a batch and the Clock before it to whether all was finite.
    batch_size: images per step.
    signals: signals.StopSignals, which end it early.

  Returns:
    (Clock before the step that fails, number of the step that the weights are before).
    Where not all is reproducible, another step may be the first to fail.
  """
  while True:
    state.restore(path)
    at = state.record.clock
    if clock.step > at.step:
      logging.info(
        "doing the %d steps since the last checkpoint again, to have the weights before "
        "step %d; Ctrl-C leaves that out",
        *(clock.step - at.step, clock.step),
      )
    iterator = iter(batches(at.position))
    while at.step < clock.step and not signals.received:
      if not run_step(next(iterator), at):
        break
      at = at.after(1, batch_size)
    else:
      return clock, at.step
    logging.warning("this time, step %d already is not finite", at.step)
    clock = at  # and the weights before it are gone again
