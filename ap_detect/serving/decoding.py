"""Encoded images -> a batch for the network, in which a broken image harms no other.

No operation of a graph catches the error of another, and a request may hold the images
of many clients. So each image is an element of a tf.data dataset within the graph, whose
errors leave it out.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from ap_detect import images as image_ops


class Fitted(NamedTuple):
  """Images in the network's input, and where they lie in it.

  Attributes:
    images: [B, height, width, 3] float32, RGB 0..255.
    scales: [B] float32, from pixels of the image to pixels of the input.
    sizes: [B, 2] float32, height and width of the image, pixels.
    valid: [B] bool, False for what is no image; its other values are ones.
  """

  images: tf.Tensor
  scales: tf.Tensor
  sizes: tf.Tensor
  valid: tf.Tensor


def fit_encoded(
  encoded, image_size, *, max_image_pixels, exif_orientation=True, is_example=False
):
  """Fits encoded images of any sizes into the network's input.

  Invalid are: what images.decode_image does not read, GIFs (TensorFlow decodes all of
  their frames before it returns the first), and images of too many pixels, by their
  headers.

  Args:
    encoded: [B] string.
    image_size: (height, width) of the network's input, pixels.
    max_image_pixels: images of more are invalid, and are not decoded.
    exif_orientation: see images.decode_image.
    is_example: whether each string is not an image but a serialized tf.train.Example
      that has one as "image/encoded".

  Returns:
    Fitted.
  """

  def fit(index, encoded):
    encoded = _read_example(encoded) if is_example else encoded
    image = image_ops.decode_image(
      _empty_if_refused(encoded, max_image_pixels), exif_orientation=exif_orientation
    )
    fitted, scale = image_ops.resize_to_fit(image[tf.newaxis], image_size)
    return index, fitted[0], scale, tf.cast(tf.shape(image)[:2], tf.float32)

  encoded = tf.ensure_shape(encoded, [None])
  batch_size = tf.shape(encoded)[0]
  blank = (batch_size, tf.ones([*image_size, 3]), 1.0, tf.ones([2]))
  decoded = (
    tf.data.Dataset.from_tensor_slices((tf.range(batch_size), encoded))
    .map(fit, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    .ignore_errors()
    .concatenate(tf.data.Dataset.from_tensors(blank))
    .batch(tf.cast(batch_size, tf.int64) + 1)
  )
  indices, images, scales, sizes = decoded.get_single_element()
  # The row of each image; the last one, which is blank, where it has none.
  last = tf.size(indices) - 1
  rows = tf.tensor_scatter_nd_update(
    tf.fill([batch_size + 1], last), indices[:, tf.newaxis], tf.range(last + 1)
  )[:batch_size]
  images, scales, sizes = (tf.gather(part, rows) for part in (images, scales, sizes))
  return Fitted(images, scales, sizes, rows < last)


def fit_pixels(inputs, image_size):
  """Fits images of one size, as pixels, into the network's input.

  Args:
    inputs: [B, H, W, C] uint8, of 3 channels RGB, 1 channel grey, or 4 channels RGB and
      transparency, which is dropped.
    image_size: (height, width) of the network's input, pixels.

  Returns:
    Fitted.

  Raises:
    tf.errors.InvalidArgumentError: another number of channels, or no pixels.
  """
  # A server does not compare what it is given with the signature.
  inputs = tf.ensure_shape(inputs, [None] * 4)
  shape = tf.shape(inputs)
  channels = shape[3]
  check = tf.debugging.Assert(
    tf.reduce_any(channels == [1, 3, 4]) & tf.reduce_all(shape[1:3] > 0),
    ["inputs must be images [B, H, W, C] of 1, 3 or 4 channels, got shape", shape],
    summarize=4,
  )
  with tf.control_dependencies([] if check is None else [check]):
    inputs = tf.identity(inputs)
  rgb = tf.cond(
    channels == 3,
    lambda: inputs,
    lambda: tf.gather(inputs, tf.where(channels == 1, [0, 0, 0], [0, 1, 2]), axis=3),
  )
  images, scale = image_ops.resize_to_fit(
    tf.ensure_shape(rgb, [None, None, None, 3]), image_size
  )
  size = tf.cast(shape[1:3], tf.float32)
  return Fitted(
    images,
    tf.fill(shape[:1], scale),
    tf.tile(size[tf.newaxis], [shape[0], 1]),
    tf.fill(shape[:1], True),
  )


def _read_example(serialized):
  """The encoded image in a serialized tf.train.Example; empty where there is none.

  Field by field, for tf.io.parse_example ends the process at a length beyond 2 GB.
  """
  features = _last(_decode_proto(serialized, "Example", "features"))
  entries = _decode_proto(features, "Features", "feature")
  keys, values = (
    tf.strings.reduce_join(_decode_proto(entries, "Features.FeatureEntry", name), -1)
    for name in ("key", "value")
  )
  value = _last(tf.boolean_mask(values, keys == "image/encoded"))
  return _last(
    _decode_proto(
      _last(_decode_proto(value, "Feature", "bytes_list")), "BytesList", "value"
    )
  )


def _decode_proto(messages, message_type, field):
  """The values of a field of serialized messages [...], as strings [..., n]."""
  _, (values,) = tf.io.decode_proto(
    messages, f"tensorflow.{message_type}", [field], [tf.string]
  )
  return values


def _last(values):
  """The last of strings [n]; empty where there is none."""
  return tf.strings.reduce_join(values[-1:])


def _empty_if_refused(encoded, max_image_pixels):
  """Empty bytes, which nothing decodes, in place of what must not be decoded."""
  is_gif = (
    tf.strings.substr(encoded, 0, len(image_ops.GIF_START)) == image_ops.GIF_START
  )
  # No format has longer sides, so that the product cannot overflow.
  size = tf.minimum(image_ops.read_size(encoded), 2**31)
  is_large = tf.reduce_prod(size) > max_image_pixels
  return tf.where(is_gif | is_large, "", encoded)
