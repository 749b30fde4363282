"""ONNX, for onnxruntime and OpenVINO, by tf2onnx. Imported only when asked for."""

from __future__ import annotations

import os

import onnxruntime
import tf2onnx

from ap_detect.serving import portable

# Of 2022; onnxruntime reads it from 1.12 on.
_OPSET = 17
_TOLERANCE = 1e-3


def export(detector, export_dir, **options):
  """Writes <export_dir>/onnx/<version>/{raw,detections}.onnx, of any batch size.

  Args:
    detector: graph.Detector.
    export_dir: folder of the model's versions.
    **options: see portable.export, which also says what is returned and raised.
  """
  model_files = [
    portable.ModelFile(f"{name}.onnx", name, _convert, _TOLERANCE)
    for name in portable.GRAPHS
  ]
  export_dir = os.path.join(export_dir, "onnx")
  versions = {
    package.__name__: package.__version__ for package in (tf2onnx, onnxruntime)
  }
  return portable.export(
    *(detector, export_dir, model_files, load), versions=versions, **options
  )


def load(path):
  """See formats.py; on the CPU."""
  session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
  outputs = [output.name for output in session.get_outputs()]
  return lambda inputs: dict(zip(outputs, session.run(outputs, inputs)))


def _convert(function, path):
  # Of what it cannot convert it writes a file too, which no runtime loads.
  tf2onnx.convert.from_function(
    function,
    input_signature=function.input_signature,
    opset=_OPSET,
    output_path=path,
  )
