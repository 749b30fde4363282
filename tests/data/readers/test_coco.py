"""data.readers.coco: what is read, and every fault by file, annotation and reason."""

import json
import math

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ap_detect.data.readers.coco import read_coco
from ap_detect.data.readers.listing import Listing
from ap_detect.data.records import DataError
from ap_detect.metrics.coco import evaluate_coco

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
  assert first.boxes.dtype == first.areas.dtype == np.float64
  assert first.classes.dtype == np.int32 and first.ignored.dtype == bool
  assert second.boxes.shape == (0, 4) and second.classes.shape == (0,)


def test_given_class_names_choose_and_order_the_categories(coco, faults_of):
  coco.save()
  data = read_coco(coco.root, "val2017", class_names=["dog", "cat"])
  assert (data.class_names, data.category_ids) == (("dog", "cat"), (18, 17))
  np.testing.assert_array_equal(data.records[0].classes, [2, 1])
  expected = [
    f"{SOURCE}: annotation 71 has class 'dog', which is not in the list of classes"
  ]
  assert faults_of(read_coco, coco.root, "val2017", class_names=["cat"]) == expected
  data = read_coco(coco.root, "val2017", class_names=["cat"], skip_faulty=True)
  assert (list(data.skipped), data.category_ids) == (expected, (17,))
  # What is of no class stays, to be ignored.
  assert data.records[0].classes.tolist() == [1, 0]
  assert data.records[0].ignored.tolist() == [False, True]
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
    ("annotations/image_info_val2017.json", "val2017", "val"),
    ("annotations/image_info_test-dev2017.json", "test2017", "test-dev"),
    ("annotations/image_info_test-dev2017.json", "images/test2017", "test-dev2017"),
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


def test_image_info_has_no_labels(coco, faults_of):
  coco.save("annotations/image_info_val2017.json")
  assert read_coco(coco.root, "val").has_labels  # the annotations are there, and read
  annotations = coco.content.pop("annotations")
  path = coco.save("annotations/image_info_val2017.json")
  data = read_coco(coco.root, "val")
  assert not data.has_labels and annotations
  assert [record.image_id for record in data.records] == [7, 4]
  assert all(record.boxes.shape == (0, 4) for record in data.records)
  assert (data.class_names, data.category_ids) == (("cat", "dog"), (17, 18))
  # Under any other name the lack is a fault.
  path.rename(coco.root / "annotations/instances_val2017.json")
  assert faults_of(read_coco, coco.root, "val") == [
    f"{SOURCE}: 'annotations' must be a list of objects",
    f"{SOURCE}: a split without labels must be named image_info_*.json",
  ]


@pytest.mark.parametrize("line", ["4", "4.jpg", "sub/4.jpg", "000004"])
def test_image_list_takes_images_by_id_path_file_name_or_stem(coco, tmp_path, line):
  entry = coco.content["images"][1]
  entry["file_name"] = "sub/000004.jpg" if line == "000004" else "sub/4.jpg"
  coco.image(4000, entry["file_name"])
  coco.content["images"].pop()
  coco.annotate(72, 4, 17, [2, 3, 10, 7])
  coco.save()
  (tmp_path / "list.txt").write_text(f"\n {line}\n")
  data = read_coco(coco.root, "val", image_list=tmp_path / "list.txt")
  assert [record.image_id for record in data.records] == [4]
  np.testing.assert_array_equal(data.records[0].boxes, [[3, 2, 10, 12]])


