"""A run's folder: what it holds, and how it is opened again.

checkpoints/      the latest states of the run: step-<n> and, once validated,
                  step-<n>-validated; weights, optimiser and the record, see
                  training/state.py. damaged/ in it has those that could not be read
best/             weights and record of the best validation, epoch-<n>

Everything else follows from the latest state's record, and is written anew from it when
the run is started again:

config.json       the resolved config
classes.json      the classes 1..K and their ids in the dataset's own files
history.json      validation metrics and AP per class, an entry per validated epoch
best.json         the best checkpoint, its metrics, and what they say of scores, see
                  scores.py
changes.json      what later starts changed, with the step they changed it at

These are written on the way; what they hold of steps that are done again is replaced:

metrics.csv       losses, norms, learning rate, speed and memory, a row per logging
training.png      losses, learning rate and validation metrics over epochs
tensorboard/      event files

And further:

train.log         what was logged, over all starts, and the error that ended one; see logs.py
data/             the data as it was read and checked, see memory.py
samples/          images to predict on, where the data is the embedded one
eval/<split>/     what `ap_detect evaluate` writes
non_finite/       step-<n>.npz, the batch and the weights of a step whose loss was not
                  finite, for `ap_detect debug_batch`; see training/failed_batch.py
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

import tensorflow as tf

from ap_detect import config as config_lib
from ap_detect.runs import files, lock

CONFIG, CLASSES, HISTORY, BEST, CHANGES = (
  f"{name}.json" for name in ("config", "classes", "history", "best", "changes")
)
METRICS, TRAINING_CHART = "metrics.csv", "training.png"
CHECKPOINTS, BEST_CHECKPOINTS, TENSORBOARD = "checkpoints", "best", "tensorboard"
SAMPLES, DATA, NON_FINITE = "samples", "data", "non_finite"
# In DATA: the images held out of the training split, one id a line.
HELD_OUT = "held_out.txt"

# What a run leaves behind that must not be lost or mixed with another's.
_RESULTS = (HISTORY, BEST, METRICS, BEST_CHECKPOINTS, TENSORBOARD, "eval")
_RECORD_KEY = "record/.ATTRIBUTES/py_state"
_CHECKPOINT_NAME = re.compile(r"(step|epoch)-(\d+)(-validated)?(?:-(\d+))?\.index")

_WRITTEN_ANEW = "; the training's own command, given again, writes it anew"

# What reading a damaged checkpoint ends in.
UNREADABLE = (tf.errors.OpError, IndexError, ValueError, AssertionError, OSError)
# What reading any checkpoint may end in, sound or not.
UNREACHABLE = (
  tf.errors.PermissionDeniedError,
  tf.errors.ResourceExhaustedError,
  PermissionError,
)


class Classes(NamedTuple):
  """The one mapping of class ids: class k is names[k - 1].

  Attributes:
    names: [K].
    category_ids: [K], ids in the files of the dataset that the run was trained on.
  """

  names: tuple[str, ...]
  category_ids: tuple[int, ...]

  @classmethod
  def from_json(cls, value) -> Classes:
    return cls(tuple(value["names"]), tuple(value["category_ids"]))


def is_unused(model_dir: str) -> bool:
  """Whether a new run may begin in a folder; False where one is there to go on with.

  A start that failed before its first checkpoint, for a missing weights file say, or was
  killed while it wrote that, left nothing to continue: the folder counts as unused.

  Raises:
    ValueError: the folder holds results, but no checkpoint, or those of a version that
      cannot be continued.
  """
  paths = checkpoint_paths(model_dir)
  if paths:
    if os.path.basename(paths[0]).startswith("epoch-"):
      raise ValueError(
        f"{model_dir} holds a run of an earlier version of ap_detect, which can be "
        "evaluated, exported and predicted with, but not continued; to train on from "
        f"its weights, give --config.model.initial_checkpoint={model_dir} and another "
        "--model_dir"
      )
    return False
  found = [name for name in _RESULTS if _holds_files(os.path.join(model_dir, name))]
  if found:
    raise ValueError(
      f"{model_dir} holds results of a run ({', '.join(found)}), but no checkpoint to "
      f"continue from in {os.path.join(model_dir, CHECKPOINTS)}; use another "
      "--model_dir, or move them away"
    )
  return True


def _holds_files(path):
  """Whether there is such a file, or a folder with any file in it."""
  if not os.path.isdir(path):
    return os.path.exists(path)
  return any(names for _, _, names in os.walk(path))


def load_config(model_dir: str) -> config_lib.Config:
  """The config that a run was last started with.

  Raises:
    ValueError: the folder holds no run.
  """
  path = os.path.join(model_dir, CONFIG)
  try:
    return config_lib.load(path)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise ValueError(
      f"--model_dir={model_dir} holds no run: there is no {path}"
    ) from error
  except ValueError as error:
    if not isinstance(error.__cause__, json.JSONDecodeError):
      raise
    raise ValueError(f"{error}{_WRITTEN_ANEW}") from error


def load_classes(model_dir: str) -> Classes:
  """The classes that a run was started with."""
  return Classes.from_json(_read_copy(model_dir, CLASSES, ("names", "category_ids")))


def load_best(model_dir: str) -> dict[str, Any] | None:
  """The record of the best validation, see training/state.py; None before any."""
  if not os.path.exists(os.path.join(model_dir, BEST)):
    return None
  return _read_copy(model_dir, BEST, ("checkpoint", "metrics", "score_thresholds"))


def _read_copy(model_dir, name, keys):
  """What a file holds that is written anew from the record, with some keys at least."""
  path = os.path.join(model_dir, name)
  try:
    values = files.read_json(path)
    if not isinstance(values, dict) or not set(keys) <= values.keys():
      raise ValueError(f"{path} is not what a run writes there")
  except ValueError as error:
    raise ValueError(f"{error}{_WRITTEN_ANEW}") from error
  return values


def checkpoint_paths(model_dir: str, folder: str = CHECKPOINTS) -> list[str]:
  """Paths, without ".index", of the checkpoints in a run's folder, newest first."""
  folder = os.path.join(model_dir, folder)
  names = os.listdir(folder) if os.path.isdir(folder) else []
  found = [match for match in map(_CHECKPOINT_NAME.fullmatch, names) if match]
  found.sort(
    key=lambda match: (int(match[2]), bool(match[3]), int(match[4] or 0)), reverse=True
  )
  return [os.path.join(folder, match[0][: -len(".index")]) for match in found]


