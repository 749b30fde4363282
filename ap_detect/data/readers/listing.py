"""The files of a dataset's folder, found once and whatever the case of their names."""

from __future__ import annotations

import collections
import functools
import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable
from typing import NamedTuple

from ap_detect.data import image_headers
from ap_detect.data.readers import folders, split_names
from ap_detect.data.records import DataError

# Folders that may be links, to another disk, say; any other link is not followed.
_PART_NAMES = re.compile(
  r"(jpegimages|images?|imgs?|annotations?|annots?|labels?|xmls?|data|imagesets)\d*",
  re.IGNORECASE,
)
_IMAGE_NAMES = re.compile(r"(jpegimages|images?|imgs?)\d*")
_MASK_NAMES = re.compile(
  r"(annotations?|annots?|labels?|xmls?|masks?|trimaps?|segmentation\w*)\d*"
)

# What the folder of a run has: the pictures in it are no data.
_OWN_FILES = {"config.json", "classes.json", "checkpoints"}


class _Named(NamedTuple):
  """An image that was found for a name.

  Attributes:
    name: path or URL, as `find_image` takes it.
    path: of the image.
    num_agreeing: of the folders named, how many the path has too, from the end.
    is_exact: whether the last parts are the same, with their endings.
    has_folders: whether the name has any.
  """

  name: str
  path: str
  num_agreeing: int
  is_exact: bool
  has_folders: bool

  def rank(self):
    return self.num_agreeing, self.is_exact


