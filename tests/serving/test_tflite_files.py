"""TensorFlow Lite's interpreter on exported files."""

import os

import numpy as np
import pytest
from serving import runtimes

from ap_detect.serving import exported as exported_lib
from ap_detect.serving import formats

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def version(opened, tmp_path_factory):
  folder = tmp_path_factory.mktemp("formats")
  tflite = formats.load("tflite")
  return tflite.export(opened[0], str(folder), model_name="shapes", description={})


def test_files(version):
  assert version.endswith(os.path.join("tflite", "1"))
  sizes = {
    name: os.path.getsize(os.path.join(version, name))
    for name in os.listdir(version)
    if name.endswith(".tflite")
  }
  assert len(sizes) == 4
  for name in ("raw", "detections"):
    assert sizes[f"{name}_float16.tflite"] < sizes[f"{name}_float32.tflite"]


def test_float32(version, records, found, restored_run):
  path = os.path.join(version, "detections_float32.tflite")
  opened_again = exported_lib.open_exported(path)
  runtimes.assert_finds_what_evaluation_finds(opened_again, records, found)
  runtimes.assert_same_ap(opened_again, restored_run, 1e-4)


def test_float16(version, restored_run):
  path = os.path.join(version, "detections_float16.tflite")
  runtimes.assert_same_ap(exported_lib.open_exported(path), restored_run, 0.01)


@pytest.mark.parametrize("name", ["raw_float32.tflite", "raw_float16.tflite"])
def test_litert(name, version):
  """The interpreter that is not TensorFlow's."""
  litert = pytest.importorskip("ai_edge_litert.interpreter")
  path = os.path.join(version, name)
  inputs = np.random.default_rng(0).uniform(0, 255, [1, 128, 128, 3])
  inputs = {"inputs": inputs.astype(np.float32)}
  answer = litert.Interpreter(path).get_signature_runner()(**inputs)
  for output, expected in formats.load("tflite").load(path)(inputs).items():
    np.testing.assert_allclose(answer[output], expected, rtol=1e-3, atol=1e-2)


def test_what_it_has_no_operation_for(opened, tmp_path):
  detector = runtimes.with_strings(opened[0])
  message = r"converted to raw_float32.tflite: TensorFlow Lite has no AsString"
  with pytest.raises(ValueError, match=message):
    formats.load("tflite").export(
      detector, str(tmp_path), model_name="", description={}
    )
  assert os.listdir(tmp_path / "tflite") == []
