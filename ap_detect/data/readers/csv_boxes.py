"""Reads CSV files of boxes, with the header of TensorFlow's detection tutorials."""

from __future__ import annotations

import csv
import io
import math
import os

from ap_detect.data.readers import image_files, image_lists, split_names, text_files
from ap_detect.data.readers.listing import Listing
from ap_detect.data.records import DataError

_CORNERS = ("ymin", "xmin", "ymax", "xmax")
_COLUMNS = ("filename", "class", *_CORNERS)

# Of the first line; enough for any table of boxes.
_HEADER_BYTES = 10_000


def read_csv(
  root,
  split,
  *,
  image_list=None,
  class_names=None,
  unannotated_are_negatives=False,
  skip_faulty=False,
  listing=None,
  **image_options,
):
  """One split of a dataset whose boxes are in CSV files.

  A file has a line for each object, with at least the columns filename, class, xmin, ymin,
  xmax and ymax, in any order and case (plain coordinates in pixels); width and height,
  where they are there, are checked against the image. The images are looked for by their
  names, wherever they lie below the root. A line with no class and no box is an image
  without objects.

  Args:
    root: folder of the dataset. Faults name files relative to it.
    split: the file has it in its name or its folder's, as train_labels.csv has; see
      split_names.choose for others of the same meaning. A sole file without one is
      divided by the folders of its images, where these are named for splits.
    image_list: path of a text file that names the images to take out of the split, one
      file name or stem a line. None takes all.
    class_names: names of classes 1..K; any other is then a fault. None takes those of
      all such files, sorted.
    unannotated_are_negatives: whether images that no file names, in the folders of those
      that the split's names, are images without objects.
    skip_faulty: whether faulty objects and images are left out and reported, instead
      of raising; see image_files.make_records.
    listing: Listing of the root, where there is one already.
    **image_options: check_images, max_image_pixels, exif_orientation and convertible,
      see image_files.make_records.

  Returns:
    DetectionDataset, with the names in the file as image ids.

  Raises:
    DataError: lists all faults, each with file, line and reason.
    ValueError: class_names has a name twice.
  """
  listing = listing or Listing(root)
  files = find_files(listing)
  name = _choose_split(listing, files, split)
  path = files[name]
  is_divided = path in [other for key, other in files.items() if key != name]
  source = listing.relative(path)
  rows = {file: _read_rows(listing, file) for file in files.values()}
  if class_names is None:
    names = {row["class"] for found in rows.values() for _, row in found}
    class_names = sorted(names - {""})
  class_ids = image_files.number_classes(class_names)
  by_image: dict[str, list] = {}
  for number, row in rows[path]:
    by_image.setdefault(row["filename"], []).append((number, row))
  faults: list[str] = []
  if image_list is not None:
    by_image, faults = _choose_images(by_image, image_list)
  annotated = []
  by_path: dict[str | None, image_files.AnnotatedImage] = {}
  read = {
    file_name: _read_image(listing, path, file_name, lines, class_ids)
    for file_name, lines in by_image.items()
  }
  strays = listing.find_strays((name, image.path) for name, (image, _) in read.items())
  for place, (image, reasons) in enumerate(read.values()):
    if place in strays:
      reasons.append(f"line {by_image[image.image_id][0][0]} {strays[place]}")
      image.path, image.faulty = None, True
    if is_divided and image.path and listing.split_of(image.path) != name:
      continue
    faults += [f"{source}: {reason}" for reason in reasons]
    # Its name may be written in several ways.
    first = by_path.setdefault(image.path, image) if image.path else image
    if first is image:
      annotated.append(image)
    else:
      first.objects += image.objects
      first.faulty |= image.faulty
  if unannotated_are_negatives and image_list is None:
    annotated += _images_alone(listing, path, rows, annotated)
  return image_files.make_dataset(
    annotated,
    faults,
    class_ids,
    root=listing.root,
    skip_faulty=skip_faulty,
    **image_options,
  )


def find_files(listing: Listing) -> dict[str, str]:
  """Dict of a split's name to the path of its CSV file, of those with the columns.

  The name is of the file or its folder, or else the file's stem.
  """
  by_split: dict[str, list[str]] = {}
  for path in listing.annotation_files(".csv"):
    if set(_COLUMNS) <= set(_read_header(path)):
      split = split_names.of_path(listing.relative(path))
      by_split.setdefault(split, []).append(path)
  if len(by_split.get("", [])) == len(by_split) == 1 and listing.image_splits:
    return dict.fromkeys(listing.image_splits, by_split[""][0])
  return {
    split
    if split and len(paths) == 1
    else os.path.splitext(listing.relative(path))[0]: path
    for split, paths in by_split.items()
    for path in paths
  }


