"""data.readers.splits: split expressions, and several datasets joined to one."""

import json

import numpy as np
import pytest

from ap_detect.data.readers import splits
from ap_detect.data.readers.voc import read_voc
from ap_detect.metrics import coco as metrics


def ids(data):
  return [record.image_id for record in data.records]


@pytest.fixture
def two_years(tmp_path, voc):
  """Two VOC folders below one root, each of classes cat and dog; `b` is in both."""
  years = {}
  for year, stem in (("VOC2007", "a"), ("VOC2012", "c")):
    folder = years[year] = type(voc)(tmp_path / "kit" / year)
    folder.add(stem, ("dog", 2, 3, 12, 10), ("cat", 5, 6, 30, 20))
    folder.add("b", ("cat", 2, 3, 12, 10))
    folder.split("train", stem, "b")
  return years


@pytest.fixture
def kit(two_years, tmp_path):
  return tmp_path / "kit"


class TestNames:
  def test_plain_name_is_read_as_the_reader_reads_it(self, voc):
    expected, data = read_voc(voc.root, "train"), splits.read_split(voc.root, "train")
    assert ids(data) == ids(expected) == ["a", "b"]
    assert data.class_names == expected.class_names and data.skipped == ()

  def test_plain_name_s_faults_are_the_reader_s(self, voc, faults_of):
    (voc.root / "JPEGImages/b.jpg").unlink()
    expected = faults_of(read_voc, voc.root, "train")
    assert faults_of(splits.read_split, voc.root, "train") == expected
    assert faults_of(splits.read_split, voc.root / "none", "train") == [
      f"{voc.root}/none: there is no such folder"
    ]

  def test_folder_before_the_split(self, kit, faults_of):
    assert ids(splits.read_split(kit, "VOC2012/train")) == ["c", "b"]
    assert len(faults_of(splits.read_split, kit, "train")) == 1  # which of the two?
    assert faults_of(splits.read_split, kit, "VOC2010/train") == [
      f"VOC2010/train: {kit}/VOC2010: there is no such folder"
    ]

  @pytest.mark.parametrize("name", ["a+b", "train@home.txt", "+", "x/y"])
  def test_a_split_of_the_whole_name_is_meant(self, voc, name):
    (voc.root / "ImageSets/Main/x").mkdir()
    voc.split(name, "b")
    assert ids(splits.read_split(voc.root, name)) == ["b"]

  @pytest.mark.parametrize("name", ["cats+dogs", "cats@home"])
  def test_a_coco_split_of_the_whole_name_is_meant(self, coco, name):
    coco.save(f"annotations/instances_{name}2017.json")
    (coco.root / "val2017").rename(coco.root / "images")
    assert ids(splits.read_split(coco.root, name)) == [7, 4]

  @pytest.mark.parametrize(
    ("split", "part"),
    [
      ("VOC2007/train+", ""),
      ("+VOC2007/train", ""),
      ("VOC2007/train++VOC2012/train", ""),
      ("VOC2007/", "VOC2007/"),
      ("VOC2007/train@", "VOC2007/train@"),
      ("@list.txt", "@list.txt"),
      ("VOC2007/train+../kit/VOC2012/train", "../kit/VOC2012/train"),
      ("/VOC2007/train", "/VOC2007/train"),
    ],
  )
  def test_wrong_expression(self, kit, split, part):
    with pytest.raises(ValueError, match=r"\[folder/\]split\[@list\]") as caught:
      splits.read_split(kit, split)
    assert str(caught.value).endswith(f"inside {kit}; got {part!r}")
    with pytest.raises(ValueError, match="joined by '\\+'"):
      splits.read_split(kit, str(kit / "VOC2007/train"))


