"""The paper's augmentation, SSD's (Liu et al. 2016), as the authors' release has it.

Expansion and cropping are drawn before any pixel is touched: they set `window` [4]
float32, the part of the plane (yxyx, pixels of the image) that the network will see, and
the image is resampled once. Colours are changed in between, on the pixels that stay.
"""

from __future__ import annotations

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import images as image_ops
from ap_detect.data.augment import colors, draws
from ap_detect.data.augment.scale_jitter import random_horizontal_flip

MAX_EXPANSION = 4.0
# What a crop's IoU with an object must reach; below 0 anything will do.
CROP_MIN_IOUS = (0.1, 0.3, 0.7, 0.9, -1.0)
CROP_TRIALS = 50
CROP_SIDES = (0.3, 1.0)
CROP_ASPECT_RATIOS = (0.5, 2.0)

_INTERPOLATIONS = ("bilinear", "nearest", "area", "bicubic", "lanczos3")


def ssd_steps(output_size, *, horizontal_flip=0.5, color_strength=1.0):
  """The steps of SSD's augmentation.

  Args:
    output_size: (height, width) of the network's input, pixels.
    horizontal_flip: probability of mirroring.
    color_strength: of `random_ssd_color`.

  Returns:
    list of steps.
  """
  return [
    # First, where a pixel is three bytes and there is no window yet.
    random_horizontal_flip(horizontal_flip),
    random_expansion(),
    random_crop(),
    cut_to_window,
    colors.random_ssd_color(color_strength),
    warp_window(output_size),
  ]


def random_expansion(probability=0.5, max_ratio=MAX_EXPANSION):
  """Step: sets `window` to a larger plane in which the image lies at a random place.

  Args:
    probability: of expanding at all; else the window is the image.
    max_ratio: the window's sides are U(1, max_ratio) times the image's.
  """

  def step(example):
    size = tf.cast(tf.shape(example["image"])[:2], tf.float32)
    ratio = tf.where(
      draws.uniform(example, "expand?") < probability,
      draws.uniform(example, "expand", (1.0, max_ratio)),
      1.0,
    )
    place = tf.stack([draws.uniform(example, "top"), draws.uniform(example, "left")])
    window_size = tf.floor(ratio * size)
    corner = -tf.floor(place * (window_size - size))
    return {**example, "window": tf.concat([corner, corner + window_size], axis=0)}

  return step


def random_crop():
  """Step: shrinks `window` by one of SSD's samplers; objects follow their centres.

  Sampler: none, an IoU of at least 0.1, 0.3, 0.7 or 0.9 with some object, or any. One
  whose 50 trials all fail gives way to another draw of a sampler, as in the authors'
  release. A crop holds the centre of an object, or of the image where it has none.
  Ignored objects have no say. An object whose centre is outside of the window is
  dropped, and boxes are cut to it.
  """

  def step(example):
    samplers = tf.constant([1.1, *CROP_MIN_IOUS])
    centers = (example["boxes"][:, :2] + example["boxes"][:, 2:]) / 2

    def draw(round_number, _, __):
      seed = tf.random.experimental.stateless_fold_in(example["seed"], round_number)
      drawn = {**example, "seed": seed}
      sampler = draws.integer(drawn, "sampler", len(samplers))
      window, found = _find_crop(drawn, samplers[sampler], centers)
      is_whole = sampler == 0
      return (
        round_number + 1,
        is_whole | found,
        tf.where(is_whole, example["window"], window),
      )

    _, _, window = tf.while_loop(
      lambda _, done, __: ~done, draw, (0, False, example["window"])
    )
    stays = _holds(window[tf.newaxis], centers)[0]
    cut = tf.clip_by_value(
      example["boxes"], tf.tile(window[:2], [2]), tf.tile(window[2:], [2])
    )
    stays &= box_ops.area(cut) > 0
    return {
      **example,
      "window": window,
      "boxes": tf.boolean_mask(cut, stays),
      "classes": tf.boolean_mask(example["classes"], stays),
      "ignored": tf.boolean_mask(example["ignored"], stays),
    }

  return step


