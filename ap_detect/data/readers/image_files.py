"""Checks image files and the objects annotated in them, and makes records of both.

The readers parse annotations into AnnotatedImages; what holds for any format is here.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import io
import math
import os

import numpy as np
import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import errors, images
from ap_detect.data import conversion, encoded, image_headers
from ap_detect.data.records import (
  SKIP,
  DataError,
  DetectionDataset,
  ImageRecord,
  printable,
)

MAX_IMAGE_PIXELS = 50_000_000

# Annotation tools round and count pixels from 0 or from 1: that far is not worth a word.
OVERSHOOT_PX = 1.0

# Past an edge by more than this share of the image's side, a box is of another image.
_OVERSHOOT_SHARE = 0.1

# Results only, so that Python's share of the time is small.
_DECODING_BATCH = 256

# Of faults with some words in them: which field is about them, beside data.skip_faulty.
_FIELDS = {
  "pixels, more than": "data.max_image_pixels is how many pixels an image may have",
  "which is not read; convert": "ap_detect write_tfrecords converts what Pillow reads, "
  "such as WebP and TIFF",
  "a link that leaves": "data.root may be a folder that has what the links lead to too",
  "annotates an image that": "data.annotations is the folder that annotations are looked "
  "for in",
  "not in the list of classes": "data.class_names are the classes; where it is (), they "
  "are all those of the training split",
}

# PNG's limit, the larger one.
_MAX_SIDE_PX = 2**31 - 1


@dataclasses.dataclass
class AnnotatedObject:
  """An object as its annotation has it.

  Attributes:
    label: how faults name it, such as "object 2".
    box: (ymin, xmin, ymax, xmax), continuous coordinates in pixels, or in fractions of
      the image's sides, see AnnotatedImage; finite. None where a fault left none.
    class_id: 1..K; None where a fault left none.
    ignored: whether it is difficult or a crowd; None where a fault left it open.
    area: squared pixels; None stands for the box's own.
    faulty: whether a fault was noted already, so that its place will be ignored.
    box_xywh: (x, y, width, height), where the annotation has the box so.
  """

  label: str
  box: tuple[float, float, float, float] | None
  class_id: int | None
  ignored: bool | None
  area: float | None = None
  faulty: bool = False
  box_xywh: tuple[float, float, float, float] | None = None


@dataclasses.dataclass
class AnnotatedImage:
  """An image as its annotation has it.

  Attributes:
    image_id: the dataset's own id.
    path: of the image file, which need not exist; None where a fault left none.
    annotation: path of the file that annotates it.
    size: (height, width) by the annotation, or None where it has none.
    objects: list of AnnotatedObject.
    faulty: whether a fault was noted already, so that it will be left out.
    boxes_are_fractions: whether boxes are fractions of the sides of the image, turned as
      EXIF says, and not pixels.
  """

  image_id: int | str
  path: str | None
  annotation: str
  size: tuple[int, int] | None = None
  objects: list[AnnotatedObject] = dataclasses.field(default_factory=list)
  faulty: bool = False
  boxes_are_fractions: bool = False


class Notes:
  """What was read otherwise than it is written, counted by kind."""

  def __init__(self):
    self._places: dict[str, list[str]] = {}

  def add(self, kind: str, place: str) -> None:
    """Notes one more of a kind, such as "annotations have no id", and where."""
    self._places.setdefault(kind, []).append(place)

  def lines(self) -> tuple[str, ...]:
    """A line for each kind: how many, and the first of them."""
    return tuple(
      f"{len(places)} {kind}; the first: {places[0]}"
      for kind, places in self._places.items()
    )


def number_classes(class_names):
  """Class ids 1..K of names, as a dict in that order.

  Raises:
    ValueError: a name comes twice.
  """
  class_ids = {name: number for number, name in enumerate(class_names, start=1)}
  if len(class_ids) != len(class_names):
    raise ValueError(f"class names must differ from each other, got {class_names}")
  return class_ids


def to_finite(text):
  """The finite number that a text is; None for any other."""
  try:
    number = float(text)
  except ValueError:
    return None
  return number if math.isfinite(number) else None


def annotated_size(height, width):
  """(height, width) as an annotation has it, or None where it was left open: 0 or -1.

  Raises:
    ValueError: no image can have that size.
  """
  if not all(
    -1 <= side <= _MAX_SIDE_PX and side == int(side) for side in (height, width)
  ):
    sides = [
      f"{side:g}" if isinstance(side, float) else side for side in (width, height)
    ]
    raise ValueError("has an impossible size: {} x {} pixels".format(*sides))
  return (int(height), int(width)) if height > 0 and width > 0 else None


def read_parts(source, readers):
  """Calls all readers on one source, so that one fault does not hide the next.

  Args:
    source: what is read.
    readers: functions of the source; each raises ValueError with the reason of a fault.

  Returns:
    (values, reasons): a value a reader, None where it failed, and a list of reasons.
  """
  values, reasons = [], []
  for read in readers:
    try:
      values.append(read(source))
    except ValueError as error:
      values.append(None)
      reasons.append(str(error))
  return values, reasons


def make_records(
  annotated,
  faults,
  *,
  root,
  check_images=True,
  max_image_pixels=MAX_IMAGE_PIXELS,
  exif_orientation=True,
  convertible=False,
):
  """Records of the images and objects that are sound.

  Where an annotation gives the size of an image as stored, and EXIF turns the image by
  90 degrees, its boxes are of the stored pixels, and are turned with the image.

  A faulty object does not become background: its place is ignored, as an object of class
  0; where its place is not known, its image is left out. So is an image that is annotated
  twice, and differently.

  Args:
    annotated: list of AnnotatedImage.
    faults: list of lines, extended by every fault found here.
    root: folder that the paths in faults are relative to.
    check_images: whether every file is also decoded, not only its header read.
    max_image_pixels: more pixels than that, by the header, are a fault.
    exif_orientation: whether images are turned as their EXIF data says.
    convertible: whether images of formats that are not read, but that data.conversion
      converts, are no fault.

  Returns:
    List of ImageRecord, in the order given; without the faulty.

  Raises:
    DataError: no box of any image in pixels reaches beyond the first pixel.
  """
  _refuse_relative(annotated, root)
  _find_repeated(annotated, faults, root)
  paths = list(dict.fromkeys(image.path for image in annotated if image.path))
  headers, broken = read_headers(
    paths,
    max_image_pixels=max_image_pixels,
    exif_orientation=exif_orientation,
    convertible=convertible,
  )
  if check_images:
    broken.update(find_undecodable(headers))
  records = []
  for image in annotated:
    if image.path in broken:
      path = os.path.relpath(image.path, root)
      faults.append(printable(f"{path}: {broken[image.path]}"))
    record = _make_record(image, headers.get(image.path), faults, root)
    if record is not None and image.path not in broken:
      records.append(dataclasses.replace(record, exif_orientation=exif_orientation))
  return records


def make_dataset(
  annotated,
  faults,
  class_ids,
  *,
  root,
  skip_faulty,
  category_ids=None,
  ignored_are_crowds=False,
  has_labels=True,
  notes=(),
  advice=(),
  **image_options,
):
  """A split of images as their annotations have them.

  Args:
    annotated: list of AnnotatedImage.
    faults: list of lines that were found so far; extended.
    class_ids: dict of a class's name to 1..K, in that order.
    root: see `make_records`.
    skip_faulty: see `refuse_faults`.
    category_ids: see DetectionDataset; None for 1..K.
    ignored_are_crowds: see DetectionDataset.
    has_labels: see DetectionDataset.
    notes: see DetectionDataset.
    advice: see `refuse_faults`.
    **image_options: see `make_records`.

  Returns:
    DetectionDataset.

  Raises:
    DataError: faults that may not be skipped, or nothing is left.
  """
  records = make_records(annotated, faults, root=root, **image_options)
  refuse_faults(faults, records, class_ids, skip_faulty=skip_faulty, advice=advice)
  return DetectionDataset(
    records=tuple(records),
    class_names=tuple(class_ids),
    category_ids=tuple(class_ids.values()) if category_ids is None else category_ids,
    ignored_are_crowds=ignored_are_crowds,
    skipped=tuple(faults),
    has_labels=has_labels,
    notes=tuple(notes),
  )


def refuse_faults(faults, records, class_names, *, skip_faulty, advice=()):
  """Raises DataError for faults that may not be skipped, or if skipping leaves nothing.

  Args:
    faults: list of lines, one a fault.
    records: what is left without the faulty.
    class_names: names of the classes.
    skip_faulty: whether the faulty may be left out.
    advice: lines on the fields that let some of the faults pass.
  """
  if faults and not skip_faulty:
    fields = [
      text for words, text in _FIELDS.items() if any(words in fault for fault in faults)
    ]
    skip = [SKIP] if records and class_names else []
    raise DataError(faults, [*advice, *fields, *skip])
  for kind, left in (("image", records), ("class", class_names)):
    if not left:
      raise DataError([*faults, f"there is no sound {kind}"])


def read_headers(
  pictures,
  *,
  max_image_pixels=MAX_IMAGE_PIXELS,
  exif_orientation=True,
  convertible=False,
):
  """Headers of images.

  Args:
    pictures: list of paths and encoded.ShardedImages.
    max_image_pixels: more than that are a fault.
    exif_orientation: see image_headers.read_header.
    convertible: see `make_records`; of paths only.

  Returns:
    (headers, faults): dict of path or ShardedImage to Header, and to reason; each is in
    one of the two.
  """
  read = functools.partial(
    _read_header,
    max_image_pixels=max_image_pixels,
    exif_orientation=exif_orientation,
    convertible=convertible,
  )
  headers, faults = {}, {}
  # Threads hide the wait for the disk.
  with concurrent.futures.ThreadPoolExecutor() as pool:
    results = pool.map(lambda picture: read_parts(picture, [read]), pictures)
    for picture, ((header,), reasons) in zip(pictures, results):
      if reasons:
        faults[picture] = reasons[0]
      else:
        headers[picture] = header
  return headers, faults


def find_undecodable(headers):
  """Decodes images as training does, on all CPU cores, and keeps what fails.

  Damage that the decoder mends in silence (wrong pixels in a JPEG of full length) is
  not found.

  Args:
    headers: dict of path or encoded.ShardedImage to Header, as `read_headers` gives it:
      a small file can claim pixels enough to fill the memory.

  Returns:
    Dict of path or ShardedImage to reason, of those that fail.
  """
  pictures = [
    picture
    for picture, header in headers.items()
    if header.format != image_headers.CONVERTED  # and thus decoded already
  ]
  read = encoded.make_reader(pictures)

  def decode(index):
    # What is not returned is not computed, but pixels would have to be copied.
    return index, tf.size(images.decode_image(read(index), exif_orientation=False))

  indices = tf.data.Dataset.range(len(pictures))
  decoded = indices.map(decode, tf.data.AUTOTUNE, deterministic=False).ignore_errors()
  sound: set[int] = set()
  for indices, _ in decoded.batch(_DECODING_BATCH).as_numpy_iterator():
    sound.update(indices.tolist())
  suspects = [item for index, item in enumerate(pictures) if index not in sound]
  return find_unreadable(suspects)


def find_unreadable(pictures):
  """As `find_undecodable`, one after the other; for a few."""
  reasons = {item: _decoding_error(item) for item in pictures}
  return {item: reason for item, reason in reasons.items() if reason}


def check_boxes(boxes_yxyx, height, width):
  """Boxes clipped to their image, and what is wrong with any.

  Args:
    boxes_yxyx: [G, 4], continuous coordinates in pixels; finite.
    height: of the image, pixels.
    width: of the image, pixels.

  Returns:
    (clipped, reasons): [G, 4] float64, and a dict of index to reason. Past an edge by up
    to a tenth of the image's side, or by 1 pixel, a box is clipped without being a fault.

  Example:
    >>> clipped, reasons = check_boxes([[0, -1, 5, 9], [0, 7, 5, 6]], 10, 8)
    >>> clipped[0].tolist(), reasons
    ([0.0, 0.0, 5.0, 8.0], {1: 'has xmax 6 <= xmin 7'})
  """
  exact = np.asarray(boxes_yxyx, np.float64).reshape(-1, 4)
  sides = np.array([height, width, height, width], np.float64)
  clipped = np.clip(exact, 0, sides)
  allowed = np.maximum(OVERSHOOT_PX, _OVERSHOOT_SHARE * sides)
  # An infinite side, where the image's size is not known, allows anything.
  outside = (np.abs(exact - clipped) > allowed).any(axis=1)
  return clipped, {
    int(index): _box_reason(exact[index].tolist(), height, width, outside[index])
    for index in np.flatnonzero(outside | _are_empty(clipped))
  }


def _are_empty(boxes):
  """Whether boxes have no area in float32, in which networks are trained; [G] bool."""
  boxes = boxes.astype(np.float32)
  return (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)


def _refuse_relative(annotated, root):
  """Raises DataError where boxes that must be pixels are all within [0, 1]."""
  objects = [
    (image, item)
    for image in annotated
    if not image.boxes_are_fractions
    for item in image.objects
    if item.box
  ]
  if objects and all(max(item.box) <= 1 for _, item in objects):
    image, item = objects[0]
    ymin, xmin, ymax, xmax = item.box
    raise DataError(
      [
        f"{os.path.relpath(image.annotation, root)}: {item.label} has x {xmin:g} to "
        f"{xmax:g} and y {ymin:g} to {ymax:g}, and of {len(objects)} boxes none reaches "
        "beyond 1: they look relative to the image's size, but pixels are required"
      ]
    )


def _find_repeated(annotated, faults, root):
  """Marks images that are annotated twice, as it is not known what is right of it."""
  firsts: dict[str, AnnotatedImage] = {}
  for image in annotated:
    first = firsts.setdefault(image.path, image) if image.path else image
    if first is not image:
      sources = [os.path.relpath(item.annotation, root) for item in (image, first)]
      path = os.path.relpath(image.path, root)
      faults.append(
        f"{sources[0]}: annotates an image that {sources[1]} does too: {path}"
      )
      image.faulty = True
      first.faulty |= image.objects != first.objects


def _make_record(image, header, faults, root):
  """The image's record, or None if it is faulty; faults gets what is found.

  Without a size from the file, the annotation's own still serves to check the boxes.
  """
  size = (header.height, header.width) if header else None
  declared = image.size or size or (math.inf, math.inf)
  is_of_stored = bool(header) and declared == _turned_back(header)
  placed = [item for item in image.objects if item.box]
  boxes = np.array([item.box for item in placed], np.float64).reshape(-1, 4)
  if image.boxes_are_fractions:
    boxes = boxes * np.tile(declared if size else (1, 1), 2)
  clipped, reasons = check_boxes(boxes, *declared)
  found = [f"{placed[index].label} {reasons[index]}" for index in reasons]
  if size is not None and declared != size and not is_of_stored:
    found.append(_size_reason(declared, size, os.path.relpath(image.path, root)))
  if found:
    source = os.path.relpath(image.annotation, root)
    faults.extend(f"{source}: {fault}" for fault in found)
  if image.faulty or header is None or not (declared == size or is_of_stored):
    return None
  if len(placed) < len(image.objects) or _are_empty(clipped).any():
    return None  # An object lies nobody knows where.
  num_clipped = int((np.abs(clipped - boxes) > OVERSHOOT_PX).any(axis=1).sum())
  if is_of_stored:
    clipped = box_ops.turn(clipped, header.orientation, *declared).numpy()
  is_faulty = [item.faulty or k in reasons for k, item in enumerate(placed)]
  record = _to_record(image, header, placed, clipped, np.array(is_faulty, bool))
  corners = clipped[:, [1, 0]]
  boxes_xywh = np.concatenate([corners, clipped[:, [3, 2]] - corners], axis=1)
  for index, item in enumerate(placed):
    if item.box_xywh and not is_of_stored:
      boxes_xywh[index] = item.box_xywh
  return dataclasses.replace(
    record,
    boxes_were_turned=is_of_stored,
    num_clipped=num_clipped,
    boxes_xywh=boxes_xywh,
  )


def _turned_back(header):
  """(height, width) of an image as stored, where turning changes it; else None."""
  if header.orientation < 5 or header.height == header.width:
    return None
  return header.width, header.height


def _to_record(image, header, objects, boxes, is_faulty):
  areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
  for index, item in enumerate(objects):
    if item.area is not None:
      areas[index] = item.area
  ignored = np.array([bool(item.ignored) for item in objects], bool)
  return ImageRecord(
    image_id=image.image_id,
    image=image.path,
    height=header.height,
    width=header.width,
    boxes=boxes,
    classes=np.where(is_faulty, 0, [item.class_id or 0 for item in objects]).astype(
      np.int32
    ),
    ignored=ignored | is_faulty,
    areas=areas,
    header=header,
  )


def _read_header(picture, *, max_image_pixels, exif_orientation, convertible):
  """Header of a path or ShardedImage; ValueError with the reason if there is none."""
  try:
    if isinstance(picture, str):
      picture.encode("utf-8")
  except UnicodeEncodeError:
    raise ValueError(
      "its name is not UTF-8, as TensorFlow wants it; rename it"
    ) from None
  try:
    header = encoded.read_header(picture, exif_orientation=exif_orientation)
  except ValueError:
    if not (convertible and isinstance(picture, str) and os.path.isfile(picture)):
      raise
    png = conversion.to_png(
      picture, exif_orientation=exif_orientation, max_image_pixels=max_image_pixels
    )
    header = image_headers.read_header(io.BytesIO(png))
    header = header._replace(format=image_headers.CONVERTED)
  if header.height * header.width > max_image_pixels:
    claim = f"its header claims {_format((header.height, header.width))} pixels"
    raise ValueError(f"{claim}, more than {max_image_pixels} in all")
  return header


def _decoding_error(picture):
  """Why an image cannot be decoded, or None if it can."""
  try:
    images.decode_image(encoded.read(picture))
  except (tf.errors.OpError, ValueError) as error:
    reason = errors.first_line(error)
    path = picture if isinstance(picture, str) else picture.path
    if reason.startswith(f"{path}; "):  # it is of the system
      return f"cannot be read: {reason[len(path) + 2 :]}"
    return f"truncated or damaged: {reason}"
  return None


def _box_reason(box, height, width, outside):
  """What is wrong with a box: inverted, outside, or too thin for float32."""
  ymin, xmin, ymax, xmax = box
  for axis, low, high in (("x", xmin, xmax), ("y", ymin, ymax)):
    if high <= low:
      return f"has {axis}max {high:g} <= {axis}min {low:g}"
  problem = "leaves" if outside else "has no area inside"
  return (
    f"{problem} the image of {_format((height, width))} pixels: "
    f"x {xmin:g} to {xmax:g}, y {ymin:g} to {ymax:g}"
  )


def _size_reason(declared, size, file):
  return f"gives {file} {_format(declared)} pixels, but it has {_format(size)}"


def _format(size):
  """Width x height, as people write sizes."""
  return f"{size[1]} x {size[0]}"