class TestLists:
  def test_each_part_may_have_a_list(self, kit, tmp_path):
    (kit / "lists").mkdir()
    (kit / "lists/one.txt").write_text("a\n")
    (tmp_path / "two.txt").write_text("b.jpg\n")
    split = f"VOC2007/train@lists/one.txt+VOC2012/train@{tmp_path}/two.txt"
    data = splits.read_split(kit, split)
    assert ids(data) == ["a", "b"]
    assert data.records[1].image == str(kit / "VOC2012/JPEGImages/b.jpg")

  def test_lists_of_one_split_may_share_it(self, coco, faults_of):
    coco.save()
    (coco.root / "one.txt").write_text("7\n")
    (coco.root / "two.txt").write_text("4.jpg\n")
    assert ids(splits.read_split(coco.root, "val@two.txt+val@one.txt")) == [4, 7]
    path = coco.root / "val2017/7.jpg"
    assert faults_of(splits.read_split, coco.root, "val@one.txt+val@one.txt") == [
      f"val@one.txt: {path} is in val@one.txt already"
    ]

  def test_faults_name_the_part(self, kit, faults_of):
    (kit / "list.txt").write_text("a\nc\na\n")
    (kit / "VOC2012/JPEGImages/c.jpg").unlink()
    split = "VOC2007/train@list.txt+VOC2012/train"
    expected = [
      f"VOC2007/train@list.txt: {kit}/list.txt: line 2: 'c' is not in the split",
      f"VOC2007/train@list.txt: {kit}/list.txt: line 3: 'a' is the image of line 1 "
      "again",
      "VOC2012/train: JPEGImages/c.jpg: there is no such file",
    ]
    assert faults_of(splits.read_split, kit, split) == expected
    data = splits.read_split(kit, split, skip_faulty=True)
    assert data.skipped == tuple(expected) and ids(data) == ["a", "b"]


class TestJoin:
  def test_images_and_classes_of_all_parts(self, kit):
    data = splits.read_split(kit, "VOC2012/train+VOC2007/train")
    assert data.class_names == ("cat", "dog") and data.category_ids == (1, 2)
    assert not data.ignored_are_crowds and data.has_labels
    assert [len(record.boxes) for record in data.records] == [2, 1, 2, 1]
    np.testing.assert_array_equal(data.records[2].boxes[0], [3, 2, 10, 12])

  def test_only_ids_that_repeat_are_changed(self, kit):
    data = splits.read_split(kit, "VOC2007/train+VOC2012/train")
    assert ids(data) == ["a", "VOC2007/train/b", "c", "VOC2012/train/b"]
    (kit / "list.txt").write_text("b\n")
    data = splits.read_split(kit, "VOC2007/train@list.txt+VOC2012/train")
    assert ids(data) == ["VOC2007/train/b", "c", "VOC2012/train/b"]

  def test_coco_splits_of_one_root(self, coco, write_image):
    coco.save()
    coco.content["images"] = [
      {"id": image_id, "file_name": f"{image_id}.jpg"} for image_id in (3, 7)
    ]
    coco.content["annotations"] = []
    coco.annotate(70, 3, 18, [2, 3, 10, 7])
    coco.save("annotations/instances_train2014.json")
    for image_id in (3, 7):
      write_image(coco.root / f"train2014/{image_id}.jpg")
    data = splits.read_split(coco.root, "train2014+val2017")
    assert ids(data) == [3, "train2014/7", "val2017/7", 4]
    assert data.category_ids == (17, 18) and data.ignored_are_crowds

  def test_a_file_in_two_parts(self, voc, faults_of):
    """By another split, and by a link of another name."""
    (voc.root / "JPEGImages/c.jpg").symlink_to(voc.root / "JPEGImages/b.jpg")
    voc.write_xml("c", "<annotation/>")
    voc.split("val", "a", "c")
    part = voc.root / "JPEGImages"
    expected = [
      f"val: {part}/a.jpg is in train already",
      f"val: {part}/c.jpg is in train already",
    ]
    assert faults_of(splits.read_split, voc.root, "train+val") == expected
    data = splits.read_split(voc.root, "train+val", skip_faulty=True)
    assert ids(data) == ["a", "b"] and data.skipped == tuple(expected)

  def test_other_classes(self, kit, two_years, faults_of):
    two_years["VOC2012"].add("d", ("cow", 2, 3, 12, 10))
    two_years["VOC2007"].add("d", ("ant", 2, 3, 12, 10))
    split = "VOC2007/train+VOC2012/train"
    assert faults_of(splits.read_split, kit, split) == [
      "VOC2012/train: its classes must be those of VOC2007/train, but it lacks ['ant'] "
      "and has ['cow'] besides; set data.class_names to those of all parts"
    ]
    names = ["dog", "cat", "cow"]
    assert splits.read_split(kit, split, class_names=names).class_names == tuple(names)

  def test_classes_of_other_ids_are_united_by_name(self, coco, write_image):
    coco.save()
    for category, entry in zip((1, 2), coco.content["categories"]):
      entry["id"] = category  # dog 1, cat 2
    del coco.content["annotations"][:]
    write_image(coco.root / "train2017/7.jpg", height=21)
    coco.content["images"] = [{"id": 8, "file_name": "7.jpg"}]
    coco.save("annotations/instances_train2017.json")
    data = splits.read_split(coco.root, "val+train")
    # In the order of the training split's ids; the ids are those of the first part.
    assert data.class_names == ("dog", "cat") and data.category_ids == (18, 17)
    assert data.records[0].classes.tolist() == [2, 1]

  def test_parts_with_and_without_labels(self, kit, two_years, faults_of):
    for stem in ("b", "c"):
      (kit / f"VOC2012/Annotations/{stem}.xml").unlink()
    options = {"class_names": ["cat", "dog"]}
    for split in ("VOC2007/train+VOC2012/train", "VOC2012/train+VOC2007/train"):
      assert faults_of(splits.read_split, kit, split, **options) == [
        "VOC2007/train has labels, but VOC2012/train has none"
      ]
    two_years["VOC2012"].split("test", "c")
    assert not splits.read_split(kit, "VOC2012/test", **options).has_labels

  @pytest.mark.parametrize("crowd", [False, True])
  @pytest.mark.parametrize("difficult", [False, True])
  def test_voc_with_coco(self, tmp_path, voc, coco, faults_of, crowd, difficult):
    """One rule of evaluation can hold unless both have ignored objects."""
    year = type(voc)(tmp_path / "year")
    more = f"<difficult>{int(difficult)}</difficult>"
    year.add("a", ("cat", 2, 3, 12, 10, more), ("dog", 2, 3, 12, 10))
    year.split("train", "a")
    for category, entry in zip((2, 1), coco.content["categories"]):
      entry["id"] = category  # dog 2, cat 1
    for annotation in coco.content["annotations"]:
      annotation["category_id"] -= 16
      annotation["iscrowd"] = int(crowd)
    path = coco.save("ours/annotations/val.json")
    (coco.root / "val2017").rename(path.parents[1] / "val")
    split = "year/train+ours/val"
    if crowd and difficult:
      (fault,) = faults_of(splits.read_split, tmp_path, split)
      assert "of ours/val are COCO's crowds, those of year/train VOC's" in fault
    else:
      data = splits.read_split(tmp_path, split)
      assert ids(data) == ["a", 7, 4] and data.class_names == ("cat", "dog")
      assert data.ignored_are_crowds is crowd


