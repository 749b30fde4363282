"""Tests of the synthetic dataset: determinism, exact boxes, statistics, COCO files."""

import doctest
import hashlib
import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from ap_detect.data.shapes import (
  CLASS_NAMES,
  make_shapes,
  rendering,
  scenes,
  write_shapes,
)

SIZE = 96
NUM_IMAGES = 240

# Of the arrays of ten images. Changes only when the generator is meant to change.
CHECKSUM = "de3508c81e8cdc88361b8954c16c4201300121121e18701b079b7adc7dd09533"


@pytest.fixture(scope="module")
def val():
  return make_shapes("val", num_images=NUM_IMAGES, image_size_px=(SIZE, SIZE))


def draw_scene(index, height=SIZE, width=SIZE):
  return scenes._draw_scene(scenes._make_rng(0, "val", index), height, width, 1.0)


def assert_same_record(a, b):
  assert a.image_id == b.image_id
  for name in ("image", "boxes", "classes", "ignored", "areas"):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_docstring_examples():
  for module in (scenes, rendering):
    assert doctest.testmod(module).failed == 0


def test_an_image_depends_only_on_seed_split_index_and_size(val):
  few = make_shapes("val", num_images=3, image_size_px=[SIZE, SIZE])
  for a, b in zip(few.records, val.records):
    assert_same_record(a, b)


def test_same_bits_on_every_machine_and_numpy():
  digest = hashlib.sha256()
  for size in ((64, 64), (80, 128)):
    for record in make_shapes("train", num_images=5, image_size_px=size).records:
      numbers = [a.astype(np.float32) for a in (record.boxes, record.areas)]
      for array in (record.image, numbers[0], record.classes, numbers[1]):
        digest.update(array.tobytes())
  assert digest.hexdigest() == CHECKSUM


def test_splits_and_seeds_share_no_image(val):
  size = (SIZE, SIZE)
  images = [record.image.tobytes() for record in val.records]
  for split, seed in (("train", 0), ("test", 0), ("val", 1)):
    other = make_shapes(split, num_images=30, image_size_px=size, seed=seed)
    images += [record.image.tobytes() for record in other.records]
  assert len(set(images)) == len(images) == NUM_IMAGES + 90


def test_records_have_the_declared_types_and_shapes():
  dataset = make_shapes("train", num_images=40, image_size_px=(64, 100))
  assert dataset.category_ids == (1, 2, 3, 4, 5, 6)
  assert dataset.ignored_are_crowds and dataset.skipped == ()
  assert [record.image_id for record in dataset.records] == list(range(1, 41))
  for record in dataset.records:
    count = len(record.classes)
    assert (record.height, record.width) == (64, 100)
    assert record.image.shape == (64, 100, 3) and record.image.dtype == np.uint8
    assert record.boxes.shape == (count, 4) and record.boxes.dtype == np.float64
    assert record.classes.dtype == np.int32 and record.areas.dtype == np.float64
    assert record.ignored.dtype == bool and not record.ignored.any()


def test_boxes_lie_inside_the_image_and_are_large_enough(val):
  boxes = np.concatenate([record.boxes for record in val.records])
  areas = np.concatenate([record.areas for record in val.records])
  assert boxes.min() >= 0 and boxes.max() <= SIZE
  sides = boxes[:, 2:] - boxes[:, :2]
  assert sides.min() >= scenes.MIN_BOX_SIDE * SIZE
  assert (areas <= sides.prod(axis=1)).all()
  assert (areas >= 0.1 * sides.prod(axis=1)).all()


def test_boxes_and_areas_are_those_of_the_visible_pixels(val):
  for record in val.records[:40]:
    owner = draw_scene(record.image_id).owner
    for number, (box, area) in enumerate(zip(record.boxes, record.areas), start=1):
      pixels = np.argwhere(owner == number)
      np.testing.assert_array_equal(box[:2], pixels.min(axis=0))
      np.testing.assert_array_equal(box[2:], pixels.max(axis=0) + 1)
      assert area == len(pixels)


