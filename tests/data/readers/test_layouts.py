"""Folders as tools and people leave them, read by nothing but their root and a split."""

import csv
import functools
import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from ap_detect import data as data_lib
from ap_detect.data.readers import split_names, splits
from ap_detect.data.records import DataError
from ap_detect.runs import memory

# Decoding the images is tested elsewhere.
read_split = functools.partial(data_lib.read_split, check_images=False)

BOX = [3, 2, 10, 12]  # yxyx, on images of 20 x 30


def ids(data):
  return [record.image_id for record in data.records]


def xml_text(*objects, size="<width>30</width><height>20</height>", filename=""):
  """A VOC annotation; an object is (class, more XML), at BOX."""
  elements = "".join(
    f"<object><name>{name}</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax>"
    f"<ymax>10</ymax></bndbox>{more}</object>"
    for name, more in objects
  )
  return (
    f"<annotation><filename>{filename}</filename><size>{size}</size>{elements}"
    "</annotation>"
  )


@pytest.fixture
def put(tmp_path, write_image):
  """Writes files below a folder: images by their endings, else text or bytes."""
  top = tmp_path / "data"
  top.mkdir()

  def write(*paths, content=None):
    for path in paths:
      full = top / path
      full.parent.mkdir(parents=True, exist_ok=True)
      if content is None:
        write_image(full)
      elif isinstance(content, bytes):
        full.write_bytes(content)
      else:
        full.write_text(content, encoding="utf-8")
    return top

  return write


@pytest.fixture
def put_xml(put):
  def write(*paths, name="cat", **options):
    return put(*paths, content=xml_text((name, ""), **options))

  return write


def coco_json(name="im1.jpg", *, image_id=1, category=1, categories=("cat", "dog")):
  return json.dumps(
    {
      "images": [{"id": image_id, "file_name": name, "width": 30, "height": 20}],
      "annotations": [
        {"id": 1, "image_id": image_id, "category_id": category, "bbox": [2, 3, 10, 7]}
      ],
      "categories": [{"id": k, "name": n} for k, n in enumerate(categories, 1)],
    }
  )


def check_one(data, image_id=None, classes=("cat",)):
  assert data.class_names == classes
  (record,) = data.records
  assert record.boxes.tolist() == [BOX] and record.classes.tolist() == [1]
  assert image_id is None or record.image_id == image_id


class TestXml:
  @pytest.mark.parametrize(
    ("image", "annotation"),
    [
      ("JPEGImages/a.jpg", "Annotations/a.xml"),
      ("images/a.png", "annotations/a.xml"),
      ("images/a.jpeg", "annots/a.xml"),
      ("Images/a.JPG", "labels/a.xml"),
      ("a.jpg", "a.xml"),
      ("cats/a.jpg", "cats/a.xml"),
      ("data/deeper/images/sub/a.jpg", "data/deeper/labels/sub/a.xml"),
      ("images/A.jpg", "annotations/a.XML"),
    ],
  )
  def test_without_lists_all_is_the_training_split(
    self, put, put_xml, image, annotation
  ):
    put(image)
    root = put_xml(annotation)
    data = read_split(root, "train")
    check_one(data, "a")
    assert data.records[0].image == str(root / image)
    with pytest.raises(
      DataError, match=r"no split to validate on, and 0\.2 of 1 images"
    ):
      read_split(root, "val")

  @pytest.mark.parametrize(
    ("train", "val", "test"),
    [
      ("train/{}", "valid/{}", "test/{}"),
      ("Train/{}", "Validation/{}", "TEST/{}"),
      ("data/train/{}", "data/val/{}", "data/test/{}"),
      ("train_images/sub/{}", "val_images/sub/{}", "test_images/{}"),
    ],
  )
  def test_folders_as_splits(self, put, put_xml, train, val, test):
    for folder, name in ((train, "ant"), (val, "bee"), (test, "cat")):
      put(folder.format("a.jpg"))
      root = put_xml(folder.format("a.xml"), name=name)
    for split, class_id in (("train", 1), ("val", 2), ("test", 3)):
      data = read_split(root, split)
      assert data.class_names == ("ant", "bee", "cat")
      assert data.records[0].classes.tolist() == [class_id]
      assert f"/{split}" in data.records[0].image.lower()
    assert (
      ids(read_split(root, "valid")) == ids(read_split(root, "validation")) == ["a"]
    )

  def test_folders_of_the_images_as_splits(self, put, put_xml):
    put("images/train/a.jpg", "images/val/b.jpg")
    root = put_xml("annotations/a.xml", "annotations/b.xml")
    assert ids(read_split(root, "train")) == ["a"]
    assert ids(read_split(root, "val")) == ["b"]

  def test_the_nearest_of_several_images_is_meant(self, put, put_xml):
    for cup in ("red", "blue"):
      put(f"{cup}/images/a.jpg", f"{cup}/masks/a.png")
      root = put_xml(f"{cup}/annotations/a.xml")
    data = read_split(root, "train")
    assert sorted(record.image for record in data.records) == [
      str(root / f"{cup}/images/a.jpg") for cup in ("blue", "red")
    ]
    assert sorted(ids(data)) == ["blue/annotations/a", "red/annotations/a"]

  def test_masks_are_not_taken_for_images(self, put, put_xml):
    """As in Oxford's pets: masks lie closer to the XML files than images do."""
    put("images/a.jpg", "annotations/trimaps/a.png", "annotations/masks/a.png")
    data = read_split(put_xml("annotations/xmls/a.xml"), "train")
    assert data.records[0].image.endswith("/images/a.jpg")

  def test_names_with_signs_of_urls(self, put, put_xml):
    names = ("50%20 a", "b%", "c+d#1?", "ä ü")
    put(*(f"images/{name}.jpg" for name in names))
    root = put_xml(*(f"annotations/{name}.xml" for name in names))
    assert sorted(ids(read_split(root, "train", holdout_share=0))) == sorted(names)

  @pytest.mark.parametrize("other", ["cat", "dog"])
  def test_an_image_annotated_twice(self, put, put_xml, other):
    put("images/a.jpg", "images/b.jpg")
    put_xml("annotations/a.xml", "annotations/b.xml")
    root = put_xml("annotations_old/a.xml", name=other)
    with pytest.raises(DataError, match=r"data\.annotations is the folder") as caught:
      read_split(root, "train")
    assert caught.value.faults == (
      "annotations_old/a.xml: annotates an image that annotations/a.xml does too: "
      "images/a.jpg",
    )
    data = read_split(root, "train", skip_faulty=True, holdout_share=0)
    left = ["annotations/a", "b"] if other == "cat" else ["b"]
    assert ids(data) == left

  def test_an_image_that_cannot_be_told(self, put, put_xml, faults_of):
    put("one/a.jpg", "two/a.jpg")
    root = put_xml("annotations/a.xml", filename="a.jpg")
    (fault,) = faults_of(read_split, root, "train")
    assert fault.startswith("annotations/a.xml: has no image: none below")
    assert fault.endswith("data.images names the folder of the images")
    check_one(read_split(root, "train", images="two"))

  def test_the_named_image_where_the_stem_is_another(self, put, put_xml):
    put("images/IMG 7.jpg")
    root = put_xml("annotations/a.xml", filename="C:\\photos\\IMG 7.jpg")
    check_one(read_split(root, "train"), "a")

  def test_files_outside_the_split_folders_are_noted(self, put, put_xml):
    put("train/a.jpg", "b.jpg")
    root = put_xml("train/a.xml", "b.xml")
    data = read_split(root, "train")
    assert ids(data) == ["a"]
    assert data.notes == (
      "1 XML files are not read, for they lie in no split's folder as others do; the "
      "first: b.xml",
    )

  @pytest.mark.parametrize("lists", ["ImageSets/Main", "ImageSets", "imagesets/main"])
  def test_lists(self, put, put_xml, lists):
    put("JPEGImages/a.jpg", "JPEGImages/sub/b.jpg")
    put_xml("Annotations/a.xml", "Annotations/sub/b.xml")
    root = put(
      f"{lists}/Train.txt", content="a.jpg\n/content/x/JPEGImages/sub/b.jpg 1\n"
    )
    data = read_split(root, "train")
    assert ids(data) == ["a", "sub/b"] and data.class_names == ("cat",)

  def test_lists_of_single_classes_alone_are_united(self, put, put_xml):
    put("JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg")
    put_xml("Annotations/a.xml", "Annotations/b.xml", "Annotations/c.xml")
    put("ImageSets/Main/cat_train.txt", content="a  1\nb -1\n")
    put("ImageSets/Main/dog_train.txt", content="b -1\na  0\n")
    root = put("ImageSets/Main/cat_val.txt", content="c  1\n")
    assert ids(read_split(root, "train")) == ["a", "b"]
    assert ids(read_split(root, "val")) == ["c"]
    assert ids(read_split(root, "cat_val")) == ["c"]

  def test_a_list_in_utf16(self, put, put_xml):
    put("images/katze_ä.jpg")
    put_xml("annotations/katze_ä.xml")
    root = put("ImageSets/Main/train.txt", content="katze_ä\r\n".encode("utf-16"))
    assert ids(read_split(root, "train")) == ["katze_ä"]

  def test_several_boxes_in_an_object(self, put):
    put("a.jpg")
    second = (
      "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
    )
    root = put("a.xml", content=xml_text(("cat", second), ("dog", "")))
    data = read_split(root, "train")
    assert data.records[0].boxes.tolist() == [BOX, [2, 1, 20, 30], BOX]
    assert data.records[0].classes.tolist() == [1, 1, 2]
    assert data.notes[0].startswith("1 objects have several boxes")

  def test_words_for_difficult(self, put):
    put("a.jpg")
    words = ("Unspecified", "True", "2", "", "FALSE", "1")
    objects = [("cat", f"<difficult>{word}</difficult>") for word in words]
    data = read_split(put("a.xml", content=xml_text(*objects)), "train")
    assert data.records[0].ignored.tolist() == [False, True, False, False, False, True]
    assert data.notes == (
      "2 objects have a <difficult> that is neither 0 nor 1, and count as not "
      "difficult; the first: a.xml: object 1 has 'Unspecified'",
    )

  @pytest.mark.parametrize("side", ["30.0", "-1", "0", ""])
  def test_sizes(self, put, side):
    put("a.jpg")
    size = f"<width>{side}</width><height>20</height>"
    check_one(
      read_split(put("a.xml", content=xml_text(("cat", ""), size=size)), "train")
    )

  @pytest.mark.parametrize("one_based", [False, True])
  def test_relative_coordinates_are_refused(self, put, faults_of, one_based):
    put("a.jpg")
    text = xml_text(("cat", "")).replace(">2<", ">.1<").replace(">3<", ">.2<")
    text = text.replace(">12<", ">0.6<").replace(">10<", ">1.0<")
    root = put("a.xml", content=text)
    for skip_faulty in (False, True):
      (fault,) = faults_of(
        read_split,
        root,
        "train",
        skip_faulty=skip_faulty,
        voc_one_based_inclusive=one_based,
      )
      assert fault.startswith("a.xml: object 1 has x ")
      assert fault.endswith(
        "look relative to the image's size, but pixels are required"
      )

  def test_images_without_annotation(self, put, put_xml, faults_of):
    put("JPEGImages/a.jpg", "JPEGImages/b.jpg", "JPEGImages/c.jpg", "JPEGImages/d.jpg")
    put_xml("Annotations/a.xml")
    put("Annotations/c.xml", content=" \n")
    root = put("ImageSets/Main/train.txt", content="a\nb\nc\n")
    with pytest.raises(
      DataError, match=r"data.unannotated_are_negatives=True"
    ) as caught:
      read_split(root, "train")
    assert [fault.split(":")[0] for fault in caught.value.faults] == [
      "Annotations/b.xml",
      "Annotations/c.xml",
    ]
    data = read_split(root, "train", unannotated_are_negatives=True, holdout_share=0)
    assert [(r.image_id, len(r.boxes)) for r in data.records] == [
      ("a", 1),
      ("b", 0),
      ("c", 0),
    ]

  def test_images_that_no_file_names(self, put, put_xml):
    put("train/a.jpg", "train/b.jpg", "val/c.jpg", "val/d.jpg")
    root = put_xml("train/a.xml", "val/c.xml")
    assert ids(read_split(root, "train")) == ["a"]
    options = {"unannotated_are_negatives": True}
    assert ids(read_split(root, "train", **options)) == ["a", "train/b"]
    assert ids(read_split(root, "val", **options)) == ["c", "val/d"]