def next_name(model_dir: str, folder: str, name: str) -> str:
  """What to call a checkpoint so that it is newer than others of the same name.

  Example: there is none yet
    >>> next_name("nowhere", "checkpoints", "step-3")
    'step-3'
  """
  pattern = re.compile(rf"{name}(?:-(\d+))?")
  names = map(os.path.basename, checkpoint_paths(model_dir, folder))
  numbers = [int(match[1] or 1) for match in map(pattern.fullmatch, names) if match]
  return f"{name}-{max(numbers) + 1}" if numbers else name


def find_checkpoint(model_dir: str, checkpoint: str = "") -> str:
  """Path of a run's checkpoint.

  Args:
    model_dir: the run's folder.
    checkpoint: "" for the best (the latest where none was evaluated yet), "latest", or
      a checkpoint's path, with or without ".index"; of a folder of them, the newest.

  Raises:
    ValueError: there is no such checkpoint, or TensorFlow cannot read from its path.
  """
  lock.check_name(model_dir if checkpoint in ("", "latest") else checkpoint)
  best = load_best(model_dir) if not checkpoint else None
  if best:
    path = os.path.join(model_dir, BEST_CHECKPOINTS, best["checkpoint"])
  elif checkpoint in ("", "latest"):
    path = next(iter(checkpoint_paths(model_dir)), "")
  elif os.path.isdir(checkpoint):
    path = next(iter(checkpoint_paths(checkpoint, "")), checkpoint)
  else:
    path = checkpoint.removesuffix(".index")
  if not os.path.exists(f"{path}.index"):
    problem = (
      f"there is no checkpoint {path}" if path else f"{model_dir} has no checkpoint yet"
    )
    raise ValueError(problem + list_checkpoints(model_dir))
  return path


def list_checkpoints(model_dir: str, *, but: str = "") -> str:
  """End of a message on one that cannot be used: the others that --checkpoint may name."""
  paths = [
    path
    for folder in (BEST_CHECKPOINTS, CHECKPOINTS)
    for path in checkpoint_paths(model_dir, folder)
    if path != but
  ]
  return f"; --checkpoint may be {' or '.join(paths)}" if paths else ""


def read_record(path: str) -> dict[str, Any] | None:
  """The record in a checkpoint, see training/state.py; None in one that has none.

  Raises:
    One of UNREADABLE: the checkpoint is damaged.
  """
  reader = tf.train.load_checkpoint(path)
  if not reader.has_tensor(_RECORD_KEY):
    return None
  return json.loads(reader.get_tensor(_RECORD_KEY))
