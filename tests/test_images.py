import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ap_detect import images

# Of pictures that stay more than a pixel high and wide.
sides = st.integers(12, 700)


def encoded(picture, image_format, **options):
  buffer = io.BytesIO()
  picture.save(buffer, image_format, **options)
  return buffer.getvalue()


def smooth_picture(height=24, width=40):
  rows, columns = np.mgrid[0:height, 0:width]
  pixels = np.stack([rows * 9, columns * 6, rows + columns], -1).astype(np.uint8)
  return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_png_gives_the_files_own_pixels(mode):
  picture = smooth_picture().convert(mode)
  if mode == "RGBA":
    picture.putalpha(77)  # transparency is dropped, not blended
  decoded = images.decode_image(encoded(picture, "PNG"))
  assert decoded.dtype == tf.uint8
  np.testing.assert_array_equal(decoded, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_agrees_with_pillow(mode):
  data = encoded(smooth_picture().convert(mode), "JPEG", quality=95)
  expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
  decoded = images.decode_image(data).numpy().astype(int)
  assert decoded.shape == (24, 40, 3)
  assert np.abs(decoded - expected).max() <= 4  # decoders may round differently


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9])
def test_incomplete_files_raise(image_format, share):
  rng = np.random.default_rng(0)
  noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
  data = encoded(noise, image_format)
  with pytest.raises(tf.errors.InvalidArgumentError):
    images.decode_image(data[: int(len(data) * share)])


def test_other_bytes_raise():
  with pytest.raises(tf.errors.InvalidArgumentError):
    images.decode_image(b"<annotation></annotation>")


def test_scale_to_fit_is_the_smaller_ratio():
  # 300 / 600 = 0.5 and 400 / 500 = 0.8
  assert float(images.scale_to_fit((600, 500), (300, 400))) == 0.5
  several = images.scale_to_fit(tf.constant([[600, 500], [100, 800]]), (300, 400))
  np.testing.assert_allclose(several, [0.5, 0.5])


@pytest.mark.parametrize(
  "scale, translation",
  [
    ((1.0, 1.0), (0.0, 0.0)),
    ((2.0, 2.0), (0.0, 0.0)),
    ((1.7, 2.3), (5.25, -11.5)),
    ((1.0, 1.0), (0.5, 3.75)),
  ],
)
def test_a_point_lands_at_its_scaled_and_moved_place(scale, translation):
  # Pixel i of a ramp holds the coordinate of its centre, i + 1/2. Linear interpolation
  # keeps ramps: pixel j of the canvas must hold (j + 1/2 - translation) / scale.
  rows, columns = np.mgrid[0:40, 0:50] + 0.5
  ramp = np.stack([rows, columns, 0 * rows], -1)[np.newaxis].astype(np.float32)
  canvas = images.scale_and_translate(ramp, (48, 64), scale, translation)[0].numpy()
  y = (np.arange(48) + 0.5 - translation[0]) / scale[0]
  x = (np.arange(64) + 0.5 - translation[1]) / scale[1]
  # Within half a pixel of the picture's border there is nothing to interpolate with.
  inner = np.ix_((y > 0.5) & (y < 39.5), (x > 0.5) & (x < 49.5))
  expected = np.stack(np.meshgrid(y, x, indexing="ij"), -1)[inner]
  assert expected.size > 1000
  np.testing.assert_allclose(canvas[..., :2][inner], expected, atol=2e-3)


@pytest.mark.parametrize("scale", [0.23, 0.5, 0.8, 1.0, 1.9])
def test_a_square_lands_where_its_box_does(scale):
  box = np.array([20, 28, 44, 60])
  picture = np.zeros((1, 80, 90, 3), np.uint8)
  picture[:, 20:44, 28:60] = 200
  translation = (6.0, 3.5)
  canvas = images.scale_and_translate(picture, (128, 144), [scale] * 2, translation)
  # The margins (FILL_RGB) are taken away: what is left is the square's brightness.
  empty = images.scale_and_translate(
    np.zeros_like(picture), (128, 144), [scale] * 2, translation
  )
  brightness = (canvas - empty).numpy()[0, ..., 0] / 200
  top, left, bottom, right = box * scale + np.tile(translation, 2)
  area = (bottom - top) * (right - left)
  np.testing.assert_allclose(brightness.sum(), area, rtol=0.03)
  y, x = np.mgrid[0:128, 0:144] + 0.5
  centroid = [(brightness * axis).sum() / brightness.sum() for axis in (y, x)]
  expected = [(top + bottom) / 2, (left + right) / 2]
  np.testing.assert_allclose(centroid, expected, atol=0.05)


