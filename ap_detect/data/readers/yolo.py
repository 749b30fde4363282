"""Reads YOLO's layout: names of classes, images, and a text file of boxes for each."""

from __future__ import annotations

import collections
import functools
import math
import os
import re
from typing import Any, NamedTuple

import yaml

from ap_detect.data.readers import image_files, image_lists, split_names, text_files
from ap_detect.data.readers.listing import Listing, is_below
from ap_detect.data.records import DataError, DetectionDataset

# What a YAML file calls its splits.
_SPLITS = ("train", "val", "valid", "validation", "test")

# Lists of class names, one a line, where there is no YAML file.
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "names.txt")


class Source(NamedTuple):
  """A file with the names of the classes.

  Attributes:
    path: of the file.
    names: dict of a class's number in the text files to its name.
    images: dict of a split's name to the paths of its images, of those that have any.
    has_keypoints: whether lines have keypoints after the box, and no polygons.
    is_yaml: whether it is a YAML file, not just a list of names.
  """

  path: str
  names: dict[int, str]
  images: dict[str, list[str]]
  has_keypoints: bool = False
  is_yaml: bool = True


def read_yolo(
  root,
  split,
  *,
  image_list=None,
  class_names=None,
  skip_faulty=False,
  listing=None,
  **image_options,
):
  """One split of a dataset in YOLO's layout.

  data.yaml has `names`, a list or a mapping from numbers, and for each split a folder, a
  text file that lists images, or several of either. These count from the file's own
  folder or its `path`; where that is a path of another machine, its last folders do. The
  text file of an image lies in labels/ where the image lies in images/, or beside it. A
  line is "class x y width height" or "class x1 y1 x2 y2 x3 y3 ..." (a polygon, whose box
  is used), in fractions of the image. An image with an empty text file, or none, has no
  objects.

  Without data.yaml, classes.txt or obj.names has the names, one a line, and the folders
  that are named for splits are these.

  Args:
    root: folder of the dataset. Faults name files relative to it.
    split: name of the split; see split_names.choose for others of the same meaning.
    image_list: path of a text file that names the images to take out of the split, one
      path below the root, file name or stem a line. None takes all.
    class_names: names of classes 1..K; an object of any other is then a fault. None
      takes all, in the order of their numbers.
    skip_faulty: whether faulty objects and images are left out and reported, instead
      of raising; see image_files.make_records.
    listing: Listing of the root, where there is one already.
    **image_options: check_images, max_image_pixels, exif_orientation and convertible,
      see image_files.make_records.

  Returns:
    DetectionDataset, with stems as image ids (paths below the root where stems repeat).

  Raises:
    DataError: lists all faults, each with file, line and reason.
    ValueError: class_names has a name twice.
  """
  listing = listing or Listing(root)
  source, name = _choose_source(listing, split)
  class_ids = image_files.number_classes(class_names or list(source.names.values()))
  faults: list[str] = []
  labels = _Labels(listing)
  images = _choose_images(listing, source.images[name], image_list, faults)
  if images and not any(map(labels.find, images.values())):
    raise DataError(
      [
        f"{listing.relative(source.path)}: none of the {len(images)} images of split "
        f"{name!r} has a text file of boxes: looked in labels/ where an image lies in "
        "images/, and beside it"
      ],
      ["data.annotations names the folder of the text files"],
    )
  annotated = [
    _read_image(listing, labels, image_id, path, source, class_ids, faults)
    for image_id, path in images.items()
  ]
  records = image_files.make_records(
    annotated, faults, root=listing.root, **image_options
  )
  image_files.refuse_faults(faults, records, class_ids, skip_faulty=skip_faulty)
  return DetectionDataset(
    records=tuple(records),
    class_names=tuple(class_ids),
    category_ids=tuple(class_ids.values()),
    ignored_are_crowds=False,
    skipped=tuple(faults),
  )


def find_sources(listing: Listing) -> list[Source]:
  """Files that name classes and have images; lists of names only where no YAML does."""
  sources = []
  for path in listing.annotation_files(".yaml", ".yml"):
    content = _load(path)
    names = _read_names(content.get("names"))
    if names and any(key in content for key in _SPLITS):
      images = {key: _find_images(listing, path, content, key) for key in _SPLITS}
      images = {key: paths for key, paths in images.items() if paths}
      sources.append(Source(path, names, images, "kpt_shape" in content))
  if sources:
    return sources
  for path in listing.annotation_files(".txt", ".names"):
    if os.path.basename(path).lower() in _NAME_FILES:
      sources += _source_of_names(listing, path)
  return sources