class TestEncodings:
  def read(self, put, content):
    put("images/a.jpg")
    return read_split(put("annotations/a.xml", content=content), "train")

  @pytest.mark.parametrize(
    ("encoding", "name"),
    [
      ("GBK", "猫"),
      ("gb18030", "猫"),
      ("Shift_JIS", "ネコ"),
      ("windows-1251", "кот"),
      ("ISO-8859-1", "Bär"),
      ("utf-8", "猫"),
      ("utf-8-sig", "猫"),
      ("utf-16", "猫"),
      ("utf-16-le", "猫"),
    ],
  )
  def test_declared_encodings(self, put, encoding, name):
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{xml_text((name, ""))}'
    check_one(self.read(put, text.encode(encoding)), classes=(name,))

  @pytest.mark.parametrize("declared", ["utf-16", "ascii"])
  def test_utf8_that_is_declared_otherwise(self, put, declared):
    text = f'<?xml version="1.0" encoding="{declared}"?>{xml_text(("Bär é", ""))}'
    check_one(self.read(put, text.encode()), classes=("Bär é",))

  @pytest.mark.parametrize(
    "before",
    [
      "\n \t",
      '\n<?xml version="1.0"?>\n',
      "<!DOCTYPE annotation>",
      '<!DOCTYPE annotation SYSTEM "voc.dtd">',
      '<?xml version="1.0"?><!DOCTYPE annotation [<!ELEMENT name (#PCDATA)>]>',
      "<!-- written by a tool -->",
    ],
  )
  def test_what_may_come_before(self, put, before):
    check_one(self.read(put, (before + xml_text(("cat", ""))).encode()))

  @pytest.mark.parametrize(
    "start",
    ['<annotation xmlns="http://a.invalid/voc">', '<annotation verified="yes">'],
  )
  def test_namespaces_and_attributes(self, put, start):
    text = xml_text(("cat", "")).replace("<annotation>", start)
    check_one(self.read(put, text.encode()))

  def test_prefixed_tags(self, put):
    text = xml_text(("cat", "")).replace("<", "<v:").replace("<v:/", "</v:")
    text = text.replace(
      "<v:annotation>", '<v:annotation xmlns:v="http://a.invalid">', 1
    )
    check_one(self.read(put, text.encode()))


