"""An augmentation that keeps the aspect ratio: flip, scale jitter, colour jitter."""

from __future__ import annotations

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import images as image_ops
from ap_detect.data.augment import colors, draws


def zoom_steps(
  output_size, *, horizontal_flip=0.5, zoom_range=(1.0, 1.0), color_strength=0.0
):
  """The steps of an augmentation that keeps the aspect.

  Colour comes last, where there are the fewest pixels; it changes the canvas around the
  image too.

  Args:
    output_size: (height, width) of the network's input, pixels.
    horizontal_flip: probability of mirroring.
    zoom_range: see `zoom_onto_canvas`.
    color_strength: of `random_color`; 0 for none.

  Returns:
    list of steps.
  """
  steps = [
    random_horizontal_flip(horizontal_flip),
    zoom_onto_canvas(output_size, zoom_range),
  ]
  return [*steps, colors.random_color(color_strength)] if color_strength else steps


def fit_steps(output_size):
  """The steps of no augmentation: the image scaled to fit, as in evaluation.

  Args:
    output_size: (height, width) of the network's input, pixels.

  Returns:
    list of one step.
  """

  def fit_onto_canvas(example):
    images, scale = image_ops.resize_to_fit(example["image"][tf.newaxis], output_size)
    boxes = example["boxes"] * scale
    canvas = tf.constant(output_size, tf.float32)
    return {**example, "image": images[0], **_cut(boxes, example, canvas)}

  return [fit_onto_canvas]


def random_horizontal_flip(probability):
  """Step: mirrors left and right with the given probability."""

  def step(example):
    flips = draws.uniform(example, "flip") < probability
    image, boxes = example["image"], example["boxes"]
    width = tf.cast(tf.shape(image)[1], tf.float32)
    return {
      **example,
      "image": tf.cond(flips, lambda: tf.reverse(image, axis=[1]), lambda: image),
      "boxes": tf.where(flips, box_ops.mirror(boxes, width), boxes),
    }

  return step


def zoom_onto_canvas(output_size, zoom_range=(1.0, 1.0)):
  """Step: scales the image to fit the canvas, times a random zoom, at a random place.

  With zoom (1, 1) and an image of the canvas's aspect this is `images.resize_to_fit`.
  An object whose centre leaves the canvas becomes `ignored`; one that leaves it wholly
  is dropped; boxes are cut to the canvas.

  Args:
    output_size: (height, width) of the canvas, pixels.
    zoom_range: factors between which the zoom is uniform.
  """

  def step(example):
    size = tf.cast(tf.shape(example["image"])[:2], tf.float32)
    canvas = tf.constant(output_size, tf.float32)
    zoom = draws.uniform(example, "zoom", zoom_range)
    scale = image_ops.scale_to_fit(size, output_size) * zoom
    place = tf.stack(
      [draws.uniform(example, "place_y"), draws.uniform(example, "place_x")]
    )
    translation = place * (canvas - size * scale)
    image = image_ops.scale_and_translate(
      example["image"][tf.newaxis], output_size, tf.stack([scale, scale]), translation
    )[0]
    boxes = example["boxes"] * scale + tf.tile(translation, [2])
    return {**example, "image": image, **_cut(boxes, example, canvas)}

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
