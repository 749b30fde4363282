"""data.readers.voc: what is read, and every fault by file, object and reason."""

import os

import numpy as np
import pytest

from ap_detect.data.readers.voc import read_voc
from ap_detect.data.records import DataError

BILLION_LAUGHS = (
  '<!DOCTYPE annotation [<!ENTITY a "ha">'
  + "".join(f'<!ENTITY {y} "{f"&{x};" * 10}">' for x, y in zip("abcdefgh", "bcdefghi"))
  + "]><annotation><filename>&i;</filename></annotation>"
)
EXTERNAL_ENTITY = (
  '<!DOCTYPE annotation [<!ENTITY file SYSTEM "file:///etc/passwd">]>'
  "<annotation><filename>&file;</filename></annotation>"
)


def test_reads_boxes_classes_and_images_without_objects(voc):
  data = read_voc(voc.root, "train")
  assert data.class_names == ("cat", "dog")  # sorted
  assert data.category_ids == (1, 2)
  assert not data.ignored_are_crowds and data.skipped == ()
  first, second = data.records
  assert (first.image_id, second.image_id) == ("a", "b")
  assert first.image == str(voc.root / "JPEGImages/a.jpg")
  assert (first.height, first.width) == (20, 30)
  # Plain coordinates: yxyx of (2, 3, 12, 10) and (5, 6, 30, 20).
  np.testing.assert_array_equal(first.boxes, [[3, 2, 10, 12], [6, 5, 20, 30]])
  np.testing.assert_array_equal(first.classes, [2, 1])
  np.testing.assert_array_equal(first.areas, [7 * 10, 14 * 25])
  np.testing.assert_array_equal(first.ignored, [False, False])
  assert second.boxes.shape == (0, 4) and second.areas.shape == (0,)
  types = {
    field: getattr(first, field).dtype for field in ("boxes", "classes", "areas")
  }
  assert types == {"boxes": np.float64, "classes": np.int32, "areas": np.float64}


def test_devkit_rule_counts_pixels_from_one_and_includes_the_last(voc):
  voc.add("c", ("cat", 1, 1, 30, 20), ("cat", 4, 5, 4, 5))
  voc.split("one", "c")
  record = read_voc(voc.root, "one", one_based_inclusive=True).records[0]
  # The whole image, and the single pixel of column 4 and row 5.
  np.testing.assert_array_equal(record.boxes, [[0, 0, 20, 30], [4, 3, 5, 4]])


def test_difficult_objects_are_ignored(voc):
  for value, stem in (("1", "c"), ("0", "d"), ("", "e")):
    voc.add(stem, ("cat", 2, 3, 12, 10, f"<difficult>{value}</difficult>"))
  voc.split("three", "c", "d", "e")
  ignored = [record.ignored[0] for record in read_voc(voc.root, "three").records]
  assert ignored == [True, False, False]


def test_classes_are_those_of_all_splits_and_other_files_may_be_faulty(voc):
  voc.add("c", ("ant", 2, 3, 12, 10), ("", 9, 9, 1, 1))
  voc.write_xml("d", "<annotation><object>")
  voc.split("other", "c", "d")
  assert read_voc(voc.root, "train").class_names == ("ant", "cat", "dog")


def test_given_class_names_set_the_order(voc):
  data = read_voc(voc.root, "train", class_names=["dog", "cow", "cat"])
  assert data.class_names == ("dog", "cow", "cat")
  np.testing.assert_array_equal(data.records[0].classes, [1, 3])
  with pytest.raises(ValueError, match="must differ"):
    read_voc(voc.root, "train", class_names=["dog", "dog"])


def test_split_lines_may_have_the_column_of_a_class(voc):
  voc.add("cell 1", ("cat", 2, 3, 12, 10))
  voc.split("cat_train", "a  1", "", "b -1", "cell 1  0", "")
  data = read_voc(voc.root, "cat_train")
  assert [record.image_id for record in data.records] == ["a", "b", "cell 1"]
  voc.split("plain", "cell 1")
  assert [record.image_id for record in read_voc(voc.root, "plain").records] == [
    "cell 1"
  ]


