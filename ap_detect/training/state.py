"""The state of a run: what is saved together, and restored together.

A checkpoint holds the network's weights, the optimiser's variables, and the record, one
JSON text with all that is not a tensor. The readable files of the run's folder are copies
of the record; where they disagree with it after a crash, the record is right.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import zlib
from typing import Any

import tensorflow as tf

from ap_detect.runs import files, folder
from ap_detect.runs import model as model_lib
from ap_detect.runs import workers as workers_lib


@dataclasses.dataclass
class Clock:
  """The one clock of a run. Everything that happens at some time asks it.

  Attributes:
    step: steps done; numbers logs and checkpoints.
    images: images seen by all of them.
    position: of the next image in the stream of the training split's shuffles.
    split_size: images of the training split.
    warmup_images: during which the learning rate warms up.
  """

  split_size: int
  warmup_images: int = 0
  step: int = 0
  images: int = 0
  position: int = 0

  @property
  def epochs_done(self) -> float:
    """Epochs done, with fractions; an epoch is as many images as the split has."""
    return self.position / self.split_size

  @property
  def epoch(self) -> int:
    """Whole epochs done."""
    return self.position // self.split_size

  def after(self, steps: int, batch_size: int) -> Clock:
    """The clock after some more steps of batch_size images."""
    images = steps * batch_size
    return dataclasses.replace(
      self,
      step=self.step + steps,
      images=self.images + images,
      position=self.position + images,
    )

  def steps_to(self, epochs: float, batch_size: int) -> int:
    """How many steps of batch_size images are missing to some number of epochs done."""
    missing = math.ceil(epochs * self.split_size) - self.position
    return max(-(-missing // batch_size), 0)

  def resize(self, split_size: int) -> None:
    """Goes on with a split of another size, at the beginning of the epoch."""
    self.position, self.split_size = self.epoch * split_size, split_size


@dataclasses.dataclass
class Record:
  """All of a run's state that is not a tensor.

  Attributes:
    clock: Clock.
    config: the resolved config, as nested dicts; with it the seed.
    classes: names and category ids.
    replicas: number of them.
    history: metrics of each validation, in order.
    validation: epoch, step, metrics and what they say of scores, see runs/scores.py, of the
      last one; None before it.
    best: the same of the best one, and its checkpoint's name; None before it.
    changes: what later starts changed, and at which step.
    epoch_sums: of each logged number, its sum over the steps of the present epoch, and
      the number of steps.
    is_epoch_end: whether the last step ended an epoch whose validation is not done.
  """

  clock: Clock
  config: dict[str, Any]
  classes: dict[str, Any]
  replicas: int
  history: list = dataclasses.field(default_factory=list)
  validation: dict[str, Any] | None = None
  best: dict[str, Any] | None = None
  changes: list = dataclasses.field(default_factory=list)
  epoch_sums: dict[str, list] = dataclasses.field(default_factory=dict)
  is_epoch_end: bool = False

  @property
  def validations_since_best(self) -> int:
    """How many validations there were after the best one."""
    best = self.best
    return sum(entry["step"] > best["step"] for entry in self.history) if best else 0

  def is_out_of_patience(self, patience: int) -> bool:
    """Whether so many validations were no better than the best; never for 0."""
    return 0 < patience <= self.validations_since_best

  @property
  def is_validated(self) -> bool:
    """Whether the last validation was of the present weights."""
    validation = self.validation
    return validation is not None and validation["step"] == self.clock.step

  def to_json(self) -> dict[str, Any]:
    """As nested dicts; `step` stands by itself for whoever reads a checkpoint's."""
    return {"step": self.clock.step, **dataclasses.asdict(self)}

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> Record:
    """The record that to_json() was called on."""
    fields = {field.name for field in dataclasses.fields(cls)}
    values = {name: value for name, value in values.items() if name in fields}
    return cls(**{**values, "clock": Clock(**values["clock"])})


class _Saved(tf.train.experimental.PythonState):
  """The record as tf.train.Checkpoint saves it."""

  def __init__(self, record):
    super().__init__()
    self.record = record

  def serialize(self):
    return json.dumps(self.record.to_json())

  def deserialize(self, text):
    self.record = Record.from_json(json.loads(text))


REMEDY = (
  "A lower train.learning_rate or train.clip_norm=10 often helps; the same command with "
  "either continues from the checkpoint"
)