def _source_of_names(listing, path):
  """[Source] of a list of classes below whose folder images have text files."""
  try:
    lines = [line.strip() for line in text_files.read(path).splitlines()]
  except (OSError, ValueError):
    return []
  top, labels = os.path.dirname(path), _Labels(listing)
  # Label tools write the list into the folder of the text files.
  if os.path.basename(top).lower() == "labels":
    top = os.path.dirname(top)
  images: dict[str, list[str]] = {}
  for image in listing.images:
    if image.startswith(top + os.sep):
      split = split_names.of_folders(os.path.relpath(image, top))
      images.setdefault(split, []).append(image)
  if not any(labels.find(image) for paths in images.values() for image in paths):
    return []
  if list(images) == [""]:
    images = {"train": images[""]}
  names = {number: name for number, name in enumerate(lines) if name}
  return [Source(path, names, images, is_yaml=False)] if names else []


def _choose_source(listing, split):
  """(Source, name of the split in it)."""
  sources = find_sources(listing)
  found = [
    (source, name)
    for source in sources
    for name in split_names.choose(source.images, split, sole=len(sources) == 1)
  ]
  if len(found) == 1:
    return found[0]
  if found:
    paths = ", ".join(listing.relative(source.path) for source, _ in found)
    raise DataError(
      [f"{listing.root}: the split {split!r} could be of any of {paths}"],
      ["data.annotations names the file that is meant, or a folder to look in"],
    )
  if not sources:
    raise DataError(
      [
        f"{listing.root}: no YAML file has names and one of {', '.join(_SPLITS)}, and "
        f"beside none of {', '.join(_NAME_FILES)} have images text files of boxes"
      ]
    )
  raise DataError(
    [
      f"{listing.relative(source.path)}: has no split {split!r} whose images are there; "
      f"those of {', '.join(source.images) or 'none'} are"
      for source in sources
    ]
  )


def _load(path) -> dict[str, Any]:
  """The mapping in a YAML file; empty where it has none."""
  try:
    content = yaml.safe_load(text_files.read(path))
  except (OSError, ValueError, yaml.YAMLError, RecursionError):
    return {}
  return content if isinstance(content, dict) else {}


def _read_names(names) -> dict[int, str]:
  """Dict of a class's number in the text files to its name; empty where there is none."""
  if isinstance(names, dict):
    try:
      numbered = {int(number): str(name) for number, name in names.items()}
    except (TypeError, ValueError):
      return {}
    return dict(sorted(numbered.items()))
  if isinstance(names, list):
    return {number: str(name) for number, name in enumerate(names)}
  return {}


def _find_images(listing, source, content, split):
  """Paths of a split's images, each once."""
  entries = content.get(split) or []
  prefix = str(content.get("path") or "")
  found: dict[str, None] = {}
  for entry in entries if isinstance(entries, list) else [entries]:
    place = _locate(listing, os.path.dirname(source), prefix, str(entry))
    if place is None:
      continue
    if os.path.isfile(place):
      found.update(dict.fromkeys(_read_list(listing, place)))
    else:
      top = place.rstrip(os.sep) + os.sep
      found.update(dict.fromkeys(p for p in listing.images if p.startswith(top)))
  return list(found)


def _read_list(listing, path):
  """Images that a text file names, by paths relative to it or of another machine."""
  try:
    lines = text_files.read(path).splitlines()
  except (OSError, ValueError) as error:
    raise DataError([f"{listing.relative(path)}: cannot be read: {error}"]) from error
  paths = []
  for number, line in enumerate(map(str.strip, lines), start=1):
    if not line:
      continue
    image = listing.find_image(line, near=path)
    if image is None:
      raise DataError(
        [
          f"{listing.relative(path)}: line {number}: {line!r} is no image below "
          f"{listing.root}, or several have its name"
        ]
      )
    paths.append(image)
  return paths


def _locate(listing, base, prefix, entry):
  """Folder or list below the root that an entry means, however it was written."""
  parts = [p for p in re.split(r"[\\/]+", entry) if p not in ("", ".", "..")]
  prefix_parts = [p for p in re.split(r"[\\/]+", prefix) if p not in ("", ".", "..")]
  # An entry may leave its file's folder, as ../train/images does in Roboflow's exports.
  starts = [
    os.path.join(top, *prefix_parts[k:])
    for k in range(len(prefix_parts) + 1)
    for top in (base, os.path.dirname(base), listing.root)
  ]
  for length in range(len(parts), 0, -1):
    for start in starts:
      path = os.path.normpath(os.path.join(start, *parts[len(parts) - length :]))
      is_list = path.lower().endswith(".txt") and os.path.isfile(path)
      if is_below(path, listing.root) and (is_list or os.path.isdir(path)):
        return path
  return base if not parts else None


