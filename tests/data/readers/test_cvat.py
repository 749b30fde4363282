"""CVAT's own XML files, as it exports tasks and projects."""

import functools

import numpy as np
import pytest

from ap_detect import data as data_lib
from ap_detect.data.records import DataError

read_split = functools.partial(data_lib.read_split, check_images=False)

BOX = '<box label="cat" occluded="1" xtl="2" ytl="3" xbr="12" ybr="10.5" z_order="0"/>'


def image(name, *shapes, **more):
  attributes = {"id": "0", "width": "30", "height": "20", **more}
  text = " ".join(f'{key}="{value}"' for key, value in attributes.items())
  return f'<image name="{name}" {text}>{"".join(shapes)}</image>'


def label(name, kind="any"):
  return f"<label><name>{name}</name><type>{kind}</type><attributes/></label>"


LABELS = (label("dog"), label("cat"))


@pytest.fixture
def put(tmp_path, write_image):
  """Writes an annotation file, and images of 20 x 30 pixels; returns the root."""

  def write(*images, path="annotations.xml", labels=LABELS, put=()):
    for name in put:
      write_image(tmp_path / name)
    text = (
      '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version><meta>'
      f"<task><name>a task</name><labels>{''.join(labels)}</labels></task></meta>"
      f"{''.join(images)}</annotations>"
    )
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text, encoding="utf-8")
    return tmp_path

  return write


def ids(data):
  return [record.image_id for record in data.records]


@pytest.mark.parametrize("place", ["images/{}", "{}", "data/Train/{}"])
def test_a_task(put, place):
  names = ("a.jpg", "sub/ä b.PNG")
  root = put(
    image("a.jpg", BOX), image("sub/ä b.PNG"), put=[place.format(n) for n in names]
  )
  data = read_split(root, "train", holdout_share=0)
  assert data.class_names == ("dog", "cat") and ids(data) == [*names]
  assert data.records[0].boxes.tolist() == [[3, 2, 10.5, 12]]
  assert data.records[0].classes.tolist() == [2] and not data.records[0].ignored.any()
  assert data.records[0].image == str(root / place.format("a.jpg"))
  assert len(data.records[1].boxes) == 0


@pytest.mark.parametrize(
  ("shape", "box"),
  [
    ('<polygon label="cat" points="4.5,2;20,3;7,15.25"/>', [2, 4.5, 15.25, 20]),
    (
      '<mask label="cat" rle="3, 5" left="4" top="2" width="6" height="3"/>',
      [2, 4, 5, 10],
    ),
    (
      '<box label="cat" xtl="5" ytl="6" xbr="15" ybr="10" rotation="90"/>',
      [3, 8, 13, 12],
    ),
    ('<box label="cat" xtl="5" ytl="5" xbr="15" ybr="15" rotation="45"/>', None),
    (
      '<ellipse label="cat" cx="15" cy="10" rx="6" ry="4" rotation="90"/>',
      [4, 11, 16, 19],
    ),
    ('<ellipse label="cat" cx="15" cy="10" rx="9" ry="3" rotation="30"/>', "ellipse"),
    (
      '<cuboid label="cat" xtl1="4" ytl1="5" xbl1="4" ybl1="12" xtr1="14" ytr1="5.5" '
      'xbr1="14" ybr1="13" xtl2="6" ytl2="3" xbl2="6" ybl2="9" xtr2="16" ytr2="3" '
      'xbr2="16" ybr2="9"/>',
      [3, 4, 13, 16],
    ),
  ],
)
def test_boxes_around_shapes(put, shape, box):
  root = put(image("a.jpg", shape), put=["a.jpg"])
  if box is None:  # a square on a corner
    box = [10 - 50**0.5, 10 - 50**0.5, 10 + 50**0.5, 10 + 50**0.5]
  elif box == "ellipse":
    angles = np.linspace(0, 2 * np.pi, 100_001)
    turned = np.exp(1j * np.pi / 6) * (9 * np.cos(angles) + 3j * np.sin(angles))
    turned += 15 + 10j
    box = [f(part) for f in (np.min, np.max) for part in (turned.imag, turned.real)]
  np.testing.assert_allclose(read_split(root, "train").records[0].boxes, [box])


def test_what_has_no_box_is_said(put):
  shapes = [
    '<points label="nose" points="3,4"/>',
    '<polyline label="nose" points="3,4;5,6"/>',
    '<tag label="blurred"/>',
    '<skeleton label="pose"><points label="1" points="3,4"/></skeleton>',
  ]
  labels = (label("cat"), label("nose", "points"), label("blurred", "tag"))
  labels += (label("pose", "skeleton"), label("1", "points"))
  root = put(image("a.jpg", BOX, *shapes), labels=labels, put=["a.jpg"])
  data = read_split(root, "train")
  assert data.class_names == ("cat",) and len(data.records[0].boxes) == 1
  assert data.notes == (
    "4 objects are points, lines or tags, and have no box; the first: image 'a.jpg', "
    "object 2",
  )


def test_labels_that_are_not_listed(put):
  other = BOX.replace("cat", "ant")
  root = put(image("a.jpg", BOX, other), labels=[label("dog")], put=["a.jpg"])
  data = read_split(root, "train")
  assert data.class_names == ("dog", "ant", "cat")
  assert data.records[0].classes.tolist() == [3, 2]


