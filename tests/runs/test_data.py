"""A config's splits: how they are read, and which cannot be trained on."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from ap_detect.data import shapes
from ap_detect.data.records import DataError
from ap_detect.runs import data as data_lib


class TestOpenSplit:
  @pytest.fixture
  def make_coco_config(self, make_config, tmp_path):
    """Config of a folder with "train" and "val" of two pictures each in one/, two/."""
    for folder, seed in (("one", 0), ("two", 1)):
      for split in ("train", "val"):
        data = shapes.make_shapes(
          split, num_images=2, image_size_px=(64, 64), seed=seed
        )
        shapes.write_shapes(data, str(tmp_path / folder), split)

    def make(**changes):
      changes = {f"data.{name}": value for name, value in changes.items()}
      return make_config({"data.format": "auto", "data.root": str(tmp_path), **changes})

    return make

  def test_several_splits_as_one(self, make_coco_config, tmp_path):
    (tmp_path / "list.txt").write_text("2\n")
    data = data_lib.open_split(make_coco_config(), "one/train+two/val@list.txt")
    assert [record.image_id for record in data.records] == [
      *(1, "one/train/2", "two/val/2"),
    ]
    assert data.class_names == shapes.CLASS_NAMES

  def test_options_reach_the_reader(self, make_coco_config, tmp_path):
    """A damaged picture, a large one, and classes in another order."""
    path = tmp_path / "one/train/000001.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"one/train: .*000001\.png: trunc"):
      data_lib.open_split(make_coco_config(), "one/train")
    data = data_lib.open_split(make_coco_config(skip_faulty=True), "one/train")
    assert len(data.records) == len(data.skipped) == 1
    unchecked = make_coco_config(check_images=False)
    assert len(data_lib.open_split(unchecked, "one/train").records) == 2
    with pytest.raises(DataError, match="more than 4095 in all"):
      data_lib.open_split(make_coco_config(max_image_pixels=4095), "one/train")
    names = shapes.CLASS_NAMES[::-1]
    config = make_coco_config(class_names=names)
    assert data_lib.open_split(config, "two/val").class_names == names
    names = (*names[1:], names[0])  # those of a run go before the config's
    assert data_lib.open_split(config, "two/val", names).class_names == names

  def test_images_of_both_splits_are_said(self, make_coco_config, tmp_path, hear):
    config = make_coco_config(train_split="one/train", val_split="one/val")
    train, val = (data_lib.open_split(config, f"one/{s}") for s in ("train", "val"))
    said = hear("warning")
    data_lib.warn_of_shared_images(train, val)
    drawn = shapes.make_shapes("val", num_images=2)
    data_lib.warn_of_shared_images(drawn, drawn)
    assert not said
    both = dataclasses.replace(val, records=(*val.records, train.records[1]))
    data_lib.warn_of_shared_images(train, both)
    (line,) = said
    assert line.startswith(
      "1 of the 3 images to validate on are trained on too, such as 2"
    )


def test_batches_go_on_from_a_position(make_config):
  """Batches of 4 from image 8 on are the halves of those of 8 images."""
  config = make_config({"data.zoom_range": [0.6, 1.2], "train.seed": 5})
  dataset = data_lib.open_training_split(config)
  whole = next(iter(data_lib.make_batches(config, dataset, 8, 8)))
  halves = list(data_lib.make_batches(config, dataset, 4, 8).take(2))
  assert whole.keys() == {"image", "boxes", "classes", "ignored"}
  for name, values in whole.items():
    joined = np.concatenate([half[name] for half in halves])
    np.testing.assert_array_equal(values, joined, err_msg=name)
  other = make_config({"data.zoom_range": [0.6, 1.2], "train.seed": 6})
  batch = next(iter(data_lib.make_batches(other, dataset, 8, 8)))
  assert np.any(batch["image"] != whole["image"])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"has_labels": False}, "split 'val' has no labels: its 2 images are not annot"),
    (
      {"ignored": True},
      "split 'val' requires at least one object .* its 2 images have",
    ),
  ],
)
def test_a_split_without_objects_is_refused(changes, message):
  data = shapes.make_shapes("val", num_images=2)
  data_lib.check_objects(data, "val")
  if changes.pop("ignored", False):
    changes["records"] = tuple(
      dataclasses.replace(record, ignored=np.ones(len(record.boxes), bool))
      for record in data.records
    )
  with pytest.raises(ValueError, match=message):
    data_lib.check_objects(dataclasses.replace(data, **changes), "val")


class TestSamples:
  def test_are_clean_images_of_the_test_split(self, make_config, tmp_path):
    config = make_config({"data.shapes_size_px": (64, 96), "data.shapes_seed": 3})
    path = data_lib.write_samples(config, str(tmp_path), num_images=3)
    assert path == str(tmp_path / "samples")
    expected = shapes.make_shapes("test", num_images=3, image_size_px=(64, 96), seed=3)
    for record in expected.records:
      with Image.open(f"{path}/test_{record.image_id}.png") as image:
        np.testing.assert_array_equal(np.asarray(image), record.image)
    assert len(os.listdir(path)) == 3

  def test_data_on_disk_has_its_own(self, make_config, tmp_path):
    config = make_config({"data.format": "coco", "data.root": str(tmp_path)})
    assert data_lib.write_samples(config, str(tmp_path)) == ""
    assert not os.listdir(tmp_path)


def test_photos_are_turned_unless_the_config_says_otherwise(
  make_config, tmp_path, hear
):
  """From the config to a training batch: where the bright half of a photo lies."""
  for split in ("train", "val"):
    made = shapes.make_shapes(split, num_images=1, image_size_px=(64, 64))
    shapes.write_shapes(made, str(tmp_path), split)
  (path,) = tmp_path.glob("train/*")
  pixels = np.zeros((64, 64, 3), np.uint8)
  pixels[:32] = 255
  exif = Image.Exif()
  exif[0x0112] = 3  # upside down
  Image.fromarray(pixels).save(path, "JPEG", quality=95, exif=exif)
  changes = {
    "data.format": "auto",
    "data.root": str(tmp_path),
    "data.horizontal_flip": 0.0,
    "train.batch_size": 1,
  }
  for turns in (True, False):
    lines = hear("info")
    config = make_config({**changes, "data.exif_orientation": turns})
    dataset = data_lib.open_training_split(config)
    said = "train: 1 images are turned as their EXIF data says"
    assert (said in lines) == turns
    (batch,) = data_lib.make_batches(config, dataset, 1).take(1)
    is_bright = batch["image"][0, ..., 0].numpy() > 127
    assert is_bright[:60].mean() == pytest.approx(0 if turns else 1, abs=0.05)
    assert is_bright[68:].mean() == pytest.approx(1 if turns else 0, abs=0.05)
