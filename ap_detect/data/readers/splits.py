"""Reads a split by its name, or several joined to one dataset, or a part of one.

"VOC2007/trainval+VOC2012/trainval" joins two splits, each in a folder of its own below
the root; "train2014+val2014@lists/mine.txt" takes of the second only the images that a
text file names. Where a folder has nothing to validate on, a part of the training split is
held out for that.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import os
from typing import NamedTuple

from absl import logging

from ap_detect.data import encoded
from ap_detect.data.readers import (
  coco,
  csv_boxes,
  cvat,
  folders,
  layouts,
  split_names,
  tfrecords,
  voc,
  yolo,
)
from ap_detect.data.readers.listing import Listing
from ap_detect.data.records import SKIP, DataError, printable

HOLDOUT_SHARE = 0.2

_READERS = {
  "voc": voc.read_voc,
  "coco": coco.read_coco,
  "yolo": yolo.read_yolo,
  "csv": csv_boxes.read_csv,
  "cvat": cvat.read_cvat,
}

# Of the formats that tell images without annotation from those that are not meant.
_WITH_NEGATIVES = ("voc", "csv")


class Part(NamedTuple):
  """What is to be read for a split.

  Attributes:
    split: the split to read.
    kind: "all" of it, what is "held out" of it for validation, or the "rest".
  """

  split: str
  kind: str


def read_split(
  root,
  split,
  *,
  data_format="auto",
  annotations="",
  images="",
  train_split="train",
  val_split="val",
  holdout_share=HOLDOUT_SHARE,
  voc_one_based_inclusive=False,
  unannotated_are_negatives=False,
  skip_faulty=False,
  **options,
):
  """One split of a folder of images, several joined, or a part held out of one.

  Args:
    root: folder of the data, in any layout that the readers have (read_voc, read_coco,
      read_yolo, read_csv, read_cvat, read_tfrecords).
    split: parts joined by "+", each [folder/]split[@list]: a folder below root that the
      split is looked for in, and a text file, relative to root or absolute, that names
      the images to take (see image_lists.choose_images). A split whose own name has
      these characters is read too, but by itself: where there is one of the whole name,
      that is meant.
    data_format: "voc", "coco", "yolo", "csv", "cvat", "tfrecord", or "auto": what each
      part's folder has.
    annotations: file or folder that annotations are looked for in, relative to root or
      absolute, with {split} for the split's name; "" for anywhere below root.
    images: folder that images are looked for in, likewise.
    train_split: what is trained on.
    val_split: what is validated on. Where that is "val" and the folder has no such
      split, or only that which is trained on, a part of that is held out for it, see
      `find_part`.
    holdout_share: of the images of train_split, what part is held out then; 0 for none.
    voc_one_based_inclusive: see voc.read_voc.
    unannotated_are_negatives: see voc.read_voc and csv_boxes.read_csv.
    skip_faulty: whether what is faulty is left out and reported, instead of raising.
    **options: class_names, see the readers; check_images, max_image_pixels,
      exif_orientation and convertible, see image_files.make_records.

  Returns:
    DetectionDataset. Of several parts, see `join`; of a part held out, see `take`.

  Raises:
    DataError: faults of all parts, each with its part before it.
    ValueError: the split is not of that form, or class_names has a name twice.

  Example:
    data = read_split("bottles", "train")
    for record in data.records:
      print(record.image_id, record.boxes, record.classes, record.ignored)
  """
  places = {"data_format": data_format, "annotations": annotations, "images": images}
  part = find_part(
    root,
    split,
    train_split=train_split,
    val_split=val_split,
    holdout_share=holdout_share,
    **places,
  )
  data = read_whole(
    root,
    part.split,
    voc_one_based_inclusive=voc_one_based_inclusive,
    unannotated_are_negatives=unannotated_are_negatives,
    skip_faulty=skip_faulty,
    **places,
    **options,
  )
  return take(data, part.kind, holdout_share)


def find_part(
  root,
  split,
  *,
  data_format="auto",
  annotations="",
  images="",
  train_split="train",
  val_split="val",
  holdout_share=HOLDOUT_SHARE,
):
  """What is to be read for a split: itself, or a part of the training split.

  A part is meant where val_split is "val", or a word for it, and the folder has no such
  split but that which train_split means (as "train" means the only split that there is,
  whatever its name).

  Args: see `read_split`.

  Returns:
    Part.
  """
  itself = Part(split, "all")
  may_be_part = split in (train_split, val_split) and train_split != val_split
  # Another name is that of a split, and must be there.
  if not (may_be_part and holdout_share) or split_names.meaning(val_split) != "val":
    return itself

  @functools.lru_cache
  def find_choice(annotations, images):
    try:
      listing = Listing(root, annotations=annotations, images=images)
      found_format = layouts.find_format(listing, data_format)
      if found_format == "coco":
        return functools.partial(coco.choose_names, coco.find_files(listing))
      return functools.partial(
        split_names.choose, layouts.names_of(listing, found_format)
      )
    except DataError:
      return lambda _, *, sole: []  # Reading it says so.

  def find(name, *, sole):
    choose = find_choice(*_below(os.path.abspath(root), name, annotations, images))
    return choose(name, sole=sole)

  own = find(val_split, sole=False)
  train = [train_split]
  if not _is_expression(train_split):
    train = find(train_split, sole=True)
  if not train or (own and own != train):
    return itself
  return Part(train_split, "held out" if split == val_split else "rest")


def take(data, kind, holdout_share=HOLDOUT_SHARE, held_out=()):
  """A part of a dataset.

  Args:
    data: DetectionDataset of n images.
    kind: see Part. round(holdout_share n) images are held out, but never all; always the
      same ones, whatever their order, by a hash of their ids. Roboflow's variants of an
      image (a_jpg.rf.1.jpg, a_jpg.rf.2.jpg) stay together, but for those of one image.
    holdout_share: see `read_split`.
    held_out: ids, as texts, of images that are held out already. Where any of them are
      there these are held out, and no others: all others may have been trained on.

  Returns:
    DetectionDataset, in the same order.

  Raises:
    DataError: nothing is held out of so few images, but something is asked for.

  Example:
    held_out, rest = (take(data, kind) for kind in ("held out", "rest"))
  """
  if kind == "all":
    return data
  chosen = _find_held_out(data, held_out) or _draw_held_out(data, holdout_share)
  if kind == "held out" and not chosen:
    raise DataError(
      [
        f"there is no split to validate on, and {holdout_share:g} of "
        f"{len(data.records)} images is none"
      ],
      ["Add images to validate on, or name a split by data.val_split"],
    )
  records = [
    record
    for index, record in enumerate(data.records)
    if (index in chosen) == (kind == "held out")
  ]
  return dataclasses.replace(data, records=tuple(records))


def _find_held_out(data, held_out):
  """Indices of the images that are held out already; set."""
  ids = [str(record.image_id) for record in data.records]
  # Of stems that repeat by now, ids have become paths.
  missing = set(held_out) - set(ids)
  return {
    index
    for index, image_id in enumerate(ids)
    if image_id in held_out or os.path.basename(image_id) in missing
  }


def _draw_held_out(data, holdout_share):
  """Indices of the images to hold out; set."""
  count = len(data.records)

  def draw(index):
    record = data.records[index]
    name = os.path.basename(record.image) if isinstance(record.image, str) else ""
    source, is_variant, _ = name.partition(".rf.")
    keys = (source if is_variant else record.image_id, record.image_id)
    return [hashlib.sha256(printable(f"{key}").encode()).digest() for key in keys]

  drawn = sorted(range(count), key=draw)
  return set(drawn[: min(round(holdout_share * count), count - 1)])


def read_whole(
  root,
  split,
  *,
  data_format="auto",
  annotations="",
  images="",
  voc_one_based_inclusive=False,
  unannotated_are_negatives=False,
  skip_faulty=False,
  **options,
):
  """As `read_split`, but nothing is held out."""
  options = {**options, "skip_faulty": skip_faulty}
  options.update(
    unannotated_are_negatives=unannotated_are_negatives,
    one_based_inclusive=voc_one_based_inclusive,
  )
  folders.check_folder(os.fspath(root))
  root = os.path.abspath(root)
  places = root, annotations, images
  if not _is_expression(split) or _is_split(places, split, data_format):
    part = _Part("", root, split, None)
    return _read_part(part, places, data_format, options)
  read, failed = [], []
  for part in _parse(root, split):
    try:
      data = _read_part(part, places, data_format, options)
    except DataError as error:
      failed.append((f"{part.text}: ", error))
    else:
      skipped = tuple(f"{part.text}: {line}" for line in data.skipped)
      notes = tuple(f"{part.text}: {line}" for line in data.notes)
      data = dataclasses.replace(data, skipped=skipped, notes=notes)
      read.append((part.text, data))
  if failed:
    raise DataError.join(failed)
  return join(read, skip_faulty=skip_faulty)


def join(parts, *, skip_faulty=False):
  """Several datasets as one, image after image.

  Image ids that come in more than one part get the part's name before them, "<name
  without its @list>/<id>"; all others stay as they are.

  Args:
    parts: list of (name, DetectionDataset), at least one, with images in files.
    skip_faulty: whether an image that an earlier part has too is left out and reported,
      instead of raising.

  Returns:
    DetectionDataset. Its ignored objects are crowds or difficult ones, as they
    are in the parts that have any; its category ids are those of the first part.

  Raises:
    DataError: the parts differ in classes, in whether they have labels, or in what their ignored objects are (those of VOC and of COCO are judged
      by different rules); or a file is in several parts. All of these.
  """
  faults = _disagreements(parts)
  chosen, repeated = _drop_repeated_files(parts)
  if faults or (repeated and not skip_faulty):
    raise DataError(faults + repeated, [] if faults else [SKIP])
  skipped = [line for _, data in parts for line in data.skipped]
  with_ignored = [data for _, data in parts if _has_ignored(data)]
  first = parts[0][1]
  records = _make_ids_distinct(chosen)
  if any(record.boxes_xywh is None for record in records):  # as of older shards
    records = [dataclasses.replace(record, boxes_xywh=None) for record in records]
  return dataclasses.replace(
    first,
    records=tuple(records),
    ignored_are_crowds=(with_ignored or [first])[0].ignored_are_crowds,
    skipped=(*skipped, *repeated),
    notes=tuple(line for _, data in parts for line in data.notes),
  )


class _Part(NamedTuple):
  """One part of a split: its text, where to look for it, its name there, its list."""

  text: str
  root: str
  split: str
  image_list: str | None


def _is_expression(split):
  return any(mark in split for mark in "+@/")


def _is_split(places, name, data_format):
  """Whether a split has this very name, whatever characters are in it."""
  try:
    annotations, images = _below(places[0], name, *places[1:])
    listing = Listing(places[0], annotations=annotations, images=images)
    known = layouts.names_of(listing, layouts.find_format(listing, data_format))
  except DataError:
    return False
  return bool(split_names.choose(known, name))


def _below(root, split, *paths):
  """Paths below the root, or "" for "", with the split's name in them."""
  return [
    os.path.join(root, path.replace("{split}", split)) if path else "" for path in paths
  ]


