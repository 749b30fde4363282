"""What splits are called: by files and folders, and by those who ask for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

# Words for a split, and what all of them mean.
_MEANINGS = {
  **dict.fromkeys(("train", "training", "trainset", "trn"), "train"),
  **dict.fromkeys(("val", "valid", "validation", "valset"), "val"),
  **dict.fromkeys(("test", "testing", "testset", "tst"), "test"),
}

# Words that may stand beside them in the name of a folder that is a split's.
_PART_WORDS = frozenset(
  [
    *("images", "image", "imgs", "img", "jpegimages"),
    *("annotations", "annotation", "annots", "annot", "labels", "label", "instances"),
    *("xml", "xmls", "data", "set", "dataset", "coco", "voc", "yolo"),
  ]
)


def meaning(name: str) -> str:
  """ "train", "val" or "test" for any word for these; other names as they are."""
  return _MEANINGS.get(name.lower(), name)


def of_folder(name: str) -> str:
  """The split that a folder's name speaks of, "" for none.

  Example:
    >>> of_folder("Valid"), of_folder("train_images"), of_folder("test tubes")
    ('val', 'train', '')
  """
  words = re.findall(r"[a-z]+", name.lower())
  found = {_MEANINGS[word] for word in words if word in _MEANINGS}
  others = {word for word in words if word not in _MEANINGS} - _PART_WORDS
  return found.pop() if len(found) == 1 and not others else ""


def of_path(path: str) -> str:
  """The split that a relative path speaks of, by its name or the nearest folder's.

  Example:
    >>> of_path("annotations/custom_train2017.json"), of_path("Valid/cat/a.xml")
    ('train', 'val')
  """
  *parts, name = path.split(os.sep)
  words = re.findall(r"[a-z]+", os.path.splitext(name)[0].lower())
  found = {_MEANINGS[word] for word in words if word in _MEANINGS}
  if len(found) == 1:
    return found.pop()
  return next(filter(None, map(of_folder, reversed(parts))), "")


def of_folders(path: str) -> str:
  """As `of_path`, by the folders alone."""
  return of_path(os.path.join(os.path.dirname(path), ""))


def choose(names: Iterable[str], wanted: str, *, sole: bool = False) -> list[str]:
  """Which of a dataset's splits a name means.

  Args:
    names: of the splits that there are.
    wanted: the name asked for. The split of this very name is meant, else the one of the
      same name in another case, else those whose names go on after it, but not with a
      letter ("train" for train2017, not for trainval), else those that mean the same
      ("val" for valid), else those that have such a word in them.
    sole: whether "train" also means the only split there is, whatever its name, else what
      is of no split ("", where others are named for one), else "trainval" where nothing
      else is to be validated on.

  Returns:
    List of names; several where more than one is meant, none where there is no such split.
  """
  names = list(names)
  lower = wanted.lower()
  kinds = (
    [name for name in names if name == wanted],
    [name for name in names if name.lower() == lower],
    [name for name in names if re.match(re.escape(lower) + "(?![a-z])", name.lower())],
    [name for name in names if meaning(name) == meaning(wanted)],
    [name for name in names if of_path(name) == meaning(wanted)],
  )
  found = next(filter(None, kinds), [])
  if found or not (sole and meaning(wanted) == "train"):
    return found
  if len(names) == 1:
    return names
  if "" in names and all(of_path(name) for name in names if name):
    return [""]
  if any(of_path(name) == "val" for name in names):
    return []
  return [name for name in names if name.lower().startswith("trainval")]