def test_image_is_found_by_stem_first_then_by_filename(voc, write_image):
  voc.add("c", extra="<filename>a.jpg</filename>", image="png")
  voc.add("d", extra="<filename>other name.jpeg</filename>", image="")
  write_image(voc.root / "JPEGImages/other name.jpeg")
  voc.split("two", "c", "d")
  names = [os.path.basename(r.image) for r in read_voc(voc.root, "two").records]
  assert names == ["c.png", "other name.jpeg"]


def test_overshoot_of_one_pixel_is_clipped(voc):
  voc.add("c", ("cat", -1, 0, 31, 20.5))
  voc.split("one", "c")
  record = read_voc(voc.root, "one").records[0]
  np.testing.assert_array_equal(record.boxes, [[0, 0, 20, 30]])
  np.testing.assert_array_equal(record.areas, [600])


@pytest.mark.parametrize(
  "size", ["", "<size><width>0</width><height>0</height></size>"]
)
def test_size_may_be_left_open(voc, size):
  item = voc.object_xml("cat", 2, 3, 12, 10)
  voc.write_xml("b", f"<annotation>{size}{item}</annotation>")
  record = read_voc(voc.root, "train").records[1]
  assert (record.height, record.width) == (20, 30)


# Faults of one object, each with the reason that must be given. The image is 30 x 20. The
# place of the last ones is known: the box of what is ignored, as of class 0.
OBJECT_FAULTS = {
  "xmax below xmin": (("cat", 11, 3, 9, 10), "has xmax 9 <= xmin 11"),
  "xmax is xmin": (("cat", 9, 3, 9, 10), "has xmax 9 <= xmin 9"),
  "ymax below ymin": (("cat", 2, 10, 12, 3), "has ymax 3 <= ymin 10"),
  "word": (("cat", 2, 3, "wide", 10), "has xmax 'wide', not a finite number"),
  "empty": (("cat", 2, 3, "", 10), "has xmax '', not a finite number"),
  "nan": (("cat", 2, "nan", 12, 10), "has ymin 'nan', not a finite number"),
  "infinite": (("cat", 2, 3, "inf", 10), "has xmax 'inf', not a finite number"),
  "nothing inside": (
    ("cat", 30, 3, 31, 10),
    "has no area inside the image of 30 x 20 pixels: x 30 to 31, y 3 to 10",
  ),
  "outside": (
    ("cat", 2, 3, 33.5, 10),
    "leaves the image of 30 x 20 pixels: x 2 to 33.5, y 3 to 10",
    [3, 2, 10, 30],
  ),
  "outside above": (
    ("cat", 2, -2.5, 12, 10),
    "leaves the image of 30 x 20 pixels: x 2 to 12, y -2.5 to 10",
    [0, 2, 10, 12],
  ),
  "unknown class": (
    ("cow", 2, 3, 12, 10),
    "has class 'cow', which is not in the list of classes",
    [3, 2, 10, 12],
  ),
  "no name": (("", 2, 3, 12, 10), "has no name", [3, 2, 10, 12]),
}


@pytest.mark.parametrize("kind", OBJECT_FAULTS)
def test_faulty_object_is_named_or_never_background(voc, faults_of, kind):
  item, reason, *place = OBJECT_FAULTS[kind]
  voc.add("c", ("dog", 2, 3, 12, 10), item, ("cat", 5, 6, 30, 20))
  voc.split("two", "b", "c")
  expected = [f"Annotations/c.xml: object 2 {reason}"]
  options = {"class_names": ["cat", "dog"]}
  assert faults_of(read_voc, voc.root, "two", **options) == expected
  data = read_voc(voc.root, "two", skip_faulty=True, **options)
  assert data.skipped == tuple(expected)
  assert [record.image_id for record in data.records] == ["b", *("c" for _ in place)]
  for box in place:
    record = data.records[1]
    assert record.classes.tolist() == [2, 0, 1]
    assert record.ignored.tolist() == [False, True, False]
    assert record.boxes.tolist() == [[3, 2, 10, 12], box, [6, 5, 20, 30]]


def test_object_without_bndbox(voc, faults_of):
  voc.write_xml("b", "<annotation><object><name>cat</name></object></annotation>")
  assert faults_of(read_voc, voc.root, "train") == [
    "Annotations/b.xml: object 1 has no bndbox"
  ]