class Listing:
  """Files at and below a folder; hidden ones, and runs of ap_detect, are passed over.

  Attributes:
    root: the folder, as an absolute path.
    unreadable: paths of the folders that cannot be read; their files are not listed.
    images_only: folder that alone images are looked for in; "" for all of root.
    annotations_only: file or folder that alone annotations are looked for in; likewise.
  """

  def __init__(self, root, *, annotations="", images=""):
    """Lists a folder.

    Args:
      root: the folder.
      annotations: file or folder that alone annotations are looked for in, relative to
        root or absolute; "" for all of root.
      images: folder that alone images are looked for in; likewise.

    Raises:
      DataError: there is no such folder or file.
    """
    folders.check_folder(os.fspath(root))
    # Of "." and "a/../b" no other path begins as the paths below them do.
    self.root = os.path.abspath(root)
    self.unreadable: list[str] = []
    self._tops = [os.path.realpath(self.root)]
    self.images_only = self._join(images)
    self.annotations_only = self._join(annotations)
    self._entered: set[tuple[int, int]] = set()
    self._folders: set[str] = set()
    self._files = list(self._walk(self.root))
    for path in (self.images_only, self.annotations_only):
      if not path:
        continue
      if not os.path.exists(path):
        raise DataError([f"{path}: there is no such file or folder"])
      self._tops.append(os.path.realpath(path))
      self._files += self._walk(path) if os.path.isdir(path) else [path]
    self._files = list(dict.fromkeys(self._files))

  def _join(self, path):
    return os.path.normpath(os.path.join(self.root, path)) if path else ""

  def _walk(self, top):
    """Paths of the files below a folder, those of a folder together."""
    pending = [top]
    while pending:
      folder = pending.pop()
      try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
          found = sorted(entries, key=lambda entry: entry.name)
          kinds = [(entry, entry.is_dir()) for entry in found]
      except OSError:
        self.unreadable.append(folder)
        continue
      # However many links lead to it, a folder is entered once.
      if (status.st_dev, status.st_ino) in self._entered:
        continue
      self._entered.add((status.st_dev, status.st_ino))
      self._folders.add(folder)
      if {entry.name for entry in found} >= _OWN_FILES:
        continue
      folders_below = []
      for entry, is_folder in kinds:
        if entry.name.startswith((".", "__MACOSX")):
          continue
        if is_folder:
          if not entry.is_symlink():
            folders_below.append(entry.path)
          elif _PART_NAMES.fullmatch(entry.name) or split_names.of_folder(entry.name):
            target = os.path.realpath(entry.path)
            # Above the root lies what is not of this dataset, or the whole disk.
            if not is_below(self._tops[0], target):
              self._tops.append(target)
              folders_below.append(entry.path)
        # Reading a pipe would wait for ever. A link to nothing is a missing file.
        elif entry.is_file() or not os.path.exists(entry.path):
          yield entry.path
      pending += reversed(folders_below)

  def files(self, *endings: str) -> list[str]:
    """Paths of the files with one of the endings, whatever their case."""
    return [path for ending in endings for path in self._by_ending.get(ending, ())]

  def annotation_files(self, *endings: str) -> list[str]:
    """As `files`, of those where annotations are looked for."""
    return [
      path for path in self.files(*endings) if is_below(path, self.annotations_only)
    ]

  def find(self, path: str) -> str | None:
    """The file, or the folder with files, that a path means; first in its own case."""
    return path if path in self._paths else self._by_fold.get(fold(path))

  @property
  def is_part(self) -> bool:
    """Whether the root is called like a part of a dataset, such as "images"."""
    name = os.path.basename(self.root)
    return bool(_PART_NAMES.fullmatch(name) or split_names.of_folder(name))

  @functools.cached_property
  def _paths(self) -> set[str]:
    """Files, and the folders that hold them."""
    paths = {self.root}
    for path in self._files:
      while path not in paths:
        paths.add(path)
        path = os.path.dirname(path)
    return paths

  @functools.cached_property
  def _by_fold(self) -> dict[str, str]:
    return {fold(path): path for path in sorted(self._paths, reverse=True)}

  @functools.cached_property
  def images(self) -> list[str]:
    """Paths of the files that are images by their endings, sorted."""
    return sorted(
      path
      for ending in image_headers.ENDINGS
      for path in self._by_ending.get(ending, ())
      if is_below(path, self.images_only)
    )

  @functools.cached_property
  def image_splits(self) -> list[str]:
    """Splits that the images' folders are named for, "" for none, where these matter.

    They are what one file of annotations for all images is divided by; empty where all
    may be trained on.
    """
    firsts = {os.path.dirname(image): image for image in self.images}
    found = dict.fromkeys(map(self.split_of, firsts.values()))
    return list(found) if len(found) > 1 and {"val", "test"} & set(found) else []

  def split_of(self, image: str) -> str:
    """The split that an image's folders are named for; "" for none."""
    return split_names.of_folders(self.relative(image))

  @functools.cached_property
  def _by_ending(self) -> dict[str, list[str]]:
    by_ending: dict[str, list[str]] = collections.defaultdict(list)
    for path in self._files:
      by_ending[os.path.splitext(path)[1].lower()].append(path)
    return by_ending

  @functools.cached_property
  def _images_by_name(self) -> dict[str, list[str]]:
    """Images by their folded names, with and without ending."""
    by_name: dict[str, list[str]] = collections.defaultdict(list)
    for path in self.images:
      name = fold(os.path.basename(path))
      by_name[name].append(path)
      by_name[os.path.splitext(name)[0]].append(path)
    return by_name

  def relative(self, path: str) -> str:
    """A path as messages name it: relative to root."""
    start = self.root.rstrip(os.sep) + os.sep
    # Very many paths are asked for.
    return (
      path[len(start) :] if path.startswith(start) else os.path.relpath(path, self.root)
    )

  def check_inside(self, path: str) -> str:
    """The path itself; ValueError if it is a link that leads out of the folder."""
    folder, name = os.path.split(path)
    if folder not in self._folders or os.path.islink(path):
      return folders.path_inside(folder, name, self._tops)
    return path

  def find_image(self, name: str, near: str = "", below: str = "") -> str | None:
    """The image that an annotation names, perhaps by its path on another machine.

    Args:
      name: path or URL, with or without an ending; only its last part has to agree.
      near: path of the file that names it. Of several images of the name, the one is
        meant that agrees with it in more folders from the end, or else lies in a split of
        the same name as this file, or else in no folder of annotations or masks, or else
        closer to this file, or else in a folder for images.
      below: folder that the image must be below; "" for any.

    Returns:
      Path of a file below the root; None where there is none, or several are as near.

    Raises:
      ValueError: the image is a link that leads out of the folder.
    """
    parts, found = [], []
    for parts in _readings(name):
      stem, ending = os.path.splitext(parts[-1])
      names = [parts[-1], *([stem] if ending in image_headers.ENDINGS else [])]
      found = next(filter(None, map(self._images_by_name.get, names)), [])
      if found:
        break
    found = [path for path in found if is_below(path, below)]
    if len(found) > 1:
      scores = [self._nearness(path, parts[:-1], near) for path in found]
      found = [path for path, score in zip(found, scores) if score == max(scores)]
    return self.check_inside(found[0]) if len(found) == 1 else None

  def need_image(self, name: str, near: str) -> str:
    """As `find_image`; ValueError with the reason where it finds none."""
    found = self.find_image(name, near=near)
    if found is None:
      raise ValueError(
        f"names {name!r}: no image below {self.root} has this name, or several have, in "
        "no nearer folder; data.images names the folder of the images"
      )
    return found

  def find_strays(self, named: Iterable[tuple[str, str | None]]) -> dict[int, str]:
    """Which images that were found for names are not what these mean.

    A name may be a path of another machine, so `find_image` asks no more of its folders
    than to tell apart images that are there. But where names' folders agree with those
    of their images, a name whose own do not agree at all is of an image that is missing;
    and of different names that come to one image only the nearest can mean it.

    Args:
      named: (name, path of the image found for it, None for none).

    Returns:
      Place in `named` -> reason.
    """
    found = {
      place: _Named(name, path, *self._agreement(name, path))
      for place, (name, path) in enumerate(named)
      if path is not None
    }
    are_folders_right = any(one.num_agreeing for one in found.values())
    reasons: dict[int, str] = {}
    by_path: dict[str, list[int]] = collections.defaultdict(list)
    for place, one in found.items():
      if are_folders_right and one.has_folders and not one.num_agreeing:
        reasons[place] = (
          f"names {one.name!r}: there is no such file; {self.relative(one.path)} is not "
          "it, for it lies in no folder that is named, as the images of other names do"
        )
      else:
        by_path[one.path].append(place)
    for path, places in by_path.items():
      best = max((found[place] for place in places), key=_Named.rank)
      others = [p for p in places if not _is_same(found[p].name, best.name)]
      # Nobody knows which of them is meant.
      if any(found[place].rank() == best.rank() for place in others):
        others = places
      for place in others:
        reasons[place] = (
          f"names {found[place].name!r}: there is no such file but "
          f"{self.relative(path)}, which {best.name!r} is as well or better"
        )
    return reasons

  def _agreement(self, name, path):
    """The rest of a _Named."""
    *own, base = fold(path).split(os.sep)
    readings = _readings(name)
    counts = [
      (_count_equal(reversed(parts[:-1]), reversed(own)), parts[-1] == base)
      for parts in readings
    ]
    return (*max(counts), len(readings[0]) > 1)

  def _nearness(self, path, folders_named, near):
    own = fold(self.relative(path)).split(os.sep)[:-1]
    near = fold(self.relative(near)) if near else ""
    near_folders = near.split(os.sep)[:-1]
    return (
      _count_equal(reversed(folders_named), reversed(own)),
      self.split_of(path) == split_names.of_path(near),
      not any(map(_MASK_NAMES.fullmatch, own)),
      _count_equal(near.split(os.sep), own),
      # annotations/a/b/1.xml and images/a/b/1.jpg
      _count_equal(
        reversed(_without_parts(near_folders)), reversed(_without_parts(own))
      ),
      own == near_folders,
      any(map(_IMAGE_NAMES.fullmatch, own)),
    )

  def describe(self) -> str:
    """What there is, for a folder in which nothing can be read."""
    counts = {ending or "no ending": len(p) for ending, p in self._by_ending.items()}
    kinds = ", ".join(f"{counts[ending]} {ending}" for ending in sorted(counts))
    found = folders.some_names(sorted(os.listdir(self.root))) or "an empty folder"
    return f"{found} (files at and below it: {kinds})" if counts else found