def _parse(root, split):
  parts = []
  for text in split.split("+"):
    path, at, image_list = text.partition("@")
    folder, _, name = path.rpartition("/")
    if not name or bool(at) != bool(image_list) or folders.leaves_folder(path):
      raise ValueError(
        f"split {split!r}: its parts must be [folder/]split[@list], joined by '+', with "
        f"a folder inside {root}; got {text!r}"
      )
    parts.append(
      _Part(
        text,
        os.path.join(root, folder) if folder else root,
        name,
        os.path.join(root, image_list) if image_list else None,
      )
    )
  return parts


def _read_part(part, places, data_format, options):
  annotations, images = _below(places[0], part.split, *places[1:])
  listing = Listing(part.root, annotations=annotations, images=images)
  data_format = layouts.find_format(listing, data_format)
  options = {**options, "image_list": part.image_list}
  negatives = options.pop("unannotated_are_negatives")
  one_based_inclusive = options.pop("one_based_inclusive")
  if data_format == "tfrecord":
    name = split_names.choose(
      layouts.names_of(listing, data_format), part.split, sole=True
    ) or [part.split]
    data = tfrecords.read_tfrecords(part.root, name[0], **options)
  else:
    if data_format in _WITH_NEGATIVES:
      options["unannotated_are_negatives"] = negatives
    if data_format == "voc":
      options["one_based_inclusive"] = one_based_inclusive
    read = _READERS[data_format]
    data = read(part.root, part.split, listing=listing, **options)
  notes = [f"{path}: cannot be read, and is passed over" for path in listing.unreadable]
  return dataclasses.replace(data, notes=(*notes, *data.notes))