class NonFiniteError(ValueError):
  """A loss, gradient or weight became infinite or NaN."""


class TrainingState:
  """Weights, optimiser and record of a run, and their checkpoints.

  Of several workers, all call the methods that save and restore, and the chief alone
  writes.

  Args:
    model_dir: the run's folder.
    network: tf.keras.Model.
    optimizer: Keras optimizer whose variables exist already.
    record: Record of a new run; a restored one takes its place.
    keep_checkpoints: of how many of the latest steps checkpoints stay.
    averages: averaging.AveragedWeights; None where none are kept.
    workers: Workers that hold this state, each a copy.
  """

  def __init__(
    self,
    model_dir,
    network,
    optimizer,
    record,
    *,
    keep_checkpoints,
    averages=None,
    workers=workers_lib.ONE,
  ):
    self._model_dir = model_dir
    self._network = network
    self._keep_checkpoints = keep_checkpoints
    self._saved = _Saved(record)
    self._averages = averages
    self._workers = workers
    weights = {"network": network, "record": self._saved}
    if averages:
      weights[model_lib.AVERAGED] = averages.variables
    self._everything = tf.train.Checkpoint(optimizer=optimizer, **weights)
    self._weights = tf.train.Checkpoint(**weights)

  @property
  def record(self) -> Record:
    """The run's Record, to be read and changed."""
    return self._saved.record

  def save(self, *, is_changed: bool = False) -> str:
    """Saves everything, unless it is saved already; returns the checkpoint's path.

    Of several replicas' own statistics, as of batch norms that are trained, the mean is
    saved. It becomes every replica's here, so that what goes on is what was saved.

    Args:
      is_changed: whether the record is another than was saved at the same step, which
        is then saved again, under another name.

    Raises:
      NonFiniteError: a weight is not finite; the checkpoints stay as they are.
    """
    name = f"step-{self.record.clock.step}"
    if self.record.is_validated:
      name += "-validated"
    next_name = self._workers.ask_chief(
      lambda: folder.next_name(self._model_dir, folder.CHECKPOINTS, name)
    )
    if next_name == name or is_changed:
      self._check_weights()
      self._share_statistics()
      self._write(self._everything, folder.CHECKPOINTS, next_name)
      self._prune(folder.CHECKPOINTS, self._keep_checkpoints)
    # Nobody goes on before it is there.
    return self._workers.ask_chief(lambda: folder.checkpoint_paths(self._model_dir)[0])

  def save_best(self, name: str) -> None:
    """Saves the weights, beside those of the best validation before.

    Args:
      name: of the checkpoint, which no other has.
    """
    self._write(self._weights, folder.BEST_CHECKPOINTS, name)
    # Two, for the latest state may still name the one before.
    self._prune(folder.BEST_CHECKPOINTS, 2)

  def restore_latest(self) -> str:
    """Restores the newest checkpoint that is sound; returns its path.

    Damaged ones are moved into checkpoints/damaged/, for the run comes past their steps
    again.

    Raises:
      ValueError: none is sound; nothing was moved.
    """
    paths = self._workers.ask_chief(lambda: folder.checkpoint_paths(self._model_dir))
    path = model_lib.restore_first(paths, self.restore, workers=self._workers)
    if self._workers.is_chief:
      self._forget_later_bests()
      self._move_damaged(paths[: paths.index(path)])
    return path

  def _move_damaged(self, paths):
    for damaged in paths:
      parent = os.path.join(os.path.dirname(damaged), "damaged")
      os.makedirs(parent, exist_ok=True)
      for file in _files_of(damaged):
        os.replace(file, os.path.join(parent, os.path.basename(file)))

  def restore(self, path: str) -> None:
    """Restores everything from a checkpoint, which must have all of it."""
    self._everything.read(path).assert_existing_objects_matched().assert_consumed()

  def check_workers(self) -> None:
    """Raises ValueError on all workers where they do not have the same weights.

    They may have read other files: a pretrained backbone's, a run's that goes on.
    """
    digest = 0
    for weight in self._network.weights if self._workers.count > 1 else ():
      local = self._network.distribute_strategy.experimental_local_results(weight)[0]
      digest = zlib.crc32(local.numpy().tobytes(), digest)
    self._workers.require_same("weights to start from", digest)

  def judged_weights(self):
    """Context in which the network has the weights that are judged: averages, if any."""
    return self._averages.in_use() if self._averages else contextlib.nullcontext()

  def restore_judged_weights(self, path: str) -> None:
    """Restores the network's weights alone, those that were judged."""
    model_lib.restore_network(self._network, path)

  def write_views(self) -> None:
    """Writes the readable files that follow from the record, see runs/folder.py."""
    if not self._workers.is_chief:
      return
    record = self.record
    views = {
      folder.CONFIG: record.config,
      folder.CLASSES: record.classes,
      folder.HISTORY: record.history,
      folder.BEST: record.best,
      folder.CHANGES: record.changes,
    }
    for name, value in views.items():
      path = os.path.join(self._model_dir, name)
      if value:
        files.write_json(path, value)
      elif os.path.exists(path):
        os.remove(path)

  def _write(self, checkpoint, subfolder, name):
    """Writes in another folder first, so that a checkpoint is whole or not there."""
    if not self._workers.is_chief:
      _write_nowhere(checkpoint)
      return
    target = os.path.join(self._model_dir, subfolder)
    writing = os.path.join(target, "writing")
    shutil.rmtree(writing, ignore_errors=True)  # of a start that was killed
    os.makedirs(writing)
    try:
      checkpoint.write(os.path.join(writing, name))
      # The index, which makes it a checkpoint, last.
      for path in _files_of(os.path.join(writing, name)):
        _flush(path)
        os.replace(path, os.path.join(target, os.path.basename(path)))
      _flush(target)
    finally:
      # What a full disk has cut off would fill it.
      shutil.rmtree(writing, ignore_errors=True)

  def _prune(self, subfolder, number):
    """Leaves the newest checkpoint of each of the latest steps, and nothing half."""
    if not self._workers.is_chief:
      return
    kept: dict[str, str] = {}
    for path in folder.checkpoint_paths(self._model_dir, subfolder):
      step = "-".join(os.path.basename(path).split("-")[:2])
      if step in kept or len(kept) == number:
        _remove(path)
      else:
        kept[step] = path
    parent = os.path.join(self._model_dir, subfolder)
    for file in os.listdir(parent):
      name, _, ending = file.partition(".data-")
      if ending and not os.path.exists(os.path.join(parent, f"{name}.index")):
        os.remove(os.path.join(parent, file))

  def _forget_later_bests(self):
    """Removes bests that the restored record does not know: the run makes them again."""
    best = self.record.best
    for path in folder.checkpoint_paths(self._model_dir, folder.BEST_CHECKPOINTS):
      if not best or os.path.basename(path) != best["checkpoint"]:
        _remove(path)

  def _share_statistics(self):
    with self._network.distribute_strategy.scope():
      for weight in self._network.non_trainable_weights:
        if weight.synchronization == tf.VariableSynchronization.ON_READ:
          weight.assign(weight.read_value())

  def _check_weights(self):
    weights = self._network.weights
    values = [tf.convert_to_tensor(weight) for weight in weights]
    for weight, is_finite in zip(weights, _are_finite(values).numpy()):
      if not is_finite:
        raise NonFiniteError(
          f"{weight.name} is not finite after step {self.record.clock.step}; training "
          f"stopped, and the last checkpoint is from before it. {REMEDY}"
        )


def _write_nowhere(checkpoint):
  """Takes part in a checkpoint's writing by the chief.

  TensorFlow reads statistics that each replica has of its own as the mean over the
  replicas of all workers, and so needs them all when it writes.
  """
  folder_in_memory = "ram://ap_detect"
  checkpoint.write(f"{folder_in_memory}/checkpoint")
  tf.io.gfile.rmtree(folder_in_memory)


@tf.function(autograph=False)
def _are_finite(values):
  return tf.stack([tf.reduce_all(tf.math.is_finite(value)) for value in values])


def _flush(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _remove(path):
  """Deletes a checkpoint, its index first, without which it is none."""
  for file in reversed(_files_of(path)):
    os.remove(file)


def _files_of(path):
  """The files of a checkpoint, its index last."""
  parent, name = os.path.split(path)
  names = [file for file in os.listdir(parent) if file.startswith(f"{name}.")]
  return [os.path.join(parent, file) for file in sorted(names)]
