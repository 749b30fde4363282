"""Reads detection data in COCO's JSON format."""

from __future__ import annotations

import functools
import glob
import os

import numpy as np

from ap_detect.data.readers import annotation_json, folders, image_files, image_lists
from ap_detect.data.records import DataError, DetectionDataset

# Paths of a split's annotations: COCO's own, its shorter form, Roboflow's, and COCO's
# for images without labels.
_LAYOUTS = (
  ("annotations", "instances_{}.json"),
  ("annotations", "{}.json"),
  ("{}", "_annotations.coco.json"),
  ("annotations", "image_info_{}.json"),
)
_PREFIXES = ("instances_", "image_info_")

_PROBED_IMAGES = 20

_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def read_coco(
  root,
  split,
  *,
  annotations=None,
  images=None,
  image_list=None,
  class_names=None,
  skip_faulty=False,
  **image_options,
):
  """One split of a dataset in COCO's format.

  Args:
    root: folder of the dataset. Faults name files relative to it.
    split: the annotations are, first found first, root/annotations/
      instances_<split>.json or <split>.json, root/<split>/_annotations.coco.json,
      root/annotations/image_info_<split>.json, or the only file that has one of these
      names with <split>*, so that "train" finds train2017. The images are in
      root/<split>, root/images/<split>, root/images or root, whichever has most of
      those that the annotations name; those of COCO's test-dev may be in test's folder.
    annotations: path of the JSON file, where it lies elsewhere. An image_info_*.json
      need not have annotations: the split is then read without labels.
    images: folder of the images, where it lies elsewhere.
    image_list: path of a text file that names the images to take out of the split, one
      id, file name or stem a line; no other image, and none of its annotations, is
      looked at. None takes all.
    class_names: names of classes 1..K, out of the file's categories; an annotation of
      any other is then a fault. None takes all categories, in the order of their ids.
    skip_faulty: whether faulty annotations and images are left out and reported,
      instead of raising. What concerns the whole file is raised all the same.
    **image_options: check_images, max_image_pixels, exif_orientation and convertible,
      see image_files.make_records.

  Returns:
    DetectionDataset, with the file's image ids. Images without annotations are
    kept; crowds are ignored; areas are the file's, where it has them; boxes up to 1
    pixel outside their image are clipped.

  Raises:
    DataError: lists all faults, each with file, annotation and reason.
    ValueError: class_names has a name twice.
  """
  root = os.fspath(root)
  path, split = _find_annotations(root, split, annotations)
  source = os.path.relpath(path, root)
  content = _read_json(path, source)
  names = _read_categories(content["categories"], source)
  category_ids = _choose_categories(names, class_names, source)
  entries, annotation_entries, list_faults = _choose_entries(content, image_list)
  folder = _find_images(root, split, images, entries)
  annotated, faults = _read_images(entries, folder, root, path)
  class_ids = {category: number for number, category in enumerate(category_ids, 1)}
  faults += _read_annotations(annotation_entries, annotated, class_ids, names)
  faults = list_faults + [f"{source}: {fault}" for fault in faults]
  records = image_files.make_records(
    list(annotated.values()),
    faults,
    root=root,
    **image_options,
  )
  image_files.refuse_faults(faults, records, class_ids, skip_faulty=skip_faulty)
  return DetectionDataset(
    records=tuple(records),
    class_names=tuple(names[category] for category in category_ids),
    category_ids=category_ids,
    ignored_are_crowds=True,
    skipped=tuple(faults),
    has_labels="annotations" in content,
  )


def _find_annotations(root, split, annotations):
  """(path of the JSON file, full name of the split)."""
  if annotations is not None:
    return os.fspath(annotations), split
  folders.check_folder(root)
  found = candidates(root, split)
  if len(found) == 1:
    return found[0], _split_name(found[0])
  if found:
    raise DataError(
      [f"{root}: the split {split!r} could be any of {', '.join(found)}; say which"]
    )
  wanted = ", ".join(os.path.join(*layout).format(split) for layout in _LAYOUTS)
  there = ", ".join(folders.find_coco_files(root)) or "none"
  fault = f"no annotations of split {split!r}: looked for {wanted}; there are {there}"
  raise DataError([f"{root}: {fault}"])


