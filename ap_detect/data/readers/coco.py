"""Reads detection data in COCO's JSON format, wherever the file and its images lie."""

from __future__ import annotations

import collections
import functools
import math
import os
import re
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from ap_detect.data.readers import (
  annotation_json,
  folders,
  image_files,
  image_lists,
  split_names,
  text_files,
)
from ap_detect.data.readers.listing import Listing
from ap_detect.data.records import DataError

# What a split's file is called, best first: COCO's own, its shorter form, Roboflow's, and
# COCO's for images without labels. Other files may be anywhere, of any name.
_LAYOUTS = (
  re.compile(r"(?:.*/)?annotations/instances_(?P<split>[^/]+)\.json", re.IGNORECASE),
  re.compile(
    r"(?:.*/)?annotations/(?!image_info_)(?P<split>[^/]+)\.json", re.IGNORECASE
  ),
  re.compile(r"(?:(?:.*/)?(?P<split>[^/]+)/)?_annotations\.coco\.json", re.IGNORECASE),
  re.compile(r"(?:.*/)?annotations/image_info_(?P<split>[^/]+)\.json", re.IGNORECASE),
)
_OTHER = len(_LAYOUTS)
_WANTED = (
  "annotations/instances_{0}.json, annotations/{0}.json, {0}/_annotations.coco.json, "
  "annotations/image_info_{0}.json, and any other file with lists of images, "
  "annotations and categories whose name or folder has {0!r} in it"
)

_PROBED_IMAGES = 20

# A file without any of its own, such as images alone, has folders of these names.
_IMAGE_FOLDERS = ("images", "data")

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class _File(NamedTuple):
  """A file of annotations.

  Attributes:
    path: of the file.
    layout: index into _LAYOUTS, or _OTHER.
    split: the name of its split, by the file's or its folder's name.
    is_part: whether it has the images of other splits too, which are told apart by the
      folders of images.
  """

  path: str
  layout: int
  split: str
  is_part: bool = False


def read_coco(
  root,
  split,
  *,
  image_list=None,
  class_names=None,
  skip_faulty=False,
  listing=None,
  **image_options,
):
  """One split of a dataset in COCO's format.

  Args:
    root: folder of the dataset. Faults name files relative to it.
    split: the annotations are, first found first and at any depth,
      annotations/instances_<split>.json or annotations/<split>.json,
      <split>/_annotations.coco.json, annotations/image_info_<split>.json, or any file
      that looks like COCO's and has the split in its name or folders; "train" finds
      train2017 too, and the only file there is. A sole file that names no split is
      divided by the folders of its images, where these are named for splits. The images
      are looked for in <split>, images/<split> and other usual folders, whichever has
      most of those that the annotations name (those of COCO's test-dev in test's), and
      what is not there anywhere below the root by its name, however its path was written.
    image_list: path of a text file that names the images to take out of the split, one
      id, file name or stem a line; no other image, and none of its annotations, is
      looked at. None takes all.
    class_names: names of classes 1..K, out of the categories; an annotation of any
      other is then a fault. None takes all categories of all splits, united by their
      names, in the order of their ids.
    skip_faulty: whether faulty annotations and images are left out and reported,
      instead of raising; see image_files.make_records. What concerns the whole file is
      raised all the same.
    listing: Listing of the root, where there is one already.
    **image_options: check_images, max_image_pixels, exif_orientation and convertible,
      see image_files.make_records.

  Returns:
    DetectionDataset, with the file's image ids. Images without annotations are
    kept; crowds are ignored; areas are the file's, where it has them; boxes that reach
    past an edge of their image are clipped. What an annotation lacks its polygon gives; one
    with an empty box and no polygon is none. An image_info_*.json need not have
    annotations: the split is then read without labels.

  Raises:
    DataError: lists all faults, each with file, annotation and reason.
    ValueError: class_names has a name twice.
  """
  listing = listing or Listing(root)
  files = find_files(listing)
  file = _choose_file(listing, files, split)
  source = listing.relative(file.path)
  content = _read_json(file.path, source)
  names = _read_categories(content["categories"], source)
  united = _unite_categories(listing, files, file, names)
  chosen = _choose_categories(united, class_names, source)
  entries, annotation_entries, list_faults = _choose_entries(content, image_list)
  find_image = _make_finder(listing, file, entries)
  if file.is_part:
    entries, annotation_entries = _take_part(
      listing, file, entries, annotation_entries, find_image
    )
  notes = image_files.Notes()
  annotated, faults = _read_images(listing, entries, find_image, file.path, notes)
  class_ids = {name: number for number, name in enumerate(chosen, 1)}
  faults += _read_annotations(annotation_entries, annotated, class_ids, names, notes)
  faults = list_faults + [f"{source}: {fault}" for fault in faults]
  images = list({id(image): image for image in annotated.values()}.values())
  return image_files.make_dataset(
    images,
    faults,
    class_ids,
    root=listing.root,
    skip_faulty=skip_faulty,
    category_ids=_choose_ids(chosen, names, united, content),
    ignored_are_crowds=True,
    has_labels="annotations" in content,
    notes=[f"{source}: {line}" for line in notes.lines()],
    **image_options,
  )


