"""Training augmentation: steps that take an example and return it changed.

An example is a dict: `image` [H, W, 3], `boxes` [G, 4] float32 (yxyx, pixels of the
image), `classes` [G] int32, `ignored` [G] bool, `seed` [2] int32. Every step draws from
the example's seed alone, so that an epoch comes out the same however many threads make
it and wherever training was started again.
"""

from __future__ import annotations

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import images as image_ops

# SSD's ranges (authors' release) at strength 1; each is applied with probability 1/2.
MAX_BRIGHTNESS = 32.0
MAX_CONTRAST = 0.5
MAX_SATURATION = 0.5
LUMA = (0.299, 0.587, 0.114)


def random_horizontal_flip(probability):
  """Step: mirrors left and right with the given probability."""

  def step(example):
    flips = _uniform(example, "flip") < probability
    image, boxes = example["image"], example["boxes"]
    width = tf.cast(tf.shape(image)[1], tf.float32)
    mirrored = tf.stack(
      [boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], axis=1
    )
    return {
      **example,
      "image": tf.cond(flips, lambda: tf.reverse(image, axis=[1]), lambda: image),
      "boxes": tf.where(flips, mirrored, boxes),
    }

  return step


def zoom_onto_canvas(output_size, zoom_range=(1.0, 1.0)):
  """Step: scales the picture to fit the canvas, times a random zoom, at a random place.

  With zoom (1, 1) and a picture of the canvas's aspect this is `images.resize_to_fit`.
  An object whose centre leaves the canvas becomes `ignored`; one that leaves it wholly
  is dropped; boxes are cut to the canvas.

  Args:
    output_size: (height, width) of the canvas, pixels.
    zoom_range: factors between which the zoom is uniform.
  """

  def step(example):
    size = tf.cast(tf.shape(example["image"])[:2], tf.float32)
    canvas = tf.constant(output_size, tf.float32)
    zoom = _uniform(example, "zoom", zoom_range)
    scale = image_ops.scale_to_fit(size, output_size) * zoom
    place = tf.stack([_uniform(example, "place_y"), _uniform(example, "place_x")])
    translation = place * (canvas - size * scale)
    image = image_ops.scale_and_translate(
      example["image"][tf.newaxis], output_size, tf.stack([scale, scale]), translation
    )[0]
    boxes = example["boxes"] * scale + tf.tile(translation, [2])
    return {**example, "image": image, **_cut(boxes, example, canvas)}

  return step


def random_color(strength=1.0):
  """Step: random brightness, contrast and saturation of a float image 0..255."""

  def step(example):
    image = tf.cast(example["image"], tf.float32)
    image += _jitter(example, "brightness", 0.0, strength * MAX_BRIGHTNESS)
    image *= _jitter(example, "contrast", 1.0, strength * MAX_CONTRAST)
    grey = tf.tensordot(image, tf.constant(LUMA), 1)[..., tf.newaxis]
    saturation = _jitter(example, "saturation", 1.0, strength * MAX_SATURATION)
    image = grey + (image - grey) * saturation
    return {**example, "image": tf.clip_by_value(image, 0.0, 255.0)}

  return step


def _cut(boxes, example, canvas):
  """Boxes, classes and flags of the objects that are still on the canvas."""
  center = (boxes[:, :2] + boxes[:, 2:]) / 2
  centered = tf.reduce_all((center >= 0) & (center <= canvas), axis=1)
  boxes = box_ops.clip(boxes, canvas[0], canvas[1])
  stays = box_ops.area(boxes) > 0
  return {
    "boxes": tf.boolean_mask(boxes, stays),
    "classes": tf.boolean_mask(example["classes"], stays),
    "ignored": tf.boolean_mask(example["ignored"] | ~centered, stays),
  }


def _jitter(example, name, neutral, spread):
  """Uniform in neutral +- spread half of the time, else neutral."""
  value = _uniform(example, name, (neutral - spread, neutral + spread))
  return tf.where(_uniform(example, name + "?") < 0.5, value, neutral)


def _uniform(example, name, value_range=(0.0, 1.0)):
  """A number in the range that depends on the example's seed and the name only."""
  key = int.from_bytes(name.encode()[-4:], "little") % 2**31
  seed = tf.random.experimental.stateless_fold_in(example["seed"], key)
  low, high = value_range
  return low + (high - low) * tf.random.stateless_uniform([], seed)
