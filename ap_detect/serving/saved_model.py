"""SavedModel for TensorFlow Serving: pictures in, detections out.

Signatures, each with the batch as first dimension of every input and output:
  serving_default  inputs: uint8 [B, H, W, 3], RGB
  image_bytes      image_bytes: string [B], JPEG, PNG, GIF or BMP files of any sizes
Outputs of both:
  detection_boxes    [B, D, 4] float32, yxyx, normalised to the original image, turned
                     as its EXIF data says
  detection_scores   [B, D] float32, best first; the precision to expect at them, where
                     the export is given a calibration
  detection_classes  [B, D] int32, 1..K, lines of assets/labels.txt; 0 is padding
  num_detections     [B] int32
"""

from __future__ import annotations

import os
import shutil
import tempfile

import tensorflow as tf

from ap_detect import errors
from ap_detect import images as image_ops
from ap_detect.serving import calibrated_scores

LABELS_FILE = "labels.txt"


class ServingModule(tf.Module):
  """The graph from pictures to detections.

  Args:
    network: tf.keras.Model of images -> Outputs.
    post_process: function (Outputs, content_size [B, 2]) -> Detections.
    image_size: (height, width) of the network's input, pixels.
    class_thresholds: [K] float; detections of class k need a score, calibrated if it is,
      of at least class_thresholds[k - 1].
    labels_path: file of K lines, the classes' names.
    calibration: ScoreCalibration that scores go through; None for none.
    exif_orientation: see images.decode_image.
  """

  def __init__(
    self,
    network,
    post_process,
    *,
    image_size,
    class_thresholds,
    labels_path,
    calibration=None,
    exif_orientation=True,
  ):
    super().__init__()
    # The variables alone: a Keras model in the file would ask for keras-cv to load.
    self.network_variables = network.variables
    self.labels = tf.saved_model.Asset(labels_path)
    self._run_network = lambda images: network(images, training=False)
    self._post_process = post_process
    self._image_size = tuple(image_size)
    self._calibration = calibration
    self._exif_orientation = exif_orientation
    self._class_thresholds = tf.constant([0.0, *class_thresholds], tf.float32)

  @tf.function(
    input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "inputs")]
  )
  def detect_pixels(self, inputs):
    """Detections of pictures of one size, [B, H, W, 3] uint8 RGB."""
    fitted, scale = image_ops.resize_to_fit(inputs, self._image_size)
    size = tf.cast(tf.shape(inputs)[1:3], tf.float32)
    batch_size = tf.shape(inputs)[0]
    return self._detect(
      fitted, tf.fill([batch_size], scale), tf.tile(size[tf.newaxis], [batch_size, 1])
    )

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
  def detect_bytes(self, image_bytes):
    """Detections of image files, [B] string, as images.decode_image reads them."""

    def decode_and_fit(encoded):
      image = image_ops.decode_image(encoded, exif_orientation=self._exif_orientation)
      fitted, scale = image_ops.resize_to_fit(image[tf.newaxis], self._image_size)
      return fitted[0], scale, tf.cast(tf.shape(image)[:2], tf.float32)

    return self._detect(
      *tf.map_fn(
        decode_and_fit,
        image_bytes,
        fn_output_signature=(
          tf.TensorSpec([*self._image_size, 3], tf.float32),
          tf.TensorSpec([], tf.float32),
          tf.TensorSpec([2], tf.float32),
        ),
      )
    )

  def _detect(self, images, scale, sizes):
    batch_size = tf.shape(images)[0]
    images, scale, sizes = map(_at_least_one, (images, scale, sizes))
    outputs = self._run_network(images)
    found = self._post_process(outputs, sizes * scale[:, tf.newaxis])
    boxes = found.boxes / scale[:, tf.newaxis, tf.newaxis]
    boxes /= tf.tile(sizes, [1, 2])[:, tf.newaxis]
    scores = found.scores
    if self._calibration:
      scores = calibrated_scores.calibrate(scores, self._calibration)
    answer = self._keep_confident(boxes, scores, found.classes)
    return {name: value[:batch_size] for name, value in answer.items()}

  def _keep_confident(self, boxes, scores, classes):
    """Moves what reaches its class's threshold to the front, zeros elsewhere."""
    kept = (classes > 0) & (scores >= tf.gather(self._class_thresholds, classes))
    order = tf.argsort(tf.cast(kept, tf.int32), direction="DESCENDING", stable=True)
    kept = tf.gather(kept, order, batch_dims=1)

    def front(values):
      return tf.gather(values, order, batch_dims=1)

    return {
      "detection_boxes": tf.where(kept[..., tf.newaxis], front(boxes), 0.0),
      "detection_scores": tf.where(kept, front(scores), 0.0),
      "detection_classes": tf.where(kept, front(classes), 0),
      "num_detections": tf.reduce_sum(tf.cast(kept, tf.int32), axis=1),
    }


def _at_least_one(batch):
  """A batch with an entry of ones where it has none.

  On CPUs for which TensorFlow chooses oneDNN, its fused convolution gives an empty batch
  the shape of its input, and the next one fails.
  """
  missing = tf.maximum(1 - tf.shape(batch)[0], 0)
  paddings = [[0, missing], *[[0, 0]] * (batch.shape.rank - 1)]
  return tf.pad(batch, paddings, constant_values=1)


def export(
  network,
  post_process,
  export_dir,
  *,
  image_size,
  class_names,
  class_thresholds,
  calibration=None,
  exif_orientation=True,
):
  """Writes <export_dir>/<version>/, one above the versions that are there.

  A version appears complete or not at all: TensorFlow Serving may be watching.

  Args:
    network: tf.keras.Model of images -> Outputs.
    post_process: function (Outputs, content_size [B, 2]) -> Detections.
    export_dir: folder of the model's versions.
    image_size: (height, width) of the network's input, pixels.
    class_names: [K].
    class_thresholds: [K] see ServingModule.
    calibration: see ServingModule.
    exif_orientation: see images.decode_image.

  Returns:
    Path of the new version.

  Raises:
    ValueError: a class name that is no single line, or lengths that differ.
  """
  if len(class_names) != len(class_thresholds):
    raise ValueError(
      f"{len(class_names)} classes need as many thresholds, got {len(class_thresholds)}"
    )
  for name in class_names:
    if len(name.splitlines()) != 1:
      raise ValueError(f"a class name must be one line of text, got {name!r}")
  os.makedirs(export_dir, exist_ok=True)
  # No integer, so that a server that watches the folder passes it by.
  staging = tempfile.mkdtemp(prefix=".unfinished-", dir=export_dir)
  try:
    labels_path = os.path.join(staging, LABELS_FILE)
    with errors.naming(labels_path), open(labels_path, "w", encoding="utf-8") as file:
      file.writelines(f"{name}\n" for name in class_names)
    module = ServingModule(
      network,
      post_process,
      image_size=image_size,
      class_thresholds=class_thresholds,
      labels_path=labels_path,
      calibration=calibration,
      exif_orientation=exif_orientation,
    )
    written = os.path.join(staging, "model")
    tf.saved_model.save(
      module,
      written,
      signatures={
        "serving_default": module.detect_pixels,
        "image_bytes": module.detect_bytes,
      },
    )
    version = os.path.join(export_dir, str(_next_version(export_dir)))
    os.rename(written, version)
  finally:
    shutil.rmtree(staging)
  return version


def _next_version(export_dir):
  versions = [int(name) for name in os.listdir(export_dir) if name.isdigit()]
  return max(versions, default=0) + 1
