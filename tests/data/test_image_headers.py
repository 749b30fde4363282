"""ap_detect.data.image_headers: what is read equals what is decoded."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ap_detect import images
from ap_detect.data import image_headers

_read_orientation = tf.function(
  images.read_orientation, input_signature=[tf.TensorSpec([], tf.string)]
)


def encoded(image_format="JPEG", mode="RGB", size=(40, 24), **options):
  columns, rows = np.meshgrid(*map(np.arange, size))
  pixels = np.stack([rows * 9, columns * 6, rows + columns], -1).astype(np.uint8)
  buffer = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(buffer, image_format, **options)
  return buffer.getvalue()


def turned(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encoded(exif=exif)


def read(data, **options):
  return image_headers.read_header(io.BytesIO(data), **options)


@pytest.mark.parametrize(
  ("image_format", "mode"),
  [
    ("JPEG", "RGB"),
    ("JPEG", "CMYK"),
    ("PNG", "RGBA"),
    ("PNG", "1"),
    ("BMP", "RGB"),
    ("BMP", "RGBA"),
    ("GIF", "P"),
  ],
)
def test_formats_and_sizes(image_format, mode):
  data = encoded(image_format, mode)
  assert read(data) == (image_format, 24, 40, 1)
  assert images.decode_image(data).shape == (24, 40, 3)


def test_png_of_16_bits():
  buffer = io.BytesIO()
  Image.fromarray(np.zeros((24, 40), np.uint16)).save(buffer, "PNG")
  assert read(buffer.getvalue()) == (image_headers.DEEP_PNG, 24, 40, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_turned_image(orientation):
  data = turned(orientation)
  header = read(data)
  assert header.orientation == orientation
  assert (header.height, header.width, 3) == images.decode_image(data).shape
  assert read(data, exif_orientation=False) == ("JPEG", 24, 40, 1)


@settings(max_examples=300, deadline=None)
@given(
  st.integers(1, 8),
  st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=6),
  st.integers(0, 700),
)
def test_damaged_bytes_have_the_orientation_they_are_decoded_with(
  orientation, changes, length
):
  """Any bytes of the EXIF data and around it changed, and any length."""
  data = bytearray(turned(orientation))
  for place, value in changes:
    data[place] = value
  data = bytes(data[: length + 40])
  expected = image_headers._parse_orientation(
    image_headers._find_exif(io.BytesIO(data))
    if data.startswith(images.JPEG_START)
    else b""
  )
  assert int(_read_orientation(data)) == expected


@pytest.mark.parametrize(
  ("data", "name"),
  [
    (encoded("WEBP"), r"is WebP, which is not read; convert it, as by `mogrify"),
    (encoded("TIFF"), "is TIFF"),
    (encoded("TIFF", big_tiff=True), "is BigTIFF"),
    (encoded("JPEG2000"), "is JPEG 2000"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC, .* `heif-convert FILE"),
    (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "is HEIC"),
    (b"\0\0\0\x20ftypavif\0\0\0\0", "is AVIF"),
    (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "is a video, .* `ffmpeg -i FILE"),
    (b"\x1aE\xdf\xa3\x01\0\0\0", "is a video"),
    (encoded("BMP", "P"), "is a BMP that has not 24 or 32 bits; convert it"),
    (encoded("BMP")[:40], "is a BMP that has not 24 or 32 bits"),
    (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "is a resource file of macOS"),
    (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    (b"", "is empty"),
    (b"<html></html>", "is no JPEG, PNG, GIF or BMP, by its first bytes"),
    (encoded("PNG")[:20], "its header cannot be read: "),
    (encoded("JPEG")[:30], "its header cannot be read: "),
    (encoded("GIF", "P")[:8], "its header cannot be read: "),
  ],
)
def test_what_is_not_read_is_named(data, name):
  with pytest.raises(ValueError, match=name):
    read(data)
  with pytest.raises(tf.errors.InvalidArgumentError):
    images.decode_image(data)


def test_gif_whose_first_frame_is_smaller():
  """TensorFlow decodes the frame alone, so that boxes would lie elsewhere."""
  data = bytearray(encoded("GIF", "P"))
  descriptor = data.index(b",\0\0\0\0" + struct.pack("<HH", 40, 24))
  data[6:10] = struct.pack("<HH", 50, 30)  # the canvas
  assert data[descriptor + 5 : descriptor + 7] == struct.pack("<H", 40)
  with pytest.raises(ValueError, match="first frame does not fill its canvas"):
    read(bytes(data))
