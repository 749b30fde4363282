"""Training augmentation: steps that take an example and return it changed.

An example is a dict: `image` [H, W, 3], `boxes` [G, 4] float32 (yxyx, pixels of the
image), `classes` [G] int32, `ignored` [G] bool, `seed` [2] int32. Every step draws from
the example's seed alone, so that an epoch comes out the same however many threads make
it and wherever training was started again.

The paper's augmentation is SSD's (Liu et al. 2016), as the authors' release has it. Its
expansion and cropping are drawn before any pixel is touched: they set `window` [4]
float32, the part of the plane (yxyx, pixels of the image) that the network will see, and
the picture is resampled once. Colours are changed in between, on the pixels that stay.
"""

from __future__ import annotations

import hashlib

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import images as image_ops
from ap_detect.data import colors

# SSD's ranges (authors' release) at strength 1; each is applied with probability 1/2.
MAX_BRIGHTNESS = 32.0
MAX_CONTRAST = 0.5
MAX_SATURATION = 0.5
MAX_HUE_DEGREES = 18.0
LIGHTING_DEVIATION = 0.1
LUMA = (0.299, 0.587, 0.114)

MAX_EXPANSION = 4.0
# What a crop's IoU with an object must reach; below 0 anything will do.
CROP_MIN_IOUS = (0.1, 0.3, 0.7, 0.9, -1.0)
CROP_TRIALS = 50
CROP_SIDES = (0.3, 1.0)
CROP_ASPECT_RATIOS = (0.5, 2.0)

_INTERPOLATIONS = ("bilinear", "nearest", "area", "bicubic", "lanczos3")


def zoom_steps(
  output_size, *, horizontal_flip=0.5, zoom_range=(1.0, 1.0), color_strength=0.0
):
  """The steps of an augmentation that keeps the aspect.

  Colour comes last, where there are the fewest pixels; it changes the canvas around the
  picture too.

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
  return [*steps, random_color(color_strength)] if color_strength else steps


def random_horizontal_flip(probability):
  """Step: mirrors left and right with the given probability."""

  def step(example):
    flips = _uniform(example, "flip") < probability
    image, boxes = example["image"], example["boxes"]
    width = tf.cast(tf.shape(image)[1], tf.float32)
    return {
      **example,
      "image": tf.cond(flips, lambda: tf.reverse(image, axis=[1]), lambda: image),
      "boxes": tf.where(flips, box_ops.mirror(boxes, width), boxes),
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
    random_ssd_color(color_strength),
    warp_window(output_size),
  ]


def random_expansion(probability=0.5, max_ratio=MAX_EXPANSION):
  """Step: sets `window` to a larger plane in which the picture lies at a random place.

  Args:
    probability: of expanding at all; else the window is the picture.
    max_ratio: the window's sides are U(1, max_ratio) times the picture's.
  """

  def step(example):
    size = tf.cast(tf.shape(example["image"])[:2], tf.float32)
    ratio = tf.where(
      _uniform(example, "expand?") < probability,
      _uniform(example, "expand", (1.0, max_ratio)),
      1.0,
    )
    place = tf.stack([_uniform(example, "top"), _uniform(example, "left")])
    window_size = tf.floor(ratio * size)
    corner = -tf.floor(place * (window_size - size))
    return {**example, "window": tf.concat([corner, corner + window_size], axis=0)}

  return step


def random_crop():
  """Step: shrinks `window` by one of SSD's samplers; objects follow their centres.

  Sampler: none, an IoU of at least 0.1, 0.3, 0.7 or 0.9 with some object, or any. One
  whose 50 trials all fail gives way to another draw of a sampler, as in the authors'
  release. A crop holds the centre of an object, or of the picture where it has none.
  Ignored objects have no say. An object whose centre is outside of the window is
  dropped, and boxes are cut to it.
  """

  def step(example):
    samplers = tf.constant([1.1, *CROP_MIN_IOUS])
    centers = (example["boxes"][:, :2] + example["boxes"][:, 2:]) / 2

    def draw(round_number, _, __):
      seed = tf.random.experimental.stateless_fold_in(example["seed"], round_number)
      drawn = {**example, "seed": seed}
      sampler = _integer(drawn, "sampler", len(samplers))
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


def random_ssd_color(strength=1.0):
  """Step: random brightness, contrast, saturation, hue and lighting, 0..255.

  Contrast comes before or after saturation and hue, which are those of HSV. Values
  outside of 0..255 are clipped before HSV and at the end, as 8-bit pictures would be.
  Lighting is N(0, 0.1) a principal component of ImageNet's colours.
  """

  def step(example):
    contrast = _jitter(example, "contrast", 1.0, strength * MAX_CONTRAST)
    is_first = _uniform(example, "order") < 0.5
    before = tf.where(is_first, contrast, 1.0)
    brightness = _jitter(example, "brightness", 0.0, strength * MAX_BRIGHTNESS)
    image = tf.cast(example["image"], tf.float32) * before + brightness * before
    image = tf.clip_by_value(image, 0.0, 255.0)
    saturation = _jitter(example, "saturation", 1.0, strength * MAX_SATURATION)
    image = tf.cond(
      saturation == 1.0,
      lambda: image,
      lambda: colors.scale_saturation(image, saturation),
    )
    hue = _jitter(example, "hue", 0.0, strength * MAX_HUE_DEGREES)
    image = tf.cond(hue == 0.0, lambda: image, lambda: colors.rotate_hue(image, hue))
    shift = colors.lighting_shift(_lighting(example, strength * LIGHTING_DEVIATION))
    image = image * tf.where(is_first, 1.0, contrast) + shift
    return {**example, "image": tf.clip_by_value(image, 0.0, 255.0)}

  return step


def warp_window(output_size):
  """Step: resamples `window` to the network's input, whatever its aspect.

  By one of linear, nearest, area, cubic and Lanczos interpolation. Where the window
  passes the picture it gets `images.FILL_RGB`. The picture is resized to whole pixels of
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
      _integer(example, "kernel", len(_INTERPOLATIONS)),
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
  """A canvas of FILL_RGB with the picture at a corner."""
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
  sides = tf.floor(size * _uniform(example, "sides", CROP_SIDES, shape))
  corners = window[:2] + tf.floor(
    _uniform(example, "corner", (0, 1), shape) * (size - sides)
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


def _lighting(example, deviation):
  """Three weights N(0, deviation^2) half of the time, else 0."""
  weights = tf.random.stateless_normal([3], _seed(example, "lighting"))
  return tf.where(_uniform(example, "lighting?") < 0.5, deviation * weights, 0.0)


def _integer(example, name, end):
  """An integer below `end` that depends on the example's seed and the name only."""
  return tf.random.stateless_uniform(
    [], _seed(example, name), maxval=end, dtype=tf.int32
  )


def _uniform(example, name, value_range=(0.0, 1.0), shape=()):
  """Numbers in the range that depend on the example's seed and the name only."""
  low, high = value_range
  return low + (high - low) * tf.random.stateless_uniform(shape, _seed(example, name))


def _seed(example, name):
  return tf.random.experimental.stateless_fold_in(example["seed"], stream_key(name))


def stream_key(name):
  """Key of the random stream of a draw, by its whole name; int below 2^31.

  Example:
    >>> stream_key("brightness") == stream_key("sharpness")
    False
  """
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:4], "little") % 2**31
