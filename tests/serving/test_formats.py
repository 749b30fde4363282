"""The registry of formats, which imports nothing until asked."""

import importlib
import importlib.util
import subprocess
import sys

import pytest

from ap_detect.serving import formats


def test_imports_nothing():
  code = (
    "import sys, ap_detect.serving.formats\n"
    "print({'tensorflow', 'tf2onnx', 'onnxruntime'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "set()\n"


def test_every_module_is_there():
  for chosen in formats.FORMATS.values():
    assert importlib.util.find_spec(chosen.module)


@pytest.mark.parametrize(
  ("path", "name"),
  [("a/b.onnx", "onnx"), ("b.tflite", "tflite"), ("export/1", None), ("onnx", None)],
)
def test_of_a_file(path, name):
  assert formats.find(path) == name


@pytest.mark.parametrize("fault", [ImportError("No module"), AttributeError("odd")])
def test_missing_package(fault, monkeypatch):
  def fail(name):
    raise fault

  monkeypatch.setattr(importlib, "import_module", fail)
  with pytest.raises(ValueError, match=r"packages .*pip install -e '\.\[onnx\]'"):
    formats.load("onnx")
  with pytest.raises(type(fault)):  # a fault of ours
    formats.load("tflite")
