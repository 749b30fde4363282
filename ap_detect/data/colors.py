"""Colour maths of augmentation: hue and saturation without a round trip through HSV."""

from __future__ import annotations

import tensorflow as tf

# Principal components of the colours of ImageNet's pixels, RGB 0..1 (Krizhevsky et al.
# 2012, section 4.1): standard deviations along them, and the components as rows.
_COMPONENT_DEVIATIONS = (0.2175, 0.0188, 0.0045)
_COMPONENTS = (
  (-0.5675, -0.5808, -0.5836),
  (0.7192, -0.0045, -0.6948),
  (0.4009, -0.8140, 0.4203),
)


def scale_saturation(image, factor):
  """Multiplies the saturation of HSV, at most up to 1; hue and value stay.

  Value is M = max(RGB), saturation (M - min) / M: scaling it moves each channel's
  distance from M.

  Args:
    image: [H, W, 3] float32, RGB, not negative.
    factor: [] float32, not negative.

  Returns:
    [H, W, 3] float32.
  """
  value, chroma = _value_and_chroma(tf.unstack(image, axis=-1))
  # Past M / chroma the saturation would pass 1.
  limit = tf.math.divide_no_nan(value, chroma)
  scale = tf.minimum(factor, limit)[..., tf.newaxis]
  value = value[..., tf.newaxis]
  return value - (value - image) * scale


def rotate_hue(image, degrees):
  """Adds to the hue of HSV; saturation and value stay.

  Args:
    image: [H, W, 3] float32, RGB, not negative.
    degrees: [] float32.

  Returns:
    [H, W, 3] float32.
  """
  red, green, blue = channels = tf.unstack(image, axis=-1)
  value, chroma = _value_and_chroma(channels)
  per_chroma = tf.math.reciprocal_no_nan(chroma)
  sextant = tf.where(
    value == red,
    (green - blue) * per_chroma,
    tf.where(
      value == green,
      2.0 + (blue - red) * per_chroma,
      4.0 + (red - green) * per_chroma,
    ),
  )
  turned = sextant + degrees / 60.0
  # Each channel is M less a trapezium of its distance, in sextants, from its own hue.
  distances = [
    tf.abs(turned + offset - 6.0 * tf.round((turned + offset) / 6.0))
    for offset in (0.0, -2.0, 2.0)
  ]
  return tf.stack(
    [value - chroma * tf.clip_by_value(d - 1.0, 0.0, 1.0) for d in distances], axis=-1
  )


def lighting_shift(weights):
  """What is added to a picture's pixels to change its lighting (Krizhevsky et al. 2012).

  Args:
    weights: [3] float32, one a principal component of ImageNet's colours.

  Returns:
    [3] float32, RGB 0..255.
  """
  scaled = weights * tf.constant(_COMPONENT_DEVIATIONS)
  return 255.0 * tf.linalg.matvec(tf.constant(_COMPONENTS), scaled, transpose_a=True)


def _value_and_chroma(channels):
  red, green, blue = channels
  value = tf.maximum(tf.maximum(red, green), blue)
  return value, value - tf.minimum(tf.minimum(red, green), blue)