class TestCoco:
  @pytest.mark.parametrize(
    ("annotations", "image", "name"),
    [
      ("annotations/instances_default.json", "images/im1.jpg", "im1.jpg"),
      ("_annotations.coco.json", "im1.jpg", "im1.jpg"),
      ("result.json", "images/im1.jpg", "images/im1.jpg"),
      ("result.json", "images/im1.jpg", "../../label-studio/data/im1.jpg"),
      ("labels.json", "data/im1.jpg", "im1.jpg"),
      ("deep/er/my_boxes.json", "elsewhere/im1.jpg", "im1.jpg"),
      ("Annotations/Instances_Default.JSON", "images/im1.jpg", "im1.jpg"),
      ("a.json", "images/im1.jpg", "C:\\Users\\me\\im1.jpg"),
      ("a.json", "images/im1.jpg", "/content/drive/im1.jpg"),
      ("a.json", "images/im 1.jpg", "https://host/bucket/im%201.jpg?token=a"),
      ("a.json", "images/im1.JPG", "im1.jpg"),
      ("a.json", "images/sub/im1.jpg", "sub\\im1.jpg"),
    ],
  )
  def test_a_sole_file_is_the_training_split(self, put, annotations, image, name):
    put(image)
    root = put(annotations, content=coco_json(name))
    data = read_split(root, "train")
    check_one(data, 1, ("cat", "dog"))
    assert data.records[0].image == str(root / image)

  @pytest.mark.parametrize(
    ("annotations", "images"),
    [
      ("annotations/custom_{}.json", "{}2017"),
      ("annotations/{}_v2.json", "images/{}"),
      ("{}/labels.json", "{}/data"),
      ("{}/_annotations.coco.json", "{}"),
      ("my_{}_boxes.json", "all/{}"),
      ("{}.json", "{}"),
      ("coco/annotations/instances_{}2017.json", "coco/{}2017"),
    ],
  )
  def test_splits(self, put, annotations, images):
    for number, split in enumerate(("train", "val", "test"), 1):
      put(f"{images.format(split)}/im1.jpg")
      text = coco_json(image_id=number)
      root = put(annotations.format(split), content=text)
    for number, split in enumerate(("train", "val", "test"), 1):
      data = read_split(root, split)
      assert ids(data) == [number]
      assert f"/{images.format(split)}/" in data.records[0].image

  @pytest.mark.parametrize("name", ["a.jpg", "images/a.jpg", "A.jpg"])
  def test_a_file_listed_twice_is_one_image(self, put, name):
    """As in merged files: held out by one id it would be trained on by the other."""
    put("images/a.jpg", "images/b.jpg")
    content = json.loads(coco_json("a.jpg"))
    content["images"] += [{"id": 2, "file_name": name}, {"id": 3, "file_name": "b.jpg"}]
    boxes = ([2, 3, 10, 7], [0, 0, 5, 5])
    content["annotations"] += [
      {"id": 2 + k, "image_id": 2, "category_id": 1, "bbox": box}
      for k, box in enumerate(boxes)
    ]
    root = put("a.json", content=json.dumps(content))
    data = read_split(root, "train", holdout_share=0)
    assert ids(data) == [1, 3]
    assert data.records[0].boxes.tolist() == [BOX, [0, 0, 5, 5]]
    assert [line.partition(";")[0] for line in data.notes] == [
      "a.json: 1 images are listed again, and are one with the first",
      "a.json: 1 annotations of images that are listed again are the same",
    ]

  def test_an_id_of_two_images_is_of_neither(self, put, faults_of):
    put("a.jpg", "b.jpg", "c.jpg")
    content = json.loads(coco_json("a.jpg"))
    content["images"] += [
      {"id": 1, "file_name": "b.jpg"},
      {"id": 2, "file_name": "c.jpg"},
    ]
    root = put("a.json", content=json.dumps(content))
    assert faults_of(read_split, root, "train") == [
      "a.json: images[1] has id 1, which an earlier one has too"
    ]
    assert ids(read_split(root, "train", skip_faulty=True, holdout_share=0)) == [2]

  def test_one_file_for_the_images_of_all_splits(self, put):
    put("train/a.jpg", "train/b.jpg", "train/c.jpg", "test/d.jpg", "test/e.jpg")
    content = json.loads(coco_json("gone.jpg"))
    for number, name in enumerate(("a", "b", "c", "test/d"), 2):
      content["images"].append({"id": number, "file_name": f"{name}.jpg"})
      content["annotations"].append(
        {"id": number, "image_id": number, "category_id": 1, "bbox": [2, 3, 10, 7]}
      )
    del content["images"][0], content["annotations"][0]
    root = put("annotations.json", content=json.dumps(content))
    train, val = (ids(read_split(root, split)) for split in ("train", "val"))
    assert sorted(train + val) == [2, 3, 4] and len(val) == 1
    assert ids(read_split(root, "test")) == [5]
    content["images"][0]["file_name"] = "gone.jpg"
    put("annotations.json", content=json.dumps(content))
    for split in ("train", "test"):
      with pytest.raises(DataError, match=r"gone\.jpg: there is no such file"):
        read_split(root, split)

  def test_a_sole_file_beside_one_of_images_to_test_on(self, put):
    """It is trained on but for what is held out, which "val" is then too."""
    put(*(f"val2017/{k}.jpg" for k in range(5)), "test2017/t.jpg")
    content = json.loads(coco_json("0.jpg", image_id=0))
    content["images"] += [{"id": k, "file_name": f"{k}.jpg"} for k in range(1, 5)]
    put("annotations/captions_val2017.json", content=json.dumps(content))
    root = put("annotations/instances_val2017.json", content=json.dumps(content))
    content["images"] = [{"id": 9, "file_name": "t.jpg"}]
    del content["annotations"]
    put("annotations/image_info_test2017.json", content=json.dumps(content))
    train, val = (ids(read_split(root, split)) for split in ("train", "val"))
    assert sorted(train + val) == [*range(5)] and len(val) == 1
    assert ids(read_split(root, "test")) == [9]

  def test_addresses_in_place_of_names(self, put):
    """As in LVIS."""
    put("train2017/a.jpg")
    content = json.loads(coco_json())
    del content["images"][0]["file_name"]
    content["images"][0]["coco_url"] = "http://images.invalid/train2017/a.jpg"
    root = put("lvis_v1_train.json", content=json.dumps(content))
    check_one(read_split(root, "train"), 1, ("cat", "dog"))

  def test_captions_and_key_points_are_not_meant(self, put):
    put("val2017/im1.jpg")
    for kind in ("captions", "person_keypoints"):
      put(f"annotations/{kind}_val2017.json", content=coco_json(categories=["person"]))
    root = put("annotations/instances_val2017.json", content=coco_json())
    check_one(read_split(root, "val2017"), 1, ("cat", "dog"))
    check_one(read_split(root, "train"), 1, ("cat", "dog"))

  def test_other_json_files_are_passed_over(self, put):
    put("images/im1.jpg")
    put("info.json", content='{"images": 1, "classes": ["cat"]}')
    put("detections.json", content='[{"image_id": 1, "bbox": [1, 2, 3, 4]}]')
    put("empty.json", content="")
    check_one(
      read_split(put("x.json", content=coco_json()), "train"), 1, ("cat", "dog")
    )

  def test_several_files_that_may_be_meant(self, put, faults_of):
    put("images/im1.jpg")
    put("one.json", content=coco_json())
    root = put("two.json", content=coco_json(category=2))
    with pytest.raises(DataError, match=r"data\.annotations names the file"):
      read_split(root, "train")
    data = read_split(root, "train", annotations="two.json")
    assert data.records[0].classes.tolist() == [2]

  def test_a_pattern_for_the_splits(self, put):
    put("images/im1.jpg")
    for number, part in enumerate(("train", "val"), 1):
      put(f"old/{part}.json", content=coco_json(image_id=number))
      root = put(f"new/{part}.json", content=coco_json(image_id=number + 10))
    for split, image_id in (("train", 11), ("val", 12)):
      options = {"annotations": "new/{split}.json"}
      assert ids(read_split(root, split, **options)) == [image_id]

  def test_categories_of_all_splits_are_united(self, put):
    put("train/im1.jpg", "val/im1.jpg")
    put("annotations/instances_train.json", content=coco_json(categories=["cat"]))
    text = coco_json(category=2, categories=["cow", "cat"])
    root = put("annotations/instances_val.json", content=text)
    train, val = read_split(root, "train"), read_split(root, "val")
    # "cow" has cat's id of the training split, and gets a free one there.
    assert train.class_names == val.class_names == ("cat", "cow")
    assert (train.category_ids, val.category_ids) == ((1, 2), (2, 1))
    assert train.records[0].classes.tolist() == val.records[0].classes.tolist() == [1]

  def test_two_categories_of_one_name(self, put):
    put("im1.jpg")
    text = coco_json(category=3, categories=["cat", "dog", "cat"])
    data = read_split(put("_annotations.coco.json", content=text), "train")
    assert data.class_names == ("cat", "dog") and data.category_ids == (3, 2)
    assert data.records[0].classes.tolist() == [1]

  def test_a_path_never_leaves_the_root(self, put, tmp_path, write_image, faults_of):
    write_image(tmp_path / "secret.jpg")
    put("other.jpg")
    root = put("a.json", content=coco_json("../secret.jpg"))
    assert faults_of(read_split, root, "train") == [
      "a.json: image 1 names '../secret.jpg', which leaves the data folder"
    ]
    (root / "secret.jpg").symlink_to(tmp_path / "secret.jpg")
    (fault,) = faults_of(read_split, root, "train")
    assert fault.endswith("names 'secret.jpg', a link that leaves the data folder")


YOLO_LINE = "0 0.2333333 0.325 0.3333333 0.35\n"  # BOX, on 20 x 30


