"""Exports a run for serving, or for another runtime.

ap_detect export --model_dir=... [--export_dir=...] [--format=onnx|tflite]
"""

import re

from absl import flags

from ap_detect import command_line
from ap_detect.serving import formats

MODEL_DIR = command_line.define_model_dir()
EXPORT_DIR = command_line.define_path(
  "export_dir",
  "",
  "Folder of the model's versions; default: <model_dir>/export. Formats other than "
  "saved_model have a folder of their own in it.",
)
FORMAT = flags.DEFINE_enum(
  "format",
  "saved_model",
  list(formats.FORMATS),
  "saved_model, for TensorFlow Serving; onnx, for onnxruntime and OpenVINO; tflite, for "
  "TensorFlow Lite.",
)
MODEL_NAME = flags.DEFINE_string(
  "model_name",
  "",
  "Name that clients ask a server for; default: that of export_dir or, where that is the "
  "run's own, of model_dir.",
)
flags.register_validator(
  MODEL_NAME,
  lambda name: re.fullmatch(r"[\w.-]*", name, re.ASCII),
  "letters, digits, '_', '-' and '.' are allowed, for it stands in addresses",
)
VERSION = flags.DEFINE_integer(
  "version",
  None,
  "Number of the version; by default one above those that are there.",
  lower_bound=1,
  upper_bound=2**63 - 1,  # as TensorFlow Serving keeps it
)
CHECKPOINT = command_line.define_checkpoint()
AVERAGED_WEIGHTS = command_line.define_averaged_weights()
SCORES = command_line.define_scores()
MAX_IMAGE_PIXELS = flags.DEFINE_integer(
  "max_image_pixels",
  50_000_000,
  "Image files of more pixels are answered as invalid, without being decoded.",
  lower_bound=1,
)


def main(_):
  command_line.load_tensorflow()
  import os

  from ap_detect.serving import from_run

  chosen_format = formats.load(FORMAT.value)
  model_dir = MODEL_DIR.value
  export_dir = EXPORT_DIR.value or os.path.join(model_dir, "export")
  detector, description = from_run.open_run(
    model_dir,
    CHECKPOINT.value,
    averaged_weights=AVERAGED_WEIGHTS.value,
    max_image_pixels=MAX_IMAGE_PIXELS.value,
    **SCORES(),
  )
  version = chosen_format.export(
    detector,
    export_dir,
    model_name=MODEL_NAME.value or from_run.default_model_name(model_dir, export_dir),
    version=VERSION.value,
    description=description,
  )
  print(f"exported {description['checkpoint']} of {model_dir}\nto       {version}/")
  for name, threshold in zip(detector.class_names, detector.class_thresholds):
    print(f"  {name}: scores from {threshold:.4f}")
  if FORMAT.value == "saved_model":
    print(f"to serve {export_dir}/README.md says how")


if __name__ == "__main__":
  command_line.run(main)
