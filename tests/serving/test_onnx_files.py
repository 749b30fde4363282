"""onnxruntime and OpenVINO on exported files."""

import os
import pathlib
import re

import numpy as np
import pytest
from serving import runtimes

pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

from ap_detect.serving import exported as exported_lib
from ap_detect.serving import formats

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def version(opened, tmp_path_factory):
  folder = tmp_path_factory.mktemp("formats")
  onnx = formats.load("onnx")
  return onnx.export(opened[0], str(folder), model_name="shapes", description={})


def test_onnxruntime(version, records, found, restored_run):
  assert version.endswith(os.path.join("onnx", "1"))
  opened_again = exported_lib.open_exported(os.path.join(version, "detections.onnx"))
  runtimes.assert_finds_what_evaluation_finds(opened_again, records, found)
  runtimes.assert_same_ap(opened_again, restored_run, 1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["raw.onnx", "detections.onnx"])
def test_openvino(name, batch_size, version):
  openvino = pytest.importorskip("openvino")
  if name == "detections.onnx" and openvino.__version__ >= "2026":
    pytest.skip("it does not read the loop over images, see docs/formats.md")
  path = os.path.join(version, name)
  # On some processors it would compute in bfloat16.
  settings = {"INFERENCE_PRECISION_HINT": "f32"}
  model = openvino.Core().compile_model(path, "CPU", settings)
  inputs = {
    "inputs": np.random.default_rng(0).uniform(0, 255, [batch_size, 128, 128, 3]),
    "content_sizes": np.full([batch_size, 2], 128),
    "score_thresholds": np.zeros([batch_size, 6]),
  }
  inputs = {
    place.get_any_name(): inputs[place.get_any_name()].astype(np.float32)
    for place in model.inputs
  }
  answer = model(inputs)
  expected = formats.load("onnx").load(path)(inputs)
  assert len(answer) == len(expected)
  for place in model.outputs:
    np.testing.assert_allclose(
      answer[place], expected[place.get_any_name()], rtol=1e-4, atol=1e-3
    )


def test_what_it_has_no_operation_for(opened, tmp_path):
  detector = runtimes.with_strings(opened[0])
  with pytest.raises(
    ValueError, match=r"converted to raw.onnx: .*(AsString|StringLength)"
  ):
    formats.load("onnx").export(detector, str(tmp_path), model_name="", description={})
  assert os.listdir(tmp_path / "onnx") == []


def test_documentation(
  version, pngs, found_uncut, opened, tmp_path, monkeypatch, capsys
):
  """The Python of docs/formats.md, on an image that needs no resizing."""
  docs = pathlib.Path(__file__).parents[2] / "docs" / "formats.md"
  (code,) = re.findall(
    r"^```python\n(.*?)^```$",
    docs.read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
  )
  monkeypatch.chdir(tmp_path)
  (tmp_path / "photo.png").write_bytes(pngs[0])
  names = {}
  exec(code.replace("runs/shapes/export/onnx/1", version), names)
  image, thresholds = found_uncut[0], np.array(opened[0].class_thresholds)
  expected = image.scores[image.scores >= thresholds[image.classes - 1]][:100]
  shown = capsys.readouterr().out.splitlines()
  assert len(shown) == names["answer"]["num_detections"] == len(expected) > 0
  scores = names["answer"]["detection_scores"][: len(shown)]
  np.testing.assert_allclose(scores, expected, atol=1e-5)
