"""Small files of a run; a crash or a full disk leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import io
import json
import os
from typing import Any

import numpy as np
from PIL import Image

from ap_detect import errors


def write_json(path: str, value: Any, *, indent: int | None = 2) -> None:
  """Writes a file that is, at any moment, either its old self or its new one."""
  write_text(path, json.dumps(value, indent=indent) + "\n")


def write_text(path: str, text: str) -> None:
  """As `write_json`, for text; what UTF-8 lacks, as in odd names of files, is escaped."""
  _write(path, text.encode("utf-8", "backslashreplace"), is_flushed=True)


def write_png(path: str, pixels: np.ndarray) -> None:
  """As `write_json`, for an image, [H, W, 3] uint8; not safe from a loss of power."""
  _write_image(path, pixels, "PNG")


def write_jpeg(path: str, pixels: np.ndarray) -> None:
  """As `write_png`, many times smaller for photos, and not exact."""
  _write_image(path, pixels, "JPEG", quality=90)


def write_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
  """As `write_json`, for arrays by name, an .npz file; not safe from a loss of power."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  _write(path, buffer.getvalue(), is_flushed=False)


def _write_image(path, pixels, image_format, **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, image_format, **options)
  _write(path, buffer.getvalue(), is_flushed=False)


def _write(path, content, *, is_flushed):
  temporary = f"{path}.tmp"
  try:
    with errors.naming(path), open(temporary, "wb") as file:
      file.write(content)
      if is_flushed:
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
  except OSError:
    with contextlib.suppress(OSError):
      os.remove(temporary)
    raise


def read_json(path: str) -> Any:
  """What a JSON file holds.

  Raises:
    ValueError: it is no valid JSON; names the file.
  """
  with open(path, encoding="utf-8") as file:
    try:
      return json.load(file)
    except (ValueError, RecursionError) as error:
      raise ValueError(f"{path} is not valid JSON: {error}") from error
