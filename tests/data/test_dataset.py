"""ap_detect.data.dataset: lists of faults, and what is left out of training."""

import numpy as np
import pytest

from ap_detect.data import dataset


def make_record(image_id, ignored):
  """A record of objects 1, 2, ..: object k is of class k and k squared pixels."""
  numbers = np.arange(1, len(ignored) + 1)
  return dataset.ImageRecord(
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
DATA = dataset.DetectionDataset(
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
  data = dataset.for_training(DATA, drop_empty=drop_empty, drop_ignored=drop_ignored)
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
  error = dataset.DataError(faults)
  assert error.faults == tuple(faults)
  lines = str(error).split("\n  ")
  assert lines == ["52 faults in the data:", *faults[:50], "... and 2 more"]
  assert "more" not in str(dataset.DataError(faults[:50]))
  assert str(dataset.DataError(["one"])) == "1 fault in the data:\n  one"
