import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

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


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP"])
@given(width=st.integers(1, 300), height=st.integers(1, 300))
@settings(max_examples=10, deadline=None)
def test_size_in_the_header(image_format, width, height):
  data = encoded(Image.new("RGB", (width, height)), image_format)
  assert images.read_size(data).numpy().tolist() == [height, width]


def test_size_in_other_headers():
  progressive = encoded(smooth_picture(), "JPEG", progressive=True)
  assert images.read_size(progressive).numpy().tolist() == [24, 40]
  from_top = bytearray(encoded(smooth_picture(), "BMP"))
  from_top[22:26] = struct.pack("<i", -24)
  assert images.read_size(bytes(from_top)).numpy().tolist() == [24, 40]
  large = bytearray(encoded(smooth_picture(), "PNG"))
  large[16:24] = struct.pack(">II", 2**32 - 1, 2**31)
  assert images.read_size(bytes(large)).numpy().tolist() == [2**31, 2**32 - 1]


@pytest.mark.parametrize(
  "data", [b"", b"BM", b"\x89PNG\r\n\x1a\n", b"GIF89a\1\0\1\0", b"<svg/>"]
)
def test_no_size_in_other_bytes(data):
  assert images.read_size(data).numpy().tolist() == [0, 0]


def test_size_in_a_jpeg_that_ends_early():
  with pytest.raises(tf.errors.InvalidArgumentError):
    images.read_size(encoded(smooth_picture(), "JPEG")[:100])


def test_other_bytes_raise():
  with pytest.raises(tf.errors.InvalidArgumentError):
    images.decode_image(b"<annotation></annotation>")


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_bmp_of_24_and_32_bits(mode):
  picture = smooth_picture(23, 41).convert(mode)  # rows of no multiple of four bytes
  decoded = images.decode_image(encoded(picture, "BMP"))
  np.testing.assert_array_equal(decoded, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_other_bmp_is_refused(mode):
  with pytest.raises(tf.errors.InvalidArgumentError, match="BMP of 24 or 32 bits"):
    images.decode_image(encoded(smooth_picture().convert(mode), "BMP"))


def masked_bmp(red, green, blue):
  """A BMP of 32 bits, 1 x 2 pixels, whose header says where each channel's bits are."""
  info = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0)
  masks = struct.pack("<III", red, green, blue)
  pixels = bytes([1, 2, 3, 4, 50, 60, 70, 80])
  start = 14 + len(info) + len(masks)
  return struct.pack("<2sIII", b"BM", start + 8, 0, start) + info + masks + pixels


def test_bmp_with_masks():
  """Blue, green, red, as TensorFlow expects them, or not read: never other colours."""
  data = masked_bmp(0xFF0000, 0xFF00, 0xFF)
  decoded = images.decode_image(data)
  np.testing.assert_array_equal(decoded, [[[3, 2, 1], [70, 60, 50]]])
  np.testing.assert_array_equal(decoded, Image.open(io.BytesIO(data)).convert("RGB"))
  with pytest.raises(tf.errors.InvalidArgumentError, match="BMP of 24 or 32 bits"):
    images.decode_image(masked_bmp(0xFF, 0xFF00, 0xFF0000))