def _disagreements(parts):
  """What keeps datasets from being one; list of lines."""
  (first_name, first), *others = parts
  faults = []
  for name, data in others:
    if data.class_names != first.class_names:
      faults.append(_describe_classes(name, data, first_name, first))
    if data.has_labels != first.has_labels:
      with_labels = (first_name, name) if first.has_labels else (name, first_name)
      faults.append("{} has labels, but {} has none".format(*with_labels))
  kinds: dict[bool, str] = {}
  for name, data in parts:
    if _has_ignored(data):
      kinds.setdefault(data.ignored_are_crowds, name)
  if len(kinds) > 1:
    faults.append(
      f"the ignored objects of {kinds[True]} are COCO's crowds, those of {kinds[False]} "
      "VOC's difficult ones; the two are judged differently, and one dataset cannot have "
      "both"
    )
  return faults


def _describe_classes(name, data, first_name, first):
  lacks = [label for label in first.class_names if label not in data.class_names]
  more = [label for label in data.class_names if label not in first.class_names]
  differs = [f"lacks {lacks}"] if lacks else []
  differs += [f"has {more} besides"] if more else []
  order = f"has them in another order, {list(data.class_names)}"
  return (
    f"{name}: its classes must be those of {first_name}, but it "
    f"{' and '.join(differs) or order}; set data.class_names to those of all parts"
  )