def test_image_list_hides_all_that_it_does_not_name(coco, faults_of, tmp_path):
  """Image 7 is missing and faultily annotated; its crowd is of no class asked for."""
  (coco.root / "val2017/7.jpg").unlink()
  coco.annotate(72, 7, 17, [1, 2, 3])
  coco.annotate(73, 4, 17, [2, 3, 10, 7])
  coco.annotate(74, 5, 17, [2, 3, 10, 7])
  coco.save()
  (tmp_path / "list.txt").write_text("4\n")
  options = {"image_list": str(tmp_path / "list.txt"), "class_names": ["cat"]}
  assert faults_of(read_coco, coco.root, "val", **options) == [
    f"{SOURCE}: annotation 74 names image 5, which is not in the file"
  ]
  coco.content["annotations"].pop()
  coco.save()
  data = read_coco(coco.root, "val", **options)
  assert [(r.image_id, len(r.boxes)) for r in data.records] == [(4, 1)]


def test_image_list_means_an_id_before_a_file_name(coco, tmp_path):
  coco.content["images"][1]["file_name"] = "7.jpg"  # image 4; its stem is an id
  coco.content["images"][0]["file_name"] = "4.jpg"
  coco.save()
  (tmp_path / "list.txt").write_text("7\n")
  data = read_coco(coco.root, "val", image_list=tmp_path / "list.txt")
  assert [record.image_id for record in data.records] == [7]


def test_explicit_paths(coco, tmp_path_factory):
  coco.save("annotations/instances_val.json")
  path = coco.save("elsewhere/some.json")
  images = tmp_path_factory.mktemp("disk") / "images"
  (coco.root / "val2017").rename(images)
  listing = Listing(coco.root, annotations=path, images=images)
  data = read_coco(coco.root, "train", listing=listing)
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


# Faults of annotation 71, a crowd on an image of 30 x 20: the fields that change, the
# reason, and the box that is ignored, if its place is known.
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
    {"bbox": [5, 6, 28.5, 14]},
    "leaves the image of 30 x 20 pixels: x 5 to 33.5, y 6 to 20",
    [6, 5, 20, 30],
  ),
  "far outside": ({"bbox": [2e38, 0, 2e38, 4]}, "leaves the image of 30 x 20 pixels"),
  "nan": ({"bbox": [5, math.nan, 5, 5]}, "has bbox [5, nan, 5, 5], not four finite"),
  "infinite": ({"bbox": [5, 5, math.inf, 5]}, "has bbox [5, 5, inf, 5], not four"),
  "beyond float": ({"bbox": [10**400, 5, 5, 5]}, "has bbox [1000"),
  "three numbers": ({"bbox": [5, 5, 5]}, "has bbox [5, 5, 5], not four finite"),
  "words": ({"bbox": [5, 5, 5, "5"]}, "has bbox [5, 5, 5, '5'], not four finite"),
  "no list": ({"bbox": {"x": 5}}, "has bbox {'x': 5}, not four finite numbers"),
  "no bbox": ({"bbox": None}, "has neither a bbox nor a polygon"),
  "polygon of words": (
    {"bbox": [], "segmentation": [["a", 1]]},
    "has polygon ['a', 1], not pairs of finite numbers",
  ),
  "mask without size": (
    {"bbox": None, "segmentation": {"counts": [1, 2]}},
    "has a mask that cannot be read: 'size'",
  ),
  "unknown category": (
    {"category_id": 19},
    "names category 19, which is not in the file",
    [6, 5, 20, 30],
  ),
  "crowd": ({"iscrowd": 2}, "has iscrowd 2, neither 0 nor 1", [6, 5, 20, 30]),
  "negative area": (
    {"area": -1},
    "has area -1, not a finite number from 0 up",
    [6, 5, 20, 30],
  ),
  "area beyond float32": (
    {"area": 1e300},
    "has area 1e+300, not a finite number",
    [6, 5, 20, 30],
  ),
  "area nan": (
    {"area": math.nan},
    "has area nan, not a finite number from 0 up",
    [6, 5, 20, 30],
  ),
}


