"""Reads CVAT's own format, "CVAT for images": an XML file with the boxes of many images."""

from __future__ import annotations

import collections
import functools
import math
import os
import re
from typing import NamedTuple

from ap_detect.data.readers import (
  image_files,
  image_lists,
  split_names,
  voc_xml,
)
from ap_detect.data.readers.listing import Listing
from ap_detect.data.records import DataError

_ROOT = "annotations"

# Types of labels, and shapes, that have no box.
_NO_BOXES = ("points", "polyline", "skeleton", "tag")

_CORNER_OF_CUBOID = re.compile(r"[xy][tb][lr][12]")


class _Image(NamedTuple):
  """An image of a file: the file, its <image>, and the image itself, "" if not found."""

  source: str
  element: object
  path: str


def read_cvat(
  root,
  split,
  *,
  image_list=None,
  class_names=None,
  skip_faulty=False,
  listing=None,
  **image_options,
):
  """One split of a dataset in CVAT's own format, version 1.1.

  All such files below the root are read together. An image is found by its name, wherever
  it lies. Its split is its `subset`, else what the file or its folder is named for, else
  what the image's folder is. A box is that around a rectangle, polygon, ellipse, cuboid
  or mask, turned ones too; points, lines and tags have none.

  Args:
    root: folder of the dataset. Faults name files relative to it.
    split: name of the split; see split_names.choose for others of the same meaning.
    image_list: path of a text file that names the images to take out of the split, one
      path as in the file, file name or stem a line. None takes all.
    class_names: names of classes 1..K; any other is then a fault. None takes the labels
      of all files, in their order, but for those of points, lines, skeletons and tags.
    skip_faulty: whether faulty objects and images are left out and reported, instead
      of raising; see image_files.make_records.
    listing: Listing of the root, where there is one already.
    **image_options: check_images, max_image_pixels, exif_orientation and convertible,
      see image_files.make_records.

  Returns:
    DetectionDataset, with the names in the file as image ids (with the file's before
    them where they repeat).

  Raises:
    DataError: lists all faults, each with file, image, object and reason.
    ValueError: class_names has a name twice.
  """
  listing = listing or Listing(root)
  roots = _parse_all(listing)
  splits = _split(listing, roots)
  names = split_names.choose(splits, split, sole=True)
  if len(names) != 1:
    there = ", ".join(repr(name) for name in splits if name) or "none"
    raise DataError(
      [f"{listing.root}: CVAT's files have no split {split!r}; they have {there}"],
      ["data.train_split and data.val_split name the splits to read"],
    )
  chosen, faults = splits[names[0]], []
  if image_list is not None:
    chosen, faults = _choose_images(chosen, image_list)
  class_ids = image_files.number_classes(class_names or _find_class_names(roots))
  notes = image_files.Notes()
  if names[0]:
    for image in splits.get("", []):
      notes.add("images are not read, for they are of no split", _name(image))
  counts = collections.Counter(_name(image) for image in chosen)
  annotated = []
  strays = listing.find_strays((_name(image), image.path or None) for image in chosen)
  for place, image in enumerate(chosen):
    is_single = counts[_name(image)] == 1
    source = listing.relative(image.source)
    item, reasons = _read_image(listing, image, class_ids, notes)
    if place in strays:
      reasons.append(f"image {_name(image)!r} {strays[place]}")
      item.path, item.faulty = None, True
    item.image_id = _name(image) if is_single else f"{source}:{_name(image)}"
    faults += [f"{source}: {reason}" for reason in reasons]
    annotated.append(item)
  return image_files.make_dataset(
    annotated,
    faults,
    class_ids,
    root=listing.root,
    skip_faulty=skip_faulty,
    notes=notes.lines(),
    **image_options,
  )


def find_files(listing: Listing) -> list[str]:
  """Paths of the files that begin like CVAT's."""
  by_folder: dict[str, list[str]] = collections.defaultdict(list)
  for path in listing.annotation_files(".xml"):
    by_folder[os.path.dirname(path)].append(path)
  return [
    path
    for paths in by_folder.values()
    # A folder of VOC's files has a great many.
    if not voc_xml.is_annotation(paths[0])
    for path in paths
    if voc_xml.is_annotation(path, _ROOT)
  ]


def find_splits(listing: Listing) -> list[str]:
  """Names of the splits of all files."""
  return list(_split(listing, _parse_all(listing)))


def _parse_all(listing):
  """Dict of a file's path to its root element."""
  return {path: _parse(listing, path) for path in find_files(listing)}


def _parse(listing, path):
  """Root element of a file; DataError if it is not one of images."""
  try:
    root = voc_xml.parse(listing.check_inside(path), _ROOT)
  except ValueError as error:
    raise DataError([f"{listing.relative(path)}: {error}"]) from error
  if root.find("track") is not None:
    raise DataError(
      [f"{listing.relative(path)}: is of CVAT's format for videos"],
      ["Export the task from CVAT as 'CVAT for images 1.1'"],
    )
  return root