def test_boxes_fit_what_is_seen(monkeypatch):
  """One flat object on a grey image: its box is that of the pixels that changed."""
  for name in ("DISTRACTORS_BELOW", "DISTRACTORS_ABOVE"):
    monkeypatch.setattr(scenes, name, (0, 0))
  for name in ("EMPTY_IMAGES", "BORDERED", "TEXTURED"):
    monkeypatch.setattr(scenes, name, 0.0)
  monkeypatch.setattr(scenes, "MAX_OBJECTS", 1)
  monkeypatch.setattr(
    rendering, "background", lambda rng, h, w: np.full((3, h, w), 128, np.float32)
  )
  monkeypatch.setattr(
    rendering, "finish", lambda rng, canvas: canvas.transpose(1, 2, 0)
  )
  dataset = make_shapes("train", num_images=200, image_size_px=(SIZE, SIZE + 20))
  assert set(np.concatenate([r.classes for r in dataset.records])) == set(range(1, 7))
  for record in dataset.records:
    change = np.abs(record.image - 128).sum(axis=2)
    for threshold, slack in ((0.49, np.less_equal), (0.51, np.greater_equal)):
      pixels = np.argwhere(change >= threshold * change.max())
      seen = np.concatenate([pixels.min(axis=0), -pixels.max(axis=0) - 1])
      assert slack(seen, record.boxes[0] * (1, 1, -1, -1)).all()


def test_no_object_is_hidden_beyond_recognition():
  for index in range(1, 60):
    scene = draw_scene(index)
    for number, drawn in enumerate(scene.objects, start=1):
      small = max(drawn.sides) < scenes.SMALL_SIZE * SIZE
      least = scenes.MIN_VISIBLE_AREA_SMALL if small else scenes.MIN_VISIBLE_AREA
      assert (scene.owner == number).sum() >= least * drawn.num_pixels


def test_classes_are_equally_frequent(val):
  classes = np.concatenate([record.classes for record in val.records])
  counts = np.bincount(classes, minlength=len(CLASS_NAMES) + 1)
  assert counts[0] == 0
  mean = len(classes) / len(CLASS_NAMES)  # about 180, standard deviation 12
  assert (np.abs(counts[1:] - mean) < 0.25 * mean).all()


def test_number_and_sizes_of_objects_vary(val):
  counts = np.array([len(record.classes) for record in val.records])
  assert set(counts) == set(range(scenes.MAX_OBJECTS + 1))
  assert 3.8 < counts.mean() < 5.0
  assert 0.01 < (counts == 0).mean() < 0.06
  boxes = np.concatenate([record.boxes for record in val.records])
  sizes = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / SIZE
  tenth, median, ninth = np.quantile(sizes, (0.1, 0.5, 0.9))
  assert tenth < 0.19 and 0.2 < median < 0.33 and ninth > 0.4


def test_relative_size_gives_the_same_objects_more_background():
  """As many, as large in pixels, on an image of nine times the area."""
  small = make_shapes("val", num_images=150, image_size_px=(64, 64))
  large = make_shapes(
    "val", num_images=150, image_size_px=(192, 192), relative_size=1 / 3
  )
  counts = [np.mean([len(r.classes) for r in one.records]) for one in (small, large)]
  areas = [np.concatenate([r.areas for r in one.records]) for one in (small, large)]
  assert counts[1] == pytest.approx(counts[0], rel=0.05)
  # Less is cut and hidden where there is room.
  for share in (0.1, 0.5, 0.9):
    assert 1 <= np.quantile(areas[1], share) / np.quantile(areas[0], share) < 1.5


def test_about_a_quarter_of_the_objects_is_occluded_or_cut():
  visible = []
  for index in range(1, 120):
    scene = draw_scene(index)
    for number, drawn in enumerate(scene.objects, start=1):
      visible.append((scene.owner == number).sum() / drawn.num_pixels)
  assert 0.15 < np.mean(np.array(visible) < 0.9) < 0.40
  assert 0.04 < np.mean(np.array(visible) < 0.75) < 0.20


def lens_area(radius_a, radius_b, distance):
  """Area that two discs share."""
  d, a, b = distance, radius_a, radius_b
  angle_a = math.acos((d * d + a * a - b * b) / (2 * d * a))
  angle_b = math.acos((d * d + b * b - a * a) / (2 * d * b))
  kite = (-d + a + b) * (d + a - b) * (d - a + b) * (d + a + b)
  return a * a * angle_a + b * b * angle_b - math.sqrt(kite) / 2


ARM = 2 * rendering.CROSS_HALF_ARM
AREAS = {  # at half size 1
  "circle": math.pi,
  "square": (2 * rendering.SQUARE_HALF_SIDE) ** 2,
  "triangle": 3 * math.sqrt(3) / 4 * rendering.TRIANGLE_RADIUS**2,
  # Ten triangles with sides R and r = R cos 72 / cos 36 = 0.382 R, 36 degrees between.
  "star": 1.12257 * rendering.STAR_RADIUS**2,
  # Two bars of length 2, less the square they share.
  "cross": 2 * 2 * ARM - ARM**2,
  "crescent": math.pi
  - lens_area(1, rendering.CRESCENT_BITE_RADIUS, rendering.CRESCENT_BITE_OFFSET),
}


