"""Tiny datasets on disk, made so that a test can break one thing in them."""

import json
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ap_detect.data.records import LISTED_FAULTS, DataError

REAL_DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


def _write_image(path, height=20, width=30, mode="RGB", image_format=None, **options):
  """An image of smooth colour; the file's format is that of its name."""
  rows, columns = np.mgrid[0:height, 0:width]
  pixels = np.stack([rows * 9, columns * 7, rows + columns], -1).astype(np.uint8)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).convert(mode).save(path, image_format, **options)
  return path


def _write_huge_png(path, height=100_000, width=100_000):
  """A small PNG file whose header claims a size; 10^10 pixels by default."""
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + b"".join(
      struct.pack(">I", len(data))
      + kind
      + data
      + struct.pack(">I", zlib.crc32(kind + data))
      for kind, data in chunks
    )
  )
  return path


class VocFolder:
  """A folder in VOC layout, written piece by piece."""

  def __init__(self, root):
    self.root = root
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
      (root / part).mkdir(parents=True)

  def add(self, stem, *objects, height=20, width=30, extra="", image="jpg"):
    """An image and its XML; an object is (name, xmin, ymin, xmax, ymax[, more XML])."""
    if image:
      _write_image(self.root / f"JPEGImages/{stem}.{image}", height, width)
    elements = "".join(self.object_xml(*item) for item in objects)
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    self.write_xml(stem, f"<annotation>{size}{elements}{extra}</annotation>")

  def object_xml(self, name, xmin, ymin, xmax, ymax, more=""):
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (xmin, ymin, xmax, ymax))
    bndbox = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
    return f"<object><name>{name}</name><bndbox>{bndbox}</bndbox>{more}</object>"

  def write_xml(self, stem, text):
    (self.root / f"Annotations/{stem}.xml").write_text(text)

  def split(self, name, *lines):
    (self.root / f"ImageSets/Main/{name}.txt").write_text("\n".join(lines) + "\n")


class CocoFolder:
  """A folder in COCO layout; `content` is what its JSON file will hold."""

  def __init__(self, root):
    self.root = root
    self.content = {"images": [], "annotations": [], "categories": []}

  def category(self, category_id, name):
    self.content["categories"].append({"id": category_id, "name": name})

  def image(self, image_id, name=None, height=20, width=30, folder="val2017", **more):
    name = name or f"{image_id}.jpg"
    _write_image(self.root / folder / name, height, width)
    entry = {"id": image_id, "file_name": name, "height": height, "width": width}
    self.content["images"].append({**entry, **more})

  def annotate(self, annotation_id, image_id, category_id, bbox, **more):
    entry = {"id": annotation_id, "image_id": image_id, "category_id": category_id}
    self.content["annotations"].append({**entry, "bbox": bbox, **more})

  def save(self, path="annotations/instances_val2017.json"):
    path = self.root / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(self.content))
    return path


@pytest.fixture
def write_image():
  return _write_image


@pytest.fixture
def write_huge_png():
  return _write_huge_png


@pytest.fixture
def voc(tmp_path):
  """A sound VOC folder: images a (cat and dog) and b (nothing) in split `train`."""
  folder = VocFolder(tmp_path)
  folder.add("a", ("dog", 2, 3, 12, 10), ("cat", 5, 6, 30, 20))
  folder.add("b")
  folder.split("train", "a", "b")
  return folder


@pytest.fixture
def coco(tmp_path):
  """A sound COCO folder, not yet saved: images 7 (cat and crowd) and 4 (nothing)."""
  folder = CocoFolder(tmp_path)
  folder.category(18, "dog")
  folder.category(17, "cat")
  folder.image(7)
  folder.image(4)
  folder.annotate(70, 7, 17, [2, 3, 10, 7], area=33.5, iscrowd=0)
  folder.annotate(71, 7, 18, [5, 6, 25, 14], area=200, iscrowd=1)
  return folder


@pytest.fixture
def faults_of():
  """Calls a reader that must raise DataError; returns the list of faults."""

  def call(reader, *arguments, **options):
    with pytest.raises(DataError) as caught:
      reader(*arguments, **options)
    listed = caught.value.faults[:LISTED_FAULTS]
    assert all(fault in str(caught.value) for fault in listed)
    return list(caught.value.faults)

  return call


@pytest.fixture
def real_data():
  """Path of a real dataset by name; skips where it is absent."""

  def find(name):
    if not (REAL_DATA / name).is_dir():
      pytest.skip(f"real data not present: {REAL_DATA / name}")
    return REAL_DATA / name

  return find
