"""Reads text in the encodings in which annotation tools write it."""

from __future__ import annotations

import codecs
import contextlib

# Longer ones first, for UTF-32's begins as UTF-16's does.
_MARKS = (
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF8, "utf-8-sig"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(content: bytes, declared: str = "") -> str:
  """Text of bytes: by their byte order mark, else as declared, else UTF-8 or UTF-16.

  Args:
    content: the bytes.
    declared: name of an encoding, "" for none. It does not count where it cannot be
      true: some tools declare UTF-16 and write UTF-8.

  Returns:
    The text, without the mark.

  Raises:
    ValueError: there is no such encoding, or the bytes are not of it.

  Example:
    >>> decode("a\\nb".encode("utf-16")), decode("\\u732b".encode("gbk"), "GBK")
    ('a\\nb', '\\u732b')
  """
  for mark, encoding in _MARKS:
    if content.startswith(mark):
      return content.decode(encoding)
  if b"\0" in content[:2]:
    return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le")
  if declared and not declared.lower().startswith(("utf-16", "utf-32", "ucs-")):
    try:
      return content.decode(declared)
    except LookupError as error:
      raise ValueError(str(error)) from error
    except UnicodeDecodeError:
      pass  # as UTF-8 it may be right
  return content.decode("utf-8")


def read_start(path: str, num_bytes: int) -> str:
  """Text of the first bytes of a file, but for a character that they cut; as `read`."""
  with open(path, "rb") as file:
    content = file.read(num_bytes)
  # No character has more than 4 bytes.
  for length in range(len(content), len(content) - 3, -1):
    with contextlib.suppress(ValueError):
      return decode(content[:length])
  return decode(content[: len(content) - 3])


def read(path: str) -> str:
  """Text of a file, see `decode`; OSError or ValueError where there is none."""
  with open(path, "rb") as file:
    return decode(file.read())