def find_files(listing: Listing) -> list[_File]:
  """Files that are COCO's by their names, or else by what is in them."""
  found = []
  for path in listing.annotation_files(".json"):
    name = listing.relative(path).replace(os.sep, "/")
    for layout, pattern in enumerate(_LAYOUTS):
      match = pattern.fullmatch(name)
      # Of another name, a file in this folder may be anything.
      is_certain = layout != 1 or bool(split_names.of_path(name))
      if match and (is_certain or annotation_json.is_coco(path)):
        found.append(_File(path, layout, match["split"] or "train"))
        break
    else:
      if annotation_json.is_coco(path):
        stem = os.path.splitext(os.path.basename(path))[0]
        found.append(_File(path, _OTHER, split_names.of_path(name) or stem))
  if len(found) == 1 and not split_names.of_path(listing.relative(found[0].path)):
    parts = [found[0]._replace(split=s, is_part=True) for s in listing.image_splits]
    return parts or found
  return found


def choose_names(files: list[_File], split: str, *, sole: bool) -> list[str]:
  """The names that a split has among files, see split_names.choose."""
  names = split_names_of(files)
  found = split_names.choose(names, split)
  if found or not sole:
    return found
  # Beside COCO's own file for a split may lie its captions and key points.
  layout = min((file.layout for file in files), default=_OTHER)
  best = [file for file in files if file.layout == layout]
  return split_names.choose(split_names_of(best), split, sole=True)


def split_names_of(files: list[_File]) -> list[str]:
  """Names of the splits of files, each once."""
  return list(dict.fromkeys(file.split for file in files))


def _choose_file(listing, files, split):
  """The file of a split."""
  # A layout's own name for another split is no name of this one.
  own = [file.split for file in files if file.split == split]
  for names in (own, choose_names(files, split, sole=True)):
    for layout in range(_OTHER + 1):
      found = [file for file in files if file.layout == layout and file.split in names]
      if len(found) == 1:
        return found[0]
      if found:
        paths = ", ".join(file.path for file in found)
        raise DataError(
          [f"{listing.root}: the split {split!r} could be any of {paths}; say which"],
          [_ANNOTATIONS],
        )
  there = ", ".join(file.path for file in files) or "none"
  wanted = _WANTED.format(split)
  raise DataError(
    [
      f"{listing.root}: no annotations of split {split!r}: looked for {wanted}; there "
      f"are {there}"
    ],
    [_ANNOTATIONS],
  )


_ANNOTATIONS = (
  "data.annotations names the file to read, or a folder to look in; {split} in it stands "
  "for the split"
)


