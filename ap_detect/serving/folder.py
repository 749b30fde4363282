"""The folder of a served model: what a version holds, and how it appears.

<version>/                       an integer; TensorFlow Serving serves the highest
  saved_model.pb, variables/     the graph and its weights
  assets/labels.txt              names of the classes 1..K, a line each
  assets.extra/ap_detect.json    what the model is, see `export`
  assets.extra/tf_serving_warmup_requests  see warm_up.py
batching.config, models.config, README.md  see server_files.py
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile

import tensorflow as tf

from ap_detect import errors
from ap_detect.runs import files
from ap_detect.serving import graph, self_check, server_files, warm_up

LABELS_FILE = "assets/labels.txt"
DESCRIPTION_FILE = "assets.extra/ap_detect.json"


def export(detector, export_dir, *, model_name, version=None, description=None):
  """Writes <export_dir>/<version>/ and, beside it, what a server needs.

  A version appears complete or not at all, for a server may be watching, and only after
  it has answered its warm-up requests.

  Args:
    detector: graph.Detector.
    export_dir: folder of the model's versions.
    model_name: that clients ask for.
    version: number of the version, 1 or more; None for one above those that are there.
    description: dict of what else ap_detect.json says of the model.

  Returns:
    Path of the new version.

  Raises:
    ValueError: the version is there already; or the detector cannot be served, see
      graph.ServingModule and self_check.check.
    OSError: the folder cannot be written to.
  """

  def write(path):
    _write_version(path, module, detector, model_name, description or {})
    server_files.write(export_dir, model_name, warm_up.BATCH_SIZES)

  version = choose_version(export_dir, version)
  module = graph.ServingModule(detector)
  return write_version(export_dir, version, write)


def choose_version(export_dir, version=None):
  """The number of a new version.

  Args:
    export_dir: folder of the model's versions.
    version: that is wanted; None for one above those that are there.

  Raises:
    ValueError: the version is there already.
  """
  versions = find_versions(export_dir)
  if version in versions:
    raise ValueError(
      f"{export_dir} has a version {version} already; give another --version, or none "
      f"for version {max(versions) + 1}"
    )
  return max(versions, default=0) + 1 if version is None else version


def write_version(export_dir, version, write):
  """Has a version written, which appears complete or not at all.

  Args:
    export_dir: folder of the model's versions.
    version: its number, see choose_version.
    write: function of a path, which makes the version's folder there.

  Returns:
    Path of the new version.
  """
  os.makedirs(export_dir, exist_ok=True)
  # No integer, so that a server that watches the folder passes it by.
  staging = tempfile.mkdtemp(prefix=".unfinished-", dir=export_dir)
  try:
    written = os.path.join(staging, "model")
    write(written)
    path = os.path.join(export_dir, str(version))
    # Fails where another export has made this version meanwhile.
    os.rename(written, path)
  finally:
    shutil.rmtree(staging)
  return path


def write_description(path, detector, model_name, description, *, labels, about):
  """Writes the names of the classes, and what the model is.

  Args:
    path: of a version.
    detector: graph.Detector.
    model_name: that clients ask for.
    description: dict of what else is said.
    labels, about: paths of the two files in the version.
  """
  for name in (labels, about):
    os.makedirs(os.path.dirname(os.path.join(path, name)), exist_ok=True)
  lines = "".join(f"{name}\n" for name in detector.class_names)
  files.write_text(os.path.join(path, labels), lines)
  thresholds = dict(zip(detector.class_names, map(float, detector.class_thresholds)))
  files.write_json(
    os.path.join(path, about),
    {
      "model_name": model_name,
      "classes": list(detector.class_names),
      "score_thresholds": thresholds,
      "calibration": detector.calibration and detector.calibration.to_json(),
      "input_size": list(detector.image_size),
      "max_image_pixels": detector.max_image_pixels,
      "exif_orientation": detector.exif_orientation,
      **description,
    },
  )


def _write_version(path, module, detector, model_name, description):
  with _without_info():
    tf.saved_model.save(module, path, signatures=module.functions)
  write_description(
    path,
    detector,
    model_name,
    {"signatures": list(module.functions), **description},
    labels=LABELS_FILE,
    about=DESCRIPTION_FILE,
  )
  requests = warm_up.make_requests(detector.image_size, len(detector.class_names))
  with errors.naming(path):
    warm_up.write(os.path.join(path, warm_up.FILE), requests, model_name)
  self_check.check(path, module, requests)


def find_versions(export_dir):
  """{number: name} of the versions in a folder, which need not exist."""
  names = os.listdir(export_dir) if os.path.isdir(export_dir) else []
  return {int(name): name for name in names if name.isascii() and name.isdigit()}


@contextlib.contextmanager
def _without_info():
  """Within it, TensorFlow logs warnings and errors alone: it names temporary files."""
  logger = tf.get_logger()
  level = logger.level
  logger.setLevel("WARNING")
  try:
    yield
  finally:
    logger.setLevel(level)
