"""Where things lie in a folder of data: its format, its parts, safe file names."""

from __future__ import annotations

import glob
import os
import re

from ap_detect.data.records import DataError

VOC_PARTS = ("Annotations", "JPEGImages", os.path.join("ImageSets", "Main"))
UNLABELLED_VOC_PARTS = VOC_PARTS[1:]

_VOC_DEPTH = 4
_LISTED = 20


def find_format(root):
  """Which format a folder of data has, by what lies in it.

  Args:
    root: folder. VOC: Annotations/, JPEGImages/ and ImageSets/Main/ lie in it or up to
      4 levels below. COCO: annotations/*.json or <split>/_annotations.coco.json.
      TFRecord: <split>-*-of-*.tfrecord. Where none is found, VOC without Annotations/
      counts too: images without labels.

  Returns:
    "voc", "coco" or "tfrecord".

  Raises:
    DataError: there is no such folder, or it has none of the formats, or several.
  """
  root = os.fspath(root)
  check_folder(root)
  found = {
    "voc": find_voc_folders(root),
    "coco": find_coco_files(root),
    "tfrecord": find_shards(root),
  }
  formats = [name for name, paths in found.items() if paths]
  if not formats and find_voc_folders(root, UNLABELLED_VOC_PARTS):
    return "voc"
  if len(formats) == 1:
    return formats[0]
  if formats:
    raise DataError(
      [
        f"{root}: holds several formats; say which is meant: "
        + "; ".join(f"{name} for {_names(found[name])}" for name in formats)
      ]
    )
  raise DataError(
    [
      f"{root}: no VOC, COCO or TFRecord data. Looked for {', '.join(VOC_PARTS)} (VOC), "
      "for annotations/*.json or <split>/_annotations.coco.json (COCO), and for "
      f"<split>-*-of-*.tfrecord (TFRecord); found {_listing(root)}"
    ]
  )


def check_folder(path):
  """Raises DataError where there is no such folder."""
  if os.path.isfile(path):
    raise DataError([f"{path}: is a file, not a folder"])
  if not os.path.isdir(path):
    raise DataError([f"{path}: there is no such folder"])


def find_voc_folders(root, parts=VOC_PARTS):
  """Folders at or below root that hold parts of the VOC layout; list of paths."""
  return [
    path for path in _folders_below(root, _VOC_DEPTH) if not missing_parts(path, parts)
  ]


def missing_parts(folder, parts=VOC_PARTS):
  """Those of the parts of the VOC layout that a folder lacks; list of names."""
  return [part for part in parts if not os.path.isdir(os.path.join(folder, part))]


def choose_voc_folder(root, split):
  """The one folder at or below root that holds a split in VOC layout.

  A folder without Annotations/ is chosen only where no whole layout has the split.

  Raises:
    DataError: no folder has the layout, several could be meant, or none has the split.
  """
  check_folder(root)
  folders: list[str] = []
  for parts in (VOC_PARTS, UNLABELLED_VOC_PARTS):
    found = find_voc_folders(root, parts)
    with_split = [path for path in found if os.path.isfile(voc_split(path, split))]
    if len(with_split) == 1:
      return with_split[0]
    if with_split:
      raise DataError(
        [
          f"{root}: {len(with_split)} folders have the split {split!r}: "
          f"{', '.join(with_split)}; give one of them as root, or before the split, as "
          f"in {os.path.relpath(with_split[0], root)}/{split}"
        ]
      )
    folders = folders or found
  if not folders:
    raise DataError([_describe_partial_layout(root)])
  raise DataError(
    [
      f"{voc_split(path, split)}: there is no such split; "
      f"{_names(_voc_splits(path)) or 'none'} exist"
      for path in folders
    ]
  )


def voc_split(folder, split):
  """Path of the file that lists a split of a VOC folder."""
  return os.path.join(folder, "ImageSets", "Main", f"{split}.txt")


def find_coco_files(root):
  """Paths of the files below root that look like COCO annotations, sorted."""
  here = glob.escape(root)
  patterns = (("annotations", "*.json"), ("*", "_annotations.coco.json"))
  return sorted(
    path for pattern in patterns for path in glob.glob(os.path.join(here, *pattern))
  )


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


def _folders_below(root, depth):
  """Root and the folders below it, but not those inside a VOC layout's parts."""
  yield root
  if depth == 0 or not missing_parts(root):
    return
  with os.scandir(root) as entries:
    paths = sorted(
      entry.path
      for entry in entries
      if entry.is_dir() and not entry.name.startswith(".")
    )
  for path in paths:
    yield from _folders_below(path, depth - 1)


def _describe_partial_layout(root):
  """What was looked for and what there is instead, where no VOC layout is complete."""
  partial = [
    f"{path} lacks {' and '.join(missing_parts(path))}"
    for path in _folders_below(root, _VOC_DEPTH)
    if len(missing_parts(path)) < len(VOC_PARTS)
  ]
  found = "; ".join(partial) or f"found {_listing(root)}"
  return f"{root}: no folder at or below it has all of {', '.join(VOC_PARTS)}: {found}"


def _voc_splits(folder):
  names = os.listdir(os.path.join(folder, "ImageSets", "Main"))
  return sorted(name[: -len(".txt")] for name in names if name.endswith(".txt"))


def _names(names):
  more = [f"and {len(names) - _LISTED} more"] if len(names) > _LISTED else []
  return ", ".join([*names[:_LISTED], *more])


def _listing(root):
  return _names(sorted(os.listdir(root))) or "an empty folder"
