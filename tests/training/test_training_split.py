"""open_training_split: what a run is trained on, and what it cannot be."""

import dataclasses
import json

import numpy as np
import pytest

from ap_detect.data import shapes
from ap_detect.runs import data as data_lib
from ap_detect.training import trainer

FIELDS = ("boxes", "classes", "ignored", "areas")
SWITCHES = ("data.drop_empty_images", "data.drop_ignored_objects")


@pytest.fixture
def half_ignored(monkeypatch):
  """Has open_split ignore all objects of the first image, one of the second's.

  Returns a dict of what it read: split -> DetectionDataset.
  """
  original, read = data_lib.open_split, {}

  def open_split(config, split, class_names=(), **_):
    data = original(config, split, class_names)
    full = [record for record in data.records if len(record.boxes) > 1]
    first, second = full[:2]
    empty = dataclasses.replace(
      first,
      image_id="empty",
      **{name: getattr(first, name)[:0] for name in FIELDS},
    )
    all_ignored = dataclasses.replace(first, ignored=np.ones(len(first.boxes), bool))
    ignored = np.arange(len(second.boxes)) == 1
    one_ignored = dataclasses.replace(second, ignored=ignored)
    records = (all_ignored, empty, one_ignored)
    read[split] = dataclasses.replace(data, records=records)
    return read[split]

  monkeypatch.setattr(data_lib, "open_split", open_split)
  return read


def test_switches_leave_out_and_say_how_much(make_config, half_ignored, monkeypatch):
  said = []
  monkeypatch.setattr(data_lib.logging, "info", lambda *parts: said.append(parts))
  assert data_lib.open_training_split(make_config()).records == (
    half_ignored["train"].records
  )
  assert not [parts for parts in said if "left out" in parts[0]]
  data = data_lib.open_training_split(make_config(dict.fromkeys(SWITCHES, True)))
  first, _, second = half_ignored["train"].records
  (record,) = data.records
  kept = np.delete(second.boxes, 1, axis=0)
  np.testing.assert_array_equal(record.boxes, kept)
  text = "left out of training: %d images without objects, %d ignored objects"
  assert said[-1] == (text, 2, len(first.boxes) + 1)


def test_validation_keeps_everything(make_config, half_ignored, monkeypatch, tmp_path):
  """Both splits are checked before anything is written; no more is needed."""
  checked = {}

  class Stop(Exception):
    pass

  def build_network(*_, **__):
    raise Stop

  monkeypatch.setattr(trainer.model_lib, "build_network", build_network)
  original = data_lib.check_objects

  def check_objects(dataset, split):
    checked[split] = dataset
    original(dataset, split)

  monkeypatch.setattr(data_lib, "check_objects", check_objects)
  model_dir = tmp_path / "run"
  with pytest.raises(Stop):
    trainer.train(make_config(dict.fromkeys(SWITCHES, True)), str(model_dir))
  assert not model_dir.exists()
  assert set(checked) == {"train", "val"}
  assert checked["val"] is half_ignored["val"] and len(checked["val"].records) == 3


def test_split_without_labels(make_config, tmp_path):
  for split in ("train", "val"):
    data = shapes.make_shapes(split, num_images=2, image_size_px=(64, 64))
    path = shapes.write_shapes(data, str(tmp_path), split)
  with open(path, encoding="utf-8") as file:
    content = json.load(file)
  del content["annotations"]
  (tmp_path / "annotations/instances_val.json").unlink()
  path = tmp_path / "annotations/image_info_val.json"
  path.write_text(json.dumps(content))
  base = {"data.format": "coco", "data.root": str(tmp_path)}
  assert not data_lib.open_split(make_config(base), "val").has_labels
  message = "split 'val' has no labels: its 2 images are not annotated"
  for field in ("train_split", "val_split"):
    changes = {"data.val_split": "train", **base, f"data.{field}": "val"}
    with pytest.raises(ValueError, match=message):
      trainer.train(make_config(changes), str(tmp_path / "run"))
  assert not (tmp_path / "run").exists()
