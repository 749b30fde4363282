"""write_tfrecords: what a config trains on, as shards."""

import numpy as np
import pytest

from ap_detect.commands import write_tfrecords
from ap_detect.data import shapes
from ap_detect.data.readers import tfrecords
from ap_detect.runs import data as data_lib


def test_training_on_the_shards_sees_the_same_batches(make_config, tmp_path):
  config = make_config({"data.zoom_range": [0.6, 1.2]})
  for split in ("train", "val"):
    write_tfrecords.write(config, split, str(tmp_path), shard_bytes=20_000)
  sharded = make_config(
    {
      "data.format": "tfrecord",
      "data.root": str(tmp_path),
      "data.zoom_range": [0.6, 1.2],
    }
  )
  assert len(list(tmp_path.iterdir())) > 4
  first, second = (
    data_lib.make_batches(item, data_lib.open_training_split(item), 4, first_position=8)
    for item in (config, sharded)
  )
  for batch, other in zip(first.take(3), second.take(3)):
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])


def test_a_split_gets_the_classes_of_the_training_split(make_config, tmp_path):
  train = shapes.make_shapes("train", num_images=3)
  folder = tmp_path / "first"
  tfrecords.write_tfrecords(train, str(folder), "train")
  tfrecords.write_tfrecords(train, str(folder), "val")
  changes = {"data.format": "tfrecord", "data.root": str(folder)}
  reversed_names = train.class_names[::-1]
  write_tfrecords.write(make_config(changes), "val", str(tmp_path), name="mine")
  assert tfrecords.read_tfrecords(tmp_path, "mine").class_names == train.class_names
  # What the training split does not have, another split may not have either.
  (folder / "val.json").write_text(
    (folder / "val.json")
    .read_text()
    .replace(f'"{train.class_names[0]}"', f'"{reversed_names[0]}2"')
  )
  with pytest.raises(ValueError, match="its classes are"):
    write_tfrecords.write(make_config(changes), "val", str(tmp_path), name="other")


def test_a_joined_split_needs_a_name(make_config, tmp_path):
  first = make_config({})
  for name in ("one", "two"):
    write_tfrecords.write(first, "train", str(tmp_path), name=name)
  changes = {"data.format": "tfrecord", "data.root": str(tmp_path)}
  changes["data.holdout_share"] = 0.0
  config = make_config({**changes, "data.train_split": "one+two"})
  with pytest.raises(ValueError, match="must have a name of letters"):
    write_tfrecords.write(config, "one+two", str(tmp_path))
  write_tfrecords.write(config, "one+two", str(tmp_path), name="both")
  both = data_lib.open_split(config, "both")
  assert len(both.records) == 2 * 12
  assert len({record.image_id for record in both.records}) == 24