def test_outside_the_picture_is_the_fill_colour():
  picture = np.full((1, 10, 20, 3), 255, np.uint8)
  canvas = images.scale_and_translate(picture, (40, 50), (2.0, 1.0), (6.0, 9.0))[0]
  # The picture covers rows 6..25 and columns 9..28.
  expected = np.tile(np.float32(images.FILL_RGB), (40, 50, 1))
  expected[6:26, 9:29] = 255
  np.testing.assert_allclose(canvas, expected, atol=1e-3)
  np.testing.assert_array_equal(canvas[:6], expected[:6])


@settings(max_examples=60, deadline=None)
@given(sides, sides, st.sampled_from([(128, 96), (64, 64)]))
def test_no_pixel_is_neither_picture_nor_fill(height, width, canvas_size):
  picture = np.full((1, height, width, 3), 255, np.uint8)
  fitted, scale = images.resize_to_fit(picture, canvas_size)
  fitted = fitted[0].numpy()
  is_picture = np.abs(fitted - 255).max(-1) < 1e-2
  is_fill = (fitted == np.float32(images.FILL_RGB)).all(-1)
  assert (is_picture | is_fill).all()
  # A row or column is the picture's where its centre falls on it; rounding decides
  # for a centre that lies on the border itself.
  for axis, length in ((1, height * float(scale)), (0, width * float(scale))):
    covered = is_picture.any(axis=axis).sum()
    assert abs(covered - length) <= 0.5 + 1e-3


def test_a_batch_equals_its_pictures_one_by_one():
  batch = np.random.default_rng(0).integers(0, 256, (3, 21, 34, 3), dtype=np.uint8)
  arguments = ((48, 32), (1.3, 0.7), (2.5, 1.0))
  together = images.scale_and_translate(batch, *arguments)
  for position in range(3):
    alone = images.scale_and_translate(batch[position : position + 1], *arguments)
    np.testing.assert_array_equal(together[position], alone[0])


def test_bytes_and_floats_give_the_same():
  batch = np.random.default_rng(0).integers(0, 256, (1, 21, 34, 3), dtype=np.uint8)
  arguments = ((48, 32), (1.3, 0.7), (2.5, 1.0))
  np.testing.assert_array_equal(
    images.scale_and_translate(batch, *arguments),
    images.scale_and_translate(batch.astype(np.float32), *arguments),
  )


def test_resize_to_fit_keeps_the_aspect():
  # 60 x 40 into 128 x 128: 128 / 60, so the picture is 128 x 85.33.
  picture = np.full((2, 60, 40, 3), 255, np.uint8)
  fitted, scale = images.resize_to_fit(picture, (128, 128))
  assert float(scale) == pytest.approx(128 / 60)
  assert fitted.shape == (2, 128, 128, 3)
  np.testing.assert_allclose(fitted[:, :, :85], 255, atol=1e-3)
  np.testing.assert_array_equal(
    fitted[:, :, 85:], np.broadcast_to(np.float32(images.FILL_RGB), (2, 128, 43, 3))
  )


def test_resize_to_fit_leaves_a_picture_of_the_canvas_size_as_it_is():
  picture = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), dtype=np.uint8)
  fitted, scale = images.resize_to_fit(picture, (96, 64))
  assert float(scale) == 1.0
  np.testing.assert_array_equal(fitted, picture)


def test_eager_equals_graph_with_unknown_sizes():
  picture = np.random.default_rng(0).integers(0, 256, (1, 37, 61, 3), dtype=np.uint8)
  graph = tf.function(
    lambda image: images.resize_to_fit(image, (64, 96)),
    input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
  )
  for a, b in zip(graph(picture), images.resize_to_fit(picture, (64, 96))):
    np.testing.assert_allclose(a, b, atol=1e-3)
  assert graph(picture)[0].shape == (1, 64, 96, 3)
