"""The bytes of encoded pictures, from files of their own or from TFRecord shards."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# The field of a record's tf.train.Example, as the TF Object Detection API names it.
ENCODED = "image/encoded"


class ShardedImage(NamedTuple):
  """A JPEG or PNG picture in a record of a TFRecord file, see data.tfrecords.

  Attributes:
    path: of the file, which is not compressed.
    offset: bytes before the record.
  """

  path: str
  offset: int


def make_reader(images):
  """Function of a picture's index to its bytes, in TensorFlow operations.

  Args:
    images: list of paths of JPEG or PNG files and of ShardedImages.

  Returns:
    Function of an index, [] integer, to [] string. Where it is called, it raises
    tf.errors.OpError for a picture that cannot be read.
  """
  files = [image if isinstance(image, str) else image.path for image in images]
  paths = tf.constant(files, tf.string)
  # -1: the file is the picture.
  offsets = tf.constant([getattr(image, "offset", -1) for image in images], tf.int64)

  def read(index):
    path, offset = paths[index], offsets[index]
    return tf.cond(
      offset < 0, lambda: tf.io.read_file(path), lambda: _read_record(path, offset)
    )

  return read


def read(image):
  """Bytes of one picture.

  Args:
    image: path of a JPEG or PNG file, or ShardedImage.

  Returns:
    bytes.

  Raises:
    tf.errors.OpError: it cannot be read.
  """
  return make_reader([image])(0).numpy()


def _read_record(path, offset):
  """The picture in the record at an offset; its checksums are checked on the way."""
  # Of the public classes only whole files can be read; the operation itself seeks.
  records = tf.raw_ops.TFRecordDatasetV2(
    filenames=[path],
    compression_type="",
    buffer_size=tf.constant(0, tf.int64),  # reads no further than the record
    byte_offsets=[offset],
  )
  records = tf.data.experimental.from_variant(records, tf.TensorSpec([], tf.string))
  fields = {ENCODED: tf.io.FixedLenFeature([], tf.string)}
  record = records.take(1).get_single_element()
  return tf.io.parse_single_example(record, fields)[ENCODED]
