"""An exported model, opened again to detect with."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from ap_detect.data import encoded
from ap_detect.serving import folder
from ap_detect.training.evaluation import ImageDetections

_BATCH_SIZE = 8


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
    for start in range(0, len(records), _BATCH_SIZE):
      found += self._detect(records[start : start + _BATCH_SIZE])
    return found

  def _detect(self, records):
    files = tf.stack([_read(record.image) for record in records])
    thresholds = tf.zeros([len(records), len(self.class_names)])
    signature = self._signatures["image_bytes_with_thresholds"]
    answer = signature(image_bytes=files, score_thresholds=thresholds)
    answer = {name: value.numpy() for name, value in answer.items()}
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