@pytest.mark.parametrize("kind", ANNOTATION_FAULTS)
def test_faulty_annotation_is_named_or_never_background(coco, faults_of, kind):
  changes, reason, *place = ANNOTATION_FAULTS[kind]
  coco.content["annotations"][1].update(changes)
  coco.save()
  (fault,) = faults_of(read_coco, coco.root, "val")
  assert fault.startswith(f"{SOURCE}: annotation 71 {reason}")
  data = read_coco(coco.root, "val", skip_faulty=True)
  assert data.skipped == (fault,)
  assert [record.image_id for record in data.records] == [*(7 for _ in place), 4]
  for box in place:
    record = data.records[0]
    assert record.boxes.tolist() == [[3, 2, 10, 12], box]
    assert record.classes.tolist() == [1, 0]
    assert record.ignored.tolist() == [False, True]


def test_annotation_of_an_unknown_image(coco, faults_of):
  coco.content["annotations"][1]["image_id"] = 5
  coco.save()
  expected = f"{SOURCE}: annotation 71 names image 5, which is not in the file"
  assert faults_of(read_coco, coco.root, "val") == [expected]
  assert len(read_coco(coco.root, "val", skip_faulty=True).records) == 2


# What tools write instead of what COCO has, and what is read of it: fields of image 7,
# fields of annotation 71, and (boxes, ids, areas) where these are others.
LENIENT = {
  "sizes as text": ({"height": "20", "width": "30.0"}, {}),
  "sizes as floats": ({"height": 20.0, "width": 30.0}, {}),
  "no size": ({"height": -1, "width": None}, {}),
  "image id as text": ({"id": "seven"}, {"image_id": "seven"}),
  "image id as float": ({}, {"image_id": 7.0}),
  "image id as digits": ({}, {"image_id": "7"}),
  "category as text": ({}, {"category_id": "18"}),
  "crowd as text": ({}, {"iscrowd": "1"}),
  "crowd as truth": ({}, {"iscrowd": True}),
  "area as text": ({}, {"area": "200"}),
  "no annotation id": ({}, {"id": None}),
  "annotation id twice": ({}, {"id": 70}),
  "annotation id as text": ({}, {"id": "71"}),
  "polygons": (
    {},
    {"bbox": None, "segmentation": [[5, 6, 9, 6, 9, 9], [20, 20, 30, 20, 30, 12]]},
  ),
  "a polygon alone": ({}, {"bbox": [], "segmentation": [5, 6, 30, 6, 30, 20]}),
  "a mask": (
    {},
    # Columns of 20 pixels: 5 of them empty, and of 25 more the last 14 rows.
    {"bbox": [0, 0, 0, 0], "segmentation": {"size": [20, 30]}},
  ),
}


@pytest.mark.parametrize("kind", LENIENT)
def test_what_tools_write(coco, kind):
  image, annotation = LENIENT[kind]
  if kind == "a mask":
    counts = [5 * 20 + 6, 14, *[6, 14] * 24]
    annotation["segmentation"]["counts"] = counts
  new_id = image.get("id", 7)
  coco.content["images"][0].update(image)
  for item in coco.content["annotations"]:
    item["image_id"] = new_id
  coco.content["annotations"][1].update(annotation)
  coco.save()
  data = read_coco(coco.root, "val")
  record = data.records[0]
  assert record.image_id == new_id and (record.height, record.width) == (20, 30)
  assert record.boxes.tolist() == [[3, 2, 10, 12], [6, 5, 20, 30]]
  assert record.classes.tolist() == [1, 2]
  assert record.ignored.tolist() == [False, True]
  assert record.areas.tolist() == [33.5, 200]
  assert len(data.notes) == (kind in ("no annotation id", "annotation id twice"))