def _read_json(path, source):
  """The file's content, with the lists that every COCO file of its kind has."""
  try:
    content = annotation_json.loads(text_files.read(path))
  except (OSError, ValueError, RecursionError) as error:
    raise DataError([f"{source}: cannot be read as JSON: {error}"]) from error
  if not isinstance(content, dict):
    raise DataError([f"{source}: is not a JSON object"])
  keys = ["images", "annotations", "categories"]
  if os.path.basename(path).startswith("image_info_") and "annotations" not in content:
    keys.remove("annotations")
  faults = [
    f"{source}: {key!r} must be a list of objects"
    for key in keys
    if not _is_list_of_objects(content.get(key))
  ]
  if "annotations" in keys and "annotations" not in content:
    faults.append(f"{source}: a split without labels must be named image_info_*.json")
  if not faults and not content["images"]:
    faults = [f"{source}: names no image"]
  if faults:
    raise DataError(faults)
  return content


def _is_list_of_objects(value):
  return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _read_categories(items, source):
  """Names of the categories by id, in the order of ids."""
  names: dict[int, str] = {}
  faults = []
  for number, item in enumerate(items):
    readers = [functools.partial(_read_category_id, names), _read_name]
    (category, name), reasons = image_files.read_parts(item, readers)
    faults += [f"{source}: categories[{number}] {reason}" for reason in reasons]
    if not reasons:
      names[category] = name
  if not items:
    faults.append(f"{source}: has no categories")
  if faults:
    raise DataError(faults)
  return dict(sorted(names.items()))


def _unite_categories(listing, files, file, names):
  """Dict of a category's name to an id, of all splits, in the order of these ids.

  An id that another name has already is replaced by a free one.
  """
  order = {"train": 0, "val": 1}
  alike = [other for other in files if other.layout == file.layout]
  alike.sort(key=lambda f: (order.get(split_names.meaning(f.split), 2), f.path))
  pairs = []
  for other in alike or [file]:
    if other == file:
      pairs += names.items()
      continue
    try:
      found = annotation_json.read_categories(other.path)
      pairs += _read_categories(found, listing.relative(other.path)).items()
    except (OSError, ValueError):
      continue  # Reading that split says so.
  united: dict[str, int] = {}
  for category, name in pairs:
    if name not in united:
      taken = set(united.values())
      united[name] = category if category not in taken else max(taken) + 1
  return dict(sorted(united.items(), key=lambda item: item[1]))


def _choose_categories(united, class_names, source):
  """Names of the categories that are the classes 1..K, as a tuple."""
  if class_names is None:
    return tuple(united)
  unknown = image_files.number_classes(class_names).keys() - united.keys()
  if unknown:
    raise DataError(
      [f"{source}: has no category named {sorted(unknown)}; it has {list(united)}"]
    )
  return tuple(class_names)


def _choose_ids(chosen, names, united, content):
  """Ids of the classes: the file's own, and free ones for what it lacks.

  Of several categories of one name it is that with most annotations.
  """
  counts: collections.Counter = collections.Counter()
  if len(set(names.values())) < len(names):
    items = content.get("annotations", [])
    counts.update(str(item.get("category_id")) for item in items)
  ids: list[int] = []
  for class_name in chosen:
    own = [category for category, name in names.items() if name == class_name]
    if own:
      ids.append(max(own, key=lambda category: counts[str(category)]))
      continue
    taken = {*names, *ids}
    free = united[class_name]
    ids.append(free if free not in taken else max(taken) + 1)
  return tuple(ids)


def _choose_entries(content, image_list):
  """What a list names of a file: (images, annotations, faults of the list).

  Both are of (number in the file, entry), in the file's order; images are a list.
  """
  images = list(enumerate(content["images"]))
  annotations = enumerate(content.get("annotations", []))
  if image_list is None:
    return images, annotations, []
  names = [_image_names(item) for _, item in images]
  chosen, faults = image_lists.choose_images(image_list, names)
  taken = [entry for entry in images if entry[0] in chosen]
  return taken, _annotations_of(taken, images, annotations), faults


def _annotations_of(taken, images, annotations):
  """The annotations of some of a file's images, as a list.

  One that names no image of the file stays, to be found faulty.
  """
  left_out = {_key(item.get("id")) for _, item in images}
  left_out -= {_key(item.get("id")) for _, item in taken}
  return [
    entry for entry in annotations if _key(entry[1].get("image_id")) not in left_out
  ]


