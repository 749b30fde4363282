"""ap_detect.data.coco: what is read, and every fault by file, annotation and reason."""

import json
import math

import numpy as np
import pytest

from ap_detect.data.coco import read_coco

SOURCE = "annotations/instances_val2017.json"


def test_reads_boxes_classes_crowds_and_images_without_annotations(coco):
  coco.annotate(72, 7, 17, [0, 0, 30, 20])
  coco.save()
  data = read_coco(coco.root, "val2017")
  assert data.class_names == ("cat", "dog")  # in the order of the ids
  assert data.category_ids == (17, 18)
  assert data.ignored_are_crowds and data.skipped == ()
  first, second = data.records
  assert (first.image_id, second.image_id) == (7, 4)  # in the order of the file
  assert first.image == str(coco.root / "val2017/7.jpg")
  assert (first.height, first.width) == (20, 30)
  # bbox (x 2, y 3, width 10, height 7) is yxyx (3, 2, 10, 12).
  np.testing.assert_array_equal(
    first.boxes, [[3, 2, 10, 12], [6, 5, 20, 30], [0, 0, 20, 30]]
  )
  np.testing.assert_array_equal(first.classes, [1, 2, 1])
  np.testing.assert_array_equal(first.ignored, [False, True, False])
  # The file's areas; the third has none and gets its box's.
  np.testing.assert_array_equal(first.areas, [33.5, 200, 600])
  assert first.boxes.dtype == first.areas.dtype == np.float32
  assert first.classes.dtype == np.int32 and first.ignored.dtype == bool
  assert second.boxes.shape == (0, 4) and second.classes.shape == (0,)


def test_given_class_names_choose_and_order_the_categories(coco, faults_of):
  coco.save()
  data = read_coco(coco.root, "val2017", class_names=["dog", "cat"])
  assert (data.class_names, data.category_ids) == (("dog", "cat"), (18, 17))
  np.testing.assert_array_equal(data.records[0].classes, [2, 1])
  expected = [f"{SOURCE}: annotation 71 has class 'dog', which is not in the list ['cat']"]
  assert faults_of(read_coco, coco.root, "val2017", class_names=["cat"]) == expected
  data = read_coco(coco.root, "val2017", class_names=["cat"], skip_faulty=True)
  assert (list(data.skipped), data.category_ids) == (expected, (17,))
  np.testing.assert_array_equal(data.records[0].boxes, [[3, 2, 10, 12]])
  assert faults_of(read_coco, coco.root, "val2017", class_names=["cat", "cow"]) == [
    f"{SOURCE}: has no category named ['cow']; it has ['cat', 'dog']"
  ]
  with pytest.raises(ValueError, match="must differ"):
    read_coco(coco.root, "val2017", class_names=["cat", "cat"])


@pytest.mark.parametrize(
  ("annotations", "images", "split"),
  [
    ("annotations/instances_val2017.json", "val2017", "val2017"),
    ("annotations/instances_val2017.json", "val2017", "val"),
    ("annotations/instances_val.json", "val", "val"),
    ("annotations/instances_val2017.json", "images/val2017", "val"),
    ("annotations/instances_val.json", "images", "val"),
    ("annotations/val.json", "images/val", "val"),
    ("valid/_annotations.coco.json", "valid", "val"),
  ],
)
def test_layouts(coco, write_image, annotations, images, split):
  for image_id in (4, 7):
    write_image(coco.root / images / f"{image_id}.jpg")
  if images != "val2017":
    for path in (coco.root / "val2017").iterdir():
      path.unlink()
  coco.save(annotations)
  data = read_coco(coco.root, split)
  assert data.records[0].image == str(coco.root / images / "7.jpg")


def test_explicit_paths(coco, tmp_path_factory):
  path = coco.save("elsewhere/some.json")
  images = tmp_path_factory.mktemp("disk") / "images"
  (coco.root / "val2017").rename(images)
  data = read_coco(coco.root, "val", annotations=path, images=images)
  assert data.records[0].image == str(images / "7.jpg")


def test_file_names_with_folders(coco):
  for entry in coco.content["images"]:
    entry["file_name"] = "val2017/" + entry["file_name"]
  coco.save()
  assert len(read_coco(coco.root, "val").records) == 2


def test_overshoot_of_one_pixel_is_clipped(coco):
  coco.annotate(72, 4, 17, [-0.5, 0, 31.5, 20.25], area=611)
  coco.save()
  record = read_coco(coco.root, "val").records[1]
  np.testing.assert_array_equal(record.boxes, [[0, 0, 20, 30]])
  np.testing.assert_array_equal(record.areas, [611])


