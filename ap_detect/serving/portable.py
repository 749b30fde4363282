"""A detector for other runtimes than TensorFlow: its graphs, and a version's folder.

<version>/
  a file of each graph, see make_graphs, in each precision of the format
  labels.txt     names of the classes 1..K, a line each
  ap_detect.json what the model is, as beside a SavedModel, and how far each file's
                 answer was from the network's own on images of noise
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import errors
from ap_detect.serving import calibrated_scores, folder, graph

LABELS_FILE = "labels.txt"
DESCRIPTION_FILE = "ap_detect.json"
GRAPHS = ("raw", "detections")

# Outputs whose numbers are compared in place: not those that the order of detections moves.
_COMPARED = (*graph.RAW, "detection_scores")
# Detections are found again where their boxes' IoU is this, and most must be: where
# candidates are equally good, a rounding decides which of them stays.
_SAME_BOX_IOU = 0.9
_SHARE_FOUND = 0.8


class ModelFile(NamedTuple):
  """A file of a format.

  Attributes:
    name: of the file.
    graph: one of GRAPHS.
    convert: function of a tf.function and a path that writes the file.
    tolerance: largest norm of an output's difference from the network's own, relative
      to the norm of that.
  """

  name: str
  graph: str
  convert: Callable
  tolerance: float


def make_graphs(detector, batch_size=None):
  """A detector's graphs, of operations that other runtimes have too.

  raw         inputs -> boxes, logits; as signature raw of graph.py
  detections  inputs, content_sizes, score_thresholds -> detection_boxes,
              detection_scores, detection_classes, num_detections

  inputs            [B, height, width, 3] float32, RGB 0..255, of the network's input
                    size; an image lies in the top left corner, scaled with its aspect
                    kept, and the rest is images.FILL_RGB
  content_sizes     [B, 2] float32, height and width of the image in it, pixels
  score_thresholds  [B, K] float32, in the scores that are put out
  detection_boxes   [B, D, 4] float32, yxyx, pixels of the input; the others as in graph.py

  Args:
    detector: graph.Detector.
    batch_size: B; None for any.

  Returns:
    {name: tf.function}.
  """
  network, calibration = detector.network, detector.calibration

  def calibrate(scores):
    if calibration is None:
      return scores
    return calibrated_scores.calibrate(scores, calibration, dtype=tf.float32)

  def raw(inputs):
    outputs = network(inputs, training=False)
    boxes = box_ops.decode(outputs.box_outputs, detector.anchors)
    return dict(zip(graph.RAW, (boxes, outputs.class_logits)))

  def detections(inputs, content_sizes, score_thresholds):
    outputs = network(inputs, training=False)
    found = detector.post_process(outputs, content_sizes, score_thresholds, calibrate)
    return {
      "detection_boxes": found.boxes,
      "detection_scores": tf.where(found.classes > 0, calibrate(found.scores), 0.0),
      "detection_classes": found.classes,
      "num_detections": found.num_detections,
    }

  inputs = tf.TensorSpec([batch_size, *detector.image_size, 3], tf.float32)
  content_sizes = tf.TensorSpec([batch_size, 2], tf.float32)
  thresholds = tf.TensorSpec([batch_size, len(detector.class_names)], tf.float32)
  return {
    "raw": tf.function(raw, [inputs]),
    "detections": tf.function(detections, [inputs, content_sizes, thresholds]),
  }


def export(
  detector,
  export_dir,
  model_files,
  load,
  *,
  versions,
  model_name,
  version=None,
  description=None,
  batch_size=None,
):
  """Writes <export_dir>/<version>/, complete or not at all.

  Every file is loaded by its runtime and answers as the network does before the version
  appears.

  Args:
    detector: graph.Detector.
    export_dir: folder of the versions of this format.
    model_files: list of ModelFile.
    load: see formats.py.
    versions: {package: version} of those that convert, for the description.
    model_name, version, description: see folder.export.
    batch_size: see make_graphs.

  Returns:
    Path of the new version.

  Raises:
    ValueError: the version is there already, or the detector cannot be converted, or a
      file's answer is wrong.
    OSError: the folder cannot be written to.
  """
  description = dict(description or {})
  description["versions"] = {**description.get("versions", {}), **versions}
  description["batch_size"] = batch_size
  about_files = description["files"] = {}

  def write(path):
    os.makedirs(path)
    graphs = make_graphs(detector, batch_size)
    inputs = _make_inputs(detector, batch_size or 2)
    for file in model_files:
      place = os.path.join(path, file.name)
      differences = _write_file(
        place, file, graphs[file.graph], load, inputs[file.graph]
      )
      about_files[file.name] = {"graph": file.graph, "largest_differences": differences}
    folder.write_description(
      path,
      detector,
      model_name,
      description,
      labels=LABELS_FILE,
      about=DESCRIPTION_FILE,
    )

  version = folder.choose_version(export_dir, version)
  return folder.write_version(export_dir, version, write)


def _make_inputs(detector, batch_size):
  """{graph: {input: array}}, of smooth images; every score passes."""
  height, width = detector.image_size
  noise = np.random.default_rng(0).uniform(0, 255, [batch_size, 8, 8, 3])
  inputs = {"inputs": tf.image.resize(noise, detector.image_size).numpy()}
  sizes = np.array([[height, width], [height, width // 2]], np.float32)
  rest = {
    "content_sizes": np.resize(sizes, [batch_size, 2]),
    "score_thresholds": np.zeros([batch_size, len(detector.class_names)], np.float32),
  }
  return {"raw": inputs, "detections": {**inputs, **rest}}


def _write_file(path, file, function, load, inputs):
  """Writes a file and tries it; {output: largest difference from the network's own}."""
  expected = {name: value.numpy() for name, value in function(**inputs).items()}
  try:
    file.convert(function, path)
    answer = load(path)(inputs)
  except (OSError, MemoryError):
    raise
  except Exception as error:  # converters and runtimes have no errors in common
    raise ValueError(
      f"the network cannot be converted to {file.name}: {errors.first_line(error)}"
    ) from error
  problem = find_difference(answer, expected, file.tolerance)
  if problem:
    raise ValueError(f"{file.name} does not answer as the network does: {problem}")
  return {
    name: float(np.max(np.abs(answer[name] - expected[name])))
    for name in _COMPARED
    if name in expected
  }


def find_difference(answer, expected, tolerance):
  """What in a runtime's answer is not the network's, or None.

  Args:
    answer, expected: {output: array} of one of GRAPHS.
    tolerance: see ModelFile.
  """
  shapes, wanted = (
    {name: value.shape for name, value in sorted(outputs.items())}
    for outputs in (answer, expected)
  )
  if shapes != wanted:
    return f"its outputs have shapes {shapes}, those of the network {wanted}"
  for name in expected.keys() & set(_COMPARED):
    difference = np.linalg.norm(answer[name] - expected[name])
    limit = tolerance * np.linalg.norm(expected[name])
    if not difference <= limit:  # nor is NaN
      return f"the norm of {name}'s difference is {difference:.3g}, above {limit:.3g}"
  if "detection_boxes" in expected:
    share = _share_found(answer, expected)
    if share < _SHARE_FOUND:
      return f"of its detections {share:.0%} are found again"
  return None


def _share_found(answer, expected):
  """Share of the expected detections that have one of their class and place."""
  boxes, classes = (
    [outputs[f"detection_{name}"] for outputs in (expected, answer)]
    for name in ("boxes", "classes")
  )
  is_same = classes[0][:, :, np.newaxis] == classes[1][:, np.newaxis]
  is_same &= box_ops.iou(*boxes).numpy() >= _SAME_BOX_IOU
  is_detection = classes[0] > 0
  return np.any(is_same, axis=2)[is_detection].mean() if is_detection.any() else 1.0