def candidates(root, split):
  """Paths of the JSON files that a split's name may mean, of the first layout found."""
  patterns = [
    os.path.join(glob.escape(root), os.path.join(*layout).format(name))
    for name in (glob.escape(split), glob.escape(split) + "*")
    for layout in _LAYOUTS
  ]
  return next(filter(None, (sorted(glob.glob(pattern)) for pattern in patterns)), [])


def _split_name(path):
  """The split's full name, out of the path of its annotations."""
  folder, name = os.path.split(path)
  if name == "_annotations.coco.json":
    return os.path.basename(folder)
  name = name[: -len(".json")]
  for prefix in _PREFIXES:
    if name.startswith(prefix):
      return name[len(prefix) :]
  return name


def _read_json(path, source):
  """The file's content, with the lists that every COCO file of its kind has."""
  try:
    with open(path, encoding="utf-8-sig") as file:
      content = annotation_json.load(file)
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
    readers = [functools.partial(_read_new_id, names), _read_name]
    (category, name), reasons = image_files.read_parts(item, readers)
    if name in names.values():
      reasons.append(f"has name {name!r}, which another category has too")
    faults += [f"{source}: categories[{number}] {reason}" for reason in reasons]
    if not reasons:
      names[category] = name
  if not items:
    faults.append(f"{source}: has no categories")
  if faults:
    raise DataError(faults)
  return dict(sorted(names.items()))


def _choose_categories(names, class_names, source):
  """Ids of the categories that are the classes 1..K, as a tuple."""
  if class_names is None:
    return tuple(names)
  ids = {name: category for category, name in names.items()}
  unknown = image_files.number_classes(class_names).keys() - ids.keys()
  if unknown:
    raise DataError(
      [f"{source}: has no category named {sorted(unknown)}; it has {list(ids)}"]
    )
  return tuple(ids[name] for name in class_names)


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
  # An annotation that names no image of the file stays, to be found faulty.
  left_out = {name for name, *_ in names} - {str(item.get("id")) for _, item in taken}
  kept = [
    entry for entry in annotations if str(entry[1].get("image_id")) not in left_out
  ]
  return taken, kept, faults


def _image_names(item):
  """What an image may be listed by: id, path, file name, stem."""
  path = str(item.get("file_name"))
  name = os.path.basename(path)
  return str(item.get("id")), path, name, os.path.splitext(name)[0]


def _find_images(root, split, images, entries):
  """The folder of the images: as given, else the one that has most of the first few."""
  if images is not None:
    folders.check_folder(images)
    return os.fspath(images)
  names = [str(item.get("file_name")) for _, item in entries[:_PROBED_IMAGES]]
  # The images of COCO's test-dev2017 are some of those of its test2017.
  splits = dict.fromkeys([split, split.replace("test-dev", "test")])
  choices = [
    *(
      os.path.join(root, *folder, name)
      for name in splits
      for folder in ((), ("images",))
    ),
    os.path.join(root, "images"),
    root,
  ]

  def count(folder):
    return sum(os.path.isfile(os.path.join(folder, name)) for name in names)

  if not any(map(os.path.isdir, choices[:-1])) and not count(root):
    raise DataError(
      [f"{root}: no folder of images: looked for {', '.join(choices[:-1])}"]
    )
  return max(choices, key=count)


