"""The formats that a detector is exported to, as data: each is imported when asked for.

The module of a format has a function `export`, with the arguments of folder.export. That
of a format for other runtimes also has `load`: the path of a file -> a function of
{input: array} to {output: array}.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple


class Format(NamedTuple):
  """A format of exported detectors.

  Attributes:
    module: what writes it.
    suffix: of its files; "" for a SavedModel, which is a folder.
    extra: of setup.py, which has the packages that it needs; "" for none.
  """

  module: str
  suffix: str = ""
  extra: str = ""


FORMATS = {
  "saved_model": Format("ap_detect.serving.folder"),
  "onnx": Format("ap_detect.serving.onnx_files", suffix=".onnx", extra="onnx"),
  "tflite": Format("ap_detect.serving.tflite_files", suffix=".tflite"),
}


def load(name):
  """Imports the module of a format.

  Raises:
    ValueError: a package that it needs is missing, or does not go with the others.
  """
  chosen = FORMATS[name]
  try:
    return importlib.import_module(chosen.module)
  except Exception as error:  # packages that do not fit each other fail in any way
    if not chosen.extra:
      raise
    raise ValueError(
      f"format {name} needs packages that cannot be imported here ({error}); they come "
      f"with the extra {chosen.extra}: pip install -e '.[{chosen.extra}]' in a checkout"
    ) from error


def find(path):
  """Name of the format that a file has by its name, or None."""
  for name, candidate in FORMATS.items():
    if candidate.suffix and str(path).endswith(candidate.suffix):
      return name
  return None