def _has_ignored(data):
  return any(record.ignored.any() for record in data.records)


def _drop_repeated_files(parts):
  """([(name, records)], faults): each file in the first part that has it."""
  owners: dict[str | encoded.ShardedImage, int] = {}
  chosen, faults = [], []
  for number, (name, data) in enumerate(parts):
    records = []
    for record in data.records:
      owner = owners.setdefault(_identify(record.image), number)
      if owner == number:
        records.append(record)
      else:
        faults.append(f"{name}: {record.image} is in {parts[owner][0]} already")
    chosen.append((name, records))
  return chosen, faults


def _identify(image):
  """The same for the same image, whatever links lead to it."""
  if isinstance(image, str):
    return os.path.realpath(image)
  return image._replace(path=os.path.realpath(image.path))


def _make_ids_distinct(chosen):
  """Records of all parts in a row, their ids as `join` says."""
  counts = collections.Counter(
    record.image_id for _, records in chosen for record in records
  )
  joined, renamed = [], []
  for name, records in chosen:
    prefix = name.partition("@")[0]
    for record in records:
      if counts[record.image_id] > 1:
        image_id = f"{prefix}/{record.image_id}"
        record = dataclasses.replace(record, image_id=image_id)
        renamed.append(image_id)
      joined.append(record)
  if renamed:
    logging.info(
      "%d images have an id that comes in several parts; their ids are now of the form %s",
      len(renamed),
      renamed[0],
    )
  return joined
