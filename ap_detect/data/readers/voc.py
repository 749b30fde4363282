"""Reads detection data in the layout of PASCAL VOC."""

from __future__ import annotations

import functools
import math
import os
import re
from xml.etree import ElementTree

import defusedxml.common
import defusedxml.ElementTree

from ap_detect.data.readers import folders, image_files, image_lists
from ap_detect.data.records import DataError, DetectionDataset

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")

# The second column of VOC's files of one class, such as cat_train.txt.
_CLASS_COLUMN = re.compile(r"\s+(-1|0|1)$")


def read_voc(
  root,
  split,
  *,
  image_list=None,
  class_names=None,
  one_based_inclusive=False,
  skip_faulty=False,
  **image_options,
):
  """One split of a dataset in VOC layout.

  The layout: Annotations/<stem>.xml, JPEGImages/<stem>.jpg (or .jpeg or .png, else what
  the XML names) and ImageSets/Main/<split>.txt with one stem a line. Lines may have
  the second column of VOC's files of one class, which is not used.

  A split none of whose images has an XML file, such as PASCAL's test split of 2012, is
  read without labels, from its pictures alone. Annotations may then be absent.

  Args:
    root: folder that holds the three, in itself or up to 4 levels below.
    split: name of a file in ImageSets/Main, without `.txt`.
    image_list: path of a text file that names the images to take out of the split, one
      stem or file name a line; nothing else is looked at. None takes all.
    class_names: names of classes 1..K; any other class is then a fault. None takes all
      names in Annotations, whatever the split, sorted; not for a split without labels.
    one_based_inclusive: how boxes are written. False: as plain coordinates of the
      box's edges, which is how labelImg and its like write them. True: by the first
      and last row and column of pixels, counted from 1, which is the VOC devkit's rule;
      the box is then [ymin - 1, xmin - 1, ymax, xmax]. For the official VOC folders.
    skip_faulty: whether faulty objects and images are left out and reported, instead
      of raising. What concerns the whole split is raised all the same.
    **image_options: check_images, max_image_pixels, exif_orientation and convertible,
      see image_files.make_records.

  Returns:
    DetectionDataset, with stems as image ids. Images without objects are kept;
    difficult objects are ignored; boxes up to 1 pixel outside their image are clipped.

  Raises:
    DataError: lists all faults, each with file, object (from 1) and reason;
      coordinates in it are continuous.
    ValueError: class_names has a name twice.
  """
  root = os.fspath(root)
  folder = folders.choose_voc_folder(root, split)
  allowed = [os.path.realpath(root)]
  allowed += [
    os.path.realpath(os.path.join(folder, part)) for part in folders.VOC_PARTS
  ]
  faults: list[str] = []
  stems = _read_split(folder, split, root, allowed, faults)
  if image_list is not None:
    stems = _choose_stems(stems, image_list, faults)
  has_labels = not stems or any(
    os.path.isfile(_annotation_path(folder, stem)) for stem in stems
  )
  if class_names is None:
    if not has_labels:
      raise DataError([*faults, _describe_unlabelled(folder, split, root)])
    class_names = _find_class_names(folder, allowed)
  class_ids = image_files.number_classes(class_names)
  annotated: list[image_files.AnnotatedImage] = []
  for stem in stems:
    if has_labels:
      image, reasons = _read_image(
        folder, stem, allowed, class_ids, one_based_inclusive
      )
    else:
      image, reasons = _read_unlabelled(folder, stem, allowed, split)
    source = os.path.relpath(image.annotation, root)
    faults.extend(f"{source}: {reason}" for reason in reasons)
    annotated.append(image)
  records = image_files.make_records(
    annotated,
    faults,
    root=root,
    **image_options,
  )
  image_files.refuse_faults(
    faults,
    records,
    class_ids,
    skip_faulty=skip_faulty,
    advice=[] if one_based_inclusive else _advise_on_thin_boxes(annotated),
  )
  return DetectionDataset(
    records=tuple(records),
    class_names=tuple(class_ids),
    category_ids=tuple(class_ids.values()),
    ignored_are_crowds=False,
    skipped=tuple(faults),
    has_labels=has_labels,
  )


