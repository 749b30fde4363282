"""Which format a folder of data has, and which splits."""

from __future__ import annotations

import os

from ap_detect.data.readers import (
  coco,
  csv_boxes,
  cvat,
  folders,
  tfrecords,
  voc,
  yolo,
)
from ap_detect.data.records import DataError

_LAYOUTS = (
  "VOC: XML files beside images or in a folder of their own, with or without ImageSets",
  "COCO: a JSON file with lists of images, annotations and categories",
  "YOLO: data.yaml, or classes.txt beside text files of boxes",
  "CSV: the columns filename, class, xmin, ymin, xmax and ymax",
  "CVAT: its XML file for images, version 1.1",
  "TFRecord: <split>-*-of-*.tfrecord, as `ap_detect write_tfrecords` writes them",
)


def find_format(listing, data_format):
  """The format of what lies in a folder.

  Args:
    listing: Listing of the folder.
    data_format: name of a format, or "auto" for the one that is found.

  Returns:
    Name of a format.

  Raises:
    DataError: there is none, with what was looked for, or there are several.
  """
  if data_format != "auto":
    return data_format
  voc_folders = voc.find_folders(listing)
  sources = yolo.find_sources(listing)
  found = {
    "voc": [folder.path for folder in voc_folders if folder.annotations]
    or [path for paths in voc.find_pairs(listing).values() for path in paths],
    "coco": [file.path for file in coco.find_files(listing)],
    "yolo": [source.path for source in sources if source.images],
    "csv": list(csv_boxes.find_files(listing).values()),
    "cvat": cvat.find_files(listing),
    "tfrecord": folders.find_shards(listing.root),
  }
  formats = [name for name, paths in found.items() if paths]
  if len(formats) == 1:
    return formats[0]
  if formats:
    raise DataError(
      [
        f"{listing.root}: holds several formats: "
        + "; ".join(f"{name} for {folders.some_names(found[name])}" for name in formats)
      ],
      ["data.format says which is meant, data.annotations where to look"],
    )
  if sources:
    return "yolo"  # Reading it says where the images would have to be.
  if voc_folders:
    return "voc"  # of images without annotations
  raise DataError(
    [
      _describe_nothing(listing),
      *yolo.describe_damaged(listing),
      *csv_boxes.describe_others(listing),
    ],
    _advise_on_nothing(listing),
  )


def _describe_nothing(listing):
  unreadable = "".join(f"; {path} cannot be read" for path in listing.unreadable)
  return (
    f"{listing.root}: no annotations of a known layout. Looked for "
    f"{'; '.join(_LAYOUTS)}. Found {listing.describe()}{unreadable}"
  )


def _advise_on_nothing(listing):
  advice = [
    "data.annotations and data.images name folders elsewhere; data.format says what is "
    "meant where files are known by no mark"
  ]
  if listing.is_part:
    advice.append(
      f"If images and annotations lie side by side, give {os.path.dirname(listing.root)}"
    )
  if yolo.has_boxes(listing):
    advice.append(
      "Images have text files: if these are YOLO's boxes, write the names of the classes, "
      f"one a line, into {os.path.join(listing.root, 'classes.txt')}"
    )
  if listing.images:
    advice.append(
      f"{len(listing.images)} images without annotations are enough for `ap_detect predict`"
    )
  return advice


def names_of(listing, data_format):
  """Names of the splits of a folder in a format, "" for what is of none; each once."""
  if data_format == "voc":
    voc_folders = voc.find_folders(listing)
    names = [name for folder in voc_folders for name in folder.split_names()]
    names = names if voc_folders else list(voc.find_pairs(listing))
  elif data_format == "coco":
    names = coco.split_names_of(coco.find_files(listing))
  elif data_format == "yolo":
    names = [name for source in yolo.find_sources(listing) for name in source.images]
  elif data_format == "csv":
    names = list(csv_boxes.find_files(listing))
  elif data_format == "cvat":
    names = cvat.find_splits(listing)
  else:
    names = tfrecords.find_splits(listing.root)
  return list(dict.fromkeys(names))