def _take_part(listing, file, images, annotations, find_image):
  """(images, annotations) of the split of a file that has other splits too."""

  def is_of_part(entry):
    (path,), reasons = image_files.read_parts(entry[1], [find_image])
    # What is not there is a fault of any split.
    is_there = not reasons and os.path.lexists(path)
    return not is_there or listing.split_of(path) == file.split

  taken = list(filter(is_of_part, images))
  return taken, _annotations_of(taken, images, annotations)


def _file_name(item):
  is_unnamed = "file_name" not in item and "coco_url" in item
  return _get(item, "coco_url" if is_unnamed else "file_name", (str,))


def _image_names(item):
  """What an image may be listed by: id, path, file name, stem."""
  path = str(item.get("file_name"))
  name = os.path.basename(path)
  return str(item.get("id")), path, name, os.path.splitext(name)[0]


def _make_finder(listing, file, entries):
  """Function of a file_name to the path of the image."""
  own_folder = os.path.dirname(file.path)
  is_beside = os.path.basename(own_folder).lower() != "annotations"
  base = own_folder if is_beside else os.path.dirname(own_folder)
  tops = [listing.images_only] if listing.images_only else [base, listing.root]
  # The images of COCO's test-dev2017 are some of those of its test2017.
  splits = [file.split, file.split.replace("test-dev", "test")]
  names = [*_IMAGE_FOLDERS, ""]
  choices = [
    os.path.join(top, *parts).rstrip(os.sep)
    for top in tops
    for parts in (
      *((split,) for split in splits),
      *(("images", split) for split in splits),
      *((name,) for name in names),
    )
  ]
  probes = [str(item.get("file_name")) for _, item in entries[:_PROBED_IMAGES]]
  probes = [name for name in probes if not folders.leaves_folder(name)]

  def count(folder):
    return sum(os.path.isfile(os.path.join(folder, name)) for name in probes)

  folder = max(choices, key=count)

  def find(item):
    name = _file_name(item)
    is_inside = name and "\0" not in name and not folders.leaves_folder(name)
    if is_inside and os.path.lexists(os.path.join(folder, name)):
      return listing.check_inside(os.path.join(folder, name))
    found = listing.find_image(name, near=file.path)
    if found:
      return found
    return folders.path_inside(folder, name, [os.path.realpath(folder)])

  return find


def _read_images(listing, entries, find_image, path, notes):
  """(dict of the _key of an id to image_files.AnnotatedImage, faults).

  A file that several entries name is one image, which has the annotations of all.
  """
  annotated: dict[str, image_files.AnnotatedImage] = {}
  by_path: dict[str, image_files.AnnotatedImage] = {}
  faults = []
  found = [image_files.read_parts(item, [find_image]) for _, item in entries]
  strays = listing.find_strays(
    (_file_name(item), path) if path and listing.find(path) else ("", None)
    for (_, item), ((path,), _) in zip(entries, found)
  )
  readers = [functools.partial(_read_image_id, annotated), _read_size]
  for place, (number, item) in enumerate(entries):
    (image_id, size), reasons = image_files.read_parts(item, readers)
    (image_path,), path_reasons = found[place]
    reasons += path_reasons
    if place in strays:
      image_path = None
      reasons.append(strays[place])
    label = f"images[{number}]" if image_id is None else f"image {image_id}"
    faults += [f"{label} {reason}" for reason in reasons]
    if image_id is None:
      # What is annotated by an id that two images have may be in either.
      first = annotated.get(_key(item.get("id")))
      if first is not None:
        first.faulty = True
      continue
    image = image_files.AnnotatedImage(
      image_id, image_path, path, size, faulty=bool(reasons)
    )
    first = by_path.setdefault(image_path, image) if image_path else image
    if first is not image:
      notes.add("images are listed again, and are one with the first", label)
      first.faulty |= image.faulty
    annotated[_key(image_id)] = first
  return annotated, faults