class TestYolo:
  @pytest.mark.parametrize("names", ["['cat']", "{0: cat}", "\n  - cat", "\n  0: cat"])
  @pytest.mark.parametrize(
    ("entry", "image", "label"),
    [
      ("../train/images", "train/images/a.jpg", "train/labels/a.txt"),
      ("train/images", "train/images/a.jpg", "train/labels/a.txt"),
      ("images/train", "images/train/a.jpg", "labels/train/a.txt"),
      ("images/train/", "images/train/sub/a.png", "labels/train/sub/a.txt"),
      ("/content/set/images/train", "images/train/a.jpg", "labels/train/a.txt"),
      ("./train", "train/a.jpg", "train/a.txt"),
      ("C:\\set\\images\\train", "Images/train/a.jpg", "Labels/train/a.txt"),
      ("[images/train]", "images/train/a.jpg", "labels/train/a.txt"),
    ],
  )
  def test_layouts(self, put, names, entry, image, label):
    if image.startswith("Images") and not entry.startswith("["):
      entry = entry.replace("images", "Images")
    put(image)
    put(label, content=YOLO_LINE)
    root = put("data.yaml", content=f"train: {entry}\nnc: 1\nnames: {names}\n")
    data = read_split(root, "train")
    assert ids(data) == ["a"] and data.class_names == ("cat",)
    np.testing.assert_allclose(data.records[0].boxes, [BOX], atol=1e-5)
    assert data.records[0].classes.tolist() == [1]

  def test_the_root_is_the_file_s_path(self, put):
    put("set/images/train/a.jpg", "set/images/val/b.jpg")
    put("set/labels/train/a.txt", "set/labels/val/b.txt", content=YOLO_LINE)
    text = "path: ../set\ntrain: images/train\nval: images/val\nnames: [cat]\n"
    root = put("configs/my.yaml", content=text)
    assert ids(read_split(root, "train")) == ["a"]
    assert ids(read_split(root, "val")) == ["b"]

  def test_lists_of_images(self, put):
    put("images/a.jpg", "images/b.jpg", "images/c.jpg")
    put("labels/a.txt", "labels/c.txt", content=YOLO_LINE)
    put("train.txt", content="./images/a.jpg\n/home/me/set/images/b.jpg\n\n")
    put("val.txt", content="images/c.jpg\n")
    text = "train: train.txt\nval: val.txt\nnames: [cat]\n"
    root = put("data.yml", content=text)
    data = read_split(root, "train")
    assert [(r.image_id, len(r.boxes)) for r in data.records] == [("a", 1), ("b", 0)]
    assert ids(read_split(root, "val")) == ["c"]
    put("train.txt", content="images/a.jpg\n../../etc/passwd\n")
    with pytest.raises(DataError, match=r"train.txt: line 2: '../../etc/passwd' is no"):
      read_split(root, "train")

  def test_negatives_polygons_and_scores(self, put):
    put("images/a.jpg", "images/b.jpg", "images/c.jpg", "images/d.jpg")
    put("labels/a.txt", content="")
    put("labels/c.txt", content="1 0.1 0.2 0.5 0.2 0.5 0.9 0.3 0.5\n")
    put("labels/d.txt", content="0 0.5 0.5 1 1 0.87\n\n")
    root = put("data.yaml", content="train: images\nnames: [cat, dog]\n")
    data = read_split(root, "train", holdout_share=0)
    assert ids(data) == ["a", "b", "c", "d"]
    assert [r.classes.tolist() for r in data.records] == [[], [], [2], [1]]
    np.testing.assert_allclose(data.records[2].boxes, [[4, 3, 18, 15]])
    np.testing.assert_allclose(data.records[3].boxes, [[0, 0, 20, 30]])

  def test_key_points_are_no_polygon(self, put):
    put("images/a.jpg")
    put("labels/a.txt", content=YOLO_LINE.strip() + " 0.1 0.2 0.9 0.8\n")
    text = "train: images\nnames: [cat]\nkpt_shape: [2, 2]\n"
    data = read_split(put("data.yaml", content=text), "train")
    np.testing.assert_allclose(data.records[0].boxes, [BOX], atol=1e-5)

  def put_boxes(self, put, *stems, content=YOLO_LINE, labels="labels"):
    put(*(f"images/{stem}.jpg" for stem in stems))
    return put(*(f"{labels}/{stem}.txt" for stem in stems), content=content)

  def test_folders_are_found_in_any_case(self, put):
    put("Train/Images/a.JPEG", "valid/IMAGES/b.jpg")
    put("Train/Labels/a.TXT", "valid/LABELS/b.txt", content=YOLO_LINE)
    text = "train: ../train/images\nval: ../Valid/images\nnames: [cat]\n"
    root = put("data.yaml", content=text)
    assert ids(read_split(root, "train")) == ["a"]
    assert ids(read_split(root, "val")) == ["b"]

  @pytest.mark.parametrize("val", ["images", "../valid/images", "./images/"])
  def test_validation_on_the_training_images_is_none(self, put, val):
    """As in coco128.yaml, or where the folders of an export were merged."""
    self.put_boxes(put, *"abcde")
    root = put("data.yaml", content=f"train: images\nval: {val}\nnames: [cat]\n")
    train, val = (ids(read_split(root, split)) for split in ("train", "val"))
    assert sorted(train + val) == [*"abcde"] and len(val) == 1

  def test_names_are_texts(self, put):
    self.put_boxes(put, "a")
    root = put("data.yaml", content="train: images\nnames: [no, 1.0, 007, null]\n")
    assert read_split(root, "train").class_names == ("no", "1.0", "007", "null")

  def test_two_classes_of_one_name_are_one(self, put):
    self.put_boxes(put, "a", content="2 .5 .5 1 1\n0 .5 .5 1 1\n1 .5 .5 1 1\n")
    root = put("data.yaml", content="train: images\nnames: [cat, dog, cat]\n")
    data = read_split(root, "train")
    assert data.class_names == ("cat", "dog")
    assert data.records[0].classes.tolist() == [1, 1, 2]

  def test_images_without_text_file_are_said(self, put):
    self.put_boxes(put, "a")
    put("images/b.jpg", "images/c.jpg")
    root = put("data.yaml", content="train: images\nnames: [cat]\n")
    assert read_split(root, "train", holdout_share=0).notes == (
      "2 images have no text file, and count as images without objects; the first: "
      "images/b.jpg",
    )

  @pytest.mark.parametrize("annotations", ["data.yaml", "classes.txt", "boxes"])
  def test_the_annotations_may_be_named(self, put, annotations):
    """A file with the names, or a folder of text files that is not called labels."""
    labels = "boxes" if annotations == "boxes" else "labels"
    self.put_boxes(put, "a", "b", labels=labels)
    put("other.yaml", content="train: images/\nnames: [ant]\n")
    put("classes.txt", content="cat\n")
    root = put("data.yaml", content="train: images\nnames: [cat]\n")
    if annotations == "boxes":
      (root / "other.yaml").unlink()
    data = read_split(root, "train", annotations=annotations, holdout_share=0)
    assert data.class_names == ("cat",) and [len(r.boxes) for r in data.records] == [
      1,
      1,
    ]

  def test_copies_of_a_file_are_one(self, put):
    self.put_boxes(put, "a")
    put("old/data.yaml", content="train: images\nnames: [cat]\n")
    root = put("data.yaml", content="names: {0: cat}\ntrain: ./images\n")
    assert ids(read_split(root, "train")) == ["a"]
    put("old/data.yaml", content="train: images\nnames: [dog]\n")
    with pytest.raises(DataError, match=r"any of data\.yaml, old/data\.yaml"):
      read_split(root, "train")

  @pytest.mark.parametrize("lists", ["obj.data", "classes.txt", "data.yaml"])
  def test_lists_of_darknet(self, put, lists):
    put("obj_train_data/a.jpg", "obj_train_data/b.jpg", "obj_train_data/c.jpg")
    stems = "abc"
    put(*(f"obj_train_data/{stem}.txt" for stem in stems), content=YOLO_LINE)
    put("train.txt", content="data/obj_train_data/a.jpg\ndata/obj_train_data/b.jpg\n")
    root = put("valid.txt", content="data/obj_train_data/c.jpg\n")
    if lists == "obj.data":
      put("obj.names", content="cat\n")
      text = (
        "classes = 1\ntrain = data/train.txt\nvalid=data/valid.txt\n"
        "names = data/obj.names\nbackup = backup/\n"
      )
    elif lists == "data.yaml":
      text = "train: data/train.txt\nvalid: valid.txt\nnames: [cat]\n"
    else:
      text = "cat\n"
    put(lists, content=text)
    data = read_split(root, "train")
    assert ids(data) == ["a", "b"] and data.class_names == ("cat",)
    np.testing.assert_allclose(data.records[0].boxes, [BOX], atol=1e-5)
    assert ids(read_split(root, "val")) == ["c"]

  def test_the_folders_of_splits_and_images_in_the_other_order(self, put):
    parts = {"train": "ab", "val": "cd", "test": "e"}
    for split, stems in parts.items():
      put(*(f"images/{split}/{stem}.jpg" for stem in stems))
      put(*(f"labels/{split}/{stem}.txt" for stem in stems), content=YOLO_LINE)
    entries = "".join(f"{split}: ../{split}/images\n" for split in parts)
    root = put("data.yaml", content=f"{entries}names: [cat]\n")
    for split, stems in parts.items():
      assert ids(read_split(root, split)) == [*stems]

  def test_entries_that_lead_nowhere(self, put, faults_of):
    put("images/a.jpg", "images/b.jpg")
    put("labels/a.txt", "labels/b.txt", content=YOLO_LINE)
    text = "train: ../train/images\nval: ../valid/images\nnames: [cat]\n"
    (fault,) = faults_of(read_split, put("data.yaml", content=text), "train")
    assert "train is '../train/images', which has no image there" in fault

  def test_text_files_without_image_are_said(self, put):
    put("images/a.jpg")
    put("labels/a.txt", "labels/b.txt", content=YOLO_LINE)
    put("labels/classes.txt", content="cat\n")
    root = put("data.yaml", content="train: images\nnames: [cat]\n")
    (note,) = read_split(root, "train").notes
    assert note == "1 text files of boxes have no image; the first: labels/b.txt"

  def test_examples_of_a_tool_are_not_meant(self, put, put_xml):
    """A clone of it may lie in the folder."""
    text = "path: ../datasets/coco\ntrain: images/train2017\nnames: [ant]\n"
    root = put("tool/data/coco.yaml", content=text)
    (root / "tool/data/lost.data").symlink_to(root / "nowhere")
    put("train/a.jpg", "valid/b.jpg")
    put_xml("train/a.xml", "valid/b.xml")
    check_one(read_split(root, "train"), "a")
    (root / "train/a.xml").unlink()
    (root / "valid/b.xml").unlink()
    put("train/a.txt", content=YOLO_LINE)
    put("data.yaml", content="train: train\nnames: [cat]\n")
    data = read_split(root, "train")
    assert ids(data) == ["a"] and data.class_names == ("cat",)

  def test_a_list_of_names_in_each_folder(self, put):
    """As labelImg leaves them."""
    put("train/a.jpg", "val/b.jpg", "images/c.jpg")
    put("train/a.txt", "images/c.txt", content=YOLO_LINE)
    root = put("train/classes.txt", content="cat\ndog\n")
    put("val/b.txt", content="1" + YOLO_LINE[1:])
    put("val/classes.txt", content="bee\ncat\n")
    for split, image_id, class_id in (("train", "a", 1), ("val", "b", 1)):
      data = read_split(root, split)
      assert ids(data) == [image_id] and data.class_names == ("cat", "dog", "bee")
      assert data.records[0].classes.tolist() == [class_id]

  def test_what_keeps_a_file_from_being_read_is_said(self, put, faults_of):
    self.put_boxes(put, "a")
    root = put("data.yaml", content="train: images\n\tval: images\nnames: [cat]\n")
    fault = faults_of(read_split, root, "train")[1]
    assert fault.startswith("data.yaml: is not YAML: while scanning")
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"classes, one a line, into .*/classes\.txt"):
      read_split(root, "train")
    put("data.yaml", content="train: /x/tr\nval: images\ntest: [t]\nnames: [cat]\n")
    put("t/b.jpg")
    (fault,) = faults_of(read_split, root, "train", holdout_share=0)
    assert fault == (
      f"data.yaml: has no split 'train' with images below {root}; it has 1 of val, 1 of "
      "test; train is '/x/tr', which has no image there"
    )

  @pytest.mark.parametrize("kind", ["train.txt", "classes.txt"])
  def test_lists_that_are_links_lead_nowhere(self, put, faults_of, tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_text("cat\nsecret\n")
    self.put_boxes(put, "a")
    root = put("data.yaml", content=f"train: {kind}\nnames: [cat]\n")
    if kind == "classes.txt":
      (root / "data.yaml").unlink()
    (root / kind).symlink_to(secret)
    assert "secret\n" not in "\n".join(faults_of(read_split, root, "train"))

  @pytest.mark.parametrize("field", ["names", "train", "path", "val"])
  def test_aliases_are_not_written_out(self, put, faults_of, field):
    """A billion laughs; the names of objects of Python make none."""
    self.put_boxes(put, "a")
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 40)]
    entries = {"names": "[cat]", "train": "images", field: "[*a39]"}
    lines += [f"{key}: {value}" for key, value in entries.items()]
    root = put("data.yaml", content="\n".join(lines))
    if field in ("names", "train"):
      assert faults_of(read_split, root, "train")
    else:
      assert ids(read_split(root, "train")) == ["a"]

  @pytest.mark.parametrize(
    "text",
    [
      "names: [!!python/object/apply:os.system ['touch hacked']]\ntrain: images\n",
      "names: &n [*n]\ntrain: images\n",
      "names: " + "[\n " * 3000 + "]" * 3000 + "\ntrain: images\n",
      "names: {? [cat] : 0}\ntrain: images\n",
      "names: !!timestamp x\ntrain: images\n",
    ],
  )
  def test_hostile_yaml(self, put, faults_of, monkeypatch, text):
    monkeypatch.chdir(self.put_boxes(put, "a"))
    assert faults_of(read_split, put("data.yaml", content=text), "train")
    assert not os.path.exists("hacked")

  @pytest.mark.parametrize(
    ("path", "image", "label"),
    [
      ("classes.txt", "images/a.jpg", "labels/a.txt"),
      ("labels/classes.txt", "images/a.jpg", "labels/a.txt"),
      ("classes.txt", "a.jpg", "a.txt"),
      ("obj.names", "obj_train_data/a.jpg", "obj_train_data/a.txt"),
      ("classes.txt", "img/a.jpg", "label/a.txt"),
      ("classes.txt", "images/train/a.jpg", "annotations/train/a.txt"),
    ],
  )
  def test_a_list_of_names(self, put, path, image, label):
    put(image)
    put(label, content=YOLO_LINE)
    root = put(path, content="cat\ndog\n")
    data = read_split(root, "train")
    assert ids(data) == ["a"] and data.class_names == ("cat", "dog")

  @pytest.mark.parametrize(
    ("line", "reason", "fate"),
    [
      ("3 .5 .5 .2 .2", "has class 3, which data.yaml does not name", [0]),
      ("cat .5 .5 .2 .2", "begins with 'cat', not a class's number", [0]),
      ("0 .5 .5 .2", "has 3 numbers after its class, neither", None),
      ("0 .5 .5 .2 nan", "has '0 .5 .5 .2 nan', not finite numbers", None),
      ("0 .5 .5 0 .2", "has width 0 and height 0.2: an empty box", None),
      ("0 15 10 20 10", "has x 15, y 10, width 20, height 10: fractions of", None),
      ("0 .95 .5 .9 .2", "leaves the image of 30 x 20 pixels", [0]),
      ("0 .1 .1 .2 .2 .3 .3 .4", "has 7 numbers after its class, neither", None),
    ],
  )
  def test_faulty_lines(self, put, faults_of, line, reason, fate):
    put("images/a.jpg", "images/b.jpg")
    put("labels/b.txt", content=f"{YOLO_LINE}{line}\n")
    root = put("data.yaml", content="train: images\nnames: [cat]\n")
    options = {"holdout_share": 0}
    (fault,) = faults_of(read_split, root, "train", **options)
    assert fault.startswith(f"labels/b.txt: line 2 {reason}")
    data = read_split(root, "train", skip_faulty=True, **options)
    assert ids(data) == ["a", *(["b"] if fate else [])]
    if fate:
      assert data.records[1].classes.tolist() == [1, *fate]
      assert data.records[1].ignored.tolist() == [False, True]

  def test_no_text_file_at_all(self, put, faults_of):
    put("images/a.jpg")
    root = put("data.yaml", content="train: images\nnames: [cat]\n")
    (fault,) = faults_of(read_split, root, "train")
    assert "none of the 1 images of split 'train' has a text file" in fault

  def test_boxes_are_of_the_turned_image(self, put):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    root = put("labels/a.txt", content="0 0.25 0.1 0.5 0.2\n")
    (root / "images").mkdir()
    Image.new("RGB", (30, 20)).save(root / "images/a.jpg", exif=exif)
    put("data.yaml", content="train: images\nnames: [cat]\n")
    record = read_split(root, "train").records[0]
    assert (record.height, record.width) == (30, 20)
    np.testing.assert_allclose(record.boxes, [[0, 0, 6, 10]])


