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
from ap_detect.data.readers.listing import Listing, fold, is_below
from ap_detect.data.records import DataError

# What a YAML file calls its splits.
_SPLITS = ("train", "val", "valid", "validation", "test")

# Lists of class names, one a line, where there is no YAML file.
_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "names.txt")
_LIST_ENDINGS = (".txt", ".names")

# More than that of names nobody has, and reading it would take long.
_YAML_BYTES = 1_000_000
_DARKNET_BYTES = 10_000


class Source(NamedTuple):
  """A file with the names of the classes.

  Attributes:
    path: of the file.
    names: dict of a class's number in the text files to its name.
    images: dict of a split's name to the paths of its images, of those that have any.
    has_keypoints: whether lines have keypoints after the box, and no polygons.
    entries: dict of a split's name to what the file has for it, "" for nothing.
  """

  path: str
  names: dict[int, str]
  images: dict[str, list[str]]
  has_keypoints: bool
  entries: dict[str, str]


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

  darknet's obj.data says the same in lines of "key = value". Without either, classes.txt or
  obj.names has the names, one a line, and train.txt and its like list the images of
  splits, or else the folders that are named for splits are these.

  Args:
    root: folder of the dataset. Faults name files relative to it.
    split: name of the split; see split_names.choose for others of the same meaning.
    image_list: path of a text file that names the images to take out of the split, one
      path below the root, file name or stem a line. None takes all.
    class_names: names of classes 1..K; an object of any other is then a fault. None
      takes all, in the order of their numbers; two of one name are one.
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
  source, name, sources = _choose_source(listing, split)
  names = dict.fromkeys(n for s in sources for n in s.names.values())
  class_ids = image_files.number_classes(class_names or list(names))
  notes = image_files.Notes()
  faults: list[str] = []
  labels = _Labels(listing)
  images = _choose_images(listing, source.images[name], image_list, faults)
  if images and not any(map(labels.find, images.values())):
    raise DataError(
      [
        f"{listing.relative(source.path)}: none of the {len(images)} images of split "
        f"{name!r} has a text file of boxes: looked in labels/, label/ and annotations/ "
        "where an image lies in images/, and beside it"
      ],
      ["data.annotations names the folder of the text files"],
    )
  annotated = [
    _read_image(listing, labels, image_id, path, source, class_ids, faults, notes)
    for image_id, path in images.items()
  ]
  if image_list is None:
    for path in labels.without_image(image.annotation for image in annotated):
      notes.add("text files of boxes have no image", listing.relative(path))
  return image_files.make_dataset(
    annotated,
    faults,
    class_ids,
    root=listing.root,
    skip_faulty=skip_faulty,
    notes=notes.lines(),
    **image_options,
  )


def find_sources(listing: Listing) -> list[Source]:
  """Files that name classes and have images; lists of names only where no others do."""
  for find in (listing.annotation_files, listing.files):
    sources = [
      source
      for path in find(".yaml", ".yml", ".data")
      for source in _source_of_splits(listing, path)
    ]
    for path in [] if sources else find(".txt", ".names"):
      if os.path.basename(path).lower() in _NAME_FILES:
        sources += _source_of_names(listing, path)
    # Where text files are looked for in a folder of their own, the names lie elsewhere.
    has_own = listing.annotations_only and listing.annotation_files(".txt")
    if sources or not has_own:
      break
  return sources


def describe_damaged(listing: Listing) -> list[str]:
  """A line for each YAML file that might have been meant, but cannot be read."""
  lines = []
  for path in listing.annotation_files(".yaml", ".yml"):
    try:
      _load(path)
    except ValueError as error:
      lines.append(f"{listing.relative(path)}: {error}")
  return lines


def has_boxes(listing: Listing) -> bool:
  """Whether images have text files that may be of boxes, though no file has the names."""
  return any(map(_Labels(listing).find, listing.images))


def _source_of_splits(listing, path):
  """[Source] of a file that says where the images of splits are."""
  try:
    is_yaml = not path.lower().endswith(".data")
    content = _load(path) if is_yaml else _load_darknet(listing, path)
  except ValueError:
    return []  # see describe_damaged
  names = _read_names(content.get("names"))
  if not names or not any(key in content for key in _SPLITS):
    return []
  images: dict[str, list[str]] = {}
  for key in _SPLITS:
    paths = _find_images(listing, path, content, key)
    # Examples to try a tool out validate on what they train on.
    if paths and paths != images.get("train"):
      images[key] = paths
  entries = {key: ", ".join(_texts(content.get(key))) for key in _SPLITS}
  return [Source(path, names, images, "kpt_shape" in content, entries)]


