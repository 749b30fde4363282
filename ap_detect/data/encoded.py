"""The bytes of encoded images, from files of their own or from TFRecord shards."""

from __future__ import annotations

import io
import os
import struct
from typing import NamedTuple

import tensorflow as tf

from ap_detect.data import image_headers

# The field of a record's tf.train.Example, as the TF Object Detection API names it.
ENCODED = "image/encoded"

# Holds almost every header, so that reading it does not read a whole image.
_HEADER_BYTES = 2**16


class ShardedImage(NamedTuple):
  """An encoded image in a record of a TFRecord file, see readers.tfrecords.

  Attributes:
    path: of the file, which is not compressed.
    offset: bytes before the record.
  """

  path: str
  offset: int


def make_reader(images):
  """Function of an image's index to its bytes, in TensorFlow operations.

  Args:
    images: list of paths of JPEG or PNG files and of ShardedImages.

  Returns:
    Function of an index, [] integer, to [] string. Where it is called, it raises
    tf.errors.OpError for an image that cannot be read.
  """
  files = [image if isinstance(image, str) else image.path for image in images]
  paths = tf.constant(files, tf.string)
  # -1: the file is the image.
  offsets = tf.constant([getattr(image, "offset", -1) for image in images], tf.int64)

  def read(index):
    path, offset = paths[index], offsets[index]
    return tf.cond(
      offset < 0, lambda: tf.io.read_file(path), lambda: _read_record(path, offset)
    )

  return read


def read(image):
  """Bytes of one image.

  Args:
    image: path of a JPEG or PNG file, or ShardedImage.

  Returns:
    bytes.

  Raises:
    tf.errors.OpError: it cannot be read.
  """
  return make_reader([image])(0).numpy()


def read_header(image, *, exif_orientation=True):
  """Header of one image.

  Args:
    image: path of an image file, or ShardedImage.
    exif_orientation: see image_headers.read_header.

  Returns:
    image_headers.Header.

  Raises:
    ValueError: it has none; says why.
  """
  path = image if isinstance(image, str) else image.path
  if not os.path.isfile(path):  # opening a pipe would wait for ever
    raise ValueError("there is no such file")
  try:
    with open(path, "rb") as file:
      if isinstance(image, str):
        return image_headers.read_header(file, exif_orientation=exif_orientation)
      return _read_header_in_record(file, image.offset, exif_orientation)
  except OSError as error:
    raise ValueError(f"cannot be read: {error.strerror}") from error


def _read_header_in_record(file, offset, exif_orientation):
  start, size = _locate(file, offset)
  for length in (_HEADER_BYTES, size):
    file.seek(start)
    part = io.BytesIO(file.read(min(length, size)))
    try:
      header = image_headers.read_header(part, exif_orientation=exif_orientation)
      break
    except ValueError:
      if length >= size:
        raise
  return header


def _locate(file, offset):
  """(start, size) of the encoded image in the record at an offset.

  A record is its length (8 bytes), a checksum (4), and a tf.train.Example: a protocol
  buffer of parts in parts, of which only those on the way are read.
  """
  try:
    file.seek(offset)
    (length,) = struct.unpack("<Q", file.read(8))
    for _, *features in _parts(file, offset + 12, length):
      for _, *feature in _parts(file, *features):
        (_, *key), (_, *value) = _parts(file, *feature)
        file.seek(key[0])
        if file.read(key[1]) == ENCODED.encode():
          ((_, *values),) = _parts(file, *value)
          ((_, start, size),) = _parts(file, *values)
          return start, size
  except (struct.error, IndexError, ValueError):
    pass
  raise ValueError("damaged, or no record of a TFRecord file with an image")


def _parts(file, start, size):
  """(number, start, size) of each part of a protocol buffer in a file."""
  parts, end = [], start + size
  while start < end:
    file.seek(start)
    key, length = _read_varint(file), _read_varint(file)
    if key % 8 != 2:  # every part in question has a length
      raise ValueError
    start = file.tell() + length
    parts.append((key // 8, file.tell(), length))
  return parts


def _read_varint(file):
  """An integer in groups of 7 bits, the lowest first; the 8th bit says: more follow."""
  value = 0
  for shift in range(0, 70, 7):
    (byte,) = file.read(1)
    value |= (byte & 0x7F) << shift
    if byte < 0x80:
      return value
  raise ValueError


def _read_record(path, offset):
  """The image in the record at an offset; its checksums are checked on the way."""
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
