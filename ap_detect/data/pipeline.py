"""Records -> batches: order, decoding, augmentation, padding.

Training reads an endless stream of positions: position p is image p mod n of the
(p div n)-th shuffle. A batch therefore depends on the seed and its place alone, and a
run that starts again at position p continues with exactly the images it would have had,
whatever the size of its batches.

Indices are shuffled, all of them, and not images in a buffer: that is uniform, takes
four bytes an image, and can start anywhere. Nothing decoded is cached: a decoded image
takes several times the memory of its file, which the system's page cache keeps anyway,
and decoding is the smaller part of the work beside augmentation.
"""

from __future__ import annotations

import dataclasses
import itertools
import socket
import urllib.parse
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect import images as image_ops
from ap_detect.data import encoded
from ap_detect.data.readers import image_files
from ap_detect.data.records import DataError

_SERVICE_TIMEOUT_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Share:
  """Every so many-th stretch of a stream: stretches index, index + count, ...

  Attributes:
    index: of the first one, from 0.
    count: of processes that share the stream.
    size: of a stretch, images.
  """

  index: int
  count: int
  size: int


WHOLE = Share(0, 1, 1)


def training_batches(
  dataset,
  *,
  steps,
  batch_size,
  seed=0,
  first_position=0,
  share=WHOLE,
  service_address="",
):
  """Endless augmented batches of a split, in an order that `seed` fixes.

  A tf.data service has each position, and so each image of a shuffle, made exactly once
  by one of its workers, with the same pixels; but they come in the order in which they
  are ready, so that a batch may hold positions of its neighbours. A worker that dies
  takes the few that it had along. Without any worker the first batch waits for one.

  Args:
    dataset: DetectionDataset with at least one image.
    steps: of the augmentation, such as `augment.ssd_steps` gives them.
    batch_size: images a batch, over all replicas.
    seed: of order and augmentation.
    first_position: where the first batch begins, in images since the start.
    share: Share of the stream, where several processes read it.
    service_address: of a tf.data service's dispatcher, "grpc://host:port", whose workers
      read and augment, and must see the files by the same paths; "" for this process.

  Returns:
    tf.data.Dataset of dicts: `image` [B, H, W, 3] float32 RGB 0..255, of the size that
    the steps make, `boxes` [B, G, 4] float32 (yxyx, pixels of the input), `classes`
    [B, G] int32 (0 is padding), `ignored` [B, G] bool. G is the largest number of
    objects of an image.

  Raises:
    ValueError: no image, or nothing answers at the service's address.
  """
  if not dataset.records:
    raise ValueError("training requires at least one image, got an empty split")
  load = _example_loader(dataset)
  max_objects = max(1, max(len(record.boxes) for record in dataset.records))

  def make_example(position, index):
    example = load(index)
    # The order and each image's augmentation are drawn from different streams.
    example["seed"] = tf.stack([seed + 1, tf.cast(position % 2**31, tf.int32)])
    for step in steps:
      example = step(example)
    del example["seed"]
    return _pad(example, max_objects)

  stream = _positions(len(dataset.records), seed, first_position, share)
  examples = stream.map(make_example, num_parallel_calls=tf.data.AUTOTUNE)
  if service_address:
    examples = _distribute(examples, service_address)
  return _untuned(
    examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
  )


def naming_unreadable(batches, records_of):
  """The same batches; an error in reading one names the files that cannot be read.

  Args:
    batches: iterable of batches, as TensorFlow reads them.
    records_of: function of a batch's number, from 0, to the ImageRecords it is made of.

  Raises:
    DataError: images of a batch were lost or damaged since they were checked.
    tf.errors.OpError: a batch cannot be read, though its images can.
  """
  iterator = iter(batches)
  for number in itertools.count():
    try:
      batch = next(iterator)
    except StopIteration:
      return
    except tf.errors.OpError as error:
      faults = _unreadable(records_of(number))
      if not faults:
        raise
      raise DataError(faults, [_LOST]) from error
    yield batch


_LOST = (
  "Found while the images were in use. Bring them back, or have the next start leave them "
  "out by data.skip_faulty=True with data.check_images=True"
)


def _unreadable(records):
  """Lines on the files of records that cannot be read."""
  files = [item.image for item in records if not isinstance(item.image, np.ndarray)]
  return [
    f"{image}: {reason}"
    if isinstance(image, str)
    else f"{image.path}: the record at byte {image.offset}: {reason}"
    for image, reason in image_files.find_unreadable(files).items()
  ]


def images_at(num_images, position, count, *, seed=0):
  """Indices of the records that a training batch is made of.

  Args:
    num_images: images of the split.
    position: where the batch begins, in images since the start.
    count: images of the batch, over all replicas.
    seed: the seed that `training_batches` was given.

  Returns:
    list of `count` record indices.
  """
  stream = _positions(num_images, seed, position).take(count)
  return [int(index) for _, index in stream]


class View(NamedTuple):
  """How an image is shown to a network that is tested.

  Attributes:
    canvas_size: (height, width) of the network's input, pixels.
    fit_size: (height, width) that the image is scaled to fit, its aspect kept; it lies
      in the canvas's top left corner.
    mirrored: whether left and right are exchanged.
  """

  canvas_size: tuple[int, int]
  fit_size: tuple[int, int]
  mirrored: bool = False