def _read_annotations(entries, annotated, class_ids, names, notes):
  """Adds objects to the images they are in; returns the faults."""
  seen: set[str] = set()
  faults = []
  readers = [
    functools.partial(_read_image, annotated),
    functools.partial(_read_class, class_ids, names),
    _read_box,
    _read_crowd,
    _read_area,
  ]
  for number, item in entries:
    label = _label(item, number, seen, notes)
    (image, *parts), reasons = image_files.read_parts(item, readers)
    class_id, box, crowd, area = parts
    if box == _NO_BOX:
      notes.add(
        "annotations have an empty box and no polygon, and are no objects", label
      )
      continue
    faults += [f"{label} {reason}" for reason in reasons]
    if image is None:
      continue
    marked = image_files.AnnotatedObject(
      label,
      box,
      class_id,
      crowd,
      area,
      faulty=bool(reasons),
      box_xywh=_own_box(item, box),
    )
    # Of an image that is listed again the annotations are often repeated too.
    if _key(item["image_id"]) != _key(image.image_id) and any(
      (other.box, other.class_id, other.ignored) == (box, class_id, crowd)
      for other in image.objects
    ):
      notes.add("annotations of images that are listed again are the same", label)
    else:
      image.objects.append(marked)
  return faults


def _own_box(item, box):
  """The bbox as the file has it; None where the box is of a polygon."""
  bbox = item.get("bbox")
  return tuple(bbox) if box and bbox and any(bbox) else None


def _label(item, number, seen, notes):
  """How an annotation is called: by its id, or by its place where that is none."""
  place = f"annotations[{number}]"
  identity = item.get("id")
  if type(identity) not in (int, str):
    notes.add("annotations have no id", place)
    return place
  if str(identity) in seen:
    notes.add("annotations have an id that an earlier one has too", place)
    return place
  seen.add(str(identity))
  return f"annotation {identity}"


def _read_category_id(known, item):
  identity = _as_number(item.get("id"))
  if not isinstance(identity, int):
    raise ValueError(f"has id {item.get('id')!r:.80}, not a whole number")
  if identity in known:
    raise ValueError(f"has id {identity}, which an earlier one has too")
  return identity


def _read_image_id(known, item):
  """The id, a text only where the file has one."""
  identity = _as_id(item.get("id"))
  if identity is None:
    raise ValueError(f"has id {item.get('id')!r:.80}, neither a number nor a text")
  if _key(identity) in known:
    raise ValueError(f"has id {identity}, which an earlier one has too")
  return identity


def _read_name(item):
  return str(_get(item, "name", (str, int)))


def _read_size(item):
  sides = [
    0 if item.get(key) is None else _as_number(item[key]) for key in ("height", "width")
  ]
  for key, side in zip(("height", "width"), sides):
    if side is None:
      raise ValueError(f"has {key} {item[key]!r:.80}, not a number")
  return image_files.annotated_size(*sides)


def _read_image(annotated, item):
  key = _key(item.get("image_id"))
  if key not in annotated:
    given = item.get("image_id")
    raise ValueError(f"names image {given!r:.80}, which is not in the file")
  return annotated[key]


def _read_class(class_ids, names, item):
  category = _as_number(item.get("category_id"))
  if category not in names:
    given = item.get("category_id")
    raise ValueError(f"names category {given!r:.80}, which is not in the file")
  name = names[category]
  if name not in class_ids:
    raise ValueError(f"has class {name!r}, which is not in the list of classes")
  return class_ids[name]


# Of an annotation that marks nothing.
_NO_BOX = (0.0, 0.0, 0.0, 0.0)


def _read_box(item):
  """(ymin, xmin, ymax, xmax) of a bbox (x, y, width, height), or else of a polygon."""
  bbox = item.get("bbox")
  if bbox is None or (isinstance(bbox, list) and not any(bbox)):
    box = _box_of_mask(item.get("segmentation"))
    if box is None and bbox is None:
      raise ValueError("has neither a bbox nor a polygon")
    return box or _NO_BOX
  if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
    raise ValueError(f"has bbox {bbox!r:.80}, not four finite numbers")
  x, y, width, height = map(float, bbox)
  if width <= 0 or height <= 0:
    raise ValueError(f"has bbox {bbox} (x, y, width, height), which is empty")
  return y, x, y + height, x + width


