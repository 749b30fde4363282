"""Images in one batch, some of which are none: the others are as if alone."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving import files

from ap_detect import images as image_ops
from ap_detect.serving import decoding

SIZE = (64, 96)


def smooth(height=40, width=50):
  rows, columns = np.mgrid[0:height, 0:width]
  return np.stack([rows * 5, columns * 4, rows + columns], -1).astype(np.uint8)


fit = tf.function(
  lambda encoded: decoding.fit_encoded(encoded, SIZE, max_image_pixels=10_000),
  [tf.TensorSpec([None], tf.string)],
)

fit_pixels = tf.function(
  lambda inputs: decoding.fit_pixels(inputs, SIZE),
  [tf.TensorSpec([None] * 4, tf.uint8)],
)

BROKEN = {
  "empty": b"",
  "text": b"GET / HTTP/1.1",
  "signature only": b"\x89PNG\r\n\x1a\n",
  "JPEG cut": files.encode(smooth(), "JPEG")[:-300],
  "PNG cut": files.encode(smooth(), "PNG")[:-40],
  "PNG damaged": files.encode(smooth(), "PNG").replace(b"IDAT", b"IDAX"),
  "GIF": files.encode(Image.fromarray(smooth()).convert("P"), "GIF"),
  "WebP": files.encode(smooth(), "WEBP"),
  "BMP of 8 bits": files.encode(Image.fromarray(smooth()).convert("P"), "BMP"),
  "PNG too large": files.encode(smooth(100, 101), "PNG"),
  "JPEG too large": files.encode(smooth(100, 101), "JPEG"),
  "BMP too large": files.encode(smooth(100, 101), "BMP"),
  "PNG of 2^62 pixels": (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xff\xff\xff\xff\xff\xff\xff\x08\2\0\0\0"
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_among_good_ones(name):
  good = [files.encode(smooth(), kind) for kind in ("PNG", "JPEG", "BMP")]
  found = fit(tf.constant([good[0], BROKEN[name], good[1], good[2]]))
  assert found.valid.numpy().tolist() == [True, False, True, True]
  for place, file in zip((0, 2, 3), good):
    pixels = image_ops.decode_image(file)[tf.newaxis]
    expected, scale = image_ops.resize_to_fit(pixels, SIZE)
    np.testing.assert_array_equal(found.images[place], expected[0])
    assert float(found.scales[place]) == float(scale)
    assert found.sizes[place].numpy().tolist() == [40, 50]
  # Nothing that could give NaN.
  assert found.sizes[1].numpy().tolist() == [1, 1]
  assert float(found.scales[1]) == 1.0


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_as_many_pixels_as_are_allowed(kind):
  assert fit(tf.constant([files.encode(smooth(100, 100), kind)])).valid.numpy().all()


@pytest.mark.parametrize("broken", [[], [b""], [b""] * 5])
def test_no_good_image(broken):
  found = fit(tf.constant(broken, tf.string))
  assert found.images.shape == (len(broken), *SIZE, 3)
  assert found.valid.numpy().tolist() == [False] * len(broken)


def test_examples():
  good = files.encode(smooth(), "PNG")
  examples = [
    files.example(good),
    b"\xff\xff not a message",
    files.example(good, key="image/decoded"),
    files.example(b"no image"),
    files.endless_example(),
    b"",
    files.example(good),
  ]
  found = decoding.fit_encoded(
    tf.constant(examples), SIZE, max_image_pixels=10_000, is_example=True
  )
  assert found.valid.numpy().tolist() == [True, False, False, False, False, False, True]
  np.testing.assert_array_equal(found.images[0], found.images[6])
  np.testing.assert_array_equal(found.images[0], fit(tf.constant([good])).images[0])


class TestPixels:
  def test_grey_is_repeated(self):
    grey = smooth()[np.newaxis, ..., :1]
    assert_same(grey, np.repeat(grey, 3, axis=-1))

  def test_transparency_is_dropped(self):
    rgb = smooth()[np.newaxis]
    assert_same(np.concatenate([rgb, rgb[..., :1] // 2], -1), rgb)

  @pytest.mark.parametrize("shape", [(2, 40, 50, c) for c in (0, 2, 5)])
  def test_other_channels(self, shape):
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
      fit_pixels(tf.zeros(shape, tf.uint8))
    assert "of 1, 3 or 4 channels, got shape" in str(raised.value)
    assert f"[2 40 50 {shape[3]}]" in str(raised.value)

  def test_no_pixels(self):
    with pytest.raises(tf.errors.InvalidArgumentError, match="2 0 50 3"):
      fit_pixels(tf.zeros([2, 0, 50, 3], tf.uint8))


def assert_same(inputs, rgb):
  found, expected = (fit_pixels(tf.constant(pixels)) for pixels in (inputs, rgb))
  assert found.images.numpy().std() > 10
  for one, other in zip(found, expected):
    np.testing.assert_array_equal(one, other)