def cut_to_window(example):
  """Step: drops the pixels outside of `window`; all counts from the new corner then."""
  window = example["window"]  # of whole numbers
  size = tf.shape(example["image"])[:2]
  first = tf.maximum(tf.cast(window[:2], tf.int32), 0)
  last = tf.minimum(tf.cast(window[2:], tf.int32), size)
  moved = tf.tile(tf.cast(first, tf.float32), [2])
  return {
    **example,
    "image": example["image"][first[0] : last[0], first[1] : last[1]],
    "window": window - moved,
    "boxes": example["boxes"] - moved,
  }


def warp_window(output_size):
  """Step: resamples `window` to the network's input, whatever its aspect.

  By one of linear, nearest, area, cubic and Lanczos interpolation. Where the window
  passes the image it gets `images.FILL_RGB`. The image is resized to whole pixels of
  the output; boxes follow that.

  Args:
    output_size: (height, width), pixels.
  """

  def step(example):
    image, window = example["image"], example["window"]
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    scale = tf.constant(output_size, tf.float32) / (window[2:] - window[:2])
    first = tf.round(-window[:2] * scale)
    resized_size = tf.maximum(tf.round((size - window[:2]) * scale) - first, 1.0)
    first = tf.minimum(first, tf.constant(output_size, tf.float32) - resized_size)
    resized = _resize(
      image,
      tf.cast(resized_size, tf.int32),
      draws.integer(example, "kernel", len(_INTERPOLATIONS)),
    )
    boxes = example["boxes"] * tf.tile(resized_size / size, [2]) + tf.tile(first, [2])
    kept = {key: value for key, value in example.items() if key != "window"}
    return {
      **kept,
      "image": _place(resized, tf.cast(first, tf.int32), output_size),
      "boxes": box_ops.clip(boxes, *(float(side) for side in output_size)),
    }

  return step


def _resize(image, size, interpolation):
  def resize(method):
    return lambda: tf.cast(tf.image.resize(image, size, method), tf.float32)

  resized = tf.switch_case(interpolation, [resize(name) for name in _INTERPOLATIONS])
  return tf.clip_by_value(resized, 0.0, 255.0)  # cubic and Lanczos overshoot


def _place(image, corner, output_size):
  """A canvas of FILL_RGB with the image at a corner."""
  size = tf.shape(image)[:2]

  def pad():
    after = output_size - corner - size
    paddings = tf.stack([corner, after], axis=1)
    fill = tf.constant(image_ops.FILL_RGB)
    return tf.pad(image - fill, tf.concat([paddings, [[0, 0]]], axis=0)) + fill

  canvas = tf.cond(tf.reduce_all(size == output_size), lambda: image, pad)
  return tf.ensure_shape(canvas, [*output_size, 3])


def _find_crop(example, min_iou, centers):
  """(window [4], whether it was found): the first of 50 random crops that will do."""
  window, boxes = example["window"], example["boxes"]
  size = window[2:] - window[:2]
  shape = [CROP_TRIALS, 2]
  sides = tf.floor(size * draws.uniform(example, "sides", CROP_SIDES, shape))
  corners = window[:2] + tf.floor(
    draws.uniform(example, "corner", (0, 1), shape) * (size - sides)
  )
  crops = tf.concat([corners, corners + sides], axis=1)
  aspect_ratio = sides[:, 0] / sides[:, 1]
  counts = ~example["ignored"]
  has_object = tf.reduce_any(_holds(crops, centers) & counts, axis=1) & tf.reduce_any(
    (box_ops.iou(crops, boxes) >= min_iou) & counts, axis=1
  )
  middle = tf.cast(tf.shape(example["image"])[:2], tf.float32)[tf.newaxis] / 2
  will_do = (
    tf.where(tf.reduce_any(counts), has_object, _holds(crops, middle)[:, 0])
    & (aspect_ratio >= CROP_ASPECT_RATIOS[0])
    & (aspect_ratio <= CROP_ASPECT_RATIOS[1])
  )
  first = tf.argmax(tf.cast(will_do, tf.int32))
  return crops[first], tf.reduce_any(will_do)


def _holds(windows, points):
  """Which of the points [G, 2] lie in which of the windows [M, 4]; [M, G] bool."""
  windows = windows[:, tf.newaxis]
  return tf.reduce_all((points >= windows[..., :2]) & (points < windows[..., 2:]), -1)