def _advise_on_thin_boxes(annotated):
  """What may be behind boxes that end where they begin."""
  boxes = [item.box for image in annotated for item in image.objects]
  if any(ymin == ymax or xmin == xmax for ymin, xmin, ymax, xmax in boxes):
    return [
      "data.voc_one_based_inclusive=True makes boxes a pixel larger; right where they "
      "include their last pixel, as in PASCAL's own files"
    ]
  return []


def _describe_unlabelled(folder, split, root):
  """Fault of a split without labels for which no classes were given."""
  source = os.path.relpath(folders.voc_split(folder, split), root)
  return (
    f"{source}: none of its images has an XML file in Annotations; a split without "
    "labels requires data.class_names"
  )


def _find_class_names(folder, allowed):
  """Names of all classes in Annotations, sorted.

  Files that cannot be read are passed over: where the split needs them, reading the
  split says so.
  """
  names: set[str] = set()
  part = os.path.join(folder, "Annotations")
  for file in os.listdir(part) if os.path.isdir(part) else []:
    if not file.endswith(".xml"):
      continue
    try:
      annotation = _parse(folders.path_inside(part, file, allowed))
    except ValueError:
      continue
    names.update(_text(element, "name") for element in annotation.findall("object"))
  names.discard("")
  return sorted(names)


def _read_split(folder, split, root, allowed, faults):
  """Stems of a split's images, each once, in the file's order; faults is extended."""
  path = folders.voc_split(folder, split)
  source = os.path.relpath(path, root)
  first_lines: dict[str, int] = {}
  for number, line in image_lists.read_lines(path, source):
    try:
      stem = _read_stem(line, folder, allowed)
      first = first_lines.setdefault(stem, number)
      if first != number:
        raise ValueError(f"{stem!r} was named in line {first} already")
    except ValueError as error:
      faults.append(f"{source}: line {number}: {error}")
  return list(first_lines)


def _choose_stems(stems, image_list, faults):
  """The stems that a list names, in the split's order; faults is extended."""
  names = [(stem, *(stem + extension for extension in _EXTENSIONS)) for stem in stems]
  chosen, more_faults = image_lists.choose_images(image_list, names)
  faults += more_faults
  return [stem for index, stem in enumerate(stems) if index in chosen]


def _read_stem(line, folder, allowed):
  """The stem that a line names; ValueError if it leaves the folder."""
  without_column = _CLASS_COLUMN.sub("", line)
  part = os.path.join(folder, "Annotations")
  path = folders.path_inside(part, f"{line}.xml", allowed)
  if line == without_column or os.path.isfile(path):
    return line  # A stem may itself end like a column: "cell 1".
  return without_column


def _annotation_path(folder, stem):
  return os.path.join(folder, "Annotations", f"{stem}.xml")


def _read_unlabelled(folder, stem, allowed, split):
  """As _read_image, from the picture alone."""
  (path,), reasons = image_files.read_parts(
    ElementTree.Element("annotation"),
    [functools.partial(_find_image, folder, stem, allowed)],
  )
  source = folders.voc_split(folder, split)
  return image_files.AnnotatedImage(stem, path, source, faulty=bool(reasons)), reasons


def _read_image(folder, stem, allowed, class_ids, one_based_inclusive):
  """(image_files.AnnotatedImage, reasons of its faults)."""
  path = _annotation_path(folder, stem)
  (annotation,), reasons = image_files.read_parts(path, [_parse])
  if annotation is None:
    annotation = ElementTree.Element("annotation")
  (size, image_path), more_reasons = image_files.read_parts(
    annotation, [_read_size, functools.partial(_find_image, folder, stem, allowed)]
  )
  reasons += more_reasons
  image = image_files.AnnotatedImage(stem, image_path, path, size, faulty=bool(reasons))
  for number, element in enumerate(annotation.findall("object"), start=1):
    label = f"object {number}"
    item, faults = _read_object(element, label, class_ids, one_based_inclusive)
    reasons += [f"{label} {fault}" for fault in faults]
    image.objects += [item] if item else []
  return image, reasons


