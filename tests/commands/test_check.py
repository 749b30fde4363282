"""check: all faults of both splits, true numbers, and flags that do what they say."""

import dataclasses
import os
import types

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image

from ap_detect import boxes as box_ops
from ap_detect import config as config_lib
from ap_detect.anchor_coverage import AnchorSetting
from ap_detect.commands import check, check_report
from ap_detect.data import shapes
from ap_detect.data.records import LISTED_FAULTS, SKIP
from ap_detect.runs import files
from ap_detect.runs import model as model_lib

NUM_TRAIN, NUM_VAL = 5, 3


def read_annotations(root, split):
  return files.read_json(os.path.join(root, f"annotations/instances_{split}.json"))


def write_annotations(root, split, content):
  files.write_json(os.path.join(root, f"annotations/instances_{split}.json"), content)


@pytest.fixture
def folder(tmp_path):
  """A COCO folder of pictures of 64 x 96 pixels; in training a crowd."""
  root = str(tmp_path / "data")
  for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
    made = shapes.make_shapes(split, num_images=count, image_size_px=(64, 96))
    shapes.write_shapes(made, root, split)
  content = read_annotations(root, "train")
  content["annotations"][0]["iscrowd"] = 1
  write_annotations(root, "train", content)
  return root


@pytest.fixture
def config_of(make_config):
  def make(root, changes=None):
    return make_config({"data.format": "auto", "data.root": root, **(changes or {})})

  return make


def break_box(root, split, index):
  """Makes one box of a split a fault."""
  content = read_annotations(root, split)
  content["annotations"][index]["bbox"][2] = -5
  write_annotations(root, split, content)


def objects_of(root, split):
  """Annotations that count, in the file's order."""
  content = read_annotations(root, split)
  return [item for item in content["annotations"] if not item["iscrowd"]]


