"""Image files, sound and unsound, and requests made of them."""

import io
import struct
import zlib

import numpy as np
import tensorflow as tf
from PIL import Image
from serving import c_api


def encode(pixels, image_format, **options):
  """A file of an array or a Pillow image."""
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  buffer = io.BytesIO()
  image.save(buffer, image_format, **options)
  return buffer.getvalue()


def make_png(height, width):
  """A black PNG, whose file is small however large it is."""

  def chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check

  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  rows = zlib.compress(bytes(height * (3 * width + 1)))
  chunks = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
  return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def example(encoded, key="image/encoded"):
  """A serialized tf.train.Example with an image."""
  feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
  features = tf.train.Features(feature={key: feature})
  return tf.train.Example(features=features).SerializeToString()


def endless_example():
  """An Example whose image says that it has more than 2 GB."""
  whole = example(b"\xff\xff\xff\x0f" + bytes(12))
  endless = whole.replace(b"\x10\xff\xff", b"\x90\xff\xff")  # a length's first byte
  assert endless != whole
  return endless


def requests(files, size, image_size=(128, 128)):
  """{signature: its inputs} for `size` images of a 6-class model."""
  chosen = [files[place % len(files)] for place in range(size)]
  rng = np.random.default_rng(size)
  pixels = rng.integers(0, 256, [size, 60, 90, 3], dtype=np.uint8)
  thresholds = np.full([size, 6], 0.005, np.float32)
  inputs = rng.uniform(0, 255, [size, *image_size, 3]).astype(np.float32)
  return {
    "serving_default": {"inputs": pixels},
    "image_bytes": {"image_bytes": chosen},
    "image_bytes_with_thresholds": {
      "image_bytes": chosen,
      "score_thresholds": thresholds,
    },
    "tf_example": {"tf_example": [example(file) for file in chosen]},
    "raw": {"inputs": inputs},
  }


def ask(loaded, signature, **inputs):
  """{output: array} of a signature of what tf.saved_model.load gave."""
  tensors = {
    # An empty list says nothing of its type.
    name: tf.constant(value, tf.string if isinstance(value, list) else None)
    for name, value in inputs.items()
  }
  answer = loaded.signatures[signature](**tensors)
  return {name: value.numpy() for name, value in answer.items()}


def warm_up_requests(folder):
  """(model, signature, {input: array}) of a version's file of them."""
  for model, signature, inputs in c_api.warm_up_requests(folder):
    protos = {name: tf.make_tensor_proto(0) for name in inputs}
    for name, proto in protos.items():
      proto.ParseFromString(inputs[name])
    arrays = {name: tf.make_ndarray(proto) for name, proto in protos.items()}
    yield model, signature, arrays
