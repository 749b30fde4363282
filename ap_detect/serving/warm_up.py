"""Requests that a server answers before it serves a version, so that no client waits.

A server's first request of a kind takes many times as long as later ones. TensorFlow
Serving replays those that lie in a version's folder as tf_serving_warmup_requests:
PredictionLogs of tensorflow_serving/apis, in a TFRecord file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

FILE = "assets.extra/tf_serving_warmup_requests"

BATCH_SIZES = (1, 2, 4, 8)


class Request(NamedTuple):
  """A request of one signature.

  Attributes:
    signature: its name.
    inputs: {name: tf.compat.v1.TensorProto}.
  """

  signature: str
  inputs: dict


def make_requests(image_size, num_classes):
  """Requests of every signature, for each of BATCH_SIZES.

  Args:
    image_size: (height, width) of the network's input, pixels; also of the images.
    num_classes: K.

  Returns:
    list of Request.
  """
  files = _image_files(image_size)
  requests = []
  for size in BATCH_SIZES:
    images = [files[place % len(files)] for place in range(size)]
    encoded, examples = (
      tf.make_tensor_proto(values) for values in (images, list(map(_example, images)))
    )
    thresholds = _fill(0.5, tf.float32, [size, num_classes])
    shape = [size, *image_size, 3]
    requests += [
      Request("serving_default", {"inputs": _fill(200, tf.uint8, shape)}),
      Request("image_bytes", {"image_bytes": encoded}),
      Request(
        "image_bytes_with_thresholds",
        {"image_bytes": encoded, "score_thresholds": thresholds},
      ),
      Request("tf_example", {"tf_example": examples}),
      Request("raw", {"inputs": _fill(200.0, tf.float32, shape)}),
    ]
  return requests


def write(path, requests, model_name):
  """Writes the file that TensorFlow Serving replays.

  Args:
    path: of the file.
    requests: list of Request.
    model_name: that the server has the model under.
  """
  with tf.io.TFRecordWriter(path) as writer:
    for request in requests:
      writer.write(_prediction_log(request, model_name))


def _prediction_log(request, model_name):
  """A serialized PredictionLog; the numbers are those of its messages' fields."""
  signature, name = request.signature.encode(), model_name.encode()
  predict_request = _field(1, _field(1, name) + _field(3, signature))  # ModelSpec
  for name, tensor in sorted(request.inputs.items()):
    entry = _field(1, name.encode()) + _field(2, tensor.SerializeToString())
    predict_request += _field(2, entry)
  return _field(6, _field(1, predict_request))  # PredictLog


def _field(number, content):
  """A field of a serialized message whose content has a length."""
  length, digits = len(content), []
  while length > 127:
    digits.append(length % 128 + 128)
    length //= 128
  return bytes([number * 8 + 2, *digits, length]) + content


def _image_files(image_size):
  """A JPEG and a PNG file, smooth, and so small."""
  noise = np.random.default_rng(0).integers(0, 256, [1, 8, 8, 3]).astype(np.float32)
  pixels = tf.cast(tf.image.resize(noise, image_size)[0], tf.uint8)
  return [tf.io.encode_jpeg(pixels).numpy(), tf.io.encode_png(pixels).numpy()]


def _example(encoded):
  feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
  features = tf.train.Features(feature={"image/encoded": feature})
  return tf.train.Example(features=features).SerializeToString()


def _fill(value, dtype, shape):
  """TensorProto of one value everywhere, which is in it once."""
  tensor = tf.make_tensor_proto(value, dtype, shape=[1])
  tensor.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
  return tensor
