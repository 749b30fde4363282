"""Data that a run has read and checked is not read again, unless anything changed."""

import dataclasses
import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from ap_detect.data import encoded, shapes
from ap_detect.data.readers import splits
from ap_detect.data.records import DetectionDataset, ImageRecord
from ap_detect.runs import data as data_lib
from ap_detect.runs import memory as memory_lib


@pytest.fixture
def config(make_config, tmp_path):
  """Of a folder in COCO layout, with a box far past an edge in "train"."""
  root = tmp_path / "root"
  for split in ("train", "val"):
    made = shapes.make_shapes(split, num_images=3, image_size_px=(64, 64))
    shapes.write_shapes(made, str(root), split)
  path = root / "annotations/instances_train.json"
  content = json.loads(path.read_text())
  content["annotations"][1]["bbox"] = [40, 5, 40, 9]
  path.write_text(json.dumps(content))
  changes = {"data.format": "auto", "data.root": str(root), "data.skip_faulty": True}
  return make_config(changes)


@pytest.fixture
def num_reads(monkeypatch):
  """List of the splits that were read, not remembered."""
  done, read = [], splits.read_whole

  def count(root, split, **options):
    done.append(split)
    return read(root, split, **options)

  monkeypatch.setattr(splits, "read_whole", count)
  return done


@pytest.fixture
def open_again(config, tmp_path):
  """Opens a split as a further start of a run does."""

  def open_split(split="train", class_names=(), changes=None):
    data = dataclasses.replace(config.data, **(changes or {}))
    memory = memory_lib.Memory(str(tmp_path / "run"))
    changed = dataclasses.replace(config, data=data)
    dataset = data_lib.open_split(changed, split, class_names, memory=memory)
    memory.save()
    return dataset

  return open_split


def assert_same(found, expected):
  for field in dataclasses.fields(expected):
    if field.name != "records":
      assert getattr(found, field.name) == getattr(expected, field.name)
  assert len(found.records) == len(expected.records)
  for record, wanted in zip(found.records, expected.records):
    for name, value in vars(wanted).items():
      got = getattr(record, name)
      assert type(got) is type(value), name
      np.testing.assert_array_equal(got, value, name)
      if isinstance(value, np.ndarray):
        assert (got.dtype, got.shape) == (value.dtype, value.shape), name


def test_the_same_again_without_reading(open_again, num_reads):
  expected = open_again()
  assert len(expected.skipped) == 1
  assert_same(open_again(), expected)
  assert num_reads == ["train"]
  open_again("val", shapes.CLASS_NAMES)
  open_again("val", shapes.CLASS_NAMES)
  assert_same(open_again(), expected)
  assert num_reads == ["train", "val"]


def test_images_without_objects_and_in_shards(tmp_path):
  record = ImageRecord(
    image_id="a",
    image=encoded.ShardedImage("x.tfrecord", 2**40),
    height=3,
    width=4,
    boxes=np.zeros([0, 4], np.float32),
    classes=np.zeros([0], np.int32),
    ignored=np.zeros([0], bool),
    areas=np.zeros([0], np.float32),
  )
  full = dataclasses.replace(
    record,
    image_id=7,
    image="b.jpg",
    boxes=np.array([[0, 1, 2.5, 3], [1, 1, 2, 2]], np.float32),
    classes=np.array([2, 1], np.int32),
    ignored=np.array([True, False]),
    areas=np.array([5.0, 1.0], np.float32),
  )
  expected = DetectionDataset(
    (record, full, record), ("ä", "b"), (3, 9), False, ("a line",), False
  )
  memory = memory_lib.Memory(str(tmp_path))
  assert memory.read("s", [], [], lambda: expected) == (expected, False)
  memory.save()
  again = memory_lib.Memory(str(tmp_path))
  found, is_known = again.read("s", [], [], lambda: pytest.fail("was read"))
  assert is_known
  assert_same(found, expected)


def change_time(path):
  status = path.stat()
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


@pytest.mark.parametrize(
  "change",
  [
    lambda root: change_time(root / "annotations/instances_train.json"),
    lambda root: change_time(root / "train/000001.png"),
    lambda root: (root / "new.txt").touch(),
    lambda root: (root / "train/000001.png").rename(root / "train/1.PNG"),
  ],
  ids=["annotations", "image", "new file", "new name"],
)
def test_any_change_of_a_file_has_all_read_again(open_again, num_reads, config, change):
  open_again()
  change(pathlib.Path(config.data.root))
  open_again()
  assert num_reads == ["train"] * 2


def test_a_list_that_lies_elsewhere(open_again, num_reads, tmp_path):
  chosen = tmp_path / "list.txt"
  chosen.write_text("1\n")
  assert len(open_again(f"train@{chosen}").records) == 1
  chosen.write_text("1\n2\n")
  assert len(open_again(f"train@{chosen}").records) == 2
  open_again(f"train@{chosen}")
  assert len(num_reads) == 2


@pytest.mark.parametrize(
  ("class_names", "changes"),
  [(shapes.CLASS_NAMES[::-1], {}), ((), {"check_images": False})],
)
def test_other_options_have_it_read_again(open_again, num_reads, class_names, changes):
  open_again()
  open_again("train", class_names, changes)
  assert num_reads == ["train"] * 2


