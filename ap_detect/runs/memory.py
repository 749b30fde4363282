"""A run's data as it was read and checked, so that a later start need not do it again.

Lies in the run's folder; nothing is written beside the data. What was read is used again
only if no file below the data's folder has another path, size or time of change, and
neither the options of reading nor the code that reads have changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging

from ap_detect import errors
from ap_detect.data import encoded, image_headers
from ap_detect.data.records import DetectionDataset, ImageRecord
from ap_detect.runs import files, folder

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


class Memory:
  """Splits of a run's data.

  Args:
    model_dir: the run's folder, which need not exist before `save`.
  """

  def __init__(self, model_dir: str):
    self._model_dir = model_dir
    self._unsaved: dict[str, tuple[str, DetectionDataset]] = {}
    self._lists: dict[str, Sequence[object]] = {}

  def read(
    self,
    split: str,
    options: object,
    sources: Sequence[str],
    read: Callable[[], DetectionDataset],
  ) -> tuple[DetectionDataset, bool]:
    """A split, read anew only if something has changed since it was saved.

    Args:
      split: name of the split.
      options: what else the result depends on; anything that JSON can hold.
      sources: files and folders that it is read from.
      read: reads it.

    Returns:
      (DetectionDataset, whether it was read at an earlier start).
    """
    # Before reading: what changes meanwhile is then read again.
    state = fingerprint(sources, but=self._model_dir)
    key = json.dumps([split, options, state, _digest_code()])
    path = os.path.join(
      self._model_dir, folder.DATA, f"{split.replace(os.sep, '_')}.npz"
    )
    if self._unsaved.get(path, ("",))[0] == key:
      return self._unsaved[path][1], False
    dataset = _load(path, key)
    if dataset is not None:
      return dataset, True
    dataset = read()
    self._unsaved[path] = key, dataset
    return dataset, False

  def write_list(self, name: str, values: Sequence[object]) -> None:
    """Has `save` write a text file with a line for each value beside the data."""
    self._lists[name] = values

  def read_list(self, name: str) -> frozenset[str]:
    """The lines of a text file that an earlier start wrote; empty where there is none."""
    try:
      path = os.path.join(self._model_dir, folder.DATA, name)
      with open(path, encoding="utf-8") as file:
        return frozenset(file.read().split("\n")) - {""}
    except (OSError, ValueError):
      return frozenset()

  def save(self) -> None:
    """Writes what was read anew into the run's folder, which need not be possible."""
    top = os.path.join(self._model_dir, folder.DATA)
    writes: list[tuple[Callable, str, object]] = [
      (files.write_arrays, path, _to_arrays(key, dataset))
      for path, (key, dataset) in self._unsaved.items()
    ]
    writes += [
      (files.write_text, os.path.join(top, name), "".join(f"{v}\n" for v in values))
      for name, values in self._lists.items()
    ]
    for write, path, content in writes:
      try:
        os.makedirs(top, exist_ok=True)
        write(path, content)
      except (OSError, UnicodeError) as error:  # an id that is no text, say
        logging.warning(
          "the next start will read and check the data again: %s",
          errors.describe(error),
        )
    self._unsaved.clear()
    self._lists.clear()


def fingerprint(paths: Sequence[str], *, but: str = "") -> str:
  """Digest of the paths, sizes and times of change of all files.

  Args:
    paths: of files, and of folders with all that is below them. Links are followed.
    but: a folder to leave out.
  """
  digest = hashlib.sha256()
  for line in _list_files(paths, but):
    digest.update(os.fsencode(line) + b"\0")
  return digest.hexdigest()


def _list_files(paths: Sequence[str], but: str) -> Iterator[str]:
  """A line for each file; a folder's once, however many links lead to it."""
  entered = set()
  with contextlib.suppress(OSError):
    entered.add(_identify(os.stat(but)))
  pending = list(reversed(paths))
  while pending:
    path = pending.pop()
    try:
      status = os.stat(path)
      if not stat.S_ISDIR(status.st_mode):
        yield f"{path} {status.st_size} {status.st_mtime_ns}"
      elif _identify(status) not in entered:
        entered.add(_identify(status))
        names = sorted(os.listdir(path), reverse=True)
        pending += [os.path.join(path, name) for name in names]
    except OSError as error:  # which may be another one the next time
      yield f"{path} {error.errno}"


def _identify(status: os.stat_result) -> tuple[int, int]:
  return status.st_dev, status.st_ino


@functools.cache
def _digest_code() -> str:
  """Digest of the code that reads data."""
  digest = hashlib.sha256()
  others = [_PACKAGE / "images.py", _PACKAGE / "boxes.py"]
  for path in [*sorted(_PACKAGE.glob("data/**/*.py")), *others]:
    digest.update(path.read_bytes())
  return digest.hexdigest()


def _to_arrays(key, dataset) -> dict[str, np.ndarray]:
  """What numpy.savez can hold without pickling; see `_load`."""
  columns = {
    field.name: [getattr(record, field.name) for record in dataset.records]
    for field in dataclasses.fields(ImageRecord)
  }
  rest = {
    field.name: getattr(dataset, field.name)
    for field in dataclasses.fields(dataset)
    if field.name != "records"
  }
  arrays = {
    name: np.concatenate(columns.pop(name))
    for name in list(columns)
    if columns[name] and isinstance(columns[name][0], np.ndarray)
  }
  counts = [len(record.boxes) for record in dataset.records]
  texts = {"key": key, "columns": json.dumps([columns, rest, counts])}
  return {
    **{f"objects_{name}": values for name, values in arrays.items()},
    **{
      name: np.frombuffer(text.encode("utf-8"), np.uint8)
      for name, text in texts.items()
    },
  }


def _load(path, key):
  """The DetectionDataset in a file, or None if it has another key or is damaged."""
  try:
    with np.load(path, allow_pickle=False) as arrays:
      if arrays["key"].tobytes().decode("utf-8") != key:
        return None
      columns, rest, counts = json.loads(arrays["columns"].tobytes())
      ends = np.cumsum(counts)[:-1]
      for name in arrays.files:
        if name.startswith("objects_"):
          columns[name[len("objects_") :]] = np.split(arrays[name], ends)
      columns["image"] = [
        image if isinstance(image, str) else encoded.ShardedImage(*image)
        for image in columns["image"]
      ]
      columns["header"] = [
        header and image_headers.Header(*header) for header in columns["header"]
      ]
  except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
    return None
  records = [
    ImageRecord(**dict(zip(columns, values))) for values in zip(*columns.values())
  ]
  rest = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in rest.items()
  }
  return DetectionDataset(records=tuple(records), **rest)