# Faults of a whole annotation file: its text (None: no file), and the fault after its
# path. What follows "..." is the parser's own.
FILE_FAULTS = {
  "missing": (None, "there is no such file"),
  "malformed": ("<annotation><object></annotation>", "is not well-formed XML: ..."),
  "empty": ("", "is not well-formed XML: ..."),
  "other XML": ("<html/>", "is a <html>, not an <annotation>"),
  "unknown encoding": (
    '<?xml version="1.0" encoding="klingon"?><annotation/>',
    "is not well-formed XML: ...",
  ),
  "billion laughs": (BILLION_LAUGHS, "declares entities, which are not read: ..."),
  "external": (EXTERNAL_ENTITY, "declares entities, which are not read: ..."),
  "external in UTF-16": (
    EXTERNAL_ENTITY.encode("utf-16"),
    "declares entities, which are not read: ...",
  ),
  "other size": (
    "<annotation><size><width>60</width><height>40</height></size></annotation>",
    "gives JPEGImages/b.jpg 60 x 40 pixels, but it has 30 x 20",
  ),
  "turned": (
    "<annotation><size><width>20</width><height>30</height></size></annotation>",
    "gives JPEGImages/b.jpg 20 x 30 pixels, but it has 30 x 20",
  ),
  "size in words": (
    "<annotation><size><width>wide</width><height>9</height></size></annotation>",
    "has height and width ['9', 'wide'], not numbers",
  ),
  "absurd size": (
    "<annotation><size><width>9</width><height>%s</height></size></annotation>"
    % ("9" * 400),
    "has an impossible size: ...",
  ),
  "negative size": (
    "<annotation><size><width>-3</width><height>9</height></size></annotation>",
    "has an impossible size: -3 x 9 pixels",
  ),
}


@pytest.mark.parametrize("kind", FILE_FAULTS)
def test_faulty_annotation_is_named_or_its_image_skipped(voc, faults_of, kind):
  text, reason = FILE_FAULTS[kind]
  if text is None:
    (voc.root / "Annotations/b.xml").unlink()
  elif isinstance(text, bytes):
    (voc.root / "Annotations/b.xml").write_bytes(text)
  else:
    voc.write_xml("b", text)
  (fault,) = faults_of(read_voc, voc.root, "train")
  start, dots, _ = f"Annotations/b.xml: {reason}".partition("...")
  assert fault.startswith(start) if dots else fault == start
  assert "root:" not in fault  # nothing of the file that an external entity names
  data = read_voc(voc.root, "train", skip_faulty=True)
  assert data.skipped == (fault,)
  assert [record.image_id for record in data.records] == ["a"]


IMAGE_FAULTS = {
  "missing": "there is no such file",
  "empty": "is empty",
  "no image": "is no JPEG, PNG, GIF or BMP, by its first bytes",
  "truncated": "truncated or damaged: ",
  "huge": "its header claims 100000 x 100000 pixels, more than 50000000 in all",
}


@pytest.mark.parametrize("kind", IMAGE_FAULTS)
def test_faulty_image_is_named_or_skipped(voc, faults_of, write_huge_png, kind):
  path = voc.root / "JPEGImages/a.jpg"
  content = path.read_bytes()
  if kind == "missing":
    path.unlink()
  elif kind == "huge":
    write_huge_png(path)
  else:
    path.write_bytes({"empty": b"", "no image": b"<html>"}.get(kind, content[:-60]))
  (fault,) = faults_of(read_voc, voc.root, "train")
  assert fault.startswith(f"JPEGImages/a.jpg: {IMAGE_FAULTS[kind]}")
  data = read_voc(voc.root, "train", skip_faulty=True)
  assert [record.image_id for record in data.records] == ["b"]
  assert data.skipped == (fault,)


def test_without_check_images_only_headers_are_read(voc):
  path = voc.root / "JPEGImages/a.jpg"
  path.write_bytes(path.read_bytes()[:-60])
  assert len(read_voc(voc.root, "train", check_images=False).records) == 2


def test_pixel_limit(voc, faults_of):
  assert faults_of(read_voc, voc.root, "train", max_image_pixels=599) == [
    f"JPEGImages/{stem}.jpg: its header claims 30 x 20 pixels, more than 599 in all"
    for stem in "ab"
  ]
  read_voc(voc.root, "train", max_image_pixels=600)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\x", "a\0b"])
