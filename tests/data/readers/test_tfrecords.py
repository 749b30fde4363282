"""data.readers.tfrecords: what is written comes back the same, and damage is named."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ap_detect.data import augment, encoded, pipeline, shapes
from ap_detect.data.readers import splits, tfrecords
from ap_detect.data.readers.coco import read_coco
from ap_detect.data.readers.voc import read_voc
from ap_detect.data.records import DataError, ImageRecord
from ap_detect.runs import memory
from ap_detect.training import evaluation_files

FIELDS = [field.name for field in dataclasses.fields(ImageRecord)]


def assert_same(data, expected):
  """Equal in all but where the pictures lie."""
  for name in ("class_names", "category_ids", "ignored_are_crowds", "has_labels"):
    assert getattr(data, name) == getattr(expected, name), name
  assert len(data.records) == len(expected.records)
  for record, other in zip(data.records, expected.records):
    assert type(record.image_id) is type(other.image_id)
    np.testing.assert_array_equal(
      evaluation_files.load_pixels(record), evaluation_files.load_pixels(other)
    )
    for name in FIELDS:
      value, wanted = getattr(record, name), getattr(other, name)
      if name != "image" and not (name == "header" and wanted is None):
        np.testing.assert_array_equal(value, wanted)
        assert np.asarray(value).dtype == np.asarray(wanted).dtype, name


@pytest.fixture
def shards(voc, tmp_path):
  """Folder with the split `train` of the VOC folder, a shard a picture."""
  folder = tmp_path / "shards"
  data = read_voc(voc.root, "train")
  tfrecords.write_tfrecords(data, str(folder), "train", shard_bytes=1)
  return folder


class TestRoundTrip:
  def test_voc(self, voc, tmp_path):
    more = "<difficult>1</difficult>"
    voc.add("c", ("dog", 0.1, 0.7, 29.9, 11 / 3, more), image="png")
    voc.split("all", "c", "a", "b")
    expected = read_voc(voc.root, "all")
    paths = tfrecords.write_tfrecords(expected, str(tmp_path / "out"), "all")
    assert [os.path.basename(path) for path in paths] == [
      "all-00000-of-00001.tfrecord",
      "all.json",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == sorted(map(os.path.basename, paths))
    data = tfrecords.read_tfrecords(str(tmp_path / "out"), "all")
    assert_same(data, expected)
    for record, other in zip(data.records, expected.records):
      assert encoded.read(record.image) == pathlib.Path(other.image).read_bytes()

  def test_coco_with_crowds_ids_and_areas(self, coco, tmp_path):
    coco.save()
    expected = read_coco(coco.root, "val2017")
    tfrecords.write_tfrecords(expected, str(tmp_path / "out"), "val2017")
    data = splits.read_split(tmp_path / "out", "val2017")
    assert_same(data, expected)
    assert data.ignored_are_crowds and data.category_ids == (17, 18)
    assert data.records[0].areas.tolist() == [33.5, 200]

  def test_older_shards_beside_newer_ones(self, voc, shards, tmp_path):
    """Those have no boxes as the annotation has them; a run remembers both."""
    tfrecords.write_tfrecords(
      read_voc(voc.root, "train"), str(tmp_path / "new"), "train"
    )
    path = shards / "train.json"
    index = json.loads(path.read_text())
    for entry in index["records"]:
      del entry["boxes_xywh"]
    path.write_text(json.dumps(index))
    data = splits.read_split(tmp_path, "new/train+shards/train")
    assert [record.boxes_xywh for record in data.records] == [None] * len(data.records)
    kept = memory.Memory(str(tmp_path / "run"))
    kept.read("train", [], [], lambda: data)
    kept.save()
    again, is_known = memory.Memory(str(tmp_path / "run")).read(
      "train", [], [], lambda: data
    )
    assert is_known and len(again.records) == len(data.records)

  def test_pixels_in_memory(self, tmp_path):
    expected = shapes.make_shapes("train", num_images=5)
    tfrecords.write_tfrecords(expected, str(tmp_path), "train")
    assert_same(tfrecords.read_tfrecords(str(tmp_path), "train"), expected)

  def test_split_without_labels(self, voc, tmp_path):
    (voc.root / "Annotations/b.xml").unlink()
    voc.split("test", "b")
    expected = read_voc(voc.root, "test", class_names=["cat", "dog"])
    tfrecords.write_tfrecords(expected, str(tmp_path), "test")
    data = tfrecords.read_tfrecords(str(tmp_path), "test")
    assert not data.has_labels
    assert_same(data, expected)

  def test_shards_of_shards(self, shards, tmp_path):
    expected = tfrecords.read_tfrecords(shards, "train")
    tfrecords.write_tfrecords(expected, str(tmp_path / "again"), "train")
    assert_same(tfrecords.read_tfrecords(tmp_path / "again", "train"), expected)

  def test_a_shard_is_full_from_its_size_on(self, tmp_path):
    data = shapes.make_shapes("train", num_images=7)
    *paths, _ = tfrecords.write_tfrecords(data, str(tmp_path), "x", shard_bytes=30_000)
    assert 1 < len(paths) < 7
    assert paths[1].endswith(f"x-00001-of-{len(paths):05d}.tfrecord")
    assert min(os.path.getsize(path) for path in paths[:-1]) >= 30_000
    read = tfrecords.read_tfrecords(tmp_path, "x")
    assert max(record.image.offset for record in read.records) < 30_000
    assert_same(read, data)


def test_other_tools_can_read_the_records(shards):
  """By the fields of the TF Object Detection API; 20 x 30 pixels."""
  paths = [str(shards / f"train-0000{k}-of-00002.tfrecord") for k in range(2)]
  fields = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/format": tf.io.FixedLenFeature([], tf.string),
    "image/source_id": tf.io.FixedLenFeature([], tf.string),
    "image/height": tf.io.FixedLenFeature([], tf.int64),
    "image/width": tf.io.FixedLenFeature([], tf.int64),
    "image/object/class/text": tf.io.VarLenFeature(tf.string),
    "image/object/class/label": tf.io.VarLenFeature(tf.int64),
    "image/object/difficult": tf.io.VarLenFeature(tf.int64),
    "image/object/area": tf.io.VarLenFeature(tf.float32),
  }
  sides = [f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax")]
  fields.update({side: tf.io.VarLenFeature(tf.float32) for side in sides})
  a, b = (
    tf.io.parse_single_example(record, fields)
    for record in tf.data.TFRecordDataset(paths)
  )
  assert (a["image/source_id"], b["image/source_id"]) == (b"a", b"b")
  assert (a["image/height"], a["image/width"]) == (20, 30)
  assert tf.io.decode_jpeg(a["image/encoded"]).shape == (20, 30, 3)
  assert a["image/format"] == b"jpeg"
  values = {
    name: value.values.numpy().tolist() for name, value in a.items() if name in sides
  }
  np.testing.assert_allclose(
    [values[side] for side in sides],
    [[3 / 20, 6 / 20], [2 / 30, 5 / 30], [10 / 20, 1], [12 / 30, 1]],
    rtol=1e-6,
  )
  names, labels, difficult, areas = (
    a[f"image/object/{name}"].values.numpy().tolist()
    for name in ("class/text", "class/label", "difficult", "area")
  )
  assert (names, labels, difficult) == ([b"dog", b"cat"], [2, 1], [0, 0])
  assert areas == [70, 350]
  assert not b["image/object/class/label"].values.shape[0]


def test_batches_are_those_of_the_files(voc, tmp_path):
  """In training, from any step on, and in evaluation, of any records."""
  rng = np.random.default_rng(0)
  for stem in ("a", "b", "c", "d", "e"):
    voc.add(stem, ("cat", 3, 4, 25, 18), image="")
    pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(voc.root / f"JPEGImages/{stem}.jpg")
  voc.split("train", *"abcde")
  files = read_voc(voc.root, "train")
  tfrecords.write_tfrecords(files, str(tmp_path / "out"), "train", shard_bytes=3000)
  sharded = tfrecords.read_tfrecords(tmp_path / "out", "train")
  assert len({record.image.path for record in sharded.records}) > 1
  steps = augment.zoom_steps((64, 64), zoom_range=(0.5, 2.0))
  for first_position in (0, 8):
    batches, expected = (
      pipeline.training_batches(
        data, steps=steps, batch_size=2, seed=3, first_position=first_position
      ).take(6)
      for data in (sharded, files)
    )
    for batch, other in zip(batches, expected):
      for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])
  view = pipeline.View((64, 64), (64, 64))
  shown, expected = (
    pipeline.evaluation_batches(
      [data.records[i] for i in (4, 0, 2)], views=[view], batch_size=2
    )
    for data in (sharded, files)
  )
  for (batch,), (other,) in zip(shown, expected):
    np.testing.assert_array_equal(batch["image"], other["image"])


class TestSplits:
  def test_the_format_is_found(self, shards, coco, faults_of):
    assert [r.image_id for r in splits.read_split(shards, "train").records] == [
      "a",
      "b",
    ]
    coco.root = shards
    coco.save()
    (fault,) = faults_of(splits.read_split, shards, "train")
    assert "holds several formats" in fault and "; tfrecord for " in fault
    data = splits.read_split(shards, "train", data_format="tfrecord")
    assert len(data.records) == 2

  def test_shards_join_with_shards_and_with_files(
    self, voc, shards, tmp_path, faults_of
  ):
    voc.add("c", ("dog", 2, 3, 12, 10))
    voc.split("val", "c")
    # One root with both: the VOC layout moves beside the shards.
    (tmp_path / "voc").mkdir()
    for part in ("Annotations", "JPEGImages", "ImageSets"):
      (tmp_path / part).rename(tmp_path / "voc" / part)
    val = read_voc(tmp_path / "voc", "val")
    tfrecords.write_tfrecords(val, str(shards), "val")
    expected = splits.read_split(tmp_path, "voc/train+voc/val")
    assert_same(splits.read_split(tmp_path, "shards/train+shards/val"), expected)
    mixed = splits.read_split(tmp_path, "voc/train+shards/val")
    assert_same(mixed, expected)
    steps = augment.zoom_steps((64, 64))
    batches = pipeline.training_batches(mixed, steps=steps, batch_size=3)
    assert next(iter(batches))["image"].shape == (3, 64, 64, 3)
    (shards / "list.txt").write_text("b\n")
    listed = splits.read_split(shards, "train@list.txt")
    assert [record.image_id for record in listed.records] == ["b"]
    (fault,) = faults_of(splits.read_split, shards, "train+train@list.txt")
    assert "train-00001-of-00002.tfrecord" in fault
    assert fault.endswith("is in train already")

  def test_missing_split(self, shards, faults_of):
    (shards / "other.json").write_text("{}")
    assert faults_of(tfrecords.read_tfrecords, shards, "val") == [
      f"{shards}/val.json: there is no such split; train exist"
    ]
    assert faults_of(tfrecords.read_tfrecords, shards / "no", "val") == [
      f"{shards}/no: there is no such folder"
    ]

  def test_classes_must_be_those_of_the_shards(self, shards, faults_of):
    names = ["cat", "dog"]
    data = tfrecords.read_tfrecords(shards, "train", class_names=names)
    assert data.class_names == ("cat", "dog")
    (fault,) = faults_of(
      tfrecords.read_tfrecords, shards, "train", class_names=names[::-1]
    )
    assert "its classes are ['cat', 'dog'], in that order, but ['dog', 'cat']" in fault


class TestWriting:
  def test_nothing_is_written_over(self, voc, shards):
    data = read_voc(voc.root, "train")
    with pytest.raises(
      ValueError, match=r"'train' already: .*train\.json; use another"
    ):
      tfrecords.write_tfrecords(data, str(shards), "train")
    tfrecords.write_tfrecords(data, str(shards), "train2")

  @pytest.mark.parametrize("name", ["", "a/b", "a+b", "a@b", "..", ".a", "-a", "a b"])
  def test_names_that_are_no_file_names(self, voc, tmp_path, name):
    data = read_voc(voc.root, "train")
    with pytest.raises(ValueError, match="must have a name of letters"):
      tfrecords.write_tfrecords(data, str(tmp_path / "out"), name)
    assert not (tmp_path / "out").exists()

  def test_no_image(self, voc, tmp_path):
    data = dataclasses.replace(read_voc(voc.root, "train"), records=())
    with pytest.raises(ValueError, match="no image to write"):
      tfrecords.write_tfrecords(data, str(tmp_path), "train")

  def test_interrupted_before_the_end(self, voc, tmp_path, faults_of):
    data = read_voc(voc.root, "train")
    os.rename(data.records[1].image, tmp_path / "away")
    folder = tmp_path / "out"
    with pytest.raises(tf.errors.NotFoundError):
      tfrecords.write_tfrecords(data, str(folder), "train")
    (fault,) = faults_of(tfrecords.read_tfrecords, folder, "train")
    assert fault.endswith("there is no such split; none exist")
    os.rename(tmp_path / "away", data.records[1].image)
    tfrecords.write_tfrecords(data, str(folder), "train")
    assert_same(tfrecords.read_tfrecords(folder, "train"), data)

  def test_interrupted_before_the_index(self, voc, tmp_path, faults_of, monkeypatch):
    replace = os.replace

    def stop_at_index(source, path):
      if path.endswith(".json"):
        raise KeyboardInterrupt
      replace(source, path)

    data, folder = read_voc(voc.root, "train"), tmp_path / "out"
    monkeypatch.setattr(os, "replace", stop_at_index)
    with pytest.raises(KeyboardInterrupt):
      tfrecords.write_tfrecords(data, str(folder), "train")
    (fault,) = faults_of(tfrecords.read_tfrecords, folder, "train")
    assert "their writing was interrupted" in fault
    with pytest.raises(ValueError, match="already"):
      tfrecords.write_tfrecords(data, str(folder), "train")


class TestOrientation:
  @pytest.fixture
  def turned(self, voc, tmp_path):
    """Folder with a split of two images, one of which EXIF turns by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = voc.root / "JPEGImages/a.jpg"
    Image.open(path).save(path, exif=exif)
    return tmp_path / "turned"

  @pytest.mark.parametrize("turns", [True, False])
  def test_round_trip(self, voc, turned, turns):
    expected = read_voc(voc.root, "train", exif_orientation=turns)
    assert expected.records[0].height == (30 if turns else 20)
    tfrecords.write_tfrecords(expected, str(turned), "train")
    data = tfrecords.read_tfrecords(turned, "train", exif_orientation=turns)
    for record in expected.records:
      object.__setattr__(record, "boxes_were_turned", False)  # they are of the image
    assert_same(data, expected)

  def test_written_the_other_way(self, voc, turned):
    for turns in (True, False):
      expected = read_voc(voc.root, "train", exif_orientation=turns)
      tfrecords.write_tfrecords(expected, str(turned), f"t{turns}")
    with pytest.raises(DataError, match="of the images turned"):
      tfrecords.read_tfrecords(turned, "tTrue", exif_orientation=False)
    with pytest.raises(DataError, match="of the images as stored"):
      tfrecords.read_tfrecords(turned, "tFalse", skip_faulty=True)

  def test_older_shards(self, voc, turned, faults_of):
    """Those with turned images are refused, with what to do; others are read."""
    stored = read_voc(voc.root, "train", exif_orientation=False)
    tfrecords.write_tfrecords(stored, str(turned), "train")
    path = turned / "train.json"
    index = json.loads(path.read_text())
    del index["exif_orientation"]
    path.write_text(json.dumps(index))
    with pytest.raises(DataError) as caught:
      tfrecords.read_tfrecords(turned, "train")
    assert "EXIF turns 1 of its images" in str(caught.value)
    assert "ap_detect write_tfrecords --config=... --split=train" in str(caught.value)
    data = tfrecords.read_tfrecords(turned, "train", exif_orientation=False)
    assert_same(data, stored)
    (turned / "list.txt").write_text("b\n")
    assert (
      len(
        tfrecords.read_tfrecords(
          turned, "train", image_list=str(turned / "list.txt")
        ).records
      )
      == 1
    )