@pytest.mark.parametrize(
  "mask",
  [
    {
      "size": [0, 0],
      "counts": [1, 2],
    },  # pycocotools divides by it, and ends the process
    {"size": [0, 30], "counts": "52203"},
    {"size": [2**40, 2**40], "counts": [1, 2]},
    {"size": [20, 30], "counts": [-5, 10]},
    {"size": [20, 30], "counts": [1, 10**9]},
    {"size": [20, 30], "counts": [float("inf")]},
    {"size": [20, 30], "counts": "o" * 1000},
    {"size": [20, 30], "counts": "\ud800"},
    {"size": [20, 30], "counts": 7},
    {"size": [20, 30], "counts": None},
    {"size": [20], "counts": [3, 4]},
    {"size": None, "counts": [3, 4]},
    {"counts": [3, 4]},
  ],
)
def test_masks_that_are_none(coco, faults_of, mask):
  coco.content["annotations"][1].update(bbox=None, segmentation=mask)
  coco.save()
  (fault,) = faults_of(read_coco, coco.root, "val")
  assert fault.startswith(f"{SOURCE}: annotation 71 has a mask that cannot be read: ")


def test_compressed_masks(coco):
  pixels = np.zeros([20, 30], np.uint8, order="F")
  pixels[6:, 5:30] = 1
  mask = coco_mask.encode(pixels)
  mask["counts"] = mask["counts"].decode()
  coco.content["annotations"][1].update(bbox=None, segmentation=mask)
  coco.save()
  assert read_coco(coco.root, "val").records[0].boxes[1].tolist() == [6, 5, 20, 30]


@pytest.mark.parametrize("bbox", [[], [0, 0, 0, 0]])
def test_an_empty_box_is_no_object(coco, bbox):
  coco.content["annotations"][1].update(bbox=bbox, segmentation=[], area=0)
  coco.save()
  data = read_coco(coco.root, "val")
  assert len(data.records[0].boxes) == 1
  assert data.notes == (
    f"{SOURCE}: 1 annotations have an empty box and no polygon, and are no objects; the "
    "first: annotation 71",
  )


# Faults of image 4 in the JSON file: the fields that change, and the fault.
IMAGE_ENTRY_FAULTS = {
  "other size": (
    {"width": 60},
    "gives val2017/4.jpg 60 x 20 pixels, but it has 30 x 20",
  ),
  "id of no kind": ({"id": [4]}, "images[1] has id [4], neither a number nor a text"),
  "id of half": ({"id": 4.5}, "images[1] has id 4.5, neither a number nor a text"),
  "size as word": ({"height": "tall"}, "image 4 has height 'tall', not a number"),
  "absurd size": ({"height": 10**400}, "image 4 has an impossible size: 30 x 1000..."),
  "negative size": ({"height": -2}, "image 4 has an impossible size: 30 x -2 pixels"),
  "no name": ({"file_name": None}, "image 4 has file_name None, not str"),
  "leaves": (
    {"file_name": "../../etc/passwd"},
    "image 4 names '../../etc/passwd', which leaves the data folder",
  ),
  "absolute": (
    {"file_name": "/etc/passwd"},
    "image 4 names '/etc/passwd', which leaves the data folder",
  ),
}


@pytest.mark.parametrize("kind", IMAGE_ENTRY_FAULTS)
def test_faulty_image_entry_is_named_or_skipped(coco, faults_of, kind):
  changes, reason = IMAGE_ENTRY_FAULTS[kind]
  coco.content["images"][1].update(changes)
  coco.save()
  (fault,) = faults_of(read_coco, coco.root, "val")
  start, dots, _ = f"{SOURCE}: {reason}".partition("...")
  assert fault.startswith(start) if dots else fault == start
  data = read_coco(coco.root, "val", skip_faulty=True)
  assert data.skipped == (fault,)
  assert [record.image_id for record in data.records] == [7]


def test_sizes_may_be_left_open(coco):
  del coco.content["images"][1]["height"], coco.content["images"][1]["width"]
  coco.save()
  record = read_coco(coco.root, "val").records[1]
  assert (record.height, record.width) == (20, 30)


