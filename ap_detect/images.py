"""Decoding and resizing, in TensorFlow operations, for training and serving alike.

Training, evaluation and the exported graph call the same functions, so that an image
reaches the network with the same pixels everywhere.
"""

from __future__ import annotations

import tensorflow as tf

# What lies outside an image: ImageNet's mean colour (RGB), near 0 for every backbone.
FILL_RGB = (123.0, 116.0, 103.0)

# First bytes of the formats that are decoded.
JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
GIF_START = b"GIF8"
BMP_START = b"BM"

# Where a PNG has its bits per channel, in bytes.
PNG_DEPTH_OFFSET = 24

# No JPEG has as many segments before the one with its EXIF data; bounds the search.
MAX_EXIF_SEGMENTS = 100

# EXIF data lies in one segment, whose length has 16 bits.
_MAX_EXIF_BYTES = 2**16


def decode_image(encoded, *, exif_orientation=True):
  """Pixels of an encoded image as RGB, turned as its EXIF data says.

  Reads JPEG, PNG, BMP of 24 or 32 bits, and the first frame of a GIF. Transparency is
  dropped. The values of a PNG of 16 bits per channel are scaled by the smallest 2^n - 1
  that holds their maximum, for cameras often use fewer bits than the file has.

  Args:
    encoded: [] string, the file's bytes.
    exif_orientation: whether a JPEG is turned as the orientation in its EXIF data says;
      otherwise the pixels are those stored.

  Returns:
    [H, W, 3] uint8, RGB.

  Raises:
    tf.errors.InvalidArgumentError: the bytes are no complete image of these formats.
  """

  def decode_jpeg():
    image = _decode(encoded)
    return _turn_as_exif_says(image, encoded) if exif_orientation else image

  image = tf.cond(
    _starts_with(encoded, JPEG_START), decode_jpeg, lambda: _decode_other(encoded)
  )
  return tf.ensure_shape(image, [None, None, 3])


def read_size(encoded):
  """Height and width of an encoded image as stored, from its header.

  Args:
    encoded: [] string; any bytes.

  Returns:
    [2] int64; zeros for what is no JPEG, PNG or BMP.

  Raises:
    tf.errors.InvalidArgumentError: the header of a JPEG is damaged.
  """

  def read_png():
    # The first chunk: its length, "IHDR", width and height.
    words = tf.cast(_read_words(encoded, 8, 8), tf.int64)
    size = tf.gather(words, [6, 4]) * 2**16 + tf.gather(words, [7, 5])
    return tf.where(tf.reduce_all(words[2:4] == [0x4948, 0x4452]), size, 0)

  def read_bmp():
    words = tf.cast(_read_words(encoded, 18, 4, little_endian=True), tf.int64)
    size = tf.gather(words, [3, 1]) * 2**16 + tf.gather(words, [2, 0])
    # A negative height is of rows from top to bottom.
    return tf.where(size < 2**31, size, 2**32 - size)

  def read_jpeg():
    return tf.cast(tf.image.extract_jpeg_shape(encoded)[:2], tf.int64)

  return tf.case(
    [
      (_starts_with(encoded, JPEG_START), read_jpeg),
      (_starts_with(encoded, PNG_START), read_png),
      (_starts_with(encoded, BMP_START), read_bmp),
    ],
    default=lambda: tf.zeros([2], tf.int64),
  )


def read_orientation(encoded):
  """EXIF's orientation of an encoded image.

  Looks into the first APP1 segment with EXIF data among the application segments and
  comments at a JPEG's beginning, where EXIF requires it to be.

  Args:
    encoded: [] string; any bytes.

  Returns:
    [] int32, 1..8; 1, the image as stored, where there is no valid orientation.
  """
  num_bytes = tf.strings.length(encoded)

  def read_segment(position):
    """The first five words: marker, length, and where "Exif" would stand."""
    return _read_words(encoded, position, 5)

  def is_exif(words):
    return tf.reduce_all(
      words * [1, 0, 1, 1, 1] == [0xFFE1, 0, 0x4578, 0x6966, 0]  # Exif\0\0
    )

  def is_skipped(_, words):
    marker = words[0]
    is_application = (marker >= 0xFFE0) & (marker <= 0xFFEF)
    # 0xFFFE is a comment, 0xFFFF a byte that fills up.
    return (is_application | (marker >= 0xFFFE)) & ~is_exif(words)

  def skip(position, words):
    position += tf.where(words[0] == 0xFFFF, 1, 2 + words[1])
    return position, read_segment(position)

  position, words = tf.while_loop(
    is_skipped, skip, (2, read_segment(2)), maximum_iterations=MAX_EXIF_SEGMENTS
  )
  # Two bytes of marker and two of length, which counts itself, precede "Exif\0\0".
  start = tf.minimum(position + 10, num_bytes)
  length = tf.maximum(words[1] - 8, 0)
  return tf.cond(
    _starts_with(encoded, JPEG_START) & is_exif(words),
    lambda: _parse_orientation(tf.strings.substr(encoded, start, length)),
    lambda: 1,
  )