@pytest.mark.parametrize("half_u, half_v", [(30.0, 30.0), (30.0, 20.0), (8.0, 10.0)])
@pytest.mark.parametrize("name", CLASS_NAMES)
def test_shapes_cover_their_area_in_every_rotation(name, half_u, half_v):
  longer = max(half_u, half_v)
  for angle in (0.0, 0.5, 2.0):
    frame = rendering.make_frame((40.3, 50.6), scenes.OBJECT_WINDOW * longer, angle)
    distance = rendering.SHAPES[name](frame.u, frame.v, half_u, half_v)
    stamp = rendering.make_stamp(frame, distance, (100, 100))
    assert distance.dtype == np.float32
    covered = float(stamp.coverage.sum())
    assert covered == pytest.approx(AREAS[name] * half_u * half_v, rel=0.03)
    # The window holds the whole shape.
    rim = np.ones_like(distance, bool)
    rim[1:-1, 1:-1] = False
    assert stamp.coverage[rim].max() == 0


def test_star_has_its_ten_corners_on_its_outline():
  outer = rendering.STAR_RADIUS
  inner = outer * math.cos(math.radians(72)) / math.cos(math.radians(36))
  angles = np.radians(90 + 36 * np.arange(10))
  radii = np.where(np.arange(10) % 2 == 0, outer, inner)
  u = (12 * radii * np.cos(angles)).astype(np.float32)[np.newaxis]
  v = (10 * radii * np.sin(angles)).astype(np.float32)[np.newaxis]
  np.testing.assert_allclose(rendering.star(u, v, 12.0, 10.0), 0, atol=1e-5)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"split": "dev"}, "split must be one of train, val, test, got 'dev'"),
    ({"num_images": 0}, "num_images must be an integer >= 1, got 0"),
    ({"num_images": 2.5}, "num_images must be an integer >= 1, got 2.5"),
    ({"seed": -1}, "seed must be an integer >= 0, got -1"),
    ({"image_size_px": (63, 64)}, r"two integers >= 64, got \(63, 64\)"),
    ({"image_size_px": (64,)}, r"\(height, width\), two integers >= 64, got \(64,\)"),
    ({"image_size_px": 128}, "two integers >= 64, got 128"),
    ({"relative_size": 0.4}, r"relative_size must lie in \[0.5, 1\] for images of"),
    ({"relative_size": 1.5}, r"relative_size must lie in \[0.5, 1\] .*, got 1.5"),
  ],
)
def test_bad_arguments_are_named(change, message):
  arguments = {"split": "val", "num_images": 1, **change}
  with pytest.raises(ValueError, match=message):
    make_shapes(arguments.pop("split"), **arguments)


def test_written_folder_reads_back_identically(tmp_path):
  dataset = make_shapes("val", num_images=25, image_size_px=(SIZE, SIZE))
  path = write_shapes(dataset, str(tmp_path), "val")
  assert path == str(tmp_path / "annotations" / "instances_val.json")
  coco = COCO(path)
  names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
  assert names == dict(enumerate(CLASS_NAMES, start=1))
  assert coco.getImgIds() == list(range(1, 26))
  for record in dataset.records:
    (info,) = coco.loadImgs(record.image_id)
    assert (info["height"], info["width"]) == (record.height, record.width)
    pixels = np.asarray(Image.open(tmp_path / "val" / info["file_name"]))
    np.testing.assert_array_equal(pixels, record.image)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=record.image_id))
    boxes = np.array([a["bbox"] for a in annotations]).reshape(-1, 4)
    y, x = record.boxes[:, :2].T, record.boxes[:, 2:].T
    np.testing.assert_array_equal(boxes[:, :2].T, y[::-1])
    np.testing.assert_array_equal((boxes[:, :2] + boxes[:, 2:]).T, x[::-1])
    assert [a["category_id"] for a in annotations] == record.classes.tolist()
    assert [a["area"] for a in annotations] == record.areas.tolist()
    assert all(a["iscrowd"] == 0 for a in annotations)


def test_writing_overwrites_nothing(tmp_path):
  dataset = make_shapes("val", num_images=1, image_size_px=(64, 64))
  path = write_shapes(dataset, str(tmp_path), "val")
  with pytest.raises(FileExistsError, match="write the split to another folder"):
    write_shapes(dataset, str(tmp_path), "val")
  write_shapes(dataset, str(tmp_path), "test")  # another split fits beside it
  with open(path, encoding="utf-8") as file:
    assert len(json.load(file)["images"]) == 1
  with pytest.raises(ValueError, match="split must be one of"):
    write_shapes(dataset, str(tmp_path), "../elsewhere")
