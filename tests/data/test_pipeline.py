import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from ap_detect.data import dataset, pipeline

SIZE = (64, 96)
AUGMENTED = {"zoom_range": (0.5, 2.0), "color_jitter": 1.0}


def make_dataset(count=5, height=40, width=50):
  """Image i has the grey 40 * i and i objects of class i, the first of them ignored."""
  records = []
  for number in range(count):
    boxes = np.array([[4, 6, 20 + n, 30] for n in range(number)], np.float32)
    records.append(
      dataset.ImageRecord(
        image_id=number,
        image=np.full((height, width, 3), 40 * number, np.uint8),
        height=height,
        width=width,
        boxes=boxes.reshape(-1, 4),
        classes=np.full(number, number, np.int32),
        ignored=np.arange(number) == 0,
        areas=np.ones(number, np.float32),
      )
    )
  return dataset.DetectionDataset(
    records=tuple(records),
    class_names=tuple("abcdefgh"[:count]),
    category_ids=tuple(range(1, count + 1)),
    ignored_are_crowds=True,
  )


def take(data, count, **options):
  options = {"image_size": SIZE, "batch_size": 2, **options}
  batches = pipeline.training_batches(data, **options)
  return list(itertools.islice(batches.as_numpy_iterator(), count))


def numbers_of(batch):
  """Which images are in a batch of unaugmented ones."""
  return [round(float(image[20, 20, 0]) / 40) for image in batch["image"]]


def assert_same(batches, others):
  assert len(batches) == len(others)
  for a, b in zip(batches, others):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


def test_hand_case_of_a_batch():
  # 40 x 50 into 64 x 96: min(1.6, 1.92) = 1.6; width 80, somewhere in the free 16 px.
  batch = take(make_dataset(3), 1, batch_size=3, horizontal_flip=0.0)[0]
  assert batch["image"].shape == (3, 64, 96, 3)
  assert batch["boxes"].shape == (3, 2, 4)  # two objects at most
  for number, boxes, classes, ignored in zip(
    numbers_of(batch), batch["boxes"], batch["classes"], batch["ignored"]
  ):
    assert classes.tolist() == [number] * number + [0] * (2 - number)
    assert ignored.tolist() == [number > 0, False]
    np.testing.assert_array_equal(boxes[number:], 0)
    expected = [[6.4, 32 + 1.6 * n] for n in range(number)]
    np.testing.assert_allclose(boxes[:number][:, [0, 2]], np.reshape(expected, (-1, 2)))
    np.testing.assert_allclose(boxes[:number, 3] - boxes[:number, 1], 38.4, rtol=1e-5)


def test_the_seed_fixes_order_and_augmentation():
  data = make_dataset()
  first = take(data, 6, seed=3, **AUGMENTED)
  assert_same(first, take(data, 6, seed=3, **AUGMENTED))
  other = take(data, 6, seed=4, **AUGMENTED)
  assert all(np.abs(a["image"] - b["image"]).max() > 1 for a, b in zip(first, other))
  orders = [pipeline.images_of_step(50, 0, batch_size=50, seed=s) for s in (3, 4)]
  assert orders[0] != orders[1]


@pytest.mark.parametrize("first_step", [1, 2, 5, 13])
def test_a_stream_can_be_continued_anywhere(first_step):
  data = make_dataset()  # 5 images in batches of 2: batches lie across two passes
  whole = take(data, first_step + 4, **AUGMENTED)
  rest = take(data, 4, first_step=first_step, **AUGMENTED)
  assert_same(whole[first_step:], rest)


def test_each_pass_has_each_image_once_in_a_new_order():
  batches = take(make_dataset(), 40, batch_size=1, horizontal_flip=0.0)
  numbers = [numbers_of(batch)[0] for batch in batches]
  passes = [tuple(numbers[start : start + 5]) for start in range(0, 40, 5)]
  assert all(sorted(order) == [0, 1, 2, 3, 4] for order in passes)
  assert len(set(passes)) > 4


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12])
def test_images_of_step_names_the_images_of_the_batch(batch_size):
  data = make_dataset()
  for step, batch in enumerate(take(data, 6, batch_size=batch_size, seed=7)):
    named = pipeline.images_of_step(5, step, batch_size=batch_size, seed=7)
    assert named == numbers_of(batch)


