"""Small files of a run, written so that a crash leaves the old or the new one."""

from __future__ import annotations

import json
import os
from typing import Any


def write_json(path: str, value: Any, *, indent: int | None = 2) -> None:
  """Writes a file that is, at any moment, either its old self or its new one."""
  write_text(path, json.dumps(value, indent=indent) + "\n")


def write_text(path: str, text: str) -> None:
  """As `write_json`, for text."""
  temporary = f"{path}.tmp"
  with open(temporary, "w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def read_json(path: str) -> Any:
  """What a JSON file holds.

  Raises:
    ValueError: it is no valid JSON; names the file.
  """
  with open(path, encoding="utf-8") as file:
    try:
      return json.load(file)
    except ValueError as error:
      raise ValueError(f"{path} is not valid JSON: {error}") from error
