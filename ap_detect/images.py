"""Decoding and resizing, in TensorFlow operations, for training and serving alike.

Training, evaluation and the exported graph call the same functions, so that a picture
reaches the network with the same pixels everywhere.
"""

from __future__ import annotations

import tensorflow as tf

# What lies outside a picture: ImageNet's mean colour (RGB), near 0 for every backbone.
FILL_RGB = (123.0, 116.0, 103.0)


def decode_image(encoded):
  """Pixels of a JPEG or PNG file, as stored (EXIF's orientation is ignored), as RGB.

  Args:
    encoded: [] string, the file's bytes.

  Returns:
    [H, W, 3] uint8, RGB.

  Raises:
    tf.errors.InvalidArgumentError: the bytes are no complete picture.
  """
  image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  return tf.ensure_shape(image, [None, None, 3])


def scale_to_fit(image_size, output_size):
  """The factor by which a picture fits into a given size with its aspect kept.

  Args:
    image_size: [..., 2] height and width, pixels.
    output_size: [2] height and width, pixels.

  Returns:
    [...] float32.

  Example:
    >>> float(scale_to_fit((480, 640), (256, 320)))
    0.5
  """
  ratios = tf.cast(output_size, tf.float32) / tf.cast(image_size, tf.float32)
  return tf.reduce_min(ratios, axis=-1)


def scale_and_translate(images, output_size, scale, translation=(0.0, 0.0)):
  """Moves pictures into a canvas: a point at y lands at y * scale + translation.

  Bilinear, antialiased where it shrinks; canvas outside the picture gets FILL_RGB.

  Args:
    images: [B, H, W, 3], uint8 or float, RGB 0..255.
    output_size: (height, width) of the canvas, pixels.
    scale: [2] float32, factors for y and x.
    translation: [2] float32, pixels of the canvas.

  Returns:
    [B, height, width, 3] float32, RGB 0..255.
  """
  scale = tf.convert_to_tensor(scale, tf.float32)
  translation = tf.convert_to_tensor(translation, tf.float32)
  moved = tf.raw_ops.ScaleAndTranslate(
    images=images,
    size=tf.constant(output_size, tf.int32),
    scale=scale,
    translation=translation,
    kernel_type="triangle",
    antialias=True,
  )
  inside = [
    _inside(
      tf.shape(images)[1 + axis], output_size[axis], scale[axis], translation[axis]
    )
    for axis in (0, 1)
  ]
  mask = inside[0][:, tf.newaxis, tf.newaxis] & inside[1][tf.newaxis, :, tf.newaxis]
  moved = tf.where(mask, moved, tf.constant(FILL_RGB))
  return tf.ensure_shape(moved, [None, *output_size, 3])


def resize_to_fit(images, output_size, fit_size=None):
  """Pictures scaled to fit, aspect kept, in the top left corner of a canvas.

  Args:
    images: [B, H, W, 3], uint8 or float, RGB 0..255.
    output_size: (height, width) of the canvas, pixels.
    fit_size: [2] height and width that the pictures are scaled to fit; None for
      output_size.

  Returns:
    ([B, height, width, 3] float32, scale): scale is the factor from pixels of the
    picture to pixels of the canvas, [] float32.
  """
  fit_size = output_size if fit_size is None else fit_size
  scale = scale_to_fit(tf.shape(images)[1:3], fit_size)
  return scale_and_translate(images, output_size, tf.stack([scale, scale])), scale


def _inside(input_length, output_length, scale, translation):
  """Whether each canvas pixel's centre falls on the picture; [output_length] bool."""
  centers = tf.range(output_length, dtype=tf.float32) + 0.5
  source = (centers - translation) / scale
  return (source >= 0) & (source <= tf.cast(input_length, tf.float32))