class TestCsv:
  HEADER = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")

  def table(self, put, path, *rows):
    root = put(path, content="")
    with open(root / path, "w", newline="") as file:
      csv.writer(file).writerows([self.HEADER, *rows])
    return root

  def test_tables_of_splits(self, put):
    put("images/train/a.jpg", "images/test/b.jpg", "images/val/c.jpg")
    row = (30, 20, "cat", 2, 3, 12, 10)
    self.table(put, "images/train_labels.csv", ("a.jpg", *row), ("a.jpg", *row))
    self.table(put, "images/test_labels.csv", ("b.jpg", 30, 20, "dog", 0, 0, 5, 5))
    root = self.table(put, "val/_annotations.csv", ("c.jpg", *row))
    data = read_split(root, "train")
    assert data.class_names == ("cat", "dog") and ids(data) == ["a.jpg"]
    assert data.records[0].boxes.tolist() == [BOX, BOX]
    assert ids(read_split(root, "test")) == ["b.jpg"]
    assert ids(read_split(root, "val")) == ["c.jpg"]

  def test_one_table_for_the_images_of_all_splits(self, put):
    put("train/a.jpg", "train/b.jpg", "train/c.jpg", "test/d.jpg", "test/e.jpg")
    names = ("a.jpg", "train/b.jpg", "c.jpg", "d.jpg")
    rows = [(name, 30, 20, "cat", 2, 3, 12, 10) for name in names]
    root = self.table(put, "boxes.csv", *rows)
    train, val = (ids(read_split(root, split)) for split in ("train", "val"))
    assert sorted(train + val) == sorted(names[:3]) and len(val) == 1
    check_one(read_split(root, "test"), "d.jpg")

  def test_two_tables_of_a_split(self, put, faults_of):
    put("a.jpg")
    row = ("a.jpg", 30, 20, "cat", 2, 3, 12, 10)
    self.table(put, "train_labels.csv", row)
    root = self.table(put, "train_more.csv", row)
    (fault,) = faults_of(read_split, root, "train")
    assert fault.endswith("the split 'train' could be any of several")
    check_one(read_split(root, "train", annotations="train_more.csv"), "a.jpg")

  @pytest.mark.parametrize("mark", [",", ";", "\t"])
  def test_headers(self, put, mark):
    put("a.jpg")
    text = 'Class,XMin,YMin,XMax,YMax,Filename\r\n"cat",2,3,12,10,a.jpg\r\n'
    root = put("boxes.csv", content=("\ufeff" + text.replace(",", mark)).encode())
    check_one(read_split(root, "train"), "a.jpg")

  def test_what_a_table_lacks_is_said(self, put, faults_of):
    put("a.jpg")
    root = put("train.csv", content="image,xmin,ymin,xmax,ymax\na.jpg,2,3,12,10\n")
    assert faults_of(read_split, root, "train")[1] == (
      "train.csv: has the columns image, xmin, ymin, xmax, ymax, but lacks filename, class"
    )

  def test_an_image_named_in_several_ways(self, put):
    put("images/a.jpg")
    names = ("a.jpg", "images/a.jpg", "A.JPG")
    rows = [(name, 30, 20, "cat", 2, 3, 12, 10) for name in names]
    data = read_split(self.table(put, "boxes.csv", *rows), "train")
    assert ids(data) == ["a.jpg"] and data.records[0].boxes.tolist() == [BOX] * 3

  def test_negatives(self, put):
    put("a.jpg", "b.jpg", "c.jpg")
    row = ("a.jpg", 30, 20, "cat", 2, 3, 12, 10)
    root = self.table(put, "boxes.csv", row, ("b.jpg", 30, 20, "", "", "", "", ""))
    options = {"holdout_share": 0}
    data = read_split(root, "train", **options)
    assert [(r.image_id, len(r.boxes)) for r in data.records] == [
      ("a.jpg", 1),
      ("b.jpg", 0),
    ]
    data = read_split(root, "train", unannotated_are_negatives=True, **options)
    assert ids(data) == ["a.jpg", "b.jpg", "c.jpg"]

  def test_faults(self, put, faults_of):
    put("a.jpg")
    root = self.table(
      put,
      "boxes.csv",
      ("a.jpg", 60, 20, "cat", 2, 3, 12, 10),
      ("a.jpg", 60, 20, "cat", "x", 3, 12, 10),
      ("b.jpg", 30, 20, "cat", 2, 3, 12, 10),
      ("../../etc/passwd", 30, 20, "cat", 2, 3, 12, 10),
    )
    starts = [
      "boxes.csv: line 3 has ymin, xmin, ymax, xmax ['3', 'x', '10', '12'], not finite",
      "boxes.csv: line 4 names 'b.jpg': no image",
      "boxes.csv: line 5 names '../../etc/passwd': no image",
      "boxes.csv: gives a.jpg 60 x 20 pixels, but it has 30 x 20",
    ]
    faults = faults_of(read_split, root, "train")
    assert len(faults) == len(starts)
    assert all(fault.startswith(start) for fault, start in zip(faults, starts))


