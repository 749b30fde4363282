import dataclasses
import itertools
import socket

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ap_detect.data import augment, pipeline
from ap_detect.data.readers import tfrecords
from ap_detect.data.records import DetectionDataset, ImageRecord

SIZE = (64, 96)
WHOLE = pipeline.View(SIZE, SIZE)
AUGMENTED = {"zoom_range": (0.5, 2.0), "color_strength": 1.0}


def make_dataset(count=5, height=40, width=50):
  """Image i has the grey 40 * i and i objects of class i, the first of them ignored."""
  records = []
  for number in range(count):
    boxes = np.array([[4, 6, 20 + n, 30] for n in range(number)], np.float32)
    records.append(
      ImageRecord(
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
  return DetectionDataset(
    records=tuple(records),
    class_names=tuple("abcdefgh"[:count]),
    category_ids=tuple(range(1, count + 1)),
    ignored_are_crowds=True,
  )


def take(data, count, **options):
  names = [n for n in ("seed", "first_position", "share") if n in options]
  order = {name: options.pop(name) for name in names}
  batch_size = options.pop("batch_size", 2)
  steps = augment.zoom_steps(SIZE, **options)
  batches = pipeline.training_batches(data, steps=steps, batch_size=batch_size, **order)
  return list(itertools.islice(batches.as_numpy_iterator(), count))


def shown(records, *, batch_size, view=WHOLE):
  """The evaluation batches of one view."""
  batches = pipeline.evaluation_batches(records, views=[view], batch_size=batch_size)
  return [batch for (batch,) in batches.as_numpy_iterator()]


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
  orders = [pipeline.images_at(50, 0, 50, seed=seed) for seed in (3, 4)]
  assert orders[0] != orders[1]


@pytest.mark.parametrize("batches_before", [1, 2, 5, 13])
def test_a_stream_can_be_continued_anywhere(batches_before):
  data = make_dataset()  # 5 images in batches of 2: batches lie across two passes
  whole = take(data, batches_before + 4, **AUGMENTED)
  rest = take(data, 4, first_position=2 * batches_before, **AUGMENTED)
  assert_same(whole[batches_before:], rest)


@pytest.mark.parametrize("first_position", [1, 7, 12])
def test_a_stream_can_be_continued_in_batches_of_another_size(first_position):
  data = make_dataset()
  ones = take(data, first_position + 6, batch_size=1, **AUGMENTED)[first_position:]
  joined = [
    {name: np.concatenate([batch[name] for batch in ones[at : at + 3]]) for name in one}
    for at, one in ((0, ones[0]), (3, ones[3]))
  ]
  found = take(data, 2, batch_size=3, first_position=first_position, **AUGMENTED)
  assert_same(joined, found)


def test_shares_of_a_stream_are_the_parts_of_its_batches():
  """Batches of 2 on each of three workers, from position 3 on."""
  count, data = 3, make_dataset()
  options = {"first_position": 3, **AUGMENTED}
  whole = take(data, 4, batch_size=2 * count, **options)
  for index in range(count):
    share = pipeline.Share(index, count, 2)
    found = take(data, 4, batch_size=2, share=share, **options)
    rows = slice(2 * index, 2 * index + 2)
    assert_same(
      [{name: value[rows] for name, value in batch.items()} for batch in whole], found
    )
  # As a worker of two replicas reads it, a batch for each.
  halves = take(data, 4, batch_size=1, share=pipeline.Share(0, count, 2), **options)
  numbers = [numbers_of(batch)[0] for batch in halves]
  assert numbers == [*numbers_of(whole[0])[:2], *numbers_of(whole[1])[:2]]


def test_each_pass_has_each_image_once_in_a_new_order():
  batches = take(make_dataset(), 40, batch_size=1, horizontal_flip=0.0)
  numbers = [numbers_of(batch)[0] for batch in batches]
  passes = [tuple(numbers[start : start + 5]) for start in range(0, 40, 5)]
  assert all(sorted(order) == [0, 1, 2, 3, 4] for order in passes)
  assert len(set(passes)) > 4


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12])
def test_images_at_names_the_images_of_the_batch(batch_size):
  data = make_dataset()
  for step, batch in enumerate(take(data, 6, batch_size=batch_size, seed=7)):
    named = pipeline.images_at(5, step * batch_size, batch_size, seed=7)
    assert named == numbers_of(batch)


