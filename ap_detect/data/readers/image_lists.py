"""Text files that name images, one a line."""

from __future__ import annotations

import collections

from ap_detect.data.readers import text_files
from ap_detect.data.records import DataError


def read_lines(path, source):
  """Lines of a text file that are not empty, without the white space around them.

  Args:
    path: of the file, see text_files.decode.
    source: how faults name it.

  Returns:
    List of (number from 1, line); at least one.

  Raises:
    DataError: the file cannot be read, or has no such line.
  """
  try:
    text = text_files.read(path)
    lines = list(enumerate(map(str.strip, text.splitlines()), start=1))
  except ValueError as error:
    raise DataError([f"{source}: is not text in UTF-8 or UTF-16: {error}"]) from error
  except OSError as error:
    raise DataError([f"{source}: cannot be read: {error.strerror}"]) from error
  lines = [(number, line) for number, line in lines if line]
  if not lines:
    raise DataError([f"{source}: names no image"])
  return lines


def choose_images(path, names):
  """Which images of a split a list names.

  Args:
    path: of the list, see read_lines.
    names: for each image of the split, the names that it may be listed by, as many for
      every image. A line means the image that has it as its first name, else as its
      second, and so on.

  Returns:
    (chosen, faults): set of indices into names, and a line for each name that the split
    lacks, that several of its images have, or whose image was listed before.

  Raises:
    DataError: the list cannot be read, or names no image of the split.
  """
  owners = _find_owners(names)
  first_lines: dict[int, int] = {}
  faults = []
  for number, name in read_lines(path, path):
    indices = owners.get(name, [])
    if len(indices) == 1:
      first = first_lines.setdefault(indices[0], number)
      problem = "" if first == number else f"is the image of line {first} again"
    else:
      problem = "is the name of several images" if indices else "is not in the split"
    if problem:
      faults.append(f"{path}: line {number}: {name!r} {problem}")
  if not first_lines:
    raise DataError(faults)
  return set(first_lines), faults


def _find_owners(names):
  """Dict of a name to the indices of the images that it means."""
  owners: dict[str, list[int]] = {}
  for names_of_a_kind in zip(*names):
    found = collections.defaultdict(list)
    for index, name in enumerate(names_of_a_kind):
      found[name].append(index)
    owners = {**found, **owners}
  return owners