def _box_of_mask(segmentation):
  """(ymin, xmin, ymax, xmax) of polygons or a run-length code; None where it is empty."""
  if isinstance(segmentation, dict):
    try:
      x, y, width, height = coco_mask.toBbox(_to_mask(segmentation)).tolist()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
      raise ValueError(f"has a mask that cannot be read: {error}") from error
    return (y, x, y + height, x + width) if width and height else None
  polygons = segmentation if isinstance(segmentation, list) else []
  if polygons and all(map(_is_number, polygons)):
    polygons = [polygons]  # one, without the list around it
  values = [value for polygon in polygons for value in _coordinates(polygon)]
  xs, ys = values[0::2], values[1::2]
  return (min(ys), min(xs), max(ys), max(xs)) if values else None


def _to_mask(segmentation):
  """A mask as pycocotools takes it, which divides by a height of 0 and reads past ends.

  Raises:
    KeyError, TypeError, ValueError, OverflowError: it is none.
  """
  height, width = (int(side) for side in segmentation["size"])
  if image_files.annotated_size(height, width) is None:
    raise ValueError("its image has no size")
  counts = segmentation["counts"]
  if isinstance(counts, list):
    counts = [int(count) for count in counts]
    if min(counts, default=0) < 0 or sum(counts) > height * width:
      raise ValueError("its runs are no mask of that size")
    return coco_mask.frPyObjects(
      {"counts": counts, "size": [height, width]}, height, width
    )
  # Characters of six bits from "0" on; the sixth says that more follow.
  codes = [ord(character) - 48 for character in counts]
  if not all(0 <= code < 64 for code in codes) or (codes and codes[-1] & 32):
    raise ValueError("its runs are cut off, or not of COCO's characters")
  return {"counts": counts, "size": [height, width]}


def _coordinates(polygon):
  """The coordinates of a polygon, x and y in turn."""
  if (
    not isinstance(polygon, list)
    or len(polygon) % 2
    or not all(map(_is_number, polygon))
  ):
    raise ValueError(f"has polygon {polygon!r:.80}, not pairs of finite numbers")
  return map(float, polygon)


def _read_crowd(item):
  value = item.get("iscrowd")
  crowd = 0 if value is None else _as_number(int(value) if value is True else value)
  if value is not False and crowd not in (0, 1):
    raise ValueError(f"has iscrowd {value!r:.80}, neither 0 nor 1")
  return bool(crowd)


def _read_area(item):
  """The annotation's area, or None where it has none."""
  if item.get("area") is None:
    return None
  area = _as_number(item["area"])
  if area is None or not 0 <= area <= _LARGEST_FLOAT32:
    raise ValueError(f"has area {item['area']!r:.80}, not a finite number from 0 up")
  return area


def _as_number(value):
  """A whole or finite number of a number or its text; None where it is neither."""
  if isinstance(value, bool) or not isinstance(value, (int, float, str)):
    return None
  if isinstance(value, int):
    return value
  try:
    number = float(value)
  except ValueError:
    return None
  if not math.isfinite(number):
    return None
  return int(number) if number == int(number) else number


def _as_id(value):
  """An id as it is written, but a whole number for 3.0; None for what is no id."""
  if isinstance(value, str):
    return value or None
  number = _as_number(value)
  return number if isinstance(number, int) else None


def _key(value):
  """What an id is told apart by, as text: 7, 7.0 and "000007" are one."""
  text = str(_as_id(value))
  return (text.lstrip("0") or "0") if text.isdecimal() else text


def _is_number(value):
  """Whether a value is a finite number that float32 can hold."""
  return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT32


def _get(item, key, kinds):
  """A field of the right type."""
  value = item.get(key)
  if type(value) not in kinds:
    names = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"has {key} {value!r:.80}, not {names}")
  return value