def test_a_batch_may_be_larger_than_the_data():
  batch = take(make_dataset(3), 1, batch_size=8)[0]
  numbers = numbers_of(batch)
  assert sorted(numbers[:3]) == sorted(numbers[3:6]) == [0, 1, 2]
  assert len(set(numbers[6:])) == 2


def test_pictures_of_one_image_differ_from_pass_to_pass():
  batches = take(make_dataset(1), 16, batch_size=1, zoom_range=(0.5, 2.0))
  shares = {round(float(np.mean(batch["image"] == 0)), 4) for batch in batches}
  assert len(shares) > 4


def test_images_without_any_object_make_batches():
  batch = take(make_dataset(1), 1)[0]
  assert batch["boxes"].shape == (2, 1, 4)
  assert not batch["classes"].any()


def test_the_place_of_an_invalid_object_is_no_padding():
  data = make_dataset(3)
  record = dataclasses.replace(data.records[2], classes=np.array([0, 2], np.int32))
  (batch,) = take(dataclasses.replace(data, records=(record,)), 1, batch_size=1)
  assert batch["classes"].tolist() == [[1, 2]]
  assert batch["ignored"].tolist() == [[True, False]]


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
  evaluated = [shown(data.records, batch_size=2) for data in (memory, disk)]
  assert_same(*evaluated)


@pytest.mark.parametrize(
  "batch_size, batches", [(1, 5), (2, 3), (3, 2), (5, 1), (8, 1)]
)
def test_evaluation_reads_every_image_once_in_order(batch_size, batches):
  found = shown(make_dataset().records, batch_size=batch_size)
  assert len(found) == batches
  assert {len(batch["image"]) for batch in found} == {batch_size}
  numbers = [number for batch in found for number in numbers_of(batch)]
  assert numbers[:5] == [0, 1, 2, 3, 4]
  assert set(numbers[5:]) <= {4}


def test_no_thread_tunes_what_an_iterator_would_wait_for():
  data = make_dataset()
  for batches in (
    pipeline.training_batches(data, steps=augment.zoom_steps(SIZE), batch_size=2),
    pipeline.evaluation_batches(data.records, views=[WHOLE], batch_size=2),
  ):
    assert batches.options().autotune.enabled is False


def test_evaluation_tells_scale_and_size_of_the_picture(tmp_path):
  # 20 x 30 into 64 x 96: 3.2 both ways. 90 x 60: min(64 / 90, 96 / 60) = 0.711, which
  # makes it 64 x 42.67.
  records = []
  for number, (height, width) in enumerate([(20, 30), (90, 60)]):
    path = str(tmp_path / f"{number}.png")
    Image.new("RGB", (width, height), "white").save(path)
    record = make_dataset(1).records[0]
    records.append(dataclasses.replace(record, image=path, height=height, width=width))
  batch = shown(records, batch_size=2)[0]
  np.testing.assert_allclose(batch["scale"], [3.2, 64 / 90], rtol=1e-6)
  expected = [[64, 96], [64, 60 * 64 / 90]]
  np.testing.assert_allclose(batch["content_size"], expected, rtol=1e-6)
  # The picture's white is there, and nowhere else.
  for image, (height, width) in zip(batch["image"], expected):
    is_white = np.abs(image - 255).max(axis=-1) < 1e-2
    assert is_white[: round(height), : round(width)].all()
    assert is_white.sum() == round(height) * round(width)


