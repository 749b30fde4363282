"""Image files of formats that are not read, as PNG files, by Pillow's decoders."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

# Not all of Pillow's, some of which call other programs.
_FORMATS = (
  *(
    "WEBP",
    "TIFF",
    "BMP",
    "GIF",
    "JPEG2000",
    "AVIF",
    "PPM",
    "TGA",
    "PCX",
    "SGI",
    "ICO",
  ),
)


def to_png(path, *, exif_orientation, max_image_pixels):
  """A file as PNG, in RGB or, where its values have more than 8 bits, in grey.

  Args:
    path: of a file of any format that Pillow reads.
    exif_orientation: whether the image is turned as its EXIF data says. TIFF files are
      turned all the same.
    max_image_pixels: larger images are not decoded.

  Returns:
    bytes.

  Raises:
    ValueError: it cannot be read or converted; says why.
  """
  Image.init()
  formats = [name for name in _FORMATS if name in Image.OPEN]
  try:
    with Image.open(path, formats=formats) as image:
      if image.width * image.height > max_image_pixels:
        raise ValueError(
          f"has {image.width} x {image.height} pixels, more than {max_image_pixels}"
        )
      turned = ImageOps.exif_transpose(image) if exif_orientation else image
      buffer = io.BytesIO()
      _to_writable(turned).save(buffer, "PNG")
  except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
    raise ValueError(f"cannot be converted: {error}") from error
  return buffer.getvalue()


def _to_writable(image):
  if image.mode == "F":
    raise ValueError("cannot be converted: its values are not integers")
  if not image.mode.startswith("I"):
    return image.convert("RGB")
  values = np.asarray(image)
  if values.min() < 0 or values.max() >= 2**16:
    raise ValueError("cannot be converted: its values have more than 16 bits")
  return Image.fromarray(values.astype(np.uint16))