class TestHoldout:
  @pytest.fixture
  def root(self, put, put_xml):
    names = [f"{number:02d}" for number in range(13)]
    put(*(f"{name}.jpg" for name in names))
    return put_xml(*(f"{name}.xml" for name in names))

  @pytest.mark.parametrize(("share", "count"), [(0.2, 3), (0.5, 6), (0.04, 1)])
  def test_parts_are_disjoint_and_whole(self, root, share, count):
    options = {"holdout_share": share}
    train, val = (ids(read_split(root, s, **options)) for s in ("train", "val"))
    assert len(val) == count and sorted(train + val) == [f"{k:02d}" for k in range(13)]
    assert train == sorted(train) and val == sorted(val)
    assert val == ids(read_split(root, "val", **options))
    assert val != [f"{k:02d}" for k in range(count)]

  def test_variants_of_an_image_stay_together(self, put, put_xml):
    """Roboflow writes several of each image to train on."""
    stems = [f"{k}_jpg.rf.{variant}" for k in range(10) for variant in "abc"]
    put(*(f"train/{stem}.jpg" for stem in stems))
    root = put_xml(*(f"train/{stem}.xml" for stem in stems))
    train, val = (ids(read_split(root, split)) for split in ("train", "val"))
    assert sorted(train + val) == sorted(stems) and len(val) == 6
    assert {name[0] for name in train}.isdisjoint(name[0] for name in val)

  def test_it_can_be_forbidden(self, root):
    assert len(read_split(root, "train", holdout_share=0).records) == 13
    with pytest.raises(DataError, match="no folder is named for the split 'val'"):
      read_split(root, "val", holdout_share=0)

  def test_the_same_images_after_one_more(self, root, put, put_xml):
    before = ids(read_split(root, "val"))
    put("new.jpg")
    put_xml("new.xml")
    assert len(set(before) - set(ids(read_split(root, "val")))) <= 1

  def test_those_that_are_held_out_already(self, root, put, put_xml):
    data = read_split(root, "train", holdout_share=0)
    held_out = frozenset(["03", "x/04"])
    parts = [splits.take(data, kind, 0.5, held_out) for kind in ("held out", "rest")]
    assert ids(parts[0]) == ["03"] and len(parts[1].records) == 12
    put("one/a.jpg", "two/a.jpg")  # so that ids become paths
    root = put_xml("one/a.xml", "two/a.xml")
    data = read_split(root, "train", holdout_share=0)
    found = splits.take(data, "held out", 0.5, frozenset(["a", "01"]))
    assert ids(found) == ["01", "one/a", "two/a"]
    assert len(splits.take(data, "held out", 0.5, frozenset(["z"])).records) == 8

  @pytest.mark.parametrize("name", ["test", "default", "valid", "trainval"])
  def test_a_sole_split_of_any_name_is_train(self, root, put, name):
    for folder in ("JPEGImages", "Annotations"):
      (root / folder).mkdir()
    for number in range(10):
      os.rename(root / f"{number:02d}.jpg", root / f"JPEGImages/{number}.jpg")
      os.rename(root / f"{number:02d}.xml", root / f"Annotations/{number}.xml")
    stems = "\n".join(map(str, range(10)))
    put(f"ImageSets/Main/{name}.txt", content=stems)
    train, val = (ids(read_split(root, s)) for s in ("train", "val"))
    assert sorted(train + val) == [str(k) for k in range(10)] and len(val) == 2
    # By its own name it is whole, where that means nothing else.
    assert len(read_split(root, name).records) == (10 if name != "val" else 2)

  def test_test_is_never_validation(self, put, put_xml):
    for number in range(5):
      put(f"train/{number}.jpg", f"test/{number}.jpg")
      root = put_xml(f"train/{number}.xml", f"test/{number}.xml")
    val = read_split(root, "val")
    assert len(val.records) == 1 and "/train/" in val.records[0].image
    assert len(read_split(root, "train").records) == 4
    assert len(read_split(root, "test").records) == 5
    options = {"val_split": "test"}
    assert len(read_split(root, "train", **options).records) == 5
    assert len(read_split(root, "test", **options).records) == 5

  def test_trainval_beside_test(self, put, put_xml):
    put(*(f"JPEGImages/{name}.jpg" for name in "abcdef"))
    put_xml(*(f"Annotations/{name}.xml" for name in "abcdef"))
    put("ImageSets/Main/trainval.txt", content="a\nb\nc\nd\ne\n")
    root = put("ImageSets/Main/test.txt", content="f\n")
    train, val = (ids(read_split(root, split)) for split in ("train", "val"))
    assert sorted(train + val) == [*"abcde"] and len(val) == 1
    put("ImageSets/Main/val.txt", content="e\n")
    with pytest.raises(
      DataError, match=r"exist\ndata\.train_split and data\.val_split"
    ):
      read_split(root, "train")

  @pytest.mark.parametrize("kind", ["xml", "txt"])
  def test_images_beside_a_folder_for_testing(self, put, put_xml, kind):
    put(*(f"{name}.jpg" for name in "abcde"), "test/f.jpg")
    if kind == "xml":
      root = put_xml(*(f"{name}.xml" for name in "abcde"), "test/f.xml")
    else:
      put(*(f"{name}.txt" for name in "abcde"), "test/f.txt", content=YOLO_LINE)
      root = put("classes.txt", content="cat\n")
    train, val = (ids(read_split(root, split)) for split in ("train", "val"))
    assert sorted(train + val) == [*"abcde"] and len(val) == 1
    assert ids(read_split(root, "test")) == ["f"]

  def test_of_joined_splits(self, put, put_xml):
    for number in range(5):
      put(f"one/{number}.jpg", f"two/x{number}.jpg")
      root = put_xml(f"one/{number}.xml", f"two/x{number}.xml")
    options = {"train_split": "one/train+two/train"}
    train = read_split(root, "one/train+two/train", **options)
    val = read_split(root, "val", **options)
    assert (len(train.records), len(val.records)) == (8, 2)
    assert not set(ids(train)) & set(ids(val))