def test_first_frame_of_a_gif():
  frames = [smooth_picture().convert("P"), smooth_picture().rotate(180).convert("P")]
  data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
  assert Image.open(io.BytesIO(data)).n_frames == 2
  decoded = images.decode_image(data)
  np.testing.assert_array_equal(decoded, np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize("largest", [1, 3, 255, 256, 1000, 4095, 65535])
def test_png_of_16_bits_is_scaled_by_the_bits_in_use(largest):
  values = np.linspace(0, largest, 24 * 40).round().reshape(24, 40)
  data = encoded(Image.fromarray(values.astype(np.uint16)), "PNG")
  decoded = images.decode_image(data).numpy()
  limit = next(2**n - 1 for n in range(1, 17) if 2**n > largest)
  expected = np.floor(values * 255 / limit + 0.5)
  np.testing.assert_array_equal(decoded, np.stack([expected] * 3, -1))


def test_black_png_of_16_bits():
  data = encoded(Image.fromarray(np.zeros((4, 5), np.uint16)), "PNG")
  np.testing.assert_array_equal(images.decode_image(data), np.zeros((4, 5, 3)))


@pytest.mark.parametrize("image_format", ["WEBP", "TIFF"])
def test_other_formats_raise_whatever_tensorflow_reads(image_format):
  with pytest.raises(tf.errors.InvalidArgumentError, match="neither JPEG nor PNG"):
    images.decode_image(encoded(smooth_picture(), image_format))


def exif_segment(orientation, *, order="<", kind="H", offset=8, tag=0x0112, count=1):
  """An APP1 segment with two entries, the orientation second."""
  magic = b"II" if order == "<" else b"MM"
  tiff = struct.pack(f"{order}2sHI", magic, 42, offset) + bytes(offset - 8)
  make = struct.pack(f"{order}HHHI4s", 2, 0x010F, 2, 3, b"us\0")
  value = struct.pack(f"{order}{kind}", orientation).ljust(4, b"\0")
  number = {"H": 3, "I": 4}[kind]
  entry = struct.pack(f"{order}HHI", tag, number, count) + value
  return segment(0xE1, b"Exif\0\0" + tiff + make + entry + bytes(4))


def segment(marker, content):
  return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def jpeg_with(*segments, image=None):
  """A JPEG whose segments follow JFIF's."""
  data = encoded(image or smooth_picture(), "JPEG", quality=95)
  assert data[2:6] == b"\xff\xe0\0\x10"
  return data[:20] + b"".join(segments) + data[20:]


class TestOrientation:
  @pytest.mark.parametrize("orientation", range(1, 9))
  def test_jpeg_equals_pillows_exif_transpose(self, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth_picture(), "JPEG", quality=95, exif=exif)
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(turned, int)
    assert expected.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    decoded = images.decode_image(data).numpy().astype(int)
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).max() <= 4
    stored = images.decode_image(data, exif_orientation=False)
    assert stored.shape == (24, 40, 3)

  @pytest.mark.parametrize("orientation", range(1, 9))
  def test_turn_equals_pillows_exif_transpose(self, orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(images.turn(pixels, orientation), expected)

  @pytest.mark.parametrize(
    "segments",
    [
      [exif_segment(6)],
      [exif_segment(6, order=">")],
      [exif_segment(6, kind="I")],
      [exif_segment(6, kind="I", order=">")],
      [exif_segment(6, offset=5000)],
      [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), exif_segment(6)],
      [segment(0xE2, bytes(65000)), segment(0xFE, b"a comment"), exif_segment(6)],
      [b"\xff\xff\xff", exif_segment(6)],
      [exif_segment(6), exif_segment(3)],
    ],
  )
  def test_is_found_where_pillow_finds_it(self, segments):
    data = jpeg_with(*segments)
    assert Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert int(images.read_orientation(data)) == 6
    assert images.decode_image(data).shape == (40, 24, 3)

  def test_exif_before_jfif_and_without_it(self):
    data = encoded(smooth_picture(), "JPEG")
    first = data[:2] + exif_segment(6) + data[2:]
    alone = data[:2] + exif_segment(6) + data[20:]
    assert images.decode_image(first).shape == (40, 24, 3)
    assert images.decode_image(alone).shape == (40, 24, 3)

  @pytest.mark.parametrize(
    "segments",
    [
      [],
      [exif_segment(0)],
      [exif_segment(9)],
      [exif_segment(6, tag=0x0113)],
      [exif_segment(6, count=2)],
      [exif_segment(6).replace(b"II", b"JJ")],
      [exif_segment(6).replace(b"*\0", b"+\0")],
      [segment(0xE1, b"Exif\0\0")],
      [segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff")],
      [segment(0xE1, b"Exif\0\0II*\0\xfe\xff\0\0")],
      [segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff")],
      [segment(0xE2, b"Exif\0\0" + exif_segment(6)[10:])],
      [segment(0xE2, b"")] * images.MAX_EXIF_SEGMENTS + [exif_segment(6)],
    ],
  )
  def test_no_valid_orientation_is_none(self, segments):
    data = jpeg_with(*segments)
    assert int(images.read_orientation(data)) == 1
    assert images.decode_image(data).shape == (24, 40, 3)

  def test_of_other_formats_is_none(self):
    for data in (b"", b"\xff", encoded(smooth_picture(), "PNG"), exif_segment(6)):
      assert int(images.read_orientation(data)) == 1

  def test_eager_equals_graph(self):
    graph = tf.function(
      images.decode_image, input_signature=[tf.TensorSpec([], tf.string)]
    )
    for data in (
      jpeg_with(exif_segment(7)),
      jpeg_with(),
      encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
      encoded(smooth_picture(), "BMP"),
      encoded(smooth_picture().convert("P"), "GIF"),
    ):
      np.testing.assert_array_equal(graph(data), images.decode_image(data))


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
