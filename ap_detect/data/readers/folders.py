"""Folders and names that a dataset gives, which may be wrong or hostile."""

from __future__ import annotations

import glob
import os
import re

from ap_detect.data.records import DataError

_LISTED = 20


def check_folder(path):
  """Raises DataError where there is no such folder."""
  if os.path.isfile(path):
    raise DataError([f"{path}: is a file, not a folder"])
  if not os.path.isdir(path):
    raise DataError([f"{path}: there is no such folder"])


def find_shards(root, split="*"):
  """Paths of the TFRecord shards in root, of all splits or of one, sorted."""
  name = split if split == "*" else glob.escape(split)
  digits = "[0-9]" * 5
  pattern = f"{name}-{digits}-of-{digits}.tfrecord"
  return sorted(glob.glob(os.path.join(glob.escape(root), pattern)))


def path_inside(folder, name, allowed):
  """Path of a file that a dataset names, which must lie inside the dataset.

  Args:
    folder: where the name counts from.
    name: as it was read from the data; may be hostile.
    allowed: folders with links resolved (`os.path.realpath`), in one of which the file
      must lie once the links in its path are followed.

  Returns:
    `folder` joined with `name`; nothing need exist there.

  Raises:
    ValueError: the name is empty or absolute, has a part `..`, or is or passes a link
      that ends outside.
  """
  if not name or "\0" in name or leaves_folder(name):
    raise ValueError(f"names {name!r}, which leaves the data folder")
  path = os.path.join(folder, name)
  real = os.path.realpath(path)
  if not any(real.startswith(top.rstrip(os.sep) + os.sep) for top in allowed):
    raise ValueError(f"names {name!r}, a link that leaves the data folder")
  return path


def leaves_folder(name):
  """Whether a name leads out of the folder that it counts from, links aside."""
  drive, _ = os.path.splitdrive(name)
  return bool(os.path.isabs(name) or drive or ".." in re.split(r"[\\/]", name))


def some_names(names):
  """Names in a row, the first 20 of them; "" for none."""
  more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
  return ", ".join([*names[:_LISTED], *more])
