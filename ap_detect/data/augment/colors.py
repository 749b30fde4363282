"""Colour jitter: steps, and hue and saturation without a round trip through HSV."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.data.augment import draws

# SSD's ranges (authors' release) at strength 1; each is applied with probability 1/2.
MAX_BRIGHTNESS = 32.0
MAX_CONTRAST = 0.5
MAX_SATURATION = 0.5
MAX_HUE_DEGREES = 18.0
LIGHTING_DEVIATION = 0.1
LUMA = (0.299, 0.587, 0.114)

# Principal components of the colours of ImageNet's pixels, RGB 0..1 (Krizhevsky et al.
# 2012, section 4.1): standard deviations along them, and the components as rows.
_COMPONENT_DEVIATIONS = (0.2175, 0.0188, 0.0045)
_COMPONENTS = (
  (-0.5675, -0.5808, -0.5836),
  (0.7192, -0.0045, -0.6948),
  (0.4009, -0.8140, 0.4203),
)


def random_color(strength=1.0):
  """Step: random brightness, contrast and saturation of a float image 0..255."""

  def step(example):
    image = tf.cast(example["image"], tf.float32)
    image += draws.jitter(example, "brightness", 0.0, strength * MAX_BRIGHTNESS)
    image *= draws.jitter(example, "contrast", 1.0, strength * MAX_CONTRAST)
    grey = tf.tensordot(image, tf.constant(LUMA), 1)[..., tf.newaxis]
    saturation = draws.jitter(example, "saturation", 1.0, strength * MAX_SATURATION)
    image = grey + (image - grey) * saturation
    return {**example, "image": tf.clip_by_value(image, 0.0, 255.0)}

  return step


def random_ssd_color(strength=1.0):
  """Step: random brightness, contrast, saturation, hue and lighting, 0..255.

  Contrast comes before or after saturation and hue, which are those of HSV. Values
  outside of 0..255 are clipped before HSV and at the end, as 8-bit images would be.
  Lighting is N(0, 0.1) a principal component of ImageNet's colours.
  """

  def step(example):
    contrast = draws.jitter(example, "contrast", 1.0, strength * MAX_CONTRAST)
    is_first = draws.uniform(example, "order") < 0.5
    before = tf.where(is_first, contrast, 1.0)
    brightness = draws.jitter(example, "brightness", 0.0, strength * MAX_BRIGHTNESS)
    image = tf.cast(example["image"], tf.float32) * before + brightness * before
    image = tf.clip_by_value(image, 0.0, 255.0)
    saturation = draws.jitter(example, "saturation", 1.0, strength * MAX_SATURATION)
    image = tf.cond(
      saturation == 1.0,
      lambda: image,
      lambda: scale_saturation(image, saturation),
    )
    hue = draws.jitter(example, "hue", 0.0, strength * MAX_HUE_DEGREES)
    image = tf.cond(hue == 0.0, lambda: image, lambda: rotate_hue(image, hue))
    shift = lighting_shift(_lighting(example, strength * LIGHTING_DEVIATION))
    image = image * tf.where(is_first, 1.0, contrast) + shift
    return {**example, "image": tf.clip_by_value(image, 0.0, 255.0)}

  return step


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
  """What is added to an image's pixels to change its lighting (Krizhevsky et al. 2012).

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


def _lighting(example, deviation):
  """Three weights N(0, deviation^2) half of the time, else 0."""
  weights = draws.normal(example, "lighting", [3])
  return tf.where(draws.uniform(example, "lighting?") < 0.5, deviation * weights, 0.0)
