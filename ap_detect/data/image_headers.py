"""What the header of an encoded image says, read without decoding.

The formats are those of `images.decode_image`, told apart by their first bytes: names may
lie, and of Pillow's decoders only those for these formats are run. Any other format is
named, with a way to convert it.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin

from ap_detect import images

_PLUGINS = {
  images.JPEG_START: ("JPEG", JpegImagePlugin.JpegImageFile),
  images.PNG_START: ("PNG", PngImagePlugin.PngImageFile),
  images.GIF_START: ("GIF", GifImagePlugin.GifImageFile),
  images.BMP_START: ("BMP", BmpImagePlugin.BmpImageFile),
}

# Of the names of images, in lower case; also of formats that are not read, so that these
# are named rather than passed over.
ENDINGS = (
  *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif"),
  *(".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl"),
)

DEEP_PNG = "PNG of 16 bits"

# Of what data.conversion makes a PNG file of.
CONVERTED = "converted"

_BY_IMAGEMAGICK = "convert it, as by `mogrify -format png FILE`"
_BY_LIBHEIF = "convert it, as by `heif-convert FILE FILE.jpg`"
_BY_FFMPEG = "take images out of it, as by `ffmpeg -i FILE FILE-%05d.jpg`"

# First bytes, how many bytes lie between them and more bytes, the format, what to do.
_OTHER_FORMATS = (
  (b"RIFF", 4, b"WEBP", "WebP", _BY_IMAGEMAGICK),
  (b"II*\0", 0, b"", "TIFF", _BY_IMAGEMAGICK),
  (b"MM\0*", 0, b"", "TIFF", _BY_IMAGEMAGICK),
  (b"II+\0", 0, b"", "BigTIFF", _BY_IMAGEMAGICK),
  (b"MM\0+", 0, b"", "BigTIFF", _BY_IMAGEMAGICK),
  *(
    (b"", 4, b"ftyp" + brand, "HEIC", _BY_LIBHEIF) for brand in (b"he", b"mif", b"msf")
  ),
  (b"", 4, b"ftypavif", "AVIF", _BY_LIBHEIF),
  (b"", 4, b"ftyp", "a video", _BY_FFMPEG),
  (b"RIFF", 4, b"AVI ", "a video", _BY_FFMPEG),
  (b"\x1aE\xdf\xa3", 0, b"", "a video", _BY_FFMPEG),
  (b"\0\0\0\x0cjP  ", 0, b"", "JPEG 2000", _BY_IMAGEMAGICK),
  (b"\0\0\0\x0cJXL ", 0, b"", "JPEG XL", "convert it, as by `djxl FILE FILE.png`"),
  (b"\xff\x0a", 0, b"", "JPEG XL", "convert it, as by `djxl FILE FILE.png`"),
  (b"\0\x05\x16\x07", 0, b"", "a resource file of macOS", "delete it"),
  (b"version https://git-lfs", 0, b"", "a Git LFS pointer", "run `git lfs pull`"),
)


class Header(NamedTuple):
  """What a header says.

  Attributes:
    format: "JPEG", "PNG", DEEP_PNG, "BMP", "GIF" or CONVERTED.
    height: of the image that is decoded, after it is turned; pixels.
    width: likewise.
    orientation: as `images.turn` takes it; 1 where the image is left as stored.
  """

  format: str
  height: int
  width: int
  orientation: int = 1


def read_header(file, *, exif_orientation=True):
  """Header of an encoded image.

  Args:
    file: binary file object that can seek; the image is all of it.
    exif_orientation: as for `images.decode_image`.

  Returns:
    Header.

  Raises:
    ValueError: the format is not read, or the header is damaged; says which.
    OSError: the file cannot be read.
  """
  file.seek(0)
  start = file.read(66)
  name, plugin = next(
    (known for magic, known in _PLUGINS.items() if start.startswith(magic)),
    ("", None),
  )
  if plugin is None:
    raise ValueError(_describe_other(start))
  if name == "BMP" and not _is_readable_bmp(start):
    raise ValueError(f"is a BMP that has not 24 or 32 bits; {_BY_IMAGEMAGICK}")
  file.seek(0)
  try:
    image = plugin(file)
  except (SyntaxError, OSError, ValueError, EOFError, struct.error) as error:
    raise ValueError(f"its header cannot be read: {error}") from error
  width, height = image.size
  if name == "GIF" and image.tile[0][1] != (0, 0, width, height):
    raise ValueError(
      f"is a GIF whose first frame does not fill its canvas; {_BY_IMAGEMAGICK}"
    )
  if name == "PNG" and start[images.PNG_DEPTH_OFFSET] == 16:
    name = DEEP_PNG
  if name == "JPEG" and exif_orientation:
    orientation = _parse_orientation(_find_exif(file))
    if orientation >= 5:
      height, width = width, height
    return Header(name, height, width, orientation)
  return Header(name, height, width)


def _describe_other(start):
  """What a file is that is not read, and what to do with it."""
  if not start:
    return "is empty"
  for first, gap, second, name, remedy in _OTHER_FORMATS:
    if start.startswith(first) and start[len(first) + gap :].startswith(second):
      return f"is {name}, which is not read; {remedy}"
  return "is no JPEG, PNG, GIF or BMP, by its first bytes"


def _is_readable_bmp(start):
  """As images.decode_image decides it."""
  if len(start) < 66:
    return False
  size, bits, compression = struct.unpack("<14xI10xHI", start[:34])
  masks = struct.unpack("<III", start[54:])
  return (
    size >= 40
    and bits in (24, 32)
    and (compression == 0 or (compression, masks) == (3, (0xFF0000, 0xFF00, 0xFF)))
  )


def _find_exif(file):
  """EXIF data of a JPEG from where images.read_orientation looks for it, or b""."""
  position = 2
  for _ in range(images.MAX_EXIF_SEGMENTS + 1):
    file.seek(position)
    start = file.read(10).ljust(10, b"\0")
    marker, length = struct.unpack(">HH", start[:4])
    if marker == 0xFFE1 and start[4:] == b"Exif\0\0":
      return file.read(max(length - 8, 0))
    if not (0xFFE0 <= marker <= 0xFFEF or marker >= 0xFFFE):
      return b""
    position += 1 if marker == 0xFFFF else 2 + length
  return b""


def _parse_orientation(tiff):
  """The orientation in EXIF data, step by step as images.read_orientation has it."""
  order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
  if order is None:
    return 1
  data = tiff.ljust(2**16, b"\0")
  (offset,) = struct.unpack_from(f"{order}I", data, 4)
  directory = data[min(offset, len(data) - 2) :]
  (count,) = struct.unpack_from(f"{order}H", directory)
  entries = directory[2 : 2 + 12 * count]
  orientation = 1
  for tag, kind, number, value in struct.iter_unpack(
    f"{order}HHI4s", entries[: len(entries) // 12 * 12]
  ):
    if tag == 0x0112 and number == 1 and kind in (3, 4):
      (value,) = struct.unpack(order + {3: "H2x", 4: "I"}[kind], value)
      orientation = max(orientation, value) if value <= 8 else orientation
  return orientation
