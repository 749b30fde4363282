"""Reads a split by its name, or several joined to one dataset.

"VOC2007/trainval+VOC2012/trainval" joins two splits, each in a folder of its own below
the root; "train2014+val2014@lists/mine.txt" takes of the second only the images that a
text file names.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from typing import NamedTuple

from absl import logging

from ap_detect.data import encoded
from ap_detect.data.readers import coco, folders, tfrecords, voc
from ap_detect.data.records import SKIP, DataError


def read_split(
  root,
  split,
  *,
  data_format="auto",
  voc_one_based_inclusive=False,
  skip_faulty=False,
  **options,
):
  """One split, or several joined.

  Args:
    root: folder of the data.
    split: parts joined by "+", each [folder/]split[@list]: a folder below root that the
      split is looked for in, and a text file, relative to root or absolute, that names
      the images to take (see image_lists.choose_images). A split whose own name has
      these characters is read too, but by itself: where there is one of the whole name,
      that is meant.
    data_format: "voc", "coco", "tfrecord", or "auto": what each part's folder has.
    voc_one_based_inclusive: see voc.read_voc.
    skip_faulty: whether what is faulty is left out and reported, instead of raising.
    **options: class_names, see the readers; check_images, max_image_pixels,
      exif_orientation and convertible, see image_files.make_records.

  Returns:
    DetectionDataset. Of several parts, see `join`.

  Raises:
    DataError: faults of all parts, each with its part before it.
    ValueError: the split is not of that form, or class_names has a name twice.
  """
  root, options = os.fspath(root), {**options, "skip_faulty": skip_faulty}
  folders.check_folder(root)
  if not any(mark in split for mark in "+@/") or _is_split(root, split):
    part = _Part("", root, split, None)
    return _read_part(part, data_format, voc_one_based_inclusive, options)
  read, failed = [], []
  for part in _parse(root, split):
    try:
      data = _read_part(part, data_format, voc_one_based_inclusive, options)
    except DataError as error:
      failed.append((f"{part.text}: ", error))
    else:
      skipped = tuple(f"{part.text}: {line}" for line in data.skipped)
      read.append((part.text, dataclasses.replace(data, skipped=skipped)))
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
    are in the parts that have any.

  Raises:
    DataError: the parts differ in classes, category ids, in whether they have
      labels, or in what their ignored objects are (those of VOC and of COCO are judged
      by different rules); or a file is in several parts. All of these.
  """
  faults = _disagreements(parts)
  chosen, repeated = _drop_repeated_files(parts)
  if faults or (repeated and not skip_faulty):
    raise DataError(faults + repeated, [] if faults else [SKIP])
  skipped = [line for _, data in parts for line in data.skipped]
  with_ignored = [data for _, data in parts if _has_ignored(data)]
  first = parts[0][1]
  return dataclasses.replace(
    first,
    records=tuple(_make_ids_distinct(chosen)),
    ignored_are_crowds=(with_ignored or [first])[0].ignored_are_crowds,
    skipped=(*skipped, *repeated),
  )


class _Part(NamedTuple):
  """One part of a split: its text, where to look for it, its name there, its list."""

  text: str
  root: str
  split: str
  image_list: str | None


def _is_split(root, name):
  """Whether a split has this very name, whatever characters are in it."""
  voc_folders = folders.find_voc_folders(root, folders.UNLABELLED_VOC_PARTS)
  if any(os.path.isfile(folders.voc_split(path, name)) for path in voc_folders):
    return True
  return "/" not in name and bool(coco.candidates(root, name))


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


def _read_part(part, data_format, voc_one_based_inclusive, options):
  options = {**options, "image_list": part.image_list}
  if data_format == "auto":
    data_format = folders.find_format(part.root)
  if data_format == "voc":
    options["one_based_inclusive"] = voc_one_based_inclusive
    return voc.read_voc(part.root, part.split, **options)
  if data_format == "tfrecord":
    return tfrecords.read_tfrecords(part.root, part.split, **options)
  return coco.read_coco(part.root, part.split, **options)


def _disagreements(parts):
  """What keeps datasets from being one; list of lines."""
  (first_name, first), *others = parts
  faults = []
  for name, data in others:
    if data.class_names != first.class_names:
      faults.append(_describe_classes(name, data, first_name, first))
    elif data.category_ids != first.category_ids:
      faults.append(
        f"{name}: its classes have the ids {data.category_ids}, but in {first_name} "
        f"{first.category_ids}"
      )
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
  """The same for the same picture, whatever links lead to it."""
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