def _parse(path):
  """Root element of an annotation file; ValueError with the reason if it has none."""
  if not os.path.isfile(path):
    raise ValueError("there is no such file")
  try:
    annotation = defusedxml.ElementTree.parse(path, forbid_dtd=True).getroot()
  except defusedxml.common.DefusedXmlException as error:
    raise ValueError(f"has a DTD or entities, which are not read: {error}") from error
  except OSError as error:
    raise ValueError(f"cannot be read: {error.strerror}") from error
  except (ElementTree.ParseError, LookupError, ValueError) as error:
    raise ValueError(f"is not well-formed XML: {error}") from error
  if annotation.tag != "annotation":
    raise ValueError(f"is a <{annotation.tag}>, not a VOC <annotation>")
  return annotation


def _read_size(annotation):
  """(height, width), or None where the annotation has none or zeros."""
  size = annotation.find("size")
  if size is None:
    return None
  texts = [_text(size, name) or "0" for name in ("height", "width")]
  try:
    height, width = map(int, texts)
  except ValueError:
    raise ValueError(f"has height and width {texts}, not integers") from None
  return image_files.annotated_size(height, width)


def _find_image(folder, stem, allowed, annotation):
  """Path of the image, by the stem or else by what the annotation names.

  The stem comes first: tools that rename files leave the old name in the XML.
  """
  part = os.path.join(folder, "JPEGImages")
  names = [stem + extension for extension in _EXTENSIONS]
  found = [name for name in names if os.path.isfile(os.path.join(part, name))]
  name = (found or [_text(annotation, "filename") or names[0]])[0]
  return folders.path_inside(part, name, allowed)


def _read_object(element, label, class_ids, one_based_inclusive):
  """(image_files.AnnotatedObject or None without a box, reasons of its faults)."""
  (class_id, box, ignored), reasons = image_files.read_parts(
    element,
    [
      functools.partial(_read_class, class_ids),
      functools.partial(_read_box, one_based_inclusive),
      _read_difficult,
    ],
  )
  if box is None:
    return None, reasons
  item = image_files.AnnotatedObject(
    label, box, class_id, ignored, faulty=bool(reasons)
  )
  return item, reasons


def _read_class(class_ids, element):
  name = _text(element, "name")
  if not name:
    raise ValueError("has no name")
  if name not in class_ids:
    raise ValueError(f"has class {name!r}, which is not in the list of classes")
  return class_ids[name]


def _read_box(one_based_inclusive, element):
  """(ymin, xmin, ymax, xmax), continuous coordinates."""
  bndbox = element.find("bndbox")
  if bndbox is None:
    raise ValueError("has no bndbox")
  ymin, xmin, ymax, xmax = (
    _read_coordinate(bndbox, name) for name in ("ymin", "xmin", "ymax", "xmax")
  )
  if one_based_inclusive:
    return ymin - 1, xmin - 1, ymax, xmax
  return ymin, xmin, ymax, xmax


def _read_coordinate(bndbox, name):
  text = _text(bndbox, name)
  try:
    number = float(text)
  except ValueError:
    number = math.nan
  if not math.isfinite(number):
    raise ValueError(f"has {name} {text!r}, not a finite number")
  return number


def _read_difficult(element):
  text = _text(element, "difficult") or "0"
  if text not in ("0", "1"):
    raise ValueError(f"has difficult {text!r}, neither 0 nor 1")
  return text == "1"


def _text(element, name):
  """Text of a child element; empty where there is none."""
  return (element.findtext(name) or "").strip()