@pytest.mark.parametrize("by", ["subset", "file", "image"])
def test_splits(put, by):
  splits = {"Train": "a", "Validation": "b", "Test": "c"}
  folder = "{}/" if by == "image" else ""
  paths = {s: f"{folder.format(s)}images/{n}.jpg" for s, n in splits.items()}
  images = {
    split: image(f"{name}.jpg", BOX, **({"subset": split} if by == "subset" else {}))
    for split, name in splits.items()
  }
  if by == "file":
    for split, text in images.items():
      root = put(text, path=f"{split}/annotations.xml")
  root = put(*([] if by == "file" else images.values()), put=paths.values())
  if by == "file":
    (root / "annotations.xml").unlink()
  for split, image_id in (("train", "a"), ("val", "b"), ("test", "c")):
    assert ids(read_split(root, split)) == [f"{image_id}.jpg"]


def test_several_tasks_are_one_dataset(put):
  put(image("1.jpg", BOX), path="one/annotations.xml", put=["one/images/1.jpg"])
  root = put(
    image("1.jpg", BOX.replace("cat", "cow")),
    path="two/annotations.xml",
    labels=[label("cow")],
    put=["two/images/1.jpg"],
  )
  data = read_split(root, "train", holdout_share=0)
  assert ids(data) == ["one/annotations.xml:1.jpg", "two/annotations.xml:1.jpg"]
  assert [r.image for r in data.records] == [
    str(root / f"{task}/images/1.jpg") for task in ("one", "two")
  ]
  assert data.class_names == ("dog", "cat", "cow")


def test_a_part_is_held_out(put):
  names = [f"{number}.jpg" for number in range(10)]
  root = put(*(image(name, BOX) for name in names), put=names)
  train, val = (ids(read_split(root, split)) for split in ("train", "val"))
  assert sorted(train + val) == names and len(val) == 2


@pytest.mark.parametrize(
  ("shape", "reason", "is_placed"),
  [
    (BOX.replace('"2"', '"x"'), "has xtl 'x', not a finite number", False),
    (BOX.replace('"2"', '"nan"'), "has xtl 'nan', not a finite number", False),
    (BOX.replace('"12"', '"1"'), "has xmax 1 <= xmin 2", False),
    (BOX.replace('"12"', '"90"'), "leaves the image of 30 x 20 pixels", True),
    (BOX.replace("cat", "pig"), "has class 'pig', which is not in the list", True),
    ('<polygon label="cat" points="1,2;3"/>', "has points '1,2;3', not pairs", False),
    ('<polygon label="cat"/>', "has points '', not pairs", False),
    ('<cuboid label="cat" x="3"/>', "has no corners", False),
    ('<sphere label="cat" x="3"/>', "is a <sphere>, of which no box is known", False),
  ],
)
def test_faulty_objects(put, faults_of, shape, reason, is_placed):
  options = {"class_names": ("cat", "dog"), "holdout_share": 0}
  root = put(image("a.jpg", BOX, shape), image("b.jpg", BOX), put=["a.jpg", "b.jpg"])
  (fault,) = faults_of(read_split, root, "train", **options)
  assert fault.startswith(f"annotations.xml: image 'a.jpg', object 2 {reason}")
  data = read_split(root, "train", skip_faulty=True, **options)
  assert ids(data) == (["a.jpg", "b.jpg"] if is_placed else ["b.jpg"])
  if is_placed:
    assert data.records[0].ignored.tolist() == [False, True]
    assert data.records[0].classes.tolist() == [1, 0]


def test_faulty_images(put, faults_of):
  images = [
    image("gone.jpg"),
    image("../../etc/passwd"),
    image("a.jpg", width="inf"),
    image("b.jpg", width="31"),
    image("a.jpg", BOX),
  ]
  starts = [
    "annotations.xml: image 'gone.jpg' names 'gone.jpg': no image below",
    "annotations.xml: image '../../etc/passwd' names '../../etc/passwd': no image below",
    "annotations.xml: image 'a.jpg' has width 'inf', not a finite number",
    "annotations.xml: annotates an image that annotations.xml does too: a.jpg",
    "annotations.xml: gives b.jpg 31 x 20 pixels, but it has 30 x 20",
  ]
  root = put(*images, put=["a.jpg", "b.jpg"])
  faults = faults_of(read_split, root, "train")
  assert len(faults) == len(starts)
  assert all(fault.startswith(start) for fault, start in zip(faults, starts))


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (("</image>", "</imag>"), "is not well-formed XML"),
    (
      ("<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations>'),
      "declares entities",
    ),
    (
      ("</annotations>", '<track id="0"/></annotations>'),
      "is of CVAT's format for videos",
    ),
  ],
)
def test_files_that_are_refused(put, faults_of, change, reason):
  root = put(image("a.jpg", BOX), put=["a.jpg"])
  path = root / "annotations.xml"
  path.write_text(path.read_text().replace(*change))
  (fault,) = faults_of(read_split, root, "train")
  assert fault.startswith(f"annotations.xml: {reason}")


def test_options(put, faults_of):
  names = ("a.jpg", "sub/b.jpg", "c.jpg")
  root = put(*(image(name, BOX, subset="train") for name in names), put=names)
  (root / "list.txt").write_text("b\nc.jpg\n")
  assert ids(read_split(root, "train@list.txt")) == ["sub/b.jpg", "c.jpg"]
  with pytest.raises(DataError, match=r"no split 'mine'; they have 'train'"):
    read_split(root, "mine")
  assert read_split(root, "train", class_names=("cat",)).class_names == ("cat",)
