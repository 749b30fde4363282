"""Reads JSON files of annotations without keeping their polygons in memory."""

from __future__ import annotations

import json
from typing import IO, Any


def load(file: IO[str]) -> Any:
  """As json.load, but objects have no "segmentation" where they have a box.

  Polygons and masks take most of the memory that COCO's files need, and a detector needs
  them only where nothing else says where an object is.

  Args:
    file: open text file.

  Raises:
    ValueError: it is no valid JSON.
    RecursionError: it is nested too deeply.

  Example:
    >>> import io
    >>> load(io.StringIO('{"bbox": [0, 0, 2, 3], "segmentation": [[0, 0, 2, 0, 2, 3]]}'))
    {'bbox': [0, 0, 2, 3]}
  """
  return json.load(file, object_hook=_without_polygons)


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