def evaluation_batches(records, *, views, batch_size):
  """Every image once, in order, unaugmented, in each of some views.

  The last batch is filled up with its last image, so that all batches are of one size;
  whoever reads it stops at the number of records.

  Args:
    records: ImageRecords, at least one.
    views: Views.
    batch_size: images a batch, over all replicas.

  Returns:
    tf.data.Dataset of tuples with a dict a view: `image` [B, H, W, 3] float32 RGB
    0..255, `scale` [B] float32, pixels of the input a pixel of the image,
    `content_size` [B, 2] float32, height and width of the image in the input.
  """
  load_image = _image_loader(records)
  count = len(records)

  def make_example(index):
    image = load_image(tf.minimum(index, count - 1))
    return tuple(show(image, view) for view in views)

  padded_count = -(-count // batch_size) * batch_size
  return _untuned(
    tf.data.Dataset.range(padded_count)
    .map(make_example, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(batch_size, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )


def _untuned(batches):
  """The batches, made on all processor cores from the start, without a thread that tunes.

  On a busy machine that thread is often not woken when an iterator ends, which then waits
  for it: as long again as the iterator was in use, up to a minute.
  """
  options = tf.data.Options()
  options.autotune.enabled = False
  return batches.with_options(options)


def show(image, view):
  """One image in one view: a dict as `evaluation_batches` has it, without the B.

  Args:
    image: [H, W, 3], uint8 or float, RGB 0..255.
    view: View.
  """
  if view.mirrored:
    image = tf.reverse(image, axis=[1])
  fitted, scale = image_ops.resize_to_fit(
    image[tf.newaxis], view.canvas_size, view.fit_size
  )
  size = tf.cast(tf.shape(image)[:2], tf.float32)
  return {"image": fitted[0], "scale": scale, "content_size": size * scale}


def _distribute(examples, address):
  """The examples as a tf.data service's workers make them, in the order they come."""
  try:
    parts = urllib.parse.urlsplit(address)
    host, port = parts.hostname, parts.port
  except ValueError:  # a port that is no number
    host = port = None
  if not (host and port and address.startswith("grpc://")):
    raise ValueError(
      f"a tf.data service's address must be grpc://host:port, got {address!r}"
    )
  try:
    # TensorFlow itself would wait for the service without end.
    socket.create_connection((host, port), _SERVICE_TIMEOUT_SECONDS).close()
  except OSError as error:
    raise ValueError(f"no tf.data service answers at {address}: {error}") from error
  service = tf.data.experimental.service
  # Dynamic: the dispatcher deals out the source's elements, which are the positions.
  return examples.apply(service.distribute(service.ShardingPolicy.DYNAMIC, address))


def _positions(num_images, seed, first, share=WHOLE):
  """Dataset of (position, record index) from position `first` on, without end."""

  def place(number):
    stretch = number // share.size * share.count + share.index
    return first + stretch * share.size + number % share.size

  def shuffle(number):
    return tf.random.experimental.stateless_shuffle(
      tf.range(num_images), seed=tf.stack([tf.cast(seed, tf.int64), number])
    )

  def locate(current, position):
    # The shuffle is kept from element to element. A service's worker may get any
    # positions, in rising order.
    number = position // num_images
    order = tf.cond(current[0] == number, lambda: current[1], lambda: shuffle(number))
    return (number, order), (position, order[position % num_images])

  positions = tf.data.Dataset.range(np.iinfo(np.int64).max).map(place)
  none_yet = tf.constant(-1, tf.int64), tf.zeros([num_images], tf.int32)
  return positions.scan(none_yet, locate)


def _example_loader(dataset):
  """Function of a record's index to its example."""
  records = dataset.records
  load_image = _image_loader(records)
  splits = tf.constant(np.cumsum([0, *(len(r.boxes) for r in records)]), tf.int64)
  boxes = tf.constant(
    np.concatenate([r.boxes.reshape(-1, 4) for r in records]), tf.float32
  )
  # An ignored object of unknown class is one of any; 0 is padding.
  known = np.maximum(np.concatenate([r.classes for r in records]), 1)
  classes = tf.constant(known, tf.int32)
  ignored = tf.constant(np.concatenate([r.ignored for r in records]), tf.bool)

  def load(index):
    start, end = splits[index], splits[index + 1]
    return {
      "image": load_image(index),
      "boxes": boxes[start:end],
      "classes": classes[start:end],
      "ignored": ignored[start:end],
    }

  return load


def _image_loader(records):
  """Function of a record's index to its pixels, [H, W, 3] uint8."""
  if isinstance(records[0].image, np.ndarray):
    pixels = tf.constant(np.stack([record.image for record in records]))
    return lambda index: pixels[index]
  read = encoded.make_reader([record.image for record in records])
  turns = records[0].exif_orientation
  return lambda index: image_ops.decode_image(read(index), exif_orientation=turns)


def _pad(example, max_objects):
  missing = max_objects - tf.shape(example["classes"])[0]
  return {
    "image": example["image"],
    "boxes": tf.ensure_shape(
      tf.pad(example["boxes"], [[0, missing], [0, 0]]), [max_objects, 4]
    ),
    "classes": tf.ensure_shape(
      tf.pad(example["classes"], [[0, missing]]), [max_objects]
    ),
    "ignored": tf.ensure_shape(
      tf.pad(example["ignored"], [[0, missing]]), [max_objects]
    ),
  }