def _read_images(entries, folder, root, path):
  """(dict of id to image_files.AnnotatedImage, faults)."""
  annotated: dict[int, image_files.AnnotatedImage] = {}
  faults = []
  readers = [
    functools.partial(_read_new_id, annotated),
    functools.partial(
      _read_file_name, folder, (os.path.realpath(folder), os.path.realpath(root))
    ),
    _read_size,
  ]
  for number, item in entries:
    (image_id, image_path, size), reasons = image_files.read_parts(item, readers)
    label = f"images[{number}]" if image_id is None else f"image {image_id}"
    faults += [f"{label} {reason}" for reason in reasons]
    if image_id is not None:
      annotated[image_id] = image_files.AnnotatedImage(
        image_id, image_path, path, size, faulty=bool(reasons)
      )
  return annotated, faults


def _read_annotations(entries, annotated, class_ids, names):
  """Adds objects to the images they are in; returns the faults."""
  seen: set[int | None] = set()
  faults = []
  readers = [
    functools.partial(_read_new_id, seen),
    functools.partial(_read_image, annotated),
    functools.partial(_read_class, class_ids, names),
    _read_box,
    _read_crowd,
    _read_area,
  ]
  for number, item in entries:
    (identity, image, *parts), reasons = image_files.read_parts(item, readers)
    label = f"annotations[{number}]" if identity is None else f"annotation {identity}"
    faults += [f"{label} {reason}" for reason in reasons]
    seen.add(identity)
    class_id, box, crowd, area = parts
    if image is not None and box is not None:
      image.objects.append(
        image_files.AnnotatedObject(
          label, box, class_id, crowd, area, faulty=bool(reasons)
        )
      )
  return faults


def _read_new_id(known, item):
  identity = _get(item, "id", (int,))
  if identity in known:
    raise ValueError(f"has id {identity}, which an earlier one has too")
  return identity


def _read_name(item):
  return _get(item, "name", (str,))


def _read_file_name(folder, allowed, item):
  return folders.path_inside(folder, _get(item, "file_name", (str,)), allowed)


def _read_size(item):
  height = _get(item, "height", (int,), 0)
  width = _get(item, "width", (int,), 0)
  return image_files.annotated_size(height, width)


def _read_image(annotated, item):
  image_id = _get(item, "image_id", (int,))
  if image_id not in annotated:
    raise ValueError(f"names image {image_id}, which is not in the file")
  return annotated[image_id]


def _read_class(class_ids, names, item):
  category = _get(item, "category_id", (int,))
  if category not in names:
    raise ValueError(f"names category {category}, which is not in the file")
  if category not in class_ids:
    name = names[category]
    raise ValueError(f"has class {name!r}, which is not in the list of classes")
  return class_ids[category]


def _read_box(item):
  """(ymin, xmin, ymax, xmax) of a bbox (x, y, width, height)."""
  bbox = _get(item, "bbox", (list,))
  if len(bbox) != 4 or not all(map(_is_number, bbox)):
    raise ValueError(f"has bbox {bbox!r:.80}, not four finite numbers")
  x, y, width, height = map(float, bbox)
  if width <= 0 or height <= 0:
    raise ValueError(f"has bbox {bbox} (x, y, width, height), which is empty")
  return y, x, y + height, x + width


def _read_crowd(item):
  crowd = _get(item, "iscrowd", (int, bool), 0)
  if crowd not in (0, 1):
    raise ValueError(f"has iscrowd {crowd}, neither 0 nor 1")
  return bool(crowd)


def _read_area(item):
  """The annotation's area, or None where it has none."""
  area = _get(item, "area", (int, float), None)
  if area is not None and not (_is_number(area) and area >= 0):
    raise ValueError(f"has area {area}, not a finite number from 0 up")
  return area


def _is_number(value):
  """Whether a value is a finite number that float32 can hold."""
  return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT32


def _get(item, key, kinds, *default):
  """A field of the right type, or the default, where there is one, for none or null."""
  value = item.get(key)
  if value is None and default:
    return default[0]
  if type(value) not in kinds:
    names = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"has {key} {value!r:.80}, not {names}")
  return value