def test_views_of_a_picture():
  # 40 x 50 to fit 20 x 60: scale 0.5, so 20 x 25 pixels at the top left.
  pixels = np.zeros((40, 50, 3), np.uint8)
  pixels[:, :10] = 200  # a band at the left: columns 0..5 of the view
  record = dataclasses.replace(make_dataset(1).records[0], image=pixels)
  view = pipeline.View(canvas_size=(32, 64), fit_size=(20, 60))
  (plain, mirrored), *others = pipeline.evaluation_batches(
    [record], views=[view, view._replace(mirrored=True)], batch_size=1
  ).as_numpy_iterator()
  assert not others
  for batch in (plain, mirrored):
    assert batch["image"].shape == (1, 32, 64, 3)
    assert batch["scale"].tolist() == [0.5]
    assert batch["content_size"].tolist() == [[20, 25]]
  bright = [
    np.flatnonzero(batch["image"][0, 10, :, 1] > 140) for batch in (plain, mirrored)
  ]
  assert bright[0].tolist() == [0, 1, 2, 3, 4]
  assert bright[1].tolist() == [20, 21, 22, 23, 24]


def test_the_order_is_that_of_a_shuffle_a_pass():
  expected = [
    int(index)
    for number in range(4)
    for index in tf.random.experimental.stateless_shuffle(tf.range(7), [5, number])
  ]
  assert pipeline.images_at(7, 0, 28, seed=5) == expected
  assert pipeline.images_at(7, 9, 3, seed=5) == expected[9:12]


@pytest.mark.slow
def test_a_service_makes_every_position_once(tmp_path):
  """Two workers; each picture of two passes just as this process makes it."""
  rng = np.random.default_rng(0)
  data = make_dataset()
  records = [
    dataclasses.replace(record, image=rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for record in data.records
  ]
  data = dataclasses.replace(data, records=tuple(records))
  tfrecords.write_tfrecords(data, str(tmp_path), "train", shard_bytes=1)
  data = tfrecords.read_tfrecords(tmp_path, "train")
  options = {"batch_size": 1, "seed": 3, "first_position": 4, **AUGMENTED}
  service = tf.data.experimental.service
  dispatcher = service.DispatchServer()
  address = dispatcher.target.partition("://")[2]
  workers = [service.WorkerServer(service.WorkerConfig(address)) for _ in range(2)]
  positions = {
    batch["image"].tobytes(): position
    for position, batch in enumerate(take(data, 300, **options))
  }
  assert len(positions) == 300  # so that pictures tell their positions
  steps = augment.zoom_steps(SIZE, **AUGMENTED)
  del options["zoom_range"], options["color_strength"]
  batches = pipeline.training_batches(
    data, steps=steps, service_address=dispatcher.target, **options
  )
  found = []
  for batch in batches.take(200).as_numpy_iterator():
    found.append(positions[batch["image"].tobytes()])
    if set(range(10)) <= set(found):
      break
  assert set(range(10)) <= set(found)
  assert len(found) == len(set(found))
  # Of two processes that train, each gets its share: stretches of 3 positions.
  for index in range(2):
    share = pipeline.Share(index, 2, 3)
    batches = pipeline.training_batches(
      data, steps=steps, service_address=dispatcher.target, share=share, **options
    )
    found = [
      positions[batch["image"].tobytes()]
      for batch in batches.take(9).as_numpy_iterator()
    ]
    assert {position // 3 % 2 for position in found} == {index}
    assert len(set(found)) == 9
  del workers


@pytest.mark.parametrize(
  "address", ["localhost:80", "http://localhost:80", "grpc://localhost", "grpc://a:b"]
)
def test_a_service_s_address_has_a_form(address):
  with pytest.raises(ValueError, match="must be grpc://host:port, got"):
    pipeline.training_batches(
      make_dataset(), steps=[], batch_size=1, service_address=address
    )


def test_a_service_that_is_not_there():
  with socket.socket() as taken:  # a port that nothing listens at
    taken.bind(("localhost", 0))
    address = f"grpc://localhost:{taken.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"no tf.data service answers at {address}"):
      pipeline.training_batches(
        make_dataset(), steps=[], batch_size=1, service_address=address
      )