class TestReport:
  def test_numbers(self, folder, config_of, tmp_path):
    config = config_of(folder)
    text, _refusal = check.check(config, str(tmp_path / "out"))
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    anchors = model_lib.make_anchors(config)
    for split, role, count in (
      ("train", "training", NUM_TRAIN),
      ("val", "validation", NUM_VAL),
    ):
      found, objects = numbers["splits"][role], objects_of(folder, split)
      boxes = np.array([item["bbox"] for item in objects])
      # COCO's x, y, width, height; pictures of 96 px in width fill the input's 128.
      x, y, width, height = (boxes * 128 / 96).T
      placed = np.stack([y, x, y + height, x + width], axis=1).astype(np.float32)
      best = box_ops.iou(placed, anchors).numpy().max(axis=1)
      assert found["name"] == split
      assert found["images"] == count
      assert found["objects"] == len(objects)
      assert found["ignored_objects"] == (split == "train")
      assert found["covered_share"] == pytest.approx(np.mean(best >= 0.5))
      for name, values in (
        ("size_in_input_px", np.sqrt(width * height)),
        ("size_px", np.sqrt(width * height) * 96 / 128),
        ("aspect_ratio", height / width),
        ("best_iou", best),
      ):
        assert found["quantiles"][name]["50%"] == pytest.approx(
          np.median(values), rel=1e-5
        )
        assert found["quantiles"][name]["100%"] == pytest.approx(values.max(), rel=1e-5)
      per_class = {entry["name"]: entry for entry in found["classes"]}
      for category, name in enumerate(shapes.CLASS_NAMES, start=1):
        owners = [i["image_id"] for i in objects if i["category_id"] == category]
        assert per_class[name]["objects"] == len(owners)
        assert per_class[name]["images"] == len(set(owners))
      assert f"{np.mean(best >= 0.5):.1%}" in text
    assert numbers["recommended_overrides"] in text

  def test_page(self, folder, config_of, tmp_path):
    for split in ("train", "val"):
      content = read_annotations(folder, split)
      content["categories"][0]["name"] = "<img src=x>"
      write_annotations(folder, split, content)
    check.check(config_of(folder), str(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out")) == ["report.html", "report.json"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == page.count("<img") == 5
    assert "&lt;img src=x&gt;" in page
    assert "http" not in page

  def test_objects_that_no_anchor_covers(self, folder, config_of, tmp_path):
    changes = {"model.anchor_base_scale": 0.5, "model.anchor_octave_scales": [1.0]}
    config = config_of(folder, {**changes, "model.force_match": False})
    text, _refusal = check.check(config, str(tmp_path / "out"))
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    listed = numbers["worst_uncovered"]
    assert 0 < len(listed) <= check_report.NUM_LISTED
    assert [item["best_iou"] for item in listed] == sorted(
      item["best_iou"] for item in listed
    )
    assert listed[-1]["best_iou"] < 0.5
    splits = {"training": "train", "validation": "val"}
    for item in listed:
      y, x, y_end, x_end = item["box_yxyx"]
      names = [
        shapes.CLASS_NAMES[i["category_id"] - 1]
        for i in objects_of(folder, splits[item["split"]])
        if i["image_id"] == item["image_id"]
        and i["bbox"] == [x, y, x_end - x, y_end - y]
      ]
      assert item["class_name"] in names
      height, width = item["input_height_px"], item["input_width_px"]
      assert (height, width) == pytest.approx(
        ((y_end - y) * 4 / 3, (x_end - x) * 4 / 3)
      )
    assert "gets none" in text
    # Base scale 0.5 and stride 8: the smallest anchors have 4 px, no object is smaller.
    assert (
      " not covered. 0 of them are smaller than the smallest anchors (4 pixels)" in text
    )
    first, recommended = numbers["anchor_settings"][0], numbers["recommended_overrides"]
    assert first["base_scale"] == 0.5
    better = [s for s in numbers["anchor_settings"] if s["covered_share"] > 0.9]
    assert any(
      recommended.startswith(f'--config.model.anchor_base_scale="{s["base_scale"]}" ')
      for s in better
    )

  def test_warped_pictures(self, folder, config_of, tmp_path):
    config = config_of(folder, {"data.augmentation": "ssd"})
    text, _refusal = check.check(config, str(tmp_path / "out"))
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    # 64 x 96 becomes 128 x 128: ratios grow by 96 / 64 beside those of the files.
    boxes = np.array([item["bbox"] for item in objects_of(folder, "train")])
    assert numbers["splits"]["training"]["quantiles"]["aspect_ratio"][
      "50%"
    ] == pytest.approx(np.median(boxes[:, 3] / boxes[:, 2]) * 96 / 64, rel=1e-5)
    assert "warped" in numbers["placement"] and numbers["placement"] in text


class TestClasses:
  def test_coverage(self, folder, config_of, tmp_path):
    config = config_of(folder)
    text, _ = check.check(config, str(tmp_path / "out"))
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    anchors = model_lib.make_anchors(config)
    counted = 0
    for category, entry in enumerate(numbers["splits"]["training"]["classes"], 1):
      chosen = [i for i in objects_of(folder, "train") if i["category_id"] == category]
      if not chosen:
        assert (entry["objects"], entry["covered_share"]) == (0, None)
        assert entry["name"] in text.partition("without an object in training")[2]
        continue
      x, y, width, height = (np.array([i["bbox"] for i in chosen]) * 128 / 96).T
      placed = np.stack([y, x, y + height, x + width], axis=1).astype(np.float32)
      covered = (box_ops.iou(placed, anchors).numpy().max(axis=1) >= 0.5).sum()
      assert (entry["covered"], entry["objects"]) == (covered, len(chosen))
      assert entry["covered_share"] == covered / len(chosen)
      counted += 1
    assert counted > 2
    first = numbers["anchor_settings"][0]
    shares = [
      entry["covered_share"]
      for entry in numbers["splits"]["training"]["classes"]
      if entry["objects"]
    ]
    assert first["mean_class_share"] == pytest.approx(np.mean(shares))
    assert first["worst_class_share"] == pytest.approx(min(shares))

  def test_without_an_object(self, folder, config_of, tmp_path):
    content = read_annotations(folder, "train")
    content["categories"].append({"id": 77, "name": "unicorn"})
    write_annotations(folder, "train", content)
    text, _refusal = check.check(config_of(folder), str(tmp_path / "out"))
    [line] = [x for x in text.splitlines() if "without an object in training" in x]
    assert line.endswith("unicorn.")


class TestNotes:
  """What is valid, but perhaps not what was meant."""

  def report(self, config, tmp_path):
    text, refusal = check.check(config, str(tmp_path / "out"))
    assert refusal is None
    return text, files.read_json(str(tmp_path / "out" / "report.json"))

  def test_nothing_to_say(self, folder, config_of, tmp_path):
    text, numbers = self.report(config_of(folder), tmp_path)
    assert numbers["unused_images"] == numbers["faults"] == []
    assert numbers["would_start"] is True
    for split in numbers["splits"].values():
      assert split["exif_orientations"] == {}
      assert split["crowded_images"] == []
    for words in (
      "EXIF",
      "look relative",
      "are used in neither",
      "eval.max_detections",
    ):
      assert words not in text

  def test_orientations(self, folder, config_of, tmp_path):
    for number, orientation in ((1, 3), (2, 3), (3, 2)):
      path = os.path.join(folder, "val", f"{number:06}.png")
      exif = Image.Exif()
      exif[0x0112] = orientation
      # A JPEG, for the bytes count and not the name.
      Image.open(path).save(path, "JPEG", exif=exif)
    text, numbers = self.report(config_of(folder), tmp_path)
    assert numbers["splits"]["validation"]["exif_orientations"] == {"2": 1, "3": 2}
    assert "3 images of validation are turned or mirrored" in text
    assert "(1 of 2, 2 of 3)" in text

  def test_relative_coordinates(self, folder, config_of, tmp_path):
    content = read_annotations(folder, "train")
    for item in content["annotations"]:
      item["bbox"] = [value / 1000 for value in item["bbox"]]
    write_annotations(folder, "train", content)
    text, refusal = check.check(config_of(folder), str(tmp_path / "out"))
    assert "they look relative to the image's size" in text
    assert len(refusal.faults) == 1

  def test_images_in_no_split(self, folder, config_of, tmp_path):
    os.makedirs(os.path.join(folder, "more"))
    for name in ("more/b.JPG", "more/a.webp", "more/notes.txt"):
      with open(os.path.join(folder, name), "w"):
        pass
    text, numbers = self.report(config_of(folder), tmp_path)
    assert numbers["unused_images"] == ["more/a.webp", "more/b.JPG"]
    assert "2 image files below" in text and "more/a.webp, more/b.JPG." in text

  def test_many_objects(self, folder, config_of, tmp_path):
    content = read_annotations(folder, "val")
    content["annotations"] += [
      {**content["annotations"][0], "id": 1000 + i, "image_id": 2} for i in range(120)
    ]
    write_annotations(folder, "val", content)
    count = sum(item["image_id"] == 2 for item in content["annotations"])
    text, numbers = self.report(config_of(folder), tmp_path)
    crowded = numbers["splits"]["validation"]["crowded_images"]
    assert crowded == [{"image_id": 2, "objects": count}]
    assert "have more than 100 objects" in text and f": 2 ({count})." in text


class TestFaults:
  def test_of_both_splits_are_listed(self, folder, config_of):
    break_box(folder, "train", 1)
    break_box(folder, "train", 3)
    break_box(folder, "val", 0)
    faults = check.read_splits(config_of(folder)).refusal.faults
    assert len(faults) == 3
    assert ["train" in fault for fault in faults] == [True, True, False]

  def test_one_fault_of_both_splits_is_listed_once(self, config_of, tmp_path):
    config = config_of(str(tmp_path / "nowhere"))
    datasets, refusal = check.read_splits(config)
    assert (datasets, len(refusal.faults)) == ({}, 1)
    text, _ = check.check(config, str(tmp_path / "out"))
    assert refusal.faults[0] in text
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    assert numbers["would_start"] is False
    assert numbers["faults"][0]["faults"] == list(refusal.faults)

  def test_what_is_sound_is_measured_all_the_same(self, folder, config_of, tmp_path):
    break_box(folder, "train", 1)
    config = config_of(folder)
    _text, refusal = check.check(config, str(tmp_path / "out"))
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    assert numbers["faults"][0]["faults"] == list(refusal.faults)
    assert numbers["would_start"] is False
    skipped = config_of(folder, {"data.skip_faulty": True})
    _, nothing = check.check(skipped, str(tmp_path / "skipped"))
    assert nothing is None
    others = files.read_json(str(tmp_path / "skipped" / "report.json"))
    assert others["would_start"] is True and others["faults"] == []
    assert others["splits"] == numbers["splits"]

  def test_a_validation_split_that_is_not_there(self, folder, config_of, tmp_path):
    config = config_of(folder, {"data.val_split": "missing"})
    _text, refusal = check.check(config, str(tmp_path / "out"))
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    assert len(refusal.faults) == 1
    assert list(numbers["splits"]) == ["training"]
    assert numbers["splits"]["training"]["images"] == NUM_TRAIN

  def test_skipped_ones_are_reported(self, folder, config_of, tmp_path):
    break_box(folder, "train", 1)
    break_box(folder, "val", 0)
    config = config_of(folder, {"data.skip_faulty": True})
    text, refusal = check.check(config, str(tmp_path / "out"))
    assert refusal is None
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    for split in numbers["splits"].values():
      assert len(split["skipped"]) == 1
      assert split["skipped"][0] in text

  def test_no_object_that_counts(self, folder, config_of, tmp_path):
    content = read_annotations(folder, "val")
    for item in content["annotations"]:
      item["iscrowd"] = 1
    write_annotations(folder, "val", content)
    text, refusal = check.check(config_of(folder), str(tmp_path / "out"))
    assert "split 'val' requires at least one object" in refusal.faults[0]
    assert refusal.faults[0] in text
    numbers = files.read_json(str(tmp_path / "out" / "report.json"))
    assert list(numbers["splits"]) == ["training"]


class TestCommand:
  def run_main(self, monkeypatch, config, output_dir):
    values = config_lib.default_config()
    values.update(dataclasses.asdict(config))
    for name, value in (("CONFIG", values), ("OUTPUT_DIR", str(output_dir))):
      flag = types.SimpleNamespace(value=value)
      monkeypatch.setattr(check, name, flag, raising=False)
    check.main(["check"])

  def test_ends_with_status_1_and_all_kinds_of_faults(
    self, folder, config_of, tmp_path, monkeypatch, capsys
  ):
    content = read_annotations(folder, "train")
    count = LISTED_FAULTS + 10
    content["annotations"] += [
      {**content["annotations"][1], "id": 1000 + i, "bbox": [0, 0, -1, -1]}
      for i in range(count)
    ]
    write_annotations(folder, "train", content)
    with pytest.raises(SystemExit) as caught:
      self.run_main(monkeypatch, config_of(folder), tmp_path / "out")
    # A text means status 1.
    assert caught.value.code.startswith(f"error: {count} problems in the data")
    said = capsys.readouterr().out
    assert f"\n{count} x annotation N has bbox [N, N, N, N]" in said
    assert said.count("  annotations/instances_train.json: annotation 100") == 3
    assert f"... and {count - 3} more" in said
    assert SKIP in said
    [kind] = files.read_json(str(tmp_path / "out" / "report.json"))["faults"]
    assert len(kind["faults"]) == count
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"{count} x annotation N has bbox" in page

  def test_prints_the_report(self, make_config, tmp_path, monkeypatch, capsys):
    self.run_main(monkeypatch, make_config(), tmp_path / "out")
    said = capsys.readouterr().out
    assert all(f"\n{name} " in said for name in shapes.CLASS_NAMES)
    assert f"{tmp_path}/out/report.html" in said


@pytest.mark.parametrize(
  "setting",
  [
    AnchorSetting(1.5, (1.0,), (0.333, 0.5, 1.0)),
    AnchorSetting(6.0, (1.0, 1.26), (2.0,)),
  ],
)
def test_overrides_give_a_config_the_setting(setting):
  # The shell takes the quotes away.
  arguments = [
    part.replace('"', "") for part in check_report.overrides(setting).split(" --")
  ]
  arguments = ["program", arguments[0], *(f"--{part}" for part in arguments[1:])]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_dict(
    "config", config_lib.default_config(), flag_values=values, sys_argv=arguments
  )
  values(arguments)
  holder.value.data.root = "somewhere"
  model = config_lib.resolve(holder.value).model
  assert (
    AnchorSetting(
      model.anchor_base_scale, model.anchor_octave_scales, model.anchor_aspect_ratios
    )
    == setting
  )