def turn(image, orientation):
  """An image as it is to be seen, from its pixels as stored.

  Args:
    image: [H, W, 3].
    orientation: [] int32, EXIF's, 1..8.

  Returns:
    [H, W, 3], or [W, H, 3] where the orientation is 5 or more.

  Example:
    >>> stored = tf.reshape(tf.range(6), [2, 3, 1])
    >>> turn(stored, 6)[..., 0].numpy().tolist()  # a quarter turn clockwise
    [[3, 0], [4, 1], [5, 2]]
  """
  orientation = tf.convert_to_tensor(orientation)
  axes = tf.where(orientation >= 5, [1, 0, 2], [0, 1, 2])
  is_flipped = [
    tf.reduce_any(orientation == [3, 4, 7, 8]),  # upside down
    tf.reduce_any(orientation == [2, 3, 6, 7]),  # left and right exchanged
  ]
  flipped_axes = tf.boolean_mask([0, 1], tf.stack(is_flipped))
  return tf.reverse(tf.transpose(image, axes), flipped_axes)


def scale_to_fit(image_size, output_size):
  """The factor by which an image fits into a given size with its aspect kept.

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
  """Moves images into a canvas: a point at y lands at y * scale + translation.

  Bilinear, antialiased where it shrinks; canvas outside the image gets FILL_RGB.

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
  inside = [
    _inside(
      tf.shape(images)[1 + axis], output_size[axis], scale[axis], translation[axis]
    )
    for axis in (0, 1)
  ]
  # Only as far as the picture reaches: between its passes over rows and columns the
  # operation has rows as wide as the picture, which of a narrow strip would be huge.
  ends = [_end(is_inside) for is_inside in inside]
  moved = tf.raw_ops.ScaleAndTranslate(
    images=images,
    size=tf.stack(ends),
    scale=scale,
    translation=translation,
    kernel_type="triangle",
    antialias=True,
  )
  missing = [[0, length - end] for length, end in zip(output_size, ends)]
  moved = tf.pad(moved, [[0, 0], *missing, [0, 0]])
  mask = inside[0][:, tf.newaxis, tf.newaxis] & inside[1][tf.newaxis, :, tf.newaxis]
  moved = tf.where(mask, moved, tf.constant(FILL_RGB))
  return tf.ensure_shape(moved, [None, *output_size, 3])


def resize_to_fit(images, output_size, fit_size=None):
  """Images scaled to fit, aspect kept, in the top left corner of a canvas.

  Args:
    images: [B, H, W, 3], uint8 or float, RGB 0..255.
    output_size: (height, width) of the canvas, pixels.
    fit_size: [2] height and width that the images are scaled to fit; None for
      output_size.

  Returns:
    ([B, height, width, 3] float32, scale): scale is the factor from pixels of the
    image to pixels of the canvas, [] float32.
  """
  fit_size = output_size if fit_size is None else fit_size
  scale = scale_to_fit(tf.shape(images)[1:3], fit_size)
  return scale_and_translate(images, output_size, tf.stack([scale, scale])), scale


def _inside(input_length, output_length, scale, translation):
  """Whether each canvas pixel's centre falls on the image; [output_length] bool."""
  centers = tf.range(output_length, dtype=tf.float32) + 0.5
  source = (centers - translation) / scale
  return (source >= 0) & (source <= tf.cast(input_length, tf.float32))


def _end(is_inside):
  """Number of canvas pixels up to the last that is inside, at least 1; [] int32."""
  places = tf.range(1, tf.size(is_inside) + 1)
  return tf.maximum(tf.reduce_max(tf.where(is_inside, places, 0)), 1)


def _turn_as_exif_says(image, encoded):
  """A JPEG's pixels, turned; those of most files are left alone without a search."""
  # After the start of the image and JFIF's 18 bytes there are tables at once.
  words = _read_words(encoded, 0, 11)
  has_no_exif = tf.reduce_all(words[1:3] == [0xFFE0, 16]) & (words[10] < 0xFFE0)

  def look():
    orientation = read_orientation(encoded)
    return tf.cond(orientation > 1, lambda: turn(image, orientation), lambda: image)

  return tf.cond(has_no_exif, lambda: image, look)


