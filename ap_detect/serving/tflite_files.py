"""TensorFlow Lite (LiteRT), for phones and small devices. Imported when asked for."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import tempfile
import warnings

import tensorflow as tf

from ap_detect.serving import portable

# Of the weights in a file. Computed in float32 all the same, where the runtime has no
# better.
_PRECISIONS = {"float32": 1e-3, "float16": 3e-2}  # and ModelFile.tolerance


def export(detector, export_dir, **options):
  """Writes <export_dir>/tflite/<version>/{raw,detections}_{float32,float16}.tflite.

  They take one image: the interpreter is faster with fixed shapes, and has no loop over
  images in which NMS works.

  Args:
    detector: graph.Detector.
    export_dir: folder of the model's versions.
    **options: see portable.export, which also says what is returned and raised.
  """
  # The variables alone: the converter would save a Keras model with each of its layers.
  holder = tf.Module()
  holder.network_variables = detector.network.variables
  model_files = [
    portable.ModelFile(
      f"{name}_{precision}.tflite",
      name,
      functools.partial(_convert, holder=holder, precision=precision),
      tolerance,
    )
    for name in portable.GRAPHS
    for precision, tolerance in _PRECISIONS.items()
  ]
  export_dir = os.path.join(export_dir, "tflite")
  return portable.export(
    *(detector, export_dir, model_files, load), versions={}, batch_size=1, **options
  )


def load(path):
  """See formats.py."""
  with warnings.catch_warnings(), _without_chatter():
    warnings.simplefilter("ignore", UserWarning)  # it will leave TensorFlow one day
    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
  run = interpreter.get_signature_runner()
  return lambda inputs: run(**inputs)


def _convert(function, path, *, holder, precision):
  converter = tf.lite.TFLiteConverter.from_concrete_functions(
    [function.get_concrete_function()], holder
  )
  if precision == "float16":
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
  try:
    with _without_chatter():
      content = converter.convert()
  except Exception as error:  # ConverterError is not public
    # In many lines of its compiler's.
    missing = re.findall(r"^(?:TF Select|Custom) ops: (.*)$", str(error), re.MULTILINE)
    if not missing:
      raise
    raise ValueError(f"TensorFlow Lite has no {', '.join(missing)}") from error
  with open(path, "wb") as file:
    file.write(content)


@contextlib.contextmanager
def _without_chatter():
  """Drops what is written to descriptor 2: C++ code tells of itself at any level."""
  descriptor = os.dup(2)
  try:
    with tempfile.TemporaryFile() as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(descriptor, 2)
    os.close(descriptor)