def test_what_pillow_reads_is_converted(voc, tmp_path, faults_of):
  exif = Image.Exif()
  exif[0x0112] = 6
  pixels = np.asarray(Image.open(voc.root / "JPEGImages/a.jpg"))
  Image.fromarray(pixels).save(
    voc.root / "JPEGImages/a.jpg", "WEBP", lossless=True, exif=exif
  )
  deep = np.arange(600, dtype=np.uint16).reshape(20, 30)
  Image.fromarray(deep).save(voc.root / "JPEGImages/b.jpg", "TIFF")
  voc.write_xml("a", "<annotation/>")
  with pytest.raises(DataError, match="ap_detect write_tfrecords converts"):
    read_voc(voc.root, "train")
  faults = faults_of(read_voc, voc.root, "train")
  assert [fault.split(", which")[0] for fault in faults] == [
    "JPEGImages/a.jpg: is WebP",
    "JPEGImages/b.jpg: is TIFF",
  ]
  data = read_voc(voc.root, "train", class_names=["cat"], convertible=True)
  tfrecords.write_tfrecords(data, str(tmp_path / "out"), "train")
  first, second = tfrecords.read_tfrecords(tmp_path / "out", "train").records
  assert (first.height, first.width) == (30, 20)
  np.testing.assert_array_equal(
    evaluation_files.load_pixels(first), np.rot90(pixels, -1)
  )
  expected = np.floor(deep * (255 / 1023) + 0.5)
  np.testing.assert_array_equal(evaluation_files.load_pixels(second)[..., 0], expected)


