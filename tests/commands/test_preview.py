"""preview: the trainer's own pictures, what matching says of them, the same each time."""

import dataclasses
import types

import numpy as np
import pytest
from oracles import matching as oracle
from PIL import Image

from ap_detect import config as config_lib
from ap_detect.commands import preview
from ap_detect.data import pipeline, shapes
from ap_detect.runs import data as data_lib
from ap_detect.runs import files
from ap_detect.runs import model as model_lib


def test_pictures_are_the_trainers(make_config):
  config = make_config({"data.zoom_range": [0.6, 1.2], "data.color_jitter": 1.0})
  previews = preview.make_previews(config, 6)
  dataset = data_lib.open_training_split(config)
  indices = [
    index
    for position in (0, 4)
    for index in pipeline.images_at(len(dataset.records), position, 4)
  ]
  assert [item.image_id for item in previews] == [
    dataset.records[index].image_id for index in indices[:6]
  ]
  batch = next(iter(data_lib.make_batches(config, dataset, 4)))
  anchors = model_lib.make_anchors(config)
  for i, item in enumerate(previews[:2]):
    boxes, classes, ignored = (
      batch[name][i].numpy() for name in ("boxes", "classes", "ignored")
    )
    labels, _, num_unmatched = oracle.match_image(anchors, boxes, classes, ignored)
    assert item.num_positive_anchors == np.sum(labels > 0) > 0
    assert item.num_objects == np.sum((classes > 0) & ~ignored)
    assert item.num_unmatched_objects == num_unmatched
    # Under the boxes the picture is the network's input, enlarged from 128 to 320 px.
    shown = Image.fromarray(item.picture[-320:]).resize(
      (128, 128), Image.Resampling.BOX
    )
    away = np.abs(np.asarray(shown, float) - batch["image"][i].numpy()).max(axis=-1)
    assert np.median(away) < 8


def test_thresholds_are_the_configs(make_config):
  config = make_config({"model.positive_iou": 0.99, "model.force_match": False})
  previews = preview.make_previews(config, 4)
  assert sum(item.num_objects for item in previews) > 0
  for item in previews:
    assert item.num_positive_anchors == 0
    assert item.num_unmatched_objects == item.num_objects


def test_sheet(make_config, tmp_path):
  """As many pictures as asked for, more than the split has; the same each time."""
  config = make_config({"data.shapes_train_images": 3})
  paths = [str(tmp_path / "new" / f"{i}.PNG") for i in range(2)]
  found = [preview.preview(config, path, num_pictures=5) for path in paths]
  assert [item.image_id for item in found[0]] == [item.image_id for item in found[1]]
  sheets = [np.asarray(Image.open(path)) for path in paths]
  assert np.array_equal(*sheets)
  # Rows of three; the last place of the second row stays empty.
  height, width = found[0][0].picture.shape[:2]
  assert 2 * height < sheets[0].shape[0] < 2.2 * height
  assert 3 * width < sheets[0].shape[1] < 3.2 * width
  assert sheets[0][-height:, -width:].min() > 200

  other = make_config({"data.shapes_train_images": 3, "train.seed": 1})
  preview.preview(other, paths[1], num_pictures=5)
  assert not np.array_equal(sheets[0], np.asarray(Image.open(paths[1])))


def test_what_training_leaves_out_is_left_out(make_config, tmp_path):
  root = str(tmp_path / "data")
  made = shapes.make_shapes("train", num_images=3, image_size_px=(64, 64))
  path = shapes.write_shapes(made, root, "train")
  content = files.read_json(path)
  for item in content["annotations"]:
    item["iscrowd"] = int(item["image_id"] != 2)
  files.write_json(path, content)
  options = {"data.format": "coco", "data.root": root, "data.holdout_share": 0.0}
  dropping = {"data.drop_ignored_objects": True, "data.drop_empty_images": True}
  everything = preview.make_previews(make_config(options), 3)
  kept = preview.make_previews(make_config({**options, **dropping}), 3)
  assert {item.image_id for item in everything} == {1, 2, 3}
  assert {item.image_id for item in kept} == {2}


def test_errors(make_config, tmp_path):
  with pytest.raises(ValueError, match=r"must name a \.png file, got 'sheet\.jpg'"):
    preview.preview(make_config(), "sheet.jpg")
  with pytest.raises(ValueError, match="no such folder"):
    missing = {"data.format": "auto", "data.root": str(tmp_path / "nowhere")}
    preview.preview(make_config(missing), str(tmp_path / "sheet.png"))
  assert not list(tmp_path.iterdir())


def test_command(make_config, tmp_path, monkeypatch, capsys):
  values = config_lib.default_config()
  values.update(dataclasses.asdict(make_config()))
  output = str(tmp_path / "sheet.png")
  options = {"CONFIG": values, "OUTPUT": output, "NUM_PICTURES": 2}
  for name, value in options.items():
    flag = types.SimpleNamespace(value=value)
    monkeypatch.setattr(preview, name, flag, raising=False)
  preview.main(["preview"])
  said = capsys.readouterr().out
  assert said.startswith("2 images with ")
  assert output in said
  assert Image.open(output).size[0] > 640