# Faults of annotation 71, on an image of 30 x 20: the fields that change, the reason.
ANNOTATION_FAULTS = {
  "width 0": (
    {"bbox": [5, 6, 0, 14]},
    "has bbox [5, 6, 0, 14] (x, y, width, height), which is empty",
  ),
  "height below 0": (
    {"bbox": [5, 6, 2, -1]},
    "has bbox [5, 6, 2, -1] (x, y, width, height), which is empty",
  ),
  "too thin for float32": ({"bbox": [5, 6, 1e-12, 4]}, "has no area inside the image"),
  "outside": (
    {"bbox": [5, 6, 27, 14]},
    "leaves the image of 30 x 20 pixels: x 5 to 32, y 6 to 20",
  ),
  "far outside": ({"bbox": [1e308, 0, 1e308, 4]}, "leaves the image of 30 x 20 pixels"),
  "nan": ({"bbox": [5, math.nan, 5, 5]}, "has bbox [5, nan, 5, 5], not four finite"),
  "infinite": ({"bbox": [5, 5, math.inf, 5]}, "has bbox [5, 5, inf, 5], not four"),
  "beyond float": ({"bbox": [10**400, 5, 5, 5]}, "has bbox [1000"),
  "three numbers": ({"bbox": [5, 5, 5]}, "has bbox [5, 5, 5], not four finite"),
  "words": ({"bbox": [5, 5, 5, "5"]}, "has bbox [5, 5, 5, '5'], not four finite"),
  "no list": ({"bbox": {"x": 5}}, "has bbox {'x': 5}, not list"),
  "no bbox": ({"bbox": None}, "has bbox None, not list"),
  "unknown image": ({"image_id": 5}, "names image 5, which is not in the file"),
  "image as text": ({"image_id": "7"}, "has image_id '7', not int"),
  "unknown category": (
    {"category_id": 19},
    "names category 19, which is not in the file",
  ),
  "crowd": ({"iscrowd": 2}, "has iscrowd 2, neither 0 nor 1"),
  "negative area": ({"area": -1}, "has area -1, not a finite number from 0 up"),
  "area nan": ({"area": math.nan}, "has area nan, not a finite number from 0 up"),
}


@pytest.mark.parametrize("kind", ANNOTATION_FAULTS)
def test_faulty_annotation_is_named_or_skipped(coco, faults_of, kind):
  changes, reason = ANNOTATION_FAULTS[kind]
  coco.content["annotations"][1].update(changes)
  coco.save()
  (fault,) = faults_of(read_coco, coco.root, "val")
  assert fault.startswith(f"{SOURCE}: annotation 71 {reason}")
  data = read_coco(coco.root, "val", skip_faulty=True)
  assert data.skipped == (fault,)
  np.testing.assert_array_equal(data.records[0].boxes, [[3, 2, 10, 12]])
  assert len(data.records) == 2


@pytest.mark.parametrize(
  ("identity", "reason"),
  [
    (70, "has id 70, which an earlier one has too"),
    ("71", "has id '71', not int"),
    (None, "has id None, not int"),
    (True, "has id True, not int"),
  ],
)
def test_faulty_annotation_id(coco, faults_of, identity, reason):
  coco.content["annotations"][1]["id"] = identity
  coco.save()
  assert faults_of(read_coco, coco.root, "val") == [f"{SOURCE}: annotations[1] {reason}"]


# Faults of image 4 in the JSON file: the fields that change, and the fault.
IMAGE_ENTRY_FAULTS = {
  "other size": (
    {"width": 60},
    "image 4 ...",
  ),
  "id twice": ({"id": 7}, "images[1] has id 7, which an earlier one has too"),
  "id as text": ({"id": "4"}, "images[1] has id '4', not int"),
  "size as text": ({"height": "20"}, "image 4 has height '20', not int"),
  "absurd size": ({"height": 10**400}, "image 4 has an impossible size: 30 x 1000..."),
  "negative size": ({"height": -2}, "image 4 has an impossible size: 30 x -2 pixels"),
  "no name": ({"file_name": None}, "image 4 has file_name None, not str"),
  "leaves": (
    {"file_name": "../../etc/passwd"},
    "image 4 the name '../../etc/passwd' leaves the data folder",
  ),
  "absolute": (
    {"file_name": "/etc/passwd"},
    "image 4 the name '/etc/passwd' leaves the data folder",
  ),
}