def test_joined_splits_can_be_evaluated(kit):
  """What is found on the two images named b stays apart: AP is 1, not less."""
  data = splits.read_split(kit, "VOC2007/train+VOC2012/train")
  found = []
  for record in data.records:
    scores = np.full(len(record.boxes), 0.9)
    found += metrics.coco_results(
      record.image_id, record.boxes, scores, record.classes, data.category_ids
    )
  figures = metrics.evaluate_coco(data, json.loads(json.dumps(found))).metrics
  assert figures["AP"] == pytest.approx(1.0)
  without = [result for result in found if result["image_id"] != "VOC2012/train/b"]
  assert metrics.evaluate_coco(data, without).metrics["AP"] < 1.0


def test_real_voc(real_data):
  root, options = real_data("bccd"), {"check_images": False, "skip_faulty": True}
  joined = splits.read_split(root, "VOCdevkit/BCCD/val+VOCdevkit/BCCD/test", **options)
  assert len(set(ids(joined))) == len(joined.records) == 86 + 72
  assert sum(len(record.boxes) for record in joined.records) == 1124 + 945
  (line,) = joined.skipped
  assert line.startswith("VOCdevkit/BCCD/val: Annotations/")


def test_real_coco(real_data, tmp_path):
  root = real_data("coco_mini")
  joined = splits.read_split(root, "train2017+val2017")
  assert len(joined.records) == 96 + 48
  assert sum(len(record.boxes) for record in joined.records) == 945 + 663
  listed = joined.records[:96:3]
  lines = [f"{record.image_id:012d}.jpg" for record in listed]
  (tmp_path / "list.txt").write_text("\n".join(lines))
  part = splits.read_split(root, f"train@{tmp_path}/list.txt")
  assert ids(part) == [record.image_id for record in listed]
  for record, expected in zip(part.records, listed):
    np.testing.assert_array_equal(record.boxes, expected.boxes)
