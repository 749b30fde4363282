"""What is counted of a split, and where its objects lie in the network's input."""

import numpy as np

from ap_detect.data import summary
from ap_detect.data.records import DetectionDataset, ImageRecord


def make_record(image_id, size, boxes, classes, ignored):
  boxes = np.array(boxes, np.float32).reshape(-1, 4)
  return ImageRecord(
    image_id=image_id,
    image=f"{image_id}.jpg",
    height=size[0],
    width=size[1],
    boxes=boxes,
    classes=np.array(classes, np.int32),
    ignored=np.array(ignored, bool),
    areas=np.ones(len(boxes), np.float32),
  )


SPLIT = DetectionDataset(
  records=(
    make_record("a", (50, 100), [[0, 0, 10, 20], [5, 6, 7, 8]], [2, 1], [False, True]),
    make_record("b", (50, 100), [], [], []),
    make_record("c", (200, 100), [[0, 50, 100, 100]] * 2, [2, 3], [False, False]),
    make_record("d", (64, 64), [[0, 0, 1, 1]], [1], [True]),
  ),
  class_names=("cat", "dog", "owl"),
  category_ids=(1, 2, 3),
  ignored_are_crowds=False,
)


def test_counts():
  assert summary.count(SPLIT) == {
    "images": 4,
    "empty_images": 1,
    "objects": 3,
    "ignored_objects": 2,
  }


def test_objects_are_scaled_to_fit():
  # Into 100 x 100: image a by min(100 / 50, 100 / 100) = 1, image c by 1/2.
  objects = summary.gather_objects(SPLIT, (100, 100))
  assert objects.image_index.tolist() == [0, 2, 2]
  assert objects.classes.tolist() == [2, 2, 3]
  assert objects.boxes.tolist() == [[0, 0, 10, 20], *[[0, 50, 100, 100]] * 2]
  assert objects.placed_boxes.tolist() == [[0, 0, 10, 20], *[[0, 25, 50, 50]] * 2]


def test_objects_are_warped():
  # Image a is twice as high then, image c half as high.
  objects = summary.gather_objects(SPLIT, (100, 100), warp=True)
  assert objects.placed_boxes.tolist() == [[0, 0, 20, 20], *[[0, 50, 50, 100]] * 2]


def test_classes():
  objects = summary.gather_objects(SPLIT, (100, 100))
  assert summary.count_classes(objects, SPLIT.class_names) == [
    ("cat", 0, 0),
    ("dog", 2, 2),
    ("owl", 1, 1),
  ]
  twice = objects._replace(classes=np.array([2, 3, 3]))
  assert summary.count_classes(twice, SPLIT.class_names)[2] == ("owl", 2, 1)
