"""TFRecord shards: a split in a few large files instead of one file an image.

  <split>-00000-of-00008.tfrecord   tf.train.Examples, one an image
  <split>.json                      the index: classes, objects, where each image lies

Opening a split reads its index alone. An uncompressed TFRecord file can be read from the
first byte of any record, so training reads images one by one, wherever they lie, in the
one order that `pipeline` draws for every format: uniformly shuffled, the same with shards
as without, and continued at any step. A reader that goes through shards from end to end
would ask the disk for less, but shuffle only within a buffer and start only at a shard's
beginning. What shards spare is the opening and listing of very many small files, which
network file systems do slowly, and the copying of them.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
import re

import numpy as np
import tensorflow as tf

from ap_detect import errors
from ap_detect.data import conversion, encoded, image_headers
from ap_detect.data.readers import folders, image_files, image_lists
from ap_detect.data.records import DataError, DetectionDataset, ImageRecord

SHARD_BYTES = 128 * 2**20

# Of the TFRecord format: 8 for the length, 4 for its checksum, 4 for the data's.
_FRAMING_BYTES = 16

# As the TF Object Detection API writes them; all others are PNG.
_FORMATS = {"JPEG": b"jpeg", "GIF": b"gif", "BMP": b"bmp"}


def write_tfrecords(data, output_dir, name, *, shard_bytes=SHARD_BYTES):
  """Writes a split as shards, from which `read_tfrecords` reads the same split.

  Files are copied byte by byte, but for those that data.conversion has to convert; pixels
  in memory become PNG. Everything is
  written under names that end in .tmp and renamed at the end, the index last, so that
  what an interruption leaves is never taken for a split.

  Args:
    data: DetectionDataset with at least one image. What was skipped in it is
      gone.
    output_dir: folder to write into; made if missing.
    name: of the split there; letters, digits and "_", "-", "." only.
    shard_bytes: a shard is full from there on.

  Returns:
    Paths of the files, the index last.

  Raises:
    ValueError: the name is not of that form, there are files of that name already, or
      there is no image.
  """
  if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
    raise ValueError(
      "a split of TFRecord shards must have a name of letters, digits, '_', '-' and "
      f"'.' only, got {name!r}"
    )
  if not data.records:
    raise ValueError(f"split {name!r} has no image to write")
  index_path = _index_path(output_dir, name)
  existing = folders.find_shards(output_dir, name)
  if os.path.exists(index_path):
    existing.append(index_path)
  if existing:
    raise ValueError(
      f"{output_dir} has a split {name!r} already: {', '.join(existing)}; use another "
      "name or folder, or delete it"
    )
  os.makedirs(output_dir, exist_ok=True)
  stem = os.path.join(output_dir, name)
  places, sizes = _write_shards(data, stem, shard_bytes)
  temporary_index = f"{index_path}.tmp"
  with errors.naming(index_path), open(temporary_index, "w", encoding="utf-8") as file:
    json.dump(_to_index(data, places, sizes), file)
  paths = [*(_shard_path(stem, k, len(sizes)) for k in range(len(sizes))), index_path]
  temporary = [*(_temporary(stem, k) for k in range(len(sizes))), temporary_index]
  for source, path in zip(temporary, paths):
    os.replace(source, path)
  return paths


def read_tfrecords(
  root,
  split,
  *,
  image_list=None,
  class_names=None,
  skip_faulty=False,
  check_images=True,
  max_image_pixels=image_files.MAX_IMAGE_PIXELS,
  exif_orientation=True,
  convertible=False,  # by whom it was written
):
  """One split as `write_tfrecords` wrote it.

  Args:
    root: folder of the shards.
    split: name of the split.
    image_list: path of a text file that names the images to take, one id a line. None
      takes all.
    class_names: names of classes 1..K, which must be those of the shards; None for any.
    skip_faulty: whether faulty images are left out and reported, instead of raising.
      What concerns the whole split is raised all the same.
    check_images: whether every image is also read and decoded.
    max_image_pixels: images with more, by their own headers, are a fault.
    exif_orientation: whether images are turned as their EXIF data says.
    convertible: makes no difference; what had to be converted was when it was written.

  Returns:
    DetectionDataset; records are as they were written, but their images are
    encoded.ShardedImages.

  Raises:
    DataError: there is no such split, its index is damaged, a shard is missing
      or is not of the size that the index has, the classes are others, images are
      faulty, or EXIF turns images whose boxes were written the other way.
  """
  root = os.fspath(root)
  folders.check_folder(root)
  data, boxes_are_turned = _read_index(root, split)
  if class_names is not None and tuple(class_names) != data.class_names:
    raise DataError(
      [
        f"{_index_path(root, split)}: its classes are {list(data.class_names)}, in that "
        f"order, but {list(class_names)} are wanted; write it with "
        "data.class_names set to those"
      ]
    )
  records, faults = data.records, []
  if image_list is not None:
    names = [(str(record.image_id),) for record in records]
    chosen, faults = image_lists.choose_images(image_list, names)
    records = [records[index] for index in sorted(chosen)]
  pictures = [record.image for record in records]
  if boxes_are_turned != exif_orientation:
    _refuse_turned(_index_path(root, split), pictures, boxes_are_turned)
  headers, reasons = image_files.read_headers(
    pictures, max_image_pixels=max_image_pixels, exif_orientation=exif_orientation
  )
  reasons.update(_find_other_sizes(records, headers))
  if check_images:
    reasons.update(image_files.find_undecodable(headers))
  faults += [
    f"{os.path.basename(image.path)}: the record at byte {image.offset}: {reason}"
    for image, reason in reasons.items()
  ]
  records = [
    dataclasses.replace(
      record, header=headers[record.image], exif_orientation=exif_orientation
    )
    for record in records
    if record.image not in reasons
  ]
  image_files.refuse_faults(faults, records, data.class_names, skip_faulty=skip_faulty)
  return DetectionDataset(
    records=tuple(records),
    class_names=data.class_names,
    category_ids=data.category_ids,
    ignored_are_crowds=data.ignored_are_crowds,
    skipped=tuple(faults),
    has_labels=data.has_labels,
  )


def find_splits(root):
  """Names of the splits in a folder that have an index and shards, sorted."""
  paths = glob.glob(_index_path(glob.escape(root), "*"))
  names = sorted(os.path.splitext(os.path.basename(path))[0] for path in paths)
  return [name for name in names if folders.find_shards(root, name)]


def _index_path(folder, name):
  return os.path.join(folder, f"{name}.json")


def _shard_path(stem, number, count):
  return f"{stem}-{number:05d}-of-{count:05d}.tfrecord"


def _temporary(stem, number):
  return f"{stem}-{number:05d}.tfrecord.tmp"


def _write_shards(data, stem, shard_bytes):
  """Writes temporary files; (shard, offset) of each image, and bytes of each shard."""
  places, sizes = [], [0]
  writer = tf.io.TFRecordWriter(_temporary(stem, 0))
  for record in data.records:
    example = _to_example(record, data).SerializeToString()
    if sizes[-1] >= shard_bytes:
      writer.close()
      writer = tf.io.TFRecordWriter(_temporary(stem, len(sizes)))
      sizes.append(0)
    writer.write(example)
    places.append((len(sizes) - 1, sizes[-1]))
    sizes[-1] += len(example) + _FRAMING_BYTES
  writer.close()
  return places, sizes


def _to_example(record, data):
  """A record in the fields of the TF Object Detection API, for tools that read these.

  Here only the image itself is read; the objects, exactly, are in the index.
  """
  picture_format = record.header.format if record.header else image_headers.CONVERTED
  if isinstance(record.image, np.ndarray):
    picture = tf.io.encode_png(record.image).numpy()
  elif picture_format == image_headers.CONVERTED:
    picture = conversion.to_png(
      record.image,
      exif_orientation=record.exif_orientation,
      max_image_pixels=record.height * record.width,
    )
  else:
    picture = encoded.read(record.image)
  size = [record.height, record.width]
  sides = (record.boxes / np.array(size * 2, np.float32)).T
  ignored = "is_crowd" if data.ignored_are_crowds else "difficult"
  names = [data.class_names[k - 1].encode() if k else b"" for k in record.classes]
  fields = {
    encoded.ENCODED: [picture],
    "image/format": [_FORMATS.get(picture_format, b"png")],
    "image/source_id": [str(record.image_id).encode()],
    "image/height": size[:1],
    "image/width": size[1:],
    **{
      f"image/object/bbox/{side}": values.astype(float)
      for side, values in zip(("ymin", "xmin", "ymax", "xmax"), sides)
    },
    "image/object/class/label": record.classes,
    "image/object/class/text": names,
    "image/object/area": record.areas.astype(float),
    f"image/object/{ignored}": record.ignored.astype(int),
  }
  features = {name: _feature(list(values)) for name, values in fields.items()}
  return tf.train.Example(features=tf.train.Features(feature=features))


def _feature(values):
  train = tf.train
  if not values:
    return train.Feature()
  if isinstance(values[0], bytes):
    return train.Feature(bytes_list=train.BytesList(value=values))
  if isinstance(values[0], float):
    return train.Feature(float_list=train.FloatList(value=values))
  return train.Feature(int64_list=train.Int64List(value=values))


def _to_index(data, places, sizes):
  # JSON keeps doubles exactly.
  return {
    "class_names": data.class_names,
    "category_ids": data.category_ids,
    "ignored_are_crowds": data.ignored_are_crowds,
    "has_labels": data.has_labels,
    "exif_orientation": data.records[0].exif_orientation,
    "shard_bytes": sizes,
    "records": [
      {
        "image_id": record.image_id,
        "shard": shard,
        "offset": offset,
        "height": record.height,
        "width": record.width,
        "boxes": record.boxes.tolist(),
        "classes": record.classes.tolist(),
        "ignored": record.ignored.tolist(),
        "areas": record.areas.tolist(),
        "boxes_xywh": (
          None if record.boxes_xywh is None else record.boxes_xywh.tolist()
        ),
      }
      for record, (shard, offset) in zip(data.records, places)
    ],
  }


def _read_index(root, split):
  """(DetectionDataset, exif_orientation) of an index whose shards are all there."""
  path = _index_path(root, split)
  if not os.path.isfile(path):
    raise DataError([_describe_missing(root, split)])
  try:
    with open(path, encoding="utf-8") as file:
      index = json.load(file)
    stem, sizes = os.path.join(root, split), index["shard_bytes"]
    shards = [_shard_path(stem, k, len(sizes)) for k in range(len(sizes))]
    data = DetectionDataset(
      records=tuple(_to_record(entry, index, shards) for entry in index["records"]),
      class_names=tuple(index["class_names"]),
      category_ids=tuple(index["category_ids"]),
      ignored_are_crowds=index["ignored_are_crowds"],
      has_labels=index["has_labels"],
    )
    # Indices without the entry are from before images were turned.
    exif_orientation = bool(index.get("exif_orientation", False))
    faults = [line for line in map(_shard_fault, shards, sizes) if line]
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise DataError(
      [f"{path}: damaged, or no index of TFRecord shards: {error!r}"]
    ) from error
  if faults:
    raise DataError(faults)
  return data, exif_orientation


def _describe_missing(root, split):
  """What there is instead of a split."""
  path = _index_path(root, split)
  if folders.find_shards(root, split):
    return (
      f"{path}: there is no such index, but shards: their writing was interrupted; "
      "delete them and write them again"
    )
  there = ", ".join(find_splits(root)) or "none"
  return f"{path}: there is no such split; {there} exist"


def _shard_fault(path, size):
  """Why a shard cannot be what was written, or None."""
  if not os.path.isfile(path):
    return f"{path}: there is no such file"
  found = os.path.getsize(path)
  if found != size:
    return f"{path}: has {found} bytes, but was written with {size}"
  return None


def _to_record(entry, index, shards):
  """ImageRecord of an entry of the index."""
  record = ImageRecord(
    image_id=entry["image_id"],
    image=encoded.ShardedImage(shards[entry["shard"]], int(entry["offset"])),
    height=int(entry["height"]),
    width=int(entry["width"]),
    boxes=_to_boxes(entry["boxes"]),
    classes=np.array(entry["classes"], np.int32),
    ignored=np.array(entry["ignored"], bool),
    areas=np.array(entry["areas"], np.float64),
    boxes_xywh=_to_boxes(entry.get("boxes_xywh")),  # older ones have none
  )
  shape = record.boxes.shape[:1]
  if not record.classes.shape == record.ignored.shape == record.areas.shape == shape:
    raise ValueError(f"image {record.image_id!r} has not one class and box an object")
  is_known = np.isin(record.classes, np.arange(len(index["class_names"])) + 1)
  if not (is_known | ((record.classes == 0) & record.ignored)).all():
    raise ValueError(f"image {record.image_id!r} has a class that is none of them")
  return record


def _to_boxes(values):
  return None if values is None else np.array(values, np.float64).reshape(-1, 4)


def _refuse_turned(index_path, pictures, boxes_are_turned):
  """Raises DataError where EXIF turns images whose boxes were written otherwise."""
  headers, _ = image_files.read_headers(pictures)
  count = sum(header.orientation > 1 for header in headers.values())
  if count:
    folder, name = os.path.split(index_path)
    raise DataError(
      [
        f"{index_path}: EXIF turns {count} of its images, but its boxes are of the "
        f"images {'turned' if boxes_are_turned else 'as stored'}"
      ],
      [
        "Write it anew, in another folder than "
        f"{folder or os.curdir}: ap_detect write_tfrecords --config=... "
        f"--split={os.path.splitext(name)[0]} --output_dir=... Or set "
        f"data.exif_orientation={boxes_are_turned}, as it was written"
      ],
    )


def _find_other_sizes(records, headers):
  """Dict of a ShardedImage to the reason, where the index has another size."""
  reasons = {}
  for record in records:
    header = headers.get(record.image)
    if header and (header.height, header.width) != (record.height, record.width):
      reasons[record.image] = (
        f"its header has {header.width} x {header.height} pixels, but the index "
        f"{record.width} x {record.height}"
      )
  return reasons
