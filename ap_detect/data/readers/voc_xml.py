"""Reads one XML file of PASCAL VOC's kind, as the many tools that write them do."""

from __future__ import annotations

import functools
import os
import re
from xml.etree import ElementTree

import defusedxml.common
import defusedxml.ElementTree

from ap_detect.data.readers import image_files, text_files

# Enough for what may stand before the root element.
_HEAD_BYTES = 4096

_DECLARATION = re.compile(r"<\?xml\b[^>]*?\?>")
_ENCODING = re.compile(rb"""<\?xml\b[^>]*?\bencoding\s*=\s*["']([\w.:-]+)["']""")
# What may come before the name of the root element, and after it.
_BEFORE_ROOT, _AFTER_ROOT = r"<(?:[\w.-]+:)?", r"[\s/>]"

_DIFFICULT = {"": False, "0": False, "false": False, "1": True, "true": True}


def is_annotation(path: str, root: str = "annotation") -> bool:
  """Whether a file begins like an annotation with this root element; not parsed."""
  pattern = f"{_BEFORE_ROOT}{root}{_AFTER_ROOT}"
  try:
    with open(path, "rb") as file:
      head = file.read(_HEAD_BYTES)
    text = text_files.decode(head, "latin-1")
    return bool(re.search(pattern, text, re.IGNORECASE))
  except (OSError, ValueError):
    return False


def is_empty(path: str) -> bool:
  """Whether a file has nothing but white space."""
  try:
    with open(path, "rb") as file:
      return not file.read().strip()
  except OSError:
    return False


def parse(path, root="annotation"):
  """Root element of an annotation file, its tags without namespaces.

  Its encoding is the declared one, whatever Python knows; white space may come before
  all; a document type may be there that declares no entities.

  Raises:
    ValueError: with the reason, if there is no such file or no such element.
  """
  if not os.path.isfile(path):
    raise ValueError("there is no such file")
  try:
    with open(path, "rb") as file:
      content = file.read()
    declared = _ENCODING.search(content[:_HEAD_BYTES])
    text = text_files.decode(content, declared.group(1).decode() if declared else "")
    # The declaration may no longer be true, and may come first alone.
    text = _DECLARATION.sub("", text.lstrip(), count=1)
    annotation = defusedxml.ElementTree.fromstring(text)
  except defusedxml.common.DefusedXmlException as error:
    raise ValueError(f"declares entities, which are not read: {error}") from error
  except OSError as error:
    raise ValueError(f"cannot be read: {error.strerror}") from error
  except (ElementTree.ParseError, LookupError, ValueError) as error:
    raise ValueError(f"is not well-formed XML: {error}") from error
  for element in annotation.iter():
    element.tag = str(element.tag).rpartition("}")[2]
  if annotation.tag != root:
    raise ValueError(f"is a <{annotation.tag}>, not an <{root}>")
  return annotation


def class_names(annotation):
  """Names of the classes of an annotation's objects; set."""
  return {text(element, "name") for element in annotation.findall("object")} - {""}


def read_size(annotation):
  """(height, width), or None where the annotation has none or zeros."""
  size = annotation.find("size")
  if size is None:
    return None
  texts = [text(size, name) or "0" for name in ("height", "width")]
  try:
    height, width = map(float, texts)
  except ValueError:
    raise ValueError(f"has height and width {texts}, not numbers") from None
  return image_files.annotated_size(height, width)


def read_objects(annotation, class_ids, *, one_based_inclusive, notes, source):
  """An annotation's objects, and what is wrong with them.

  Args:
    annotation: root element.
    class_ids: dict of a class's name to 1..K.
    one_based_inclusive: see voc.read_voc.
    notes: image_files.Notes, extended.
    source: how notes name the file.

  Returns:
    (list of image_files.AnnotatedObject, list of reasons).
  """
  objects, reasons = [], []
  for number, element in enumerate(annotation.findall("object"), start=1):
    boxes = element.findall("bndbox") or [None]
    for place, bndbox in enumerate(boxes, start=1):
      label = f"object {number}" + (f", box {place}" if len(boxes) > 1 else "")
      (class_id, box, ignored), faults = image_files.read_parts(
        element,
        [
          functools.partial(_read_class, class_ids),
          lambda _, bndbox=bndbox: _read_box(bndbox, one_based_inclusive),
          functools.partial(_read_difficult, notes, f"{source}: {label}"),
        ],
      )
      reasons += [f"{label} {fault}" for fault in faults]
      objects.append(
        image_files.AnnotatedObject(label, box, class_id, ignored, faulty=bool(faults))
      )
    if len(boxes) > 1:
      notes.add("objects have several boxes, each taken for an object", source)
  return objects, reasons


def _read_class(class_ids, element):
  name = text(element, "name")
  if not name:
    raise ValueError("has no name")
  if name not in class_ids:
    raise ValueError(f"has class {name!r}, which is not in the list of classes")
  return class_ids[name]


def _read_box(bndbox, one_based_inclusive):
  """(ymin, xmin, ymax, xmax), continuous coordinates."""
  if bndbox is None:
    raise ValueError("has no bndbox")
  ymin, xmin, ymax, xmax = (
    _read_coordinate(bndbox, name) for name in ("ymin", "xmin", "ymax", "xmax")
  )
  if one_based_inclusive:
    return ymin - 1, xmin - 1, ymax, xmax
  return ymin, xmin, ymax, xmax


def _read_coordinate(bndbox, name):
  value = text(bndbox, name)
  number = image_files.to_finite(value)
  if number is None:
    raise ValueError(f"has {name} {value!r}, not a finite number")
  return number


def _read_difficult(notes, place, element):
  value = text(element, "difficult")
  if value.lower() not in _DIFFICULT:
    kind = (
      "objects have a <difficult> that is neither 0 nor 1, and count as not difficult"
    )
    notes.add(kind, f"{place} has {value!r}")
  return _DIFFICULT.get(value.lower(), False)


def text(element, name):
  """Text of a child element; empty where there is none."""
  return (element.findtext(name) or "").strip()