class TestFolders:
  @pytest.mark.parametrize(
    ("written", "here"),
    [
      *((".", "{}"), ("./", "{}"), ("{}", ""), ("{}/", ""), ("./{}", "")),
      *(("../{}//", "xml"), ("{}/.", "")),
    ],
  )
  def test_any_way_to_write_the_root(self, put, put_xml, monkeypatch, written, here):
    put("yolo/train/images/a.jpg", "xml/images/a.jpg")
    put("yolo/train/labels/a.txt", content=YOLO_LINE)
    put("yolo/data.yaml", content="train: ../train/images\nnames: [cat]\n")
    top = put_xml("xml/annotations/a.xml")
    for name, places in (
      ("yolo", {}),
      ("xml", {}),
      ("xml", {"annotations": "annotations", "images": "images/"}),
      ("xml", {"annotations": "./annotations/a.xml", "images": "."}),
    ):
      monkeypatch.chdir(top / here.format(name))
      (record,) = read_split(written.format(name), "train", **places).records
      assert record.image.startswith(str(top / name / ""))
      np.testing.assert_allclose(record.boxes, [BOX], atol=1e-5)

  def test_several_formats_are_named(self, put, put_xml, faults_of):
    put("images/a.jpg")
    put_xml("annotations/a.xml")
    root = put("labels.json", content=coco_json("a.jpg"))
    with pytest.raises(DataError, match=r"data\.format says which") as caught:
      read_split(root, "train")
    (fault,) = caught.value.faults
    assert f"voc for {root}/annotations/a.xml; coco for {root}/labels.json" in fault
    check_one(read_split(root, "train", data_format="voc"), "a")
    check_one(read_split(root, "train", data_format="coco"), 1, ("cat", "dog"))
    check_one(read_split(root, "train", annotations="annotations"), "a")

  def test_boxes_beside_xml(self, put, put_xml):
    put("images/a.jpg")
    put("labels/a.txt", content=YOLO_LINE)
    put_xml("annotations/a.xml")
    root = put("classes.txt", content="cat\n")
    with pytest.raises(DataError, match=r"a\.xml; yolo for .*classes\.txt"):
      read_split(root, "train")
    check_one(read_split(root, "train", annotations="annotations"), "a")
    assert ids(read_split(root, "train", annotations="labels")) == ["a"]
    (root / "labels/a.txt").unlink()  # a list of names alone is none of boxes
    check_one(read_split(root, "train"), "a")

  def test_nothing_that_is_known(self, put, faults_of):
    root = put("photos/a.jpg", "photos/b.jpg")
    put("notes.doc", content="")
    with pytest.raises(DataError) as caught:
      read_split(root, "train")
    (fault,) = caught.value.faults
    assert all(f" {name}: " in fault for name in ("VOC", "COCO", "YOLO", "CSV"))
    assert fault.endswith(
      "Found notes.doc, photos (files at and below it: 1 .doc, 2 .jpg)"
    )
    assert "2 images without annotations are enough for `ap_detect predict`" in str(
      caught.value
    )
    assert faults_of(read_split, root / "none", "train") == [
      f"{root}/none: there is no such folder"
    ]

  @pytest.mark.parametrize("folder", ["images", "Annotations", "train"])
  def test_a_root_within_a_dataset(self, put, folder):
    root = put(f"{folder}/a.jpg")
    with pytest.raises(DataError, match=f"lie side by side, give {root}(\n|$)"):
      read_split(root / folder, "train")

  def test_names_that_are_not_utf8(self, put, put_xml, faults_of):
    """TensorFlow could not open them."""
    put("a.jpg", "b.jpg")
    root = put_xml("a.xml", "b.xml")
    os.rename(root / "b.jpg", os.fsencode(root) + b"/\xff.jpg")
    os.rename(root / "b.xml", os.fsencode(root) + b"/\xff.xml")
    (fault,) = faults_of(read_split, root, "train")
    assert fault == (
      "\\udcff.jpg: its name is not UTF-8, as TensorFlow wants it; rename it"
    )
    assert ids(read_split(root, "train", skip_faulty=True, holdout_share=0)) == ["a"]

  def test_folders_that_cannot_be_read_are_passed_over(self, put, put_xml, monkeypatch):
    put("a.jpg", "lost+found/b.jpg")
    root = put_xml("a.xml", "lost+found/b.xml")
    scandir = os.scandir

    def refuse(path):
      if os.path.basename(path) == "lost+found":
        raise PermissionError(13, "Permission denied", path)
      return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = read_split(root, "train")
    assert ids(data) == ["a"]
    assert data.notes == (f"{root}/lost+found: cannot be read, and is passed over",)

  def test_links_are_followed_only_to_folders_of_data(self, put, put_xml, tmp_path):
    put("a.jpg")
    root = put_xml("a.xml")
    (tmp_path / "disk").mkdir()
    (root / "a.jpg").rename(tmp_path / "disk/a.jpg")
    (root / "backup").symlink_to("/")
    (root / "images").symlink_to(tmp_path / "disk")
    (root / "train").symlink_to(root)  # a loop
    (root / "data").symlink_to("/")
    check_one(read_split(root, "train"), "a")

  def test_pictures_of_a_run_are_passed_over(self, put):
    put("images/a.jpg", "runs/mine/samples/b.png", "runs/mine/eval/val/c.jpg")
    put("runs/mine/config.json", "runs/mine/classes.json", content="{}")
    put("runs/mine/checkpoints/x.index", content="")
    put("labels/a.txt", content=YOLO_LINE)
    root = put("classes.txt", content="cat\n")
    assert ids(read_split(root, "train")) == ["a"]

  def test_pipes_are_no_files(self, put, put_xml):
    put("images/a.jpg")
    root = put_xml("annotations/a.xml")
    for name in ("a.json", "b.yaml", "c.xml", "d.csv", "obj.data", "images/a.png"):
      os.mkfifo(root / name)
    (root / "classes.txt").symlink_to(root / "a.json")
    check_one(read_split(root, "train"), "a")

  def test_folders_in_folders(self, put, put_xml, monkeypatch):
    """Deeper than Python calls functions."""
    put("a.jpg")
    root = put_xml("a.xml")
    monkeypatch.chdir(root)
    limit = sys.getrecursionlimit()
    for _ in range(limit):
      os.mkdir("d")
      os.chdir("d")
    check_one(read_split(root, "train"), "a")
    os.chdir(root)
    assert len(memory.fingerprint([str(root)])) == 64
    subprocess.run(["rm", "-r", str(root / "d")], check=True)  # pytest cannot

  def test_hidden_files_are_passed_over(self, put, put_xml):
    put("a.jpg", "__MACOSX/a.jpg")
    put_xml("a.xml", ".cache/b.xml", "__MACOSX/a.xml")
    root = put("._a.xml", content=b"\0\x05\x16\x07")
    check_one(read_split(root, "train"), "a")