def test_split_line_that_leaves_the_folder(voc, faults_of, name):
  voc.split("bad", "a", name)
  (fault,) = faults_of(read_voc, voc.root, "bad")
  assert fault.startswith("ImageSets/Main/bad.txt: line 2: names '")
  assert fault.endswith("', which leaves the data folder")
  assert len(read_voc(voc.root, "bad", skip_faulty=True).records) == 1


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_filename_that_leaves_the_folder(voc, faults_of, name):
  voc.add("c", extra=f"<filename>{name}</filename>", image="")
  voc.split("bad", "a", "c")
  assert faults_of(read_voc, voc.root, "bad") == [
    f"Annotations/c.xml: names '{name}', which leaves the data folder"
  ]


def test_link_that_leaves_the_folder(voc, faults_of, tmp_path_factory, write_image):
  outside = write_image(tmp_path_factory.mktemp("outside") / "secret.jpg")
  image = voc.root / "JPEGImages/a.jpg"
  image.unlink()
  image.symlink_to(outside)
  annotation = voc.root / "Annotations/b.xml"
  annotation.unlink()
  annotation.symlink_to(outside)
  assert faults_of(read_voc, voc.root, "train") == [
    "ImageSets/Main/train.txt: line 2: "
    "names 'b.xml', a link that leaves the data folder",
    "Annotations/a.xml: names 'a.jpg', a link that leaves the data folder",
  ]