def _source_of_names(listing, path):
  """[Source] of a list of classes below whose folder images have text files."""
  names = _number_lines(listing, path)
  top, labels = os.path.dirname(path), _Labels(listing)
  # Label tools write the list into the folder of the text files.
  if os.path.basename(top).lower() == "labels":
    top = os.path.dirname(top)
  images = _find_lists(listing, top)
  if not images:
    for image in listing.images:
      if is_below(image, top):
        split = split_names.of_folders(listing.relative(image))
        images.setdefault(split, []).append(image)
  if not any(labels.find(image) for paths in images.values() for image in paths):
    return []
  if list(images) == [""]:
    images = {"train": images[""]}
  return [Source(path, names, images, False, {})] if names else []


def _find_lists(listing, top):
  """Images of the splits that text files in a folder list, train.txt and its like."""
  images = {}
  for split in _SPLITS:
    path = listing.find(os.path.join(top, f"{split}.txt"))
    first = next(iter(_number_lines(listing, path).values()), "") if path else ""
    # It might be the boxes of an image that is called so.
    if first and listing.find_image(first, near=path):
      images[split] = _read_list(listing, path)
  return images


def _number_lines(listing, path):
  """Dict of a line's number, from 0, to its text, of those that are not empty."""
  try:
    lines = map(str.strip, text_files.read(listing.check_inside(path)).splitlines())
  except (OSError, ValueError):
    return {}
  return {number: line for number, line in enumerate(lines) if line}


def _choose_source(listing, split):
  """(Source, name of the split in it, all Sources)."""
  sources = find_sources(listing)
  # A tool's own examples may lie there too.
  sources = [source for source in sources if source.images] or sources
  found = [
    (source, name)
    for source in sources
    for name in split_names.choose(source.images, split, sole=len(sources) == 1)
  ]
  first = found[0] if found else None
  # Of copies of a file any will do.
  if first and all(
    (source.names, source.images[name]) == (first[0].names, first[0].images[first[1]])
    for source, name in found
  ):
    return (*first, sources)
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
        f"beside none of {', '.join(_NAME_FILES)} have images text files of boxes",
        *describe_damaged(listing),
      ]
    )
  raise DataError(
    [_describe_missing(listing, source, split) for source in sources],
    ["data.train_split and data.val_split name the splits to read"],
  )


def _describe_missing(listing, source, split):
  there = [f"{len(paths)} of {name or 'none'}" for name, paths in source.images.items()]
  but = " but train's" if "train" in source.images else ""
  lacking = "".join(
    f"; {name} is {entry!r:.200}, which has no image there{but}"
    for name, entry in source.entries.items()
    if entry and name not in source.images
  )
  return (
    f"{listing.relative(source.path)}: has no split {split!r} with images below "
    f"{listing.root}; it has {', '.join(there) or 'none at all'}{lacking}"
  )


def _load(path) -> dict[str, Any]:
  """The mapping in a YAML file, of texts; empty where it has none.

  Raises:
    ValueError: it is not YAML.
  """
  try:
    if os.path.getsize(path) > _YAML_BYTES:
      return {}  # of another kind
    text = text_files.read(path)
    # The class "no" stays a text, and no tag makes an object.
    content = yaml.load(text, Loader=yaml.BaseLoader) if "names" in text else None
  except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
    raise ValueError(f"is not YAML: {' '.join(str(error).split()):.300}") from error
  return content if isinstance(content, dict) else {}


def _load_darknet(listing, path) -> dict[str, Any]:
  """What darknet's obj.data has, as `_load` gives it; empty for any other file."""
  try:
    if os.path.getsize(path) > _DARKNET_BYTES:
      return {}
  except OSError:
    return {}
  lines = (line.partition("=") for line in _number_lines(listing, path).values())
  content: dict[str, Any] = {key.strip(): value.strip() for key, _, value in lines}
  place = _locate(listing, os.path.dirname(path), "", content.get("names", ""))
  if place is None or not os.path.isfile(place):
    return {}
  return {
    **content,
    "names": {
      str(number): name for number, name in _number_lines(listing, place).items()
    },
  }


def _texts(value) -> list[str]:
  """The texts in what is one or a list of them.

  Nothing else, for what aliases nest may be endless when it is written out.
  """
  items = value if isinstance(value, list) else [value]
  return [item for item in items if isinstance(item, str) and item]