@pytest.mark.parametrize("kind", ["missing", "truncated", "huge"])
def test_faulty_image_is_named_or_skipped(coco, faults_of, write_huge_png, kind):
  path = coco.root / "val2017/4.jpg"
  if kind == "missing":
    path.unlink()
  elif kind == "huge":
    write_huge_png(path)
    coco.content["images"][1].update(height=100_000, width=100_000)
  else:
    path.write_bytes(path.read_bytes()[:-60])
  coco.save()
  reasons = {
    "missing": "there is no such file",
    "truncated": "truncated or damaged: ",
    "huge": "its header claims 100000 x 100000 pixels, more than 50000000 in all",
  }
  (fault,) = faults_of(read_coco, coco.root, "val")
  assert fault.startswith(f"val2017/4.jpg: {reasons[kind]}")
  data = read_coco(coco.root, "val", skip_faulty=True)
  assert [record.image_id for record in data.records] == [7]
  assert data.skipped == (fault,)


def test_link_that_leaves_the_folder(coco, faults_of, tmp_path_factory, write_image):
  path = coco.root / "val2017/4.jpg"
  path.unlink()
  path.symlink_to(write_image(tmp_path_factory.mktemp("outside") / "secret.jpg"))
  coco.save()
  assert faults_of(read_coco, coco.root, "val") == [
    f"{SOURCE}: image 4 names '4.jpg', a link that leaves the data folder"
  ]


def test_all_faults_are_listed_together(coco, faults_of):
  coco.content["images"].append({"id": 7})
  coco.annotate(70, 5, 19, [1, 2, 3])
  coco.annotate(73, 7, 17, [20, 2, 15, 3])
  (coco.root / "val2017/4.jpg").unlink()
  coco.save()
  assert faults_of(read_coco, coco.root, "val") == [
    f"{SOURCE}: images[2] has id 7, which an earlier one has too",
    f"{SOURCE}: images[2] has file_name None, not str",
    f"{SOURCE}: annotations[2] names image 5, which is not in the file",
    f"{SOURCE}: annotations[2] names category 19, which is not in the file",
    f"{SOURCE}: annotations[2] has bbox [1, 2, 3], not four finite numbers",
    f"{SOURCE}: annotation 73 leaves the image of 30 x 20 pixels: x 20 to 35, y 2 to 5",
    "val2017/4.jpg: there is no such file",
  ]


# Faults of the whole file: its text, and how the fault goes on after its path.
FILE_FAULTS = {
  "malformed": ('{"images": [', ["cannot be read as JSON: "]),
  "deep": ("[" * 200_000, ["cannot be read as JSON: "]),
  "no text": ("\udcff", ["cannot be read as JSON: "]),
  "a list": ("[]", ["is not a JSON object"]),
  "no keys": (
    '{"images": [1]}',
    [
      "'images' must be a list of objects",
      "'annotations' must be a list of objects",
      "'categories' must be a list of objects",
      "a split without labels must be named image_info_*.json",
    ],
  ),
  "no images": (
    '{"images": [], "annotations": [], "categories": []}',
    ["names no image"],
  ),
  "no categories": (
    '{"images": [{}], "annotations": [], "categories": []}',
    ["has no categories"],
  ),
  "categories": (
    '{"images": [{}], "annotations": [], "categories": [{"id": 1, "name": "cat"}, '
    '{"id": 1}, {"id": "two", "name": "cat"}]}',
    [
      "categories[1] has id 1, which an earlier one has too",
      "categories[1] has name None, not str",
      "categories[2] has id 'two', not a whole number",
    ],
  ),
}


@pytest.mark.parametrize("skip_faulty", [False, True])
@pytest.mark.parametrize("kind", FILE_FAULTS)
def test_faults_of_the_whole_file(coco, faults_of, kind, skip_faulty):
  text, reasons = FILE_FAULTS[kind]
  path = coco.save()
  path.write_bytes(text.encode(errors="surrogateescape"))
  faults = faults_of(read_coco, coco.root, "val", skip_faulty=skip_faulty)
  assert len(faults) == len(reasons)
  for fault, reason in zip(faults, reasons):
    assert fault.startswith(f"{SOURCE}: {reason}")


