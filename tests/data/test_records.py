"""ap_detect.data.records: lists of faults, and what is left out of training."""

import numpy as np
import pytest

from ap_detect.data.readers import splits
from ap_detect.data.records import (
  SKIP,
  DataError,
  DetectionDataset,
  ImageRecord,
  for_training,
)


def make_record(image_id, ignored):
  """A record of objects 1, 2, ..: object k is of class k and k squared pixels."""
  numbers = np.arange(1, len(ignored) + 1)
  return ImageRecord(
    image_id=image_id,
    image=f"{image_id}.jpg",
    height=20,
    width=30,
    boxes=np.outer(numbers, [0, 0, 1, 1]).astype(np.float32),
    classes=numbers.astype(np.int32),
    ignored=np.array(ignored, bool),
    areas=numbers.astype(np.float32),
  )


RECORDS = (
  make_record("none", []),
  make_record("all", [True, True]),
  make_record("some", [True, False, True, False]),
  make_record("sound", [False]),
)
DATA = DetectionDataset(
  RECORDS, ("a", "b", "c", "d"), (1, 2, 3, 4), ignored_are_crowds=False
)


@pytest.mark.parametrize(
  ("drop_empty", "drop_ignored", "expected"),
  [
    (False, False, {"none": [], "all": [1, 2], "some": [1, 2, 3, 4], "sound": [1]}),
    (True, False, {"all": [1, 2], "some": [1, 2, 3, 4], "sound": [1]}),
    (False, True, {"none": [], "all": [], "some": [2, 4], "sound": [1]}),
    # "all" became empty by the dropping.
    (True, True, {"some": [2, 4], "sound": [1]}),
  ],
)
def test_what_is_left_out_of_training(drop_empty, drop_ignored, expected):
  data = for_training(DATA, drop_empty=drop_empty, drop_ignored=drop_ignored)
  found = {record.image_id: record.classes.tolist() for record in data.records}
  assert found == expected and list(found) == list(expected)
  for record in data.records:
    np.testing.assert_array_equal(record.areas, record.classes)
    np.testing.assert_array_equal(record.boxes[:, 2], record.classes)
    assert record.boxes.shape == (len(record.classes), 4)
    odd = record.classes % 2 == 1
    wanted = {"some": odd, "all": odd | True}.get(record.image_id, odd & False)
    np.testing.assert_array_equal(record.ignored, wanted)
  assert data.class_names == DATA.class_names
  assert [len(record.classes) for record in DATA.records] == [0, 2, 4, 1]  # as before


def test_message_lists_the_first_fifty_faults():
  faults = [f"fault {number}." for number in range(1, 53)]
  error = DataError(faults)
  assert error.faults == tuple(faults)
  lines = str(error).split("\n  ")
  assert lines == ["52 faults in the data:", *faults[:50], "... and 2 more"]
  assert "more" not in str(DataError(faults[:50]))
  assert str(DataError(["one"])) == "1 fault in the data:\n  one"


def test_advice_closes_the_message():
  error = DataError(["one", "two"], ["do this", "or that"])
  assert str(error) == "2 faults in the data:\n  one\n  two\ndo this\nor that"
  many = DataError(["x"] * 60, ["do this"])
  assert str(many).splitlines()[-2:] == ["  ... and 10 more", "do this"]
  assert many.describe().splitlines()[1:] == ["  x"] * 60 + ["do this"]


def test_several_errors_as_one():
  one = DataError(["a", "b"], ["do this"])
  other = DataError(["b"], ["do this", "or that"])
  joined = DataError.join([("", one), ("", other)])
  assert joined.faults == ("a", "b") and joined.advice == ("do this", "or that")
  joined = DataError.join([("x: ", one), ("y: ", other)])
  assert joined.faults == ("x: a", "x: b", "y: b")


class TestAdvice:
  """Which fields a list of faults names."""

  def advice(self, voc, **options):
    with pytest.raises(DataError) as caught:
      splits.read_split(voc.root, "train", **options)
    assert str(caught.value).endswith("\n".join(["", *caught.value.advice]))
    return [line.split("=")[0].split(" ")[0] for line in caught.value.advice]

  def test_faults_that_can_be_skipped(self, voc):
    voc.add("b", ("cat", 12, 3, 2, 10))
    assert self.advice(voc) == ["data.skip_faulty"]

  def test_pixels(self, voc):
    voc.add("b", height=40)
    found = self.advice(voc, max_image_pixels=900)
    assert found == ["data.max_image_pixels", "data.skip_faulty"]
    splits.read_split(voc.root, "train", max_image_pixels=1200)

  def test_skipping_that_leaves_nothing_is_not_advised(self, voc):
    assert self.advice(voc, max_image_pixels=9) == ["data.max_image_pixels"]
    assert self.advice(voc, max_image_pixels=9, skip_faulty=True) == []

  def test_classes(self, voc):
    found = self.advice(voc, class_names=("cat",))
    assert found == ["data.class_names", "data.skip_faulty"]
    splits.read_split(voc.root, "train", class_names=("cat", "dog"))

  def test_boxes_that_end_where_they_begin(self, voc):
    voc.add("b", ("cat", 2, 3, 2, 10))
    found = self.advice(voc)
    assert found == ["data.voc_one_based_inclusive", "data.skip_faulty"]
    splits.read_split(voc.root, "train", voc_one_based_inclusive=True)
    voc.add("b", ("cat", 5, 3, 2, 10))
    found = self.advice(voc, voc_one_based_inclusive=True)
    assert found == ["data.skip_faulty"]

  def test_of_coco(self, coco):
    coco.annotate(72, 7, 17, [0, 0, -1, 5])
    coco.save()
    with pytest.raises(DataError) as caught:
      splits.read_split(coco.root, "val")
    assert caught.value.advice == (SKIP,)
    (coco.root / "annotations/instances_val2017.json").write_text("{")
    with pytest.raises(DataError, match=r"val2017\.json: cannot be read") as caught:
      splits.read_split(coco.root, "val", data_format="coco")
    assert caught.value.advice == ()

  def test_of_joined_splits(self, voc):
    voc.split("val", "a")
    with pytest.raises(DataError, match="is in train already") as caught:
      splits.read_split(voc.root, "train+val")
    assert caught.value.advice == (SKIP,)
    voc.add("a", ("cat", 12, 3, 2, 10))
    with pytest.raises(DataError) as caught:
      splits.read_split(voc.root, "train+val")
    assert len(caught.value.faults) == 2 and caught.value.advice == (SKIP,)

  def test_what_cannot_be_skipped(self, tmp_path):
    with pytest.raises(DataError) as caught:
      splits.read_split(tmp_path / "nowhere", "train")
    assert caught.value.advice == ()
