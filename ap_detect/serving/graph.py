"""The graph from images to detections, and its signatures.

Each has the batch as first dimension, of any size, of every input and output:
  serving_default              inputs: uint8 [B, H, W, C], images of one size; C is 3 (RGB),
                               1 (grey) or 4 (RGB and transparency, which is dropped)
  image_bytes                  image_bytes: string [B], JPEG, PNG or BMP files of any sizes
  image_bytes_with_thresholds  the same, and score_thresholds: float32 [B, K]
  tf_example                   tf_example: string [B], serialized tf.train.Examples with an
                               image file as "image/encoded"
  raw                          inputs: float32 [B, height, width, 3], RGB 0..255, of the
                               network's input size
Outputs of all but raw:
  detection_boxes    [B, D, 4] float32, yxyx, in [0, 1], normalised to the original image,
                     turned as its EXIF data says
  detection_scores   [B, D] float32, best first; the precision to expect at them, where the
                     detector has a calibration
  detection_classes  [B, D] int32, 1..K, lines of assets/labels.txt; 0 is padding
  detection_names    [B, D] string, the classes' names; "" is padding
  num_detections     [B] int32
  valid              [B] bool, False for what is no image or has too many pixels; it has
                     no detections, and the others in its batch are as without it
Outputs of raw, of every anchor, before any suppression:
  boxes              [B, A, 4] float32, yxyx, pixels of the input, not clipped
  logits             [B, A, K] float32
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect.metrics import ScoreCalibration
from ap_detect.serving import calibrated_scores, decoding

DETECTIONS = (
  "detection_boxes",
  "detection_scores",
  "detection_classes",
  "detection_names",
  "num_detections",
  "valid",
)
RAW = ("boxes", "logits")

DEFAULT_MAX_IMAGE_PIXELS = 50_000_000


class Detector(NamedTuple):
  """What is served.

  Attributes:
    network: tf.keras.Model of images -> Outputs.
    anchors: [A, 4] float32, yxyx, pixels of the network's input.
    post_process: function (Outputs, content_size [B, 2], class_thresholds [B, K],
      calibrate) -> Detections, see detections.detect.
    image_size: (height, width) of the network's input, pixels.
    class_names: [K], each one line of text.
    class_thresholds: [K]; detections of class k need a score, calibrated if it is, of at
      least class_thresholds[k - 1], unless a request brings its own.
    calibration: ScoreCalibration that scores go through; None for none.
    exif_orientation: see images.decode_image.
    max_image_pixels: encoded images of more are invalid.
  """

  network: tf.keras.Model
  anchors: tf.Tensor
  post_process: Callable
  image_size: tuple[int, int]
  class_names: tuple[str, ...]
  class_thresholds: tuple[float, ...]
  calibration: ScoreCalibration | None = None
  exif_orientation: bool = True
  max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS


class ServingModule(tf.Module):
  """The graph of a Detector.

  Attributes:
    functions: {name: tf.function} of every signature.

  Raises:
    ValueError: a class name that is no single line, or lengths that differ.
  """

  def __init__(self, detector: Detector):
    super().__init__()
    names, thresholds = detector.class_names, detector.class_thresholds
    if len(names) != len(thresholds):
      raise ValueError(
        f"{len(names)} classes need as many thresholds, got {len(thresholds)}"
      )
    for name in names:
      if len(name.splitlines()) != 1:
        raise ValueError(f"a class name must be one line of text, got {name!r}")
    # The variables alone: a Keras model in the file would ask for keras-cv to load.
    self.network_variables = detector.network.variables
    num_classes, image_size = len(names), detector.image_size
    image_shape, network = [None, *image_size, 3], detector.network
    # Functions of their own, so that the file has each part once for all signatures.
    self._run_network = tf.function(
      lambda images: network(images, training=False),
      [tf.TensorSpec(image_shape, tf.float32)],
    )
    fitted = decoding.Fitted(
      tf.TensorSpec(image_shape, tf.float32),
      tf.TensorSpec([None], tf.float32),
      tf.TensorSpec([None, 2], tf.float32),
      tf.TensorSpec([None], tf.bool),
    )
    self._detect = tf.function(
      lambda fitted, thresholds: _detect(
        *(fitted, thresholds, self._run_network),
        post_process=detector.post_process,
        calibration=detector.calibration,
        class_names=names,
      ),
      [fitted, tf.TensorSpec([None, num_classes], tf.float32)],
    )

    def default_thresholds(batch):
      values = tf.constant([thresholds], tf.float32)
      return tf.tile(values, [tf.shape(batch)[0], 1])

    def fit(encoded, **options):
      return decoding.fit_encoded(
        encoded,
        image_size,
        max_image_pixels=detector.max_image_pixels,
        exif_orientation=detector.exif_orientation,
        **options,
      )

    def serving_default(inputs):
      fitted = decoding.fit_pixels(inputs, image_size)
      return self._detect(fitted, default_thresholds(inputs))

    def image_bytes(image_bytes):
      return self._detect(fit(image_bytes), default_thresholds(image_bytes))

    def tf_example(tf_example):
      fitted = fit(tf_example, is_example=True)
      return self._detect(fitted, default_thresholds(tf_example))

    def image_bytes_with_thresholds(image_bytes, score_thresholds):
      score_thresholds = tf.ensure_shape(score_thresholds, [None, num_classes])
      sizes = [tf.shape(image_bytes)[0], tf.shape(score_thresholds)[0]]
      message = "as many rows of score_thresholds as images are required, got"
      check = tf.debugging.Assert(sizes[0] == sizes[1], [message, sizes], summarize=2)
      with tf.control_dependencies([] if check is None else [check]):
        return self._detect(fit(image_bytes), tf.identity(score_thresholds))

    def raw(inputs):
      batch_size = tf.shape(inputs)[0]
      inputs = tf.ensure_shape(inputs, image_shape)
      outputs = self._run_network(_at_least_one(inputs))
      boxes = box_ops.decode(outputs.box_outputs, detector.anchors)
      answer = (boxes, outputs.class_logits)
      return {name: value[:batch_size] for name, value in zip(RAW, answer)}

    encoded = tf.TensorSpec([None], tf.string)
    thresholds_spec = tf.TensorSpec([None, num_classes], tf.float32)
    self.functions = {
      function.__name__: tf.function(function, inputs)
      for function, inputs in [
        (serving_default, [tf.TensorSpec([None] * 4, tf.uint8)]),
        (image_bytes, [encoded]),
        (image_bytes_with_thresholds, [encoded, thresholds_spec]),
        (tf_example, [encoded]),
        (raw, [tf.TensorSpec(image_shape, tf.float32)]),
      ]
    }


def _detect(fitted, thresholds, run_network, *, post_process, calibration, class_names):
  """The outputs of a signature for images that are decoded, by name."""
  batch_size = tf.shape(fitted.images)[0]
  # A score of infinity has none.
  thresholds = tf.where(fitted.valid[:, tf.newaxis], thresholds, float("inf"))
  images, scales, sizes, thresholds = map(
    _at_least_one, (fitted.images, fitted.scales, fitted.sizes, thresholds)
  )

  def calibrate(scores):
    return calibrated_scores.calibrate(scores, calibration) if calibration else scores

  content_sizes = sizes * scales[:, tf.newaxis]
  found = post_process(run_network(images), content_sizes, thresholds, calibrate)
  boxes = found.boxes / scales[:, tf.newaxis, tf.newaxis]
  boxes /= tf.tile(sizes, [1, 2])[:, tf.newaxis]
  answer = (
    tf.clip_by_value(boxes, 0.0, 1.0),
    tf.where(found.classes > 0, calibrate(found.scores), 0.0),
    found.classes,
    tf.gather(tf.constant(["", *class_names]), found.classes),
    found.num_detections,
    fitted.valid,
  )
  return {name: value[:batch_size] for name, value in zip(DETECTIONS, answer)}


def _at_least_one(batch):
  """A batch with an entry of ones where it has none.

  On CPUs for which TensorFlow chooses oneDNN, its fused convolution gives an empty batch
  the shape of its input, and the next one fails.
  """
  missing = tf.maximum(1 - tf.shape(batch)[0], 0)
  paddings = [[0, missing], *[[0, 0]] * (batch.shape.rank - 1)]
  return tf.pad(batch, paddings, constant_values=1)