def describe_others(listing: Listing) -> list[str]:
  """A line for each CSV file that has some of the columns, but not all."""
  lines = []
  for path in listing.annotation_files(".csv"):
    header = _read_header(path)
    lacking = [name for name in _COLUMNS if name not in header]
    if 0 < len(lacking) < len(_COLUMNS):
      lines.append(
        f"{listing.relative(path)}: has the columns {', '.join(header)}, but lacks "
        f"{', '.join(lacking)}"
      )
  return lines


def _choose_split(listing, files, split):
  names = split_names.choose(files, split, sole=True)
  if len(names) == 1:
    return names[0]
  there = ", ".join(map(listing.relative, dict.fromkeys(files.values()))) or "none"
  problem = "could be any of several" if names else "is none of them"
  raise DataError(
    [
      f"{listing.root}: of its CSV files {there} have the columns "
      f"{', '.join(_COLUMNS)}; the split {split!r} {problem}"
    ],
    ["data.annotations names the file to read, or a folder to look in"],
  )


def _read_header(path):
  """Names of the columns, in lower case."""
  try:
    line = text_files.read_start(path, _HEADER_BYTES).partition("\n")[0]
    cells = next(csv.reader([line], delimiter=_delimiter(line)), [])
    return [name.strip().lower() for name in cells]
  except (OSError, ValueError, csv.Error):
    return []


def _delimiter(line):
  """What stands between columns: some countries' spreadsheets write semicolons."""
  return max(",;\t", key=line.count)


def _read_rows(listing, path):
  """List of (line, dict of a column to its text)."""
  try:
    text = text_files.read(path)
    first = text.partition("\n")[0]
    file = io.StringIO(text, newline="")
    reader = csv.reader(file, delimiter=_delimiter(first))
    header = [name.strip().lower() for name in next(reader)]
    return [
      (reader.line_num, dict(zip(header, (text.strip() for text in row))))
      for row in reader
      if any(row)
    ]
  except (OSError, ValueError, csv.Error) as error:
    raise DataError([f"{listing.relative(path)}: cannot be read: {error}"]) from error


def _choose_images(by_image, image_list):
  names = [
    (name, os.path.basename(name), os.path.splitext(os.path.basename(name))[0])
    for name in by_image
  ]
  chosen, faults = image_lists.choose_images(image_list, names)
  kept = {
    name: lines
    for index, (name, lines) in enumerate(by_image.items())
    if index in chosen
  }
  return kept, faults


def _images_alone(listing, path, rows, annotated):
  """AnnotatedImages of images that no file names, in the folders of a split's images."""
  named = {
    os.path.basename(row["filename"]).lower()
    for found in rows.values()
    for _, row in found
  }
  tops = {os.path.dirname(image.path) for image in annotated if image.path}
  return [
    image_files.AnnotatedImage(os.path.basename(image), image, path)
    for image in listing.images
    if os.path.dirname(image) in tops and os.path.basename(image).lower() not in named
  ]


def _read_image(listing, path, name, lines, class_ids):
  """(image_files.AnnotatedImage, reasons of its faults)."""
  parts, reasons = image_files.read_parts(
    lines[0][1], [lambda _: listing.need_image(name, near=path), _read_size]
  )
  first = f"line {lines[0][0]}"
  reasons = [f"{first} {reason}" for reason in reasons]
  image = image_files.AnnotatedImage(
    name, parts[0], path, parts[1], faulty=bool(reasons)
  )
  for number, row in lines:
    if not any(row.get(column) for column in ("class", *_CORNERS)):
      continue
    label = f"line {number}"
    (class_id, box), faults = image_files.read_parts(
      row, [lambda row: _read_class(class_ids, row), _read_box]
    )
    reasons += [f"{label} {fault}" for fault in faults]
    image.objects.append(
      image_files.AnnotatedObject(label, box, class_id, False, faulty=bool(faults))
    )
  return image, reasons


def _read_size(row):
  texts = [row.get(name) or "0" for name in ("height", "width")]
  try:
    return image_files.annotated_size(*map(float, texts))
  except (ValueError, OverflowError):
    raise ValueError(f"has height and width {texts}, which no image has") from None


def _read_class(class_ids, row):
  name = row.get("class", "")
  if name not in class_ids:
    raise ValueError(f"has class {name!r}, which is not in the list of classes")
  return class_ids[name]


def _read_box(row):
  """(ymin, xmin, ymax, xmax)."""
  try:
    box = tuple(float(row.get(corner) or "") for corner in _CORNERS)
  except ValueError:
    box = (math.nan,)
  if not all(map(math.isfinite, box)):
    texts = [row.get(corner, "") for corner in _CORNERS]
    raise ValueError(f"has {', '.join(_CORNERS)} {texts}, not finite numbers")
  return box