def _choose_images(listing, paths, image_list, faults):
  """Dict of an image's id to its path; faults of the list are added."""
  stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
  counts = collections.Counter(stems)
  ids = [
    stem if counts[stem] == 1 else os.path.splitext(listing.relative(path))[0]
    for stem, path in zip(stems, paths)
  ]
  # Only the ending may tell two images apart.
  if len(set(ids)) < len(ids):
    ids = [listing.relative(path) for path in paths]
  images = dict(zip(ids, paths))
  if image_list is None:
    return images
  names = [
    (image_id, listing.relative(path), os.path.basename(path))
    for image_id, path in images.items()
  ]
  chosen, more_faults = image_lists.choose_images(image_list, names)
  faults += more_faults
  return {
    image_id: path
    for index, (image_id, path) in enumerate(images.items())
    if index in chosen
  }


class _Labels:
  """Finds the text file of an image."""

  def __init__(self, listing):
    texts = listing.annotation_files(".txt")
    self._paths = {os.path.splitext(path)[0].lower(): path for path in texts}
    self._listing = listing

  def find(self, image):
    """Path of the image's text file; None where it has none."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    # images/train/a.jpg and train/images/a.jpg: the last folder of that name.
    candidates = [
      os.sep.join([*parts[:k], "labels", *parts[k + 1 :]])
      for k in reversed(range(len(parts) - 1))
      if parts[k].lower() in ("images", "jpegimages", "imgs", "img", "image")
    ]
    candidates += [stem, os.sep.join([*parts[:-2], "labels", parts[-1]])]
    candidates.append(os.sep.join([*parts[:-1], "labels", parts[-1]]))
    candidates.append(os.sep.join([*parts[:-2], "labels", *parts[-2:]]))
    found = map(self._paths.get, map(str.lower, candidates))
    return next(filter(None, found), None)


def _read_image(listing, labels, image_id, image, source, class_ids, faults):
  path = labels.find(image)
  annotated = image_files.AnnotatedImage(
    image_id, image, path or image, boxes_are_fractions=True
  )
  (_, lines), reasons = image_files.read_parts(
    path,
    [lambda _: listing.check_inside(image), functools.partial(_read_lines, listing)],
  )
  if reasons:
    faults.extend(f"{listing.relative(path or image)}: {reason}" for reason in reasons)
    annotated.faulty = True
    return annotated
  source_name = listing.relative(path) if path else ""
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    label = f"line {number}"
    (class_id, box), reasons = image_files.read_parts(
      line.split(),
      [functools.partial(_read_class, source, class_ids), _box_reader(source)],
    )
    faults.extend(f"{source_name}: {label} {reason}" for reason in reasons)
    annotated.objects.append(
      image_files.AnnotatedObject(label, box, class_id, False, faulty=bool(reasons))
    )
  return annotated


def _read_lines(listing, path):
  if path is None:
    return []
  try:
    return text_files.read(listing.check_inside(path)).splitlines()
  except OSError as error:
    raise ValueError(f"cannot be read: {error.strerror}") from error


def _read_class(source, class_ids, words):
  try:
    number = float(words[0])
  except ValueError:
    raise ValueError(f"begins with {words[0]!r:.80}, not a class's number") from None
  if number not in source.names:
    raise ValueError(
      f"has class {words[0]}, which {os.path.basename(source.path)} does not name"
    )
  name = source.names[int(number)]
  if name not in class_ids:
    raise ValueError(f"has class {name!r}, which is not in the list of classes")
  return class_ids[name]


def _box_reader(source):
  return functools.partial(_read_box, has_keypoints=source.has_keypoints)


def _read_box(words, *, has_keypoints):
  """(ymin, xmin, ymax, xmax) of a box or a polygon, in fractions of the image."""
  try:
    numbers = [float(word) for word in words[1:]]
  except ValueError:
    numbers = [math.nan]
  if not all(map(math.isfinite, numbers)):
    raise ValueError(f"has {' '.join(words)!r:.80}, not finite numbers")
  is_polygon = not has_keypoints and len(numbers) >= 6 and len(numbers) % 2 == 0
  # A fifth number is a detector's score.
  if not (is_polygon or len(numbers) in (4, 5) or (has_keypoints and len(numbers) > 4)):
    raise ValueError(
      f"has {len(numbers)} numbers after its class, neither the four of a box nor the "
      "pairs of a polygon"
    )
  if is_polygon:
    xs, ys = numbers[0::2], numbers[1::2]
    return min(ys), min(xs), max(ys), max(xs)
  x, y, width, height = numbers[:4]
  if width <= 0 or height <= 0:
    raise ValueError(f"has width {width:g} and height {height:g}: an empty box")
  if max(numbers[:4]) > 2:
    raise ValueError(
      f"has x {x:g}, y {y:g}, width {width:g}, height {height:g}: fractions of the "
      "image are required, not pixels"
    )
  return y - height / 2, x - width / 2, y + height / 2, x + width / 2