def test_missing_folders_and_files(coco, faults_of):
  root = coco.root
  assert faults_of(read_coco, root / "none", "val") == [
    f"{root}/none: there is no such folder"
  ]
  coco.save()
  (fault,) = faults_of(read_coco, root, "test")
  assert fault.startswith(f"{root}: no annotations of split 'test': looked for ")
  assert fault.endswith(f"there are {root}/{SOURCE}")
  coco.save("annotations/instances_val2014.json")
  assert faults_of(read_coco, root, "val") == [
    f"{root}: the split 'val' could be any of "
    f"{root}/annotations/instances_val2014.json, "
    f"{root}/annotations/instances_val2017.json; say which"
  ]
  for names in ({"annotations": root / "none.json"}, {"images": root / "none"}):
    with pytest.raises(DataError, match=r"none.*: there is no such file or folder"):
      Listing(root, **names)
  # A folder of any name will do.
  (root / "val2017").rename(root / "pictures")
  assert read_coco(root, "val2017").records[0].image == str(root / "pictures/7.jpg")


def test_ap_is_that_of_pycocotools_on_the_file(coco):
  """Boxes of decimals, detected at overlaps of exactly a threshold."""
  rng = np.random.default_rng(0)
  coco.content["images"].clear()
  coco.category(3, "cow")
  results = []
  for image_id in range(1, 41):
    coco.image(image_id, f"{image_id}.jpg", 500, 700)
    for threshold in rng.choice(np.arange(50, 100, 5), 3) / 100:
      # Moved by s, boxes of width w overlap by (w - s) / (w + s).
      shift = float(rng.integers(1, 300)) / 20
      width = shift * (1 + threshold) / (1 - threshold)
      x, y, height = (float(value) / 100 for value in rng.integers(1, 20_000, 3))
      category = int(rng.choice([17, 18, 3]))
      number = len(coco.content["annotations"]) + 100
      coco.annotate(number, image_id, category, [x, y, width, height], area=9.0)
      bbox = [x + shift, y, width, height]
      results.append({"bbox": bbox, "score": rng.random(), "image_id": image_id})
      results[-1]["category_id"] = category
  coco.image(1000, "1000.jpg", 500, 700)
  coco.annotate(1, 1000, 17, [372.27, 100.5, 45, 60.3], area=9.0)
  results.append({**results[0], "bbox": [377.27, 100.5, 45, 60.3], "image_id": 1000})
  coco.content["annotations"] = [
    {"iscrowd": 0, **item}
    for item in coco.content["annotations"]
    if item["image_id"] > 0 and item["id"] not in (70, 71)
  ]
  path = coco.save()
  data = read_coco(coco.root, "val", check_images=False)
  judged = COCOeval(truth := COCO(path), truth.loadRes(results), "bbox")
  judged.evaluate()
  judged.accumulate()
  judged.summarize()
  figures = evaluate_coco(data, results).metrics
  assert [figures[name] for name in ("AP", "AP50", "AP75")] == judged.stats[:3].tolist()
  assert 0.1 < figures["AP"] < 0.9


@pytest.mark.parametrize(
  ("split", "images", "objects", "crowds"),
  [("train2017", 96, 945, 20), ("val", 48, 663, 16)],
)
def test_real_data(real_data, split, images, objects, crowds):
  data = read_coco(real_data("coco_mini"), split)
  assert len(data.records) == images and data.skipped == ()
  assert (len(data.class_names), data.category_ids[-1]) == (80, 90)
  assert sum(len(record.boxes) for record in data.records) == objects
  assert sum(record.ignored.sum() for record in data.records) == crowds
  path = real_data("coco_mini") / "annotations"
  content = json.loads(next(path.glob(f"instances_{split}*.json")).read_text())
  areas = sorted(item["area"] for item in content["annotations"])
  read = np.sort(np.concatenate([record.areas for record in data.records]))
  np.testing.assert_allclose(read, areas, rtol=1e-6)