def is_below(path: str, top: str) -> bool:
  """Whether a path is `top` or below it; true where top is ""."""
  return not top or path == top or path.startswith(top.rstrip(os.sep) + os.sep)


def fold(name: str) -> str:
  """A name or path as it is compared: in lower case, accents as parts of their letters."""
  return unicodedata.normalize("NFC", name).lower()


def _readings(name: str) -> list[list[str]]:
  """Folded parts of a path or URL that a file names, in the ways to read it."""
  # A file may itself be called "50%20.jpg".
  texts = dict.fromkeys((name, urllib.parse.unquote(_without_query(name))))
  return [
    [part for part in re.split(r"[\\/]+", fold(text)) if part not in ("", ".", "..")]
    or [""]
    for text in texts
  ]


def _is_same(one: str, other: str) -> bool:
  """Whether two names are one: a path and the end of it, with or without an ending."""

  def ends(first, second):
    *folders_of, base = first
    *rest, last = second
    count = min(len(folders_of), len(rest))
    are_alike = base in (last, os.path.splitext(last)[0])
    return (
      are_alike and folders_of[len(folders_of) - count :] == rest[len(rest) - count :]
    )

  return any(
    ends(first, second) or ends(second, first)
    for first in _readings(one)
    for second in _readings(other)
  )


def _without_query(name: str) -> str:
  return name.partition("?")[0] if "://" in name else name


def _without_parts(names: list[str]) -> list[str]:
  """Folders without those named for a part of a dataset, such as "images"."""
  kinds = (_PART_NAMES, _MASK_NAMES)
  return [name for name in names if not any(kind.fullmatch(name) for kind in kinds)]


def _count_equal(first: Iterable[str], second: Iterable[str]) -> int:
  count = 0
  for one, other in zip(first, second):
    if one != other:
      break
    count += 1
  return count