class TestNames:
  """A name is of the file that it means, in any way to write it, or of none."""

  def coco(self, put, *names, path="train.json"):
    content = {
      "images": [{"id": k, "file_name": name} for k, name in enumerate(names, 1)],
      "annotations": [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [2, 3, 10, 7]}
        for k in range(1, len(names) + 1)
      ],
      "categories": [{"id": 1, "name": "cat"}],
    }
    return put(path, content=json.dumps(content))

  def csv(self, put, *names):
    lines = ["filename,class,xmin,ymin,xmax,ymax"]
    return put(
      "train.csv", content="\n".join(lines + [f"{n},cat,2,3,12,10" for n in names])
    )

  def cvat(self, put, *names):
    box = '<box label="cat" xtl="2" ytl="3" xbr="12" ybr="10"/>'
    images = [f'<image name="{n}" width="30" height="20">{box}</image>' for n in names]
    return put("train.xml", content=f"<annotations>{''.join(images)}</annotations>")

  def yolo(self, put, *names):
    put("train.txt", content="\n".join(names))
    put("images/s2/1.txt", "images/s2/2.txt", content=YOLO_LINE)
    return put("data.yaml", content="train: train.txt\nnames: [cat]\n")

  @pytest.mark.parametrize("write", [coco, csv, cvat, yolo])
  def test_a_missing_image_is_not_one_of_its_name_elsewhere(
    self, put, faults_of, write
  ):
    put("images/s2/1.jpg", "images/s2/2.jpg")
    root = write(self, put, "s1/1.jpg", "s2/2.jpg")
    (fault,) = faults_of(read_split, root, "train")
    assert "names 's1/1.jpg': there is no such file" in fault
    assert os.path.join("images", "s2", "1.jpg") in fault
    root = write(self, put, "s2/1.jpg", "images/s2/2.jpg")
    assert len(read_split(root, "train").records) == 2

  @pytest.mark.parametrize("write", [coco, csv, cvat, yolo])
  def test_the_better_of_two_names(self, put, faults_of, write):
    put("images/s2/1.jpg", "images/s2/2.jpg")
    root = write(self, put, "a/s2/1.jpg", "images/s2/1.jpg", "s2/2.jpg")
    (fault,) = faults_of(read_split, root, "train")
    assert "names 'a/s2/1.jpg'" in fault and "'images/s2/1.jpg' is as well or" in fault

  @pytest.mark.parametrize("write", [coco, csv, cvat, yolo])
  def test_two_names_as_good(self, put, faults_of, write):
    put("images/s2/1.jpg")
    root = write(self, put, "a/1.jpg", "b/1.jpg")
    first, second = faults_of(read_split, root, "train")
    assert "names 'a/1.jpg'" in first and "names 'b/1.jpg'" in second

  def test_paths_of_another_machine(self, put):
    put("pictures/1.jpg", "pictures/2.jpg")
    root = self.coco(put, "/home/me/data/1.jpg", "/home/me/data/2.jpg")
    assert len(read_split(root, "train").records) == 2

  def test_images_of_another_split(self, put, put_xml, faults_of):
    put("images/val/1.jpg", "images/train/2.jpg")
    root = put_xml("annotations/train/1.xml", "annotations/train/2.xml")
    (fault,) = faults_of(read_split, root, "train")
    assert fault.endswith(
      "1.xml: is in a folder of split 'train', but the only image of its name in one of "
      "'val': images/val/1.jpg"
    )

  def test_folders_that_mirror_each_other(self, put, put_xml):
    put("images/s1/1.jpg", "images/s2/1.jpg")
    root = put_xml("annotations/s1/1.xml", "annotations/s2/1.xml")
    data = read_split(root, "train")
    assert [record.image for record in data.records] == [
      str(root / "images/s1/1.jpg"),
      str(root / "images/s2/1.jpg"),
    ]

  def test_accents(self, put, put_xml):
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    put(f"voc/{apart}.jpg")
    check_one(read_split(put_xml(f"voc/{composed}.xml") / "voc", "train"))
    put(f"listed/JPEGImages/{composed}.jpg")
    put("listed/ImageSets/Main/train.txt", content=composed)
    root = put_xml(f"listed/Annotations/{apart}.xml")
    check_one(read_split(root / "listed", "train"))
    put(f"coco/{apart}.jpg")
    root = put("coco/train.json", content=coco_json(f"{composed}.jpg"))
    check_one(read_split(root / "coco", "train"), classes=("cat", "dog"))
    put(f"yolo/images/train/{apart}.jpg")
    put(f"yolo/labels/train/{composed}.txt", content=YOLO_LINE)
    root = put("yolo/data.yaml", content="train: images/train\nnames: [cat]\n")
    assert read_split(root / "yolo", "train").records[0].classes.tolist() == [1]

  @pytest.mark.parametrize("xml", ["a.XML", "A.xml"])
  def test_the_case_of_listed_annotations(self, put, put_xml, xml):
    put("JPEGImages/a.jpg")
    put("ImageSets/Main/train.txt", content="a")
    root = put_xml(f"Annotations/{xml}")
    check_one(read_split(root, "train"), "a")
    check_one(read_split(root, "train", unannotated_are_negatives=True), "a")

  @pytest.mark.parametrize(
    ("of_image", "named"), [(7, "000007"), ("000007", 7), ("007", "7"), (0, "000")]
  )
  def test_ids_with_zeros_before_them(self, put, of_image, named):
    content = json.loads(coco_json(image_id=of_image))
    content["annotations"][0]["image_id"] = named
    put("im1.jpg")
    root = put("train.json", content=json.dumps(content))
    check_one(read_split(root, "train"), of_image, classes=("cat", "dog"))

  def test_classes_that_are_numbers(self, put):
    put("im1.jpg")
    root = put("train.json", content=coco_json(categories=(0, 1)))
    check_one(read_split(root, "train"), 1, classes=("0", "1"))

  @pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"]
  )
  def test_encodings(self, put, encoding):
    put("c/im1.jpg", "t/im1.jpg")
    root = put("c/train.json", content=coco_json().encode(encoding))
    check_one(read_split(root / "c", "train"), 1, classes=("cat", "dog"))
    line = "filename,class,xmin,ymin,xmax,ymax\nim1.jpg,cat,2,3,12,10\n"
    root = put("t/train.csv", content=line.encode(encoding))
    check_one(read_split(root / "t", "train"))

  def test_images_that_are_links_get_advice(self, put, put_xml, tmp_path, write_image):
    root = put_xml("a.xml")
    (root / "a.jpg").symlink_to(write_image(tmp_path / "blobs" / "1.jpg"))
    with pytest.raises(DataError, match=r"data\.root may be a folder that has what"):
      read_split(root, "train")


@pytest.mark.parametrize(
  ("wanted", "names", "chosen"),
  [
    ("train", ["train", "training"], ["train"]),
    ("train", ["Train", "val"], ["Train"]),
    ("train", ["train2017", "val2017"], ["train2017"]),
    ("train", ["train2014", "train2017"], ["train2014", "train2017"]),
    ("train", ["trainval", "val"], []),
    ("val", ["valid", "train"], ["valid"]),
    ("valid", ["val", "train"], ["val"]),
    ("val", ["custom_val", "custom_train"], ["custom_val"]),
    ("val", ["test", "train"], []),
    ("mine", ["train"], []),
  ],
)
def test_choose_a_name(wanted, names, chosen):
  assert split_names.choose(names, wanted) == chosen


def test_a_sole_name():
  assert split_names.choose(["mine"], "train", sole=True) == ["mine"]
  assert split_names.choose(["mine"], "val", sole=True) == []
  assert split_names.choose(["mine", "yours"], "train", sole=True) == []
  for others, chosen in (
    (["trainval", "test"], ["trainval"]),
    (["trainval", "val", "test"], []),
    (["", "test"], [""]),
    (["", "val", "test"], [""]),
    (["all", "test"], []),
    (["val", "test"], []),
  ):
    assert split_names.choose(others, "train", sole=True) == chosen
    assert split_names.choose(others, "train") == []