def test_other_code_has_it_read_again(open_again, num_reads, monkeypatch):
  open_again()
  monkeypatch.setattr(memory_lib, "_digest_code", lambda: "other")
  open_again()
  assert num_reads == ["train"] * 2


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_file_is_read_past(open_again, num_reads, tmp_path, damage):
  expected = open_again()
  [path] = (tmp_path / "run" / "data").iterdir()
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
  assert_same(open_again(), expected)
  assert_same(open_again(), expected)
  assert num_reads == ["train"] * 2


def test_a_folder_that_cannot_be_written(open_again, tmp_path, hear):
  said = hear("warning")
  (tmp_path / "run").write_text("a file")
  open_again()
  assert any("will read and check the data again" in line for line in said)


def test_nothing_is_written_before_it_is_saved_nor_beside_the_data(config, tmp_path):
  before = sorted(os.listdir(config.data.root))
  memory = memory_lib.Memory(str(tmp_path / "run"))
  data_lib.open_split(config, "train", memory=memory)
  assert not (tmp_path / "run").exists()
  memory.save()
  assert os.listdir(tmp_path / "run") == ["data"]
  assert sorted(os.listdir(config.data.root)) == before


def test_links_in_circles_and_the_run_s_own_folder(tmp_path):
  root = tmp_path / "root"
  (root / "a").mkdir(parents=True)
  (root / "a" / "back").symlink_to(root)
  (root / "a" / "lost").symlink_to(root / "nowhere")
  (root / "run").mkdir()
  first = memory_lib.fingerprint([str(root)], but=str(root / "run"))
  (root / "run" / "x").touch()
  assert memory_lib.fingerprint([str(root)], but=str(root / "run")) == first
  (root / "a" / "x").touch()
  assert memory_lib.fingerprint([str(root)], but=str(root / "run")) != first


class TestHeldOut:
  @pytest.fixture
  def config(self, make_config, tmp_path):
    """Of a folder with nothing to validate on."""
    root = tmp_path / "root"
    made = shapes.make_shapes("train", num_images=10, image_size_px=(64, 64))
    shapes.write_shapes(made, str(root), "train")
    return make_config({"data.format": "auto", "data.root": str(root)})

  def test_both_parts_are_read_once_and_listed(self, open_again, num_reads, tmp_path):
    train, val = open_again("train"), open_again("val", shapes.CLASS_NAMES)
    assert num_reads == ["train"]
    held_out = [record.image_id for record in val.records]
    assert len(held_out) == 2 and len(train.records) == 8
    assert not set(held_out) & {record.image_id for record in train.records}
    lines = (tmp_path / "run/data/held_out.txt").read_text().split()
    assert lines == [str(image_id) for image_id in held_out]
    # The list itself names a split.
    listed = open_again(f"train@{tmp_path}/run/data/held_out.txt")
    assert [record.image_id for record in listed.records] == held_out

  def test_images_added_later_change_nothing_of_it(self, open_again, config, hear):
    """What was trained on is never validated on, nor the other way round."""
    val, train = open_again("val"), open_again("train")
    root = config.data.root
    made = shapes.make_shapes("train", num_images=40, image_size_px=(64, 64))
    for path in (f"{root}/train", f"{root}/annotations"):
      shutil.rmtree(path)
    shapes.write_shapes(made, root, "train")
    said = hear("info")
    again, rest = open_again("val"), open_again("train")
    assert [r.image_id for r in again.records] == [r.image_id for r in val.records]
    assert {r.image_id for r in train.records} <= {r.image_id for r in rest.records}
    assert len(rest.records) == 38
    assert any("those that the run's first start held out" in line for line in said)
    # Without the run's folder they are drawn from all.
    assert len(data_lib.open_split(config, "val").records) == 8

  def test_other_data_is_judged_without_changing_the_list(
    self, open_again, config, tmp_path
  ):
    open_again("val")
    before = (tmp_path / "run/data/held_out.txt").read_text()
    records = splits.read_whole(config.data.root, "train").records
    other = tmp_path / "other"
    (other / "images").mkdir(parents=True)
    for number, record in enumerate(records):
      shutil.copy(record.image, other / f"images/o{number}.png")
    lines = [f"o{number}.png,square,0,0,9,9\n" for number in range(10)]
    header = "filename,class,xmin,ymin,xmax,ymax\n"
    (other / "boxes.csv").write_text(header + "".join(lines))
    assert len(open_again("val", changes={"root": str(other)}).records) == 2
    assert (tmp_path / "run/data/held_out.txt").read_text() == before

  def test_it_is_said(self, open_again, hear):
    said = hear("info")
    open_again("val")
    assert any("held out of the 10 of train" in line for line in said)

  def test_a_split_of_another_name_must_be_there(self, open_again):
    with pytest.raises(ValueError, match="no annotations of split 'mine'"):
      open_again("mine", changes={"val_split": "mine"})

  def test_none_where_that_is_forbidden(self, open_again):
    changes = {"holdout_share": 0.0}
    assert len(open_again("train", changes=changes).records) == 10
    with pytest.raises(ValueError, match="no annotations of split 'val'"):
      open_again("val", changes=changes)
