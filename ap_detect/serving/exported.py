"""An exported model, opened again to detect with."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from ap_detect.data import encoded
from ap_detect.runs import files
from ap_detect.serving import decoding, folder, formats, portable
from ap_detect.training.evaluation import ImageDetections


def open_exported(path):
  """Opens a SavedModel, or a file `detections` of a format for other runtimes.

  Args:
    path: see Exported, or of a file, see portable.py.

  Returns:
    Exported.
  """
  return ExportedFile(path) if formats.find(path) else Exported(path)


class Exported:
  """A version of an exported model, which detects as a server does.

  Attributes:
    path: of the version.
    class_names: names of the classes 1..K.

  Args:
    path: of a version, or of a folder of versions, for the highest of them.

  Raises:
    ValueError: there is no such version.
  """

  _batch_size = 8

  def __init__(self, path):
    self.path = _find_version(path)
    labels = os.path.join(self.path, folder.LABELS_FILE)
    with open(labels, encoding="utf-8") as file:
      self.class_names = tuple(file.read().splitlines())
    self._signatures = tf.saved_model.load(self.path).signatures

  def detect(self, records):
    """ImageDetections of every ImageRecord, in their order; of all scores.

    Raises:
      ValueError: the model says of an image that it is invalid.
    """
    found = []
    for start in range(0, len(records), self._batch_size):
      found += self._detect(records[start : start + self._batch_size])
    return found

  def _detect(self, records):
    answer = self._ask(
      tf.stack([_read(record.image) for record in records]),
      np.zeros([len(records), len(self.class_names)], np.float32),
    )
    found = []
    for index, record in enumerate(records):
      if not answer["valid"][index]:
        raise ValueError(
          f"the exported model says that image {record.image_id} is invalid: it is a "
          "GIF, or has more pixels than the model was exported for, or is damaged"
        )
      count = answer["num_detections"][index]
      boxes, scores, classes = (
        answer[f"detection_{name}"][index, :count]
        for name in ("boxes", "scores", "classes")
      )
      size = np.array([record.height, record.width] * 2, np.float32)
      found.append(ImageDetections(boxes * size, scores, classes))
    return found

  def _ask(self, images, thresholds):
    """{output: array} of graph.py for encoded images [B], thresholds [B, K]."""
    signature = self._signatures["image_bytes_with_thresholds"]
    answer = signature(image_bytes=images, score_thresholds=tf.constant(thresholds))
    return {name: value.numpy() for name, value in answer.items()}


class ExportedFile(Exported):
  """A file `detections` for another runtime, which detects in that.

  Args:
    path: of the file, beside which portable.DESCRIPTION_FILE lies.
  """

  def __init__(self, path):
    self.path = path
    self._about = files.read_json(
      os.path.join(os.path.dirname(path), portable.DESCRIPTION_FILE)
    )
    graphs = {name: about["graph"] for name, about in self._about["files"].items()}
    if graphs.get(os.path.basename(path)) != "detections":
      raise ValueError(f"{path}: a file of detections is required, of {graphs}")
    self.class_names = tuple(self._about["classes"])
    self._batch_size = self._about["batch_size"] or Exported._batch_size
    self._fit = tf.function(
      lambda images: decoding.fit_encoded(
        images,
        self._about["input_size"],
        max_image_pixels=self._about["max_image_pixels"],
        exif_orientation=self._about["exif_orientation"],
      ),
      [tf.TensorSpec([None], tf.string)],
    )
    self._run = formats.load(formats.find(path)).load(path)

  def _ask(self, images, thresholds):
    fitted = self._fit(images)
    scales, sizes = fitted.scales.numpy()[:, np.newaxis], fitted.sizes.numpy()
    answer = self._run(
      {
        "inputs": fitted.images.numpy(),
        "content_sizes": sizes * scales,
        "score_thresholds": thresholds,
      }
    )
    boxes = answer["detection_boxes"] / scales[..., np.newaxis]
    boxes = np.clip(boxes / np.tile(sizes, [1, 2])[:, np.newaxis], 0, 1)
    return {**answer, "detection_boxes": boxes, "valid": fitted.valid.numpy()}


def _find_version(path):
  if os.path.exists(os.path.join(path, "saved_model.pb")):
    return path
  versions = folder.find_versions(path)
  if not versions:
    raise ValueError(f"{path} is no exported model: it has no saved_model.pb")
  return os.path.join(path, versions[max(versions)])


def _read(image):
  """An image's file, of pixels as PNG; [] string."""
  return (
    tf.io.encode_png(image) if isinstance(image, np.ndarray) else encoded.read(image)
  )