def _split(listing, roots):
  """Dict of a split's name, "" for none, to its _Images."""
  splits: dict[str, list[_Image]] = {}
  for source, root in roots.items():
    own = split_names.of_path(listing.relative(source))
    for element in root.iter("image"):
      try:
        path = listing.find_image(element.get("name", ""), near=source) or ""
      except ValueError:
        path = ""  # Reading it says so.
      by_folder = listing.split_of(path) if path and listing.image_splits else ""
      name = element.get("subset") or own or by_folder
      splits.setdefault(name, []).append(_Image(source, element, path))
  return {"train": splits[""]} if list(splits) == [""] else splits


def _name(image):
  return image.element.get("name", "")


def _choose_images(images, image_list):
  names = [
    (name, os.path.basename(name), os.path.splitext(os.path.basename(name))[0])
    for name in map(_name, images)
  ]
  chosen, faults = image_lists.choose_images(image_list, names)
  return [images[index] for index in sorted(chosen)], faults


def _find_class_names(roots):
  """Names of the labels of all files, then of those that are used but not listed."""
  listed: dict[str, None] = {}
  used: set[str] = set()
  for root in roots.values():
    for label in root.iterfind("meta//labels/label"):
      if voc_xml.text(label, "type") not in _NO_BOXES:
        listed[voc_xml.text(label, "name")] = None
    used |= {
      shape.get("label", "")
      for image in root.iter("image")
      for shape in image
      if shape.tag in _SHAPES
    }
  return [name for name in [*listed, *sorted(used - listed.keys())] if name]


def _read_image(listing, image, class_ids, notes):
  """(image_files.AnnotatedImage, reasons of its faults)."""
  name, element = _name(image), image.element
  (_, size), reasons = image_files.read_parts(
    element,
    [lambda _: listing.need_image(name, near=image.source), _read_size],
  )
  reasons = [f"image {name!r} {reason}" for reason in reasons]
  annotated = image_files.AnnotatedImage(
    name, image.path or None, image.source, size, faulty=bool(reasons)
  )
  for number, shape in enumerate(element, start=1):
    label = f"image {name!r}, object {number}"
    if shape.tag in _NO_BOXES:
      notes.add("objects are points, lines or tags, and have no box", label)
      continue
    (class_id, box), faults = image_files.read_parts(
      shape, [functools.partial(_read_class, class_ids), _read_box]
    )
    reasons += [f"{label} {fault}" for fault in faults]
    annotated.objects.append(
      image_files.AnnotatedObject(label, box, class_id, False, faulty=bool(faults))
    )
  return annotated, reasons


def _read_size(element):
  return image_files.annotated_size(
    *(_number(element, side, "0") for side in ("height", "width"))
  )


def _read_class(class_ids, shape):
  name = shape.get("label", "")
  if name not in class_ids:
    raise ValueError(f"has class {name!r}, which is not in the list of classes")
  return class_ids[name]


def _read_box(shape):
  """(ymin, xmin, ymax, xmax) of a shape."""
  if shape.tag not in _SHAPES:
    raise ValueError(f"is a <{shape.tag}>, of which no box is known")
  return _SHAPES[shape.tag](shape)


def _box_of_rectangle(shape):
  left, top, right, bottom = (_number(shape, k) for k in ("xtl", "ytl", "xbr", "ybr"))
  angle = math.radians(_number(shape, "rotation", "0"))
  if not angle:
    return top, left, bottom, right
  cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
  width, height = right - left, bottom - top
  return _box_around(
    *((left + right) / 2, (top + bottom) / 2),
    *((width * cos + height * sin) / 2, (width * sin + height * cos) / 2),
  )


def _box_of_ellipse(shape):
  x, y, rx, ry = (_number(shape, k) for k in ("cx", "cy", "rx", "ry"))
  angle = math.radians(_number(shape, "rotation", "0"))
  cos, sin = math.cos(angle), math.sin(angle)
  return _box_around(
    x, y, math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
  )


def _box_around(x, y, half_width, half_height):
  return y - half_height, x - half_width, y + half_height, x + half_width


def _box_of_mask(shape):
  x, y, width, height = (_number(shape, k) for k in ("left", "top", "width", "height"))
  return y, x, y + height, x + width


def _box_of_polygon(shape):
  text = shape.get("points", "")
  try:
    pairs = [tuple(map(float, pair.split(","))) for pair in text.split(";")]
    xs, ys = zip(*pairs)
  except ValueError:
    xs = ys = (math.nan,)
  if not all(map(math.isfinite, (*xs, *ys))):
    raise ValueError(f"has points {text!r:.80}, not pairs of finite numbers")
  return min(ys), min(xs), max(ys), max(xs)


def _box_of_cuboid(shape):
  names = [name for name in shape.attrib if _CORNER_OF_CUBOID.fullmatch(name)]
  xs, ys = (
    [_number(shape, name) for name in names if name[0] == axis] for axis in "xy"
  )
  if not xs or not ys:
    raise ValueError("has no corners")
  return min(ys), min(xs), max(ys), max(xs)


_SHAPES = {
  "box": _box_of_rectangle,
  "polygon": _box_of_polygon,
  "ellipse": _box_of_ellipse,
  "mask": _box_of_mask,
  "cuboid": _box_of_cuboid,
}


def _number(element, name, default=""):
  text = element.get(name, default)
  number = image_files.to_finite(text)
  if number is None:
    raise ValueError(f"has {name} {text!r:.80}, not a finite number")
  return number