def _read_names(names) -> dict[int, str]:
  """Dict of a class's number in the text files to its name; empty where there is none."""
  if isinstance(names, list):
    names = dict(enumerate(names))
  if not isinstance(names, dict) or len(_texts([*names.values()])) < len(names):
    return {}
  try:
    return dict(sorted((int(number), name) for number, name in names.items()))
  except ValueError:
    return {}


def _find_images(listing, source, content, split):
  """Paths of a split's images, each once."""
  prefix = next(iter(_texts(content.get("path"))), "")
  found: dict[str, None] = {}
  for entry in _texts(content.get(split)):
    place = _locate(listing, os.path.dirname(source), prefix, entry)
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
    lines = text_files.read(listing.check_inside(path)).splitlines()
  except (OSError, ValueError) as error:
    raise DataError([f"{listing.relative(path)}: cannot be read: {error}"]) from error
  named: dict[int, tuple[str, str]] = {}
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
    named[number] = line, image
  strays = listing.find_strays(named.values())
  if strays:
    raise DataError(
      [
        f"{listing.relative(path)}: line {number} {strays[place]}"
        for place, number in enumerate(named)
        if place in strays
      ]
    )
  return [image for _, image in named.values()]


def _locate(listing, base, prefix, entry):
  """Folder or list in the listing that an entry means, however it was written.

  Its first folders may be those of another machine; but train/images is no images/.
  """
  parts = [p for p in re.split(r"[\\/]+", entry) if p not in ("", ".", "..")]
  prefix_parts = [p for p in re.split(r"[\\/]+", prefix) if p not in ("", ".", "..")]
  # An entry may leave its file's folder, as ../train/images does in Roboflow's exports.
  starts = [
    os.path.join(top, *prefix_parts[k:])
    for k in range(len(prefix_parts) + 1)
    for top in (base, os.path.dirname(base), listing.root)
  ]
  for length in range(len(parts), 0, -1):
    dropped, kept = parts[: len(parts) - length], parts[len(parts) - length :]
    if not split_names.of_path(os.path.join(*kept)):
      # Of a split images/train is what train/images is.
      kept = [*kept, *filter(split_names.of_folder, dropped)]
    for start in starts:
      path = os.path.normpath(os.path.join(start, *kept))
      found = listing.find(path)
      if found and (os.path.isdir(found) or found.lower().endswith(_LIST_ENDINGS)):
        return found
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
    top = listing.annotations_only
    self._top = top if os.path.isdir(top) else ""
    texts = listing.annotation_files(".txt") if self._top else listing.files(".txt")
    self._paths = {fold(os.path.splitext(path)[0]): path for path in texts}
    self._listing = listing

  def find(self, image):
    """Path of the image's text file; None where it has none."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    # images/train/a.jpg and train/images/a.jpg: the last folder of that name.
    places = [
      (parts[:k], parts[k + 1 :])
      for k in reversed(range(len(parts) - 1))
      if parts[k].lower() in ("images", "jpegimages", "imgs", "img", "image")
    ]
    others = (
      (parts[:-2], parts[-1:]),
      (parts[:-1], parts[-1:]),
      (parts[:-2], parts[-2:]),
    )
    candidates = [os.sep.join([*top, "labels", *end]) for top, end in places]
    candidates.append(stem)
    candidates += [os.sep.join([*top, "labels", *end]) for top, end in others]
    candidates += [
      os.sep.join([*top, name, *end])
      for name in ("label", "annotations", "annotation")
      for top, end in places
    ]
    if self._top:
      own = self._listing.relative(stem).split(os.sep)
      candidates += [os.path.join(self._top, *own[k:]) for k in range(len(own))]
    found = map(self._paths.get, map(fold, candidates))
    return next(filter(None, found), None)

  def without_image(self, found):
    """Text files of boxes beside some that were found, to which no image belongs."""
    found = set(found)
    tops = {os.path.dirname(path) for path in found}
    others = [path for path in self._paths.values() if path not in found]
    beside = [path for path in others if os.path.dirname(path) in tops]
    # Images of other splits may lie beside each other with these.
    known = {self.find(image) for image in self._listing.images} if beside else set()
    return [path for path in beside if path not in known and _are_boxes(path)]


def _read_image(listing, labels, image_id, image, source, class_ids, faults, notes):
  path = labels.find(image)
  if path is None:
    notes.add(
      "images have no text file, and count as images without objects",
      listing.relative(image),
    )
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


def _are_boxes(path):
  """Whether the first line of a file is of numbers, as many as a box has at least."""
  try:
    words = next(iter(text_files.read(path).splitlines()), "").split()
    return len(words) >= 5 and all(math.isfinite(float(word)) for word in words)
  except (OSError, ValueError):
    return False


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