def test_a_batch_may_be_larger_than_the_data():
  batch = take(make_dataset(3), 1, batch_size=8)[0]
  numbers = numbers_of(batch)
  assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]
  assert len(set(numbers[6:])) == 2


def test_pictures_of_one_image_differ_from_pass_to_pass():
  batches = take(make_dataset(1), 8, batch_size=1, zoom_range=(0.5, 2.0))
  shares = {round(float(np.mean(batch["image"] == 0)), 4) for batch in batches}
  assert len(shares) > 4


def test_images_without_any_object_make_batches():
  batch = take(make_dataset(1), 1)[0]
  assert batch["boxes"].shape == (2, 1, 4)
  assert not batch["classes"].any()


def test_no_image_is_an_error():
  with pytest.raises(ValueError, match="at least one image"):
    take(make_dataset(0), 1)


def test_files_and_arrays_give_the_same(tmp_path):
  rng = np.random.default_rng(0)
  arrays = make_dataset()
  in_memory, on_disk = [], []
  for record in arrays.records:
    pixels = rng.integers(0, 256, record.image.shape, dtype=np.uint8)
    path = str(tmp_path / f"{record.image_id}.png")
    Image.fromarray(pixels).save(path)
    in_memory.append(dataclasses.replace(record, image=pixels))
    on_disk.append(dataclasses.replace(record, image=path))
  memory, disk = (
    dataclasses.replace(arrays, records=tuple(records))
    for records in (in_memory, on_disk)
  )
  assert_same(take(memory, 4, **AUGMENTED), take(disk, 4, **AUGMENTED))
  evaluated = [
    list(
      pipeline.evaluation_batches(
        data.records, image_size=SIZE, batch_size=2
      ).as_numpy_iterator()
    )
    for data in (memory, disk)
  ]
  assert_same(*evaluated)


@pytest.mark.parametrize(
  "batch_size, batches", [(1, 5), (2, 3), (3, 2), (5, 1), (8, 1)]
)
def test_evaluation_reads_every_image_once_in_order(batch_size, batches):
  found = list(
    pipeline.evaluation_batches(
      make_dataset().records, image_size=SIZE, batch_size=batch_size
    ).as_numpy_iterator()
  )
  assert len(found) == batches
  assert {len(batch["image"]) for batch in found} == {batch_size}
  numbers = [number for batch in found for number in numbers_of(batch)]
  assert numbers[:5] == [0, 1, 2, 3, 4]
  assert set(numbers[5:]) <= {4}


def test_evaluation_tells_scale_and_size_of_the_picture(tmp_path):
  # 20 x 30 into 64 x 96: 3.2 both ways. 90 x 60: min(64 / 90, 96 / 60) = 0.711, which
  # makes it 64 x 42.67.
  records = []
  for number, (height, width) in enumerate([(20, 30), (90, 60)]):
    path = str(tmp_path / f"{number}.png")
    Image.new("RGB", (width, height), "white").save(path)
    record = make_dataset(1).records[0]
    records.append(dataclasses.replace(record, image=path, height=height, width=width))
  batch = next(
    iter(
      pipeline.evaluation_batches(
        records, image_size=SIZE, batch_size=2
      ).as_numpy_iterator()
    )
  )
  np.testing.assert_allclose(batch["scale"], [3.2, 64 / 90], rtol=1e-6)
  expected = [[64, 96], [64, 60 * 64 / 90]]
  np.testing.assert_allclose(batch["content_size"], expected, rtol=1e-6)
  # The picture's white is there, and nowhere else.
  for image, (height, width) in zip(batch["image"], expected):
    is_white = np.abs(image - 255).max(axis=-1) < 1e-2
    assert is_white[: round(height), : round(width)].all()
    assert is_white.sum() == round(height) * round(width)