class TestDamage:
  def test_shards_missing_or_of_another_size(self, shards, faults_of):
    first, second = (shards / f"train-0000{k}-of-00002.tfrecord" for k in range(2))
    size = first.stat().st_size
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    expected = [
      f"{first}: has {size - 1} bytes, but was written with {size}",
      f"{second}: there is no such file",
    ]
    for options in ({}, {"skip_faulty": True, "check_images": False}):
      faults = faults_of(tfrecords.read_tfrecords, shards, "train", **options)
      assert faults == expected

  def test_a_changed_byte(self, shards, faults_of):
    path = shards / "train-00001-of-00002.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (fault,) = faults_of(tfrecords.read_tfrecords, shards, "train")
    assert fault.startswith(
      f"{path.name}: the record at byte 0: truncated or damaged: "
    )
    data = tfrecords.read_tfrecords(shards, "train", skip_faulty=True)
    assert data.skipped == (fault,)
    assert [record.image_id for record in data.records] == ["a"]
    assert (
      len(tfrecords.read_tfrecords(shards, "train", check_images=False).records) == 2
    )

  def test_too_many_pixels(self, shards, faults_of):
    faults = faults_of(tfrecords.read_tfrecords, shards, "train", max_image_pixels=599)
    assert [fault.split(": ", 2)[2] for fault in faults[:2]] == [
      "its header claims 30 x 20 pixels, more than 599 in all"
    ] * 2

  def test_sizes_are_those_of_the_images_not_of_the_index(self, shards, faults_of):
    path = shards / "train.json"
    path.write_text(path.read_text().replace('"width": 30', '"width": 3'))
    faults = faults_of(tfrecords.read_tfrecords, shards, "train")
    assert [fault.split(": ", 2)[2] for fault in faults[:2]] == [
      "its header has 30 x 20 pixels, but the index 3 x 20"
    ] * 2
    faults = faults_of(tfrecords.read_tfrecords, shards, "train", max_image_pixels=599)
    assert "claims 30 x 20 pixels, more than 599" in faults[0]

  def test_another_offset(self, shards, faults_of):
    path = shards / "train.json"
    path.write_text(path.read_text().replace('"offset": 0', '"offset": 5', 1))
    (fault,) = faults_of(tfrecords.read_tfrecords, shards, "train", check_images=False)
    assert fault.split(": ", 2)[2].startswith("damaged, or no record of a TFRecord")

  @pytest.mark.parametrize(
    "damage",
    [
      lambda text: text[:-20],
      lambda text: "",
      lambda text: "[]",
      lambda text: "{}",
      lambda text: text.replace('"dog"', "", 1),
      lambda text: text.replace('"shard": 1', '"shard": 2'),
      lambda text: text.replace('"classes": [2, 1]', '"classes": [2, 3]'),
      lambda text: text.replace('"classes": [2, 1]', '"classes": [2]'),
      lambda text: text.replace('"areas": [70.0, ', '"areas": ['),
      lambda text: text.replace('"height": 20', '"height": "x"', 1),
      lambda text: text.replace('"boxes": [[3.0, ', '"boxes": [['),
    ],
  )
  def test_damaged_index(self, shards, faults_of, damage):
    path = shards / "train.json"
    text = path.read_text()
    json.loads(text)
    assert damage(text) != text
    path.write_text(damage(text))
    (fault,) = faults_of(tfrecords.read_tfrecords, shards, "train")
    assert fault.startswith(f"{path}: damaged, or no index of TFRecord shards: ")