def test_folders_may_be_links_themselves(voc, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp("disk") / "images"
  (voc.root / "JPEGImages").rename(elsewhere)
  (voc.root / "JPEGImages").symlink_to(elsewhere, target_is_directory=True)
  assert len(read_voc(voc.root, "train").records) == 2


def test_stem_twice_in_a_split(voc):
  voc.split("double", "a", "b", "", "a.jpg", "b")
  data = read_voc(voc.root, "double")
  assert [record.image_id for record in data.records] == ["a", "b"]
  assert data.notes == (
    "2 lines of lists name an image again, and are passed over; the first: "
    "ImageSets/Main/double.txt: line 4: 'a', as line 1",
  )


def test_all_faults_are_listed_together(voc, faults_of):
  voc.add("c", ("cow", 11, 3, 9, 10), ("cat", "x", 3, 9, 10), image="")
  voc.write_xml("d", "<annotation>")
  voc.split("bad", "a", "a", "../x", "c", "d")
  faults = faults_of(read_voc, voc.root, "bad", class_names=["cat", "dog"])
  starts = [
    "ImageSets/Main/bad.txt: line 3: names '../x.xml', which leaves",
    "Annotations/c.xml: object 1 has class 'cow'",
    "Annotations/c.xml: object 2 has xmin 'x'",
    "Annotations/d.xml: is not well-formed XML",
    "JPEGImages/c.jpg: there is no such file",
    "Annotations/c.xml: object 1 has xmax 9 <= xmin 11",
    "JPEGImages/d.jpg: there is no such file",
  ]
  assert len(faults) == len(starts)
  for fault, start in zip(faults, starts):
    assert fault.startswith(start)


def test_boxes_are_checked_without_any_size(voc, faults_of):
  voc.write_xml("b", f"<annotation>{voc.object_xml('cat', 9, 3, 2, 10)}</annotation>")
  (voc.root / "JPEGImages/b.jpg").unlink()
  assert faults_of(read_voc, voc.root, "train") == [
    "JPEGImages/b.jpg: there is no such file",
    "Annotations/b.xml: object 1 has xmax 2 <= xmin 9",
  ]


def test_faults_are_listed_where_no_annotation_can_be_read(voc, faults_of):
  voc.write_xml("a", "<annotation>")
  (fault,) = faults_of(read_voc, voc.root, "train")
  assert fault.startswith("Annotations/a.xml: is not well-formed XML")
  faults = faults_of(read_voc, voc.root, "train", skip_faulty=True)
  assert faults[1:] == ["there is no sound class"]


def test_skipping_everything_is_an_error(voc, faults_of):
  voc.split("bad", "../x")
  faults = faults_of(read_voc, voc.root, "bad", skip_faulty=True)
  assert faults[-1] == "there is no sound image"


@pytest.mark.parametrize("skip_faulty", [False, True])
def test_faults_of_the_whole_split(voc, faults_of, skip_faulty):
  root, options = voc.root, {"skip_faulty": skip_faulty}
  assert faults_of(read_voc, root / "none", "train", **options) == [
    f"{root}/none: there is no such folder"
  ]
  voc.split("val", "", " ")
  assert faults_of(read_voc, root, "val", **options) == [
    "ImageSets/Main/val.txt: names no image"
  ]
  assert faults_of(read_voc, root, "test", **options) == [
    f"{root}/ImageSets/Main/test.txt: there is no such split; train, val exist"
  ]
  (root / "ImageSets/Main/bytes.txt").write_bytes(b"\xff\xfe\x00")
  (fault,) = faults_of(read_voc, root, "bytes", **options)
  assert fault.startswith("ImageSets/Main/bytes.txt: is not text in UTF-8 or UTF-16")
  with pytest.raises(DataError, match="no XML file below it is an annotation"):
    read_voc(root / "JPEGImages", "train", **options)


def test_split_none_of_whose_images_has_xml_is_without_labels(voc, faults_of):
  for stem in ("c", "d"):
    voc.add(stem, image="png")
    (voc.root / f"Annotations/{stem}.xml").unlink()
  voc.split("test", "c", "d")
  data = read_voc(voc.root, "test", class_names=["dog", "cat"])
  assert not data.has_labels
  assert data.class_names == ("dog", "cat") and data.category_ids == (1, 2)
  assert [record.image_id for record in data.records] == ["c", "d"]
  assert data.records[0].image == str(voc.root / "JPEGImages/c.png")
  assert (data.records[0].height, data.records[0].width) == (20, 30)
  assert data.records[0].boxes.shape == (0, 4)
  assert read_voc(voc.root, "train").has_labels
  assert faults_of(read_voc, voc.root, "test") == [
    "ImageSets/Main/test.txt: none of its images has an XML file; a "
    "split without labels requires data.class_names"
  ]
  # One that has it makes faults of the others.
  voc.split("test", "c", "a", "d")
  assert faults_of(read_voc, voc.root, "test") == [
    f"Annotations/{stem}.xml: there is no such file" for stem in ("c", "d")
  ]


def test_annotations_may_be_absent_where_there_are_no_labels(voc, faults_of):
  root = voc.root / "data"
  bare = type(voc)(root / "bare")
  (bare.root / "Annotations").rmdir()
  (voc.root / "JPEGImages/a.jpg").rename(bare.root / "JPEGImages/a.jpg")
  bare.split("test", "a")
  data = read_voc(root, "test", class_names=["cat"])
  assert not data.has_labels and [record.image_id for record in data.records] == ["a"]
  (fault,) = faults_of(read_voc, root, "test")
  assert fault.endswith("a split without labels requires data.class_names")
  assert faults_of(read_voc, root, "val", class_names=["cat"]) == [
    f"{bare.root}/ImageSets/Main/val.txt: there is no such split; test exist"
  ]
  # Where a whole layout has the split, that is meant.
  whole = type(voc)(root / "whole")
  whole.add("e", ("cat", 2, 3, 12, 10))
  whole.split("test", "e")
  assert [record.image_id for record in read_voc(root, "test").records] == ["e"]


def test_faulty_pictures_of_a_split_without_labels(
  voc, faults_of, tmp_path_factory, write_image
):
  outside = write_image(tmp_path_factory.mktemp("outside") / "secret.jpg")
  (voc.root / "JPEGImages/c.jpg").symlink_to(outside)
  write_image(voc.root / "JPEGImages/e.jpg")
  voc.split("test", "c", "d", "e")
  options = {"class_names": ["cat"]}
  expected = [
    "ImageSets/Main/test.txt: names 'c.jpg', a link that leaves the data folder",
    "JPEGImages/d.jpg: there is no such file",
  ]
  assert faults_of(read_voc, voc.root, "test", **options) == expected
  data = read_voc(voc.root, "test", skip_faulty=True, **options)
  assert [record.image_id for record in data.records] == ["e"]
  assert data.skipped == tuple(expected)


@pytest.mark.parametrize("line", ["b", "b.jpg"])
def test_image_list_takes_images_and_hides_the_others(voc, tmp_path, line):
  (voc.root / "JPEGImages/a.jpg").unlink()
  voc.write_xml("a", "<annotation>")
  (tmp_path / "list.txt").write_text(f"{line}\n\n")
  options = {"image_list": tmp_path / "list.txt", "class_names": ["cat"]}
  data = read_voc(voc.root, "train", **options)
  assert [record.image_id for record in data.records] == ["b"]


def test_image_list_keeps_the_order_of_the_split(voc, tmp_path):
  (tmp_path / "list.txt").write_text("b\na\n")
  data = read_voc(voc.root, "train", image_list=tmp_path / "list.txt")
  assert [record.image_id for record in data.records] == ["a", "b"]


def test_faults_of_an_image_list(voc, faults_of, tmp_path):
  path = tmp_path / "list.txt"
  options = {"image_list": path, "class_names": ["cat", "dog"]}
  path.write_text("b\nx\n\nb.jpg\ny\n")
  expected = [
    f"{path}: line 2: 'x' is not in the split",
    f"{path}: line 4: 'b.jpg' is the image of line 1 again",
    f"{path}: line 5: 'y' is not in the split",
  ]
  assert faults_of(read_voc, voc.root, "train", **options) == expected
  data = read_voc(voc.root, "train", skip_faulty=True, **options)
  assert data.skipped == tuple(expected) and len(data.records) == 1
  for text, reason in (
    (b"", "names no image"),
    (b"\n \n", "names no image"),
    (b"x", "line 1: 'x' is not in the split"),
    (b"\xff\xfe\0", "is not text in UTF-8 or UTF-16"),
    (None, "cannot be read: No such file or directory"),
  ):
    path.unlink() if text is None else path.write_bytes(text)
    for skip_faulty in (False, True):
      (fault,) = faults_of(
        read_voc, voc.root, "train", skip_faulty=skip_faulty, **options
      )
      assert fault.startswith(f"{path}: {reason}")


def test_folder_below_the_root_is_found_and_ambiguity_refused(tmp_path, faults_of, voc):
  below = tmp_path / "data/VOCdevkit/MINE"
  below.parent.mkdir(parents=True)
  for part in ("Annotations", "JPEGImages", "ImageSets"):
    (below / part).parent.mkdir(exist_ok=True)
    (tmp_path / part).rename(below / part)
  root = tmp_path / "data"
  assert len(read_voc(root, "train").records) == 2
  other = type(voc)(root / "VOCdevkit/OTHER")
  assert len(read_voc(root, "train").records) == 2  # the other has no such split
  other.split("train", "a")
  assert faults_of(read_voc, root, "train") == [
    f"{root}: 2 folders have the split 'train': {below}, {other.root}; "
    "give one of them as root, or before the split, as in VOCdevkit/MINE/train"
  ]
  assert faults_of(read_voc, root, "test") == [
    f"{below}/ImageSets/Main/test.txt: there is no such split; train exist",
    f"{other.root}/ImageSets/Main/test.txt: there is no such split; train exist",
  ]


# Counts by the tables that come with the data; one object of BCCD's train split and
# one of its val split are points (xmax = xmin); their images are left out.
@pytest.mark.parametrize(
  ("name", "split", "images", "classes", "objects", "difficult", "skipped"),
  [
    ("bccd", "train", 204, 3, 2793, 0, 1),
    ("bccd", "val", 86, 3, 1124, 0, 1),
    ("bccd", "test", 72, 3, 945, 0, 0),
    ("voc2007", "mini_train", 600, 20, 2008, 403, 0),
  ],
)
def test_real_data(
  real_data, name, split, images, classes, objects, difficult, skipped
):
  data = read_voc(
    real_data(name),
    split,
    one_based_inclusive=name == "voc2007",
    skip_faulty=True,
    check_images=False,
  )
  assert (len(data.records), len(data.class_names)) == (images, classes)
  assert sum(len(record.boxes) for record in data.records) == objects
  assert sum(record.ignored.sum() for record in data.records) == difficult
  assert len(data.skipped) == skipped
