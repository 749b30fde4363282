"""Reads JSON files of annotations without keeping their polygons in memory."""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from typing import Any

from ap_detect.data.readers import text_files


def loads(text: str) -> Any:
  """As json.loads, but objects have no "segmentation" where they have a box.

  Polygons and masks take most of the memory that COCO's files need, and a detector needs
  them only where nothing else says where an object is.

  Args:
    text: of a file.

  Raises:
    ValueError: it is no valid JSON.
    RecursionError: it is nested too deeply.

  Example:
    >>> loads('{"bbox": [0, 0, 2, 3], "segmentation": [[0, 0, 2, 0, 2, 3]]}')
    {'bbox': [0, 0, 2, 3]}
  """
  return json.loads(text, object_hook=_without_polygons)


def _without_polygons(item):
  if "segmentation" in item and _is_box(item.get("bbox")):
    # Another dict, for one that shrinks keeps its memory.
    return {name: value for name, value in item.items() if name != "segmentation"}
  return item


def _is_box(bbox):
  """Whether it is (x, y, width, height) with an area."""
  return (
    isinstance(bbox, list)
    and len(bbox) == 4
    and all(isinstance(value, (int, float)) for value in bbox)
    and bbox[2] > 0
    and bbox[3] > 0
  )


_LISTS = re.compile(rb'"(images|annotations|categories)"\s*:\s*\[')
_CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')
_BEFORE_OBJECT = b"\xef\xbb\xbf \t\r\n"


def is_coco(path: str) -> bool:
  """Whether a file looks like COCO's: an object with two of its three lists.

  It is not parsed, for it may be large.
  """
  try:
    with _map(path) as content:
      found = set()
      if content[:64].lstrip(_BEFORE_OBJECT).startswith(b"{"):
        for match in _LISTS.finditer(content):
          found.add(match[1])
          if len(found) == 2:
            return True
  except (OSError, ValueError):
    pass  # nothing there
  return False


def read_categories(path: str) -> list[Any]:
  """The list of categories in a file, without reading the rest of it.

  Raises:
    OSError: it cannot be read.
    ValueError: it has no such list of objects.
  """
  with _map(path) as content:
    for match in _CATEGORIES.finditer(content):
      items = _decode_list(content, match.end())
      if items and all(isinstance(item, dict) for item in items):
        return items
  raise ValueError("has no list of categories")


@contextlib.contextmanager
def _map(path):
  """A file's text as UTF-8, read as it is asked for; ValueError where it is empty."""
  with open(path, "rb") as file:
    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  with content:
    # Only of UTF-16 and UTF-32 a JSON text has such bytes at its start.
    is_wide = b"\0" in content[:4]
    yield text_files.decode(content[:]).encode() if is_wide else content


def _decode_list(content, start):
  """The JSON list that begins at a place; None where there is none."""
  length = 2**16
  while True:
    text = content[start : start + length].decode("utf-8", errors="replace")
    try:
      return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
      if start + length >= len(content):
        return None
      length *= 4