def _parse_orientation(tiff):
  """The orientation in EXIF data, which has the structure of a TIFF file."""
  # Zeros behind it, so that no offset leads outside.
  data = tf.io.decode_raw(tiff, tf.uint8, fixed_length=_MAX_EXIF_BYTES)
  is_little_endian = tf.reduce_all(data[:4] == [0x49, 0x49, 42, 0])
  is_big_endian = tf.reduce_all(data[:4] == [0x4D, 0x4D, 0, 42])

  def number(values, start, size):
    """The numbers in `size` bytes from `start` on, along the last axis."""
    digits = tf.cast(values[..., start : start + size], tf.int64)
    places = [256**place for place in range(size)]
    places = tf.where(
      is_little_endian,
      tf.constant(places, tf.int64),
      tf.constant(places[::-1], tf.int64),
    )
    return tf.reduce_sum(digits * places, axis=-1)

  offset = tf.minimum(number(data, 4, 4), _MAX_EXIF_BYTES - 2)
  directory = data[offset:]
  # An entry: tag, type, number of values (2, 2 and 4 bytes), and 4 bytes of value.
  entries = directory[2 : 2 + 12 * number(directory, 0, 2)]
  entries = tf.reshape(entries[: tf.size(entries) // 12 * 12], [-1, 12])
  kind = number(entries, 2, 2)  # 3: 16 bits, 4: 32 bits
  value = tf.where(kind == 3, number(entries, 8, 2), number(entries, 8, 4))
  is_valid = (number(entries, 0, 2) == 0x0112) & (number(entries, 4, 4) == 1)
  is_valid &= ((kind == 3) | (kind == 4)) & (value <= 8)
  is_valid &= is_little_endian | is_big_endian
  return tf.cast(tf.maximum(tf.reduce_max(tf.where(is_valid, value, 1)), 1), tf.int32)


def _decode_other(encoded):
  """Pixels of a PNG, BMP or GIF file."""
  is_png = _starts_with(encoded, PNG_START)
  # Big-endian, and so the word of the depth and the colour type.
  depth = _read_words(encoded, 0, PNG_DEPTH_OFFSET // 2 + 1)[-1] // 256
  is_bmp = _starts_with(encoded, BMP_START)
  is_known = is_png | _starts_with(encoded, GIF_START) | _is_readable_bmp(encoded)
  check = tf.debugging.Assert(
    is_known, ["neither JPEG nor PNG, GIF or BMP of 24 or 32 bits"], summarize=1
  )
  with tf.control_dependencies([] if check is None else [check]):
    encoded = tf.identity(encoded)
  return tf.case(
    [
      (is_png & (depth == 16), lambda: _decode_deep_png(encoded)),
      # Of 32 bits, decode_image refuses to drop the fourth channel.
      (is_bmp, lambda: tf.io.decode_bmp(encoded)[..., :3]),
    ],
    default=lambda: _decode(encoded),
  )


def _decode(encoded):
  return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _decode_deep_png(encoded):
  """A PNG of 16 bits per channel in 8 bits."""
  values = tf.io.decode_png(encoded, channels=3, dtype=tf.uint16)
  values = tf.cast(values, tf.int32)
  limits = tf.constant([2**bits - 1 for bits in range(1, 17)])
  limit = tf.reduce_min(tf.boolean_mask(limits, limits >= tf.reduce_max(values)))
  return tf.cast((2 * 255 * values + limit) // (2 * limit), tf.uint8)  # rounded


def _is_readable_bmp(encoded):
  """Whether a BMP has 24 or 32 bits per pixel in the order that TensorFlow expects."""
  # From byte 14 on: the header's size, ..., bits (28), compression (30), ..., masks of
  # red, green and blue (54). Numbers are little-endian.
  words = _read_words(encoded, 14, 26, little_endian=True)
  has_masks = tf.reduce_all(words[8:10] == [3, 0])
  masks = tf.reduce_all(words[20:26] == [0, 0xFF, 0xFF00, 0, 0xFF, 0])
  return (
    _starts_with(encoded, BMP_START)
    & (words[0] >= 40)
    & ((words[7] == 24) | (words[7] == 32))
    & (tf.reduce_all(words[8:10] == 0) | (has_masks & masks))
  )


def _read_words(encoded, position, count, little_endian=False):
  """Numbers of 16 bits, [count] int32; zeros after the end of the bytes."""
  position = tf.minimum(position, tf.strings.length(encoded))
  part = tf.strings.substr(encoded, position, 2 * count)
  words = tf.io.decode_raw(
    part, tf.uint16, little_endian=little_endian, fixed_length=2 * count
  )
  return tf.cast(words, tf.int32)


def _starts_with(encoded, start):
  return tf.strings.substr(encoded, 0, len(start)) == start
