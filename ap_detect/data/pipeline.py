"""Records -> batches: order, decoding, augmentation, padding.

Training reads an endless stream of positions: position p is image p mod n of the
(p div n)-th shuffle. A batch therefore depends on the seed and its number alone, and a
run that starts again at step s continues with exactly the images it would have had.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ap_detect import images as image_ops
from ap_detect.data import augment


def training_batches(
  dataset,
  *,
  image_size,
  batch_size,
  seed=0,
  first_step=0,
  horizontal_flip=0.5,
  zoom_range=(1.0, 1.0),
  color_jitter=0.0,
):
  """Endless augmented batches of a split, in an order that `seed` fixes.

  Args:
    dataset: DetectionDataset with at least one image.
    image_size: (height, width) of the network's input, pixels.
    batch_size: images a batch, over all replicas.
    seed: of order and augmentation.
    first_step: number of the first batch.
    horizontal_flip: probability of mirroring.
    zoom_range: see `augment.zoom_onto_canvas`.
    color_jitter: strength of `augment.random_color`; 0 for none.

  Returns:
    tf.data.Dataset of dicts: `image` [B, H, W, 3] float32 RGB 0..255, `boxes`
    [B, G, 4] float32 (yxyx, pixels of the input), `classes` [B, G] int32 (0 is
    padding), `ignored` [B, G] bool. G is the largest number of objects of an image.

  Raises:
    ValueError: no image.
  """
  if not dataset.records:
    raise ValueError("training requires at least one image, got an empty split")
  steps = [
    augment.random_horizontal_flip(horizontal_flip),
    augment.zoom_onto_canvas(image_size, zoom_range),
  ]
  if color_jitter:
    steps.append(augment.random_color(color_jitter))
  load = _example_loader(dataset)
  max_objects = max(1, max(len(record.boxes) for record in dataset.records))

  def make_example(position, index):
    example = load(index)
    # The order and each picture's augmentation are drawn from different streams.
    example["seed"] = tf.stack([seed + 1, tf.cast(position % 2**31, tf.int32)])
    for step in steps:
      example = step(example)
    del example["seed"]
    return _pad(example, max_objects)

  stream = _positions(len(dataset.records), seed, first_step * batch_size)
  return (
    stream.map(make_example, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(batch_size, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )


def images_of_step(num_images, step, *, batch_size, seed=0):
  """Indices of the records in a training batch.

  Args:
    num_images: images of the split.
    step: number of the batch, from 0.
    batch_size: images a batch, over all replicas.
    seed: the seed that `training_batches` was given.

  Returns:
    list of batch_size record indices.
  """
  stream = _positions(num_images, seed, step * batch_size).take(batch_size)
  return [int(index) for _, index in stream]


def evaluation_batches(records, *, image_size, batch_size):
  """Every image once, in order, unaugmented.

  The last batch is filled up with its last image, so that all batches are of one size;
  whoever reads it stops at the number of records.

  Args:
    records: ImageRecords, at least one.
    image_size: (height, width) of the network's input, pixels.
    batch_size: images a batch, over all replicas.

  Returns:
    tf.data.Dataset of dicts: `image` [B, H, W, 3] float32 RGB 0..255, `scale` [B]
    float32, pixels of the input a pixel of the picture, `content_size` [B, 2] float32,
    height and width of the picture in the input.
  """
  load_image = _image_loader(records)
  count = len(records)

  def make_example(index):
    image = load_image(tf.minimum(index, count - 1))
    fitted, scale = image_ops.resize_to_fit(image[tf.newaxis], image_size)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    return {"image": fitted[0], "scale": scale, "content_size": size * scale}

  padded_count = -(-count // batch_size) * batch_size
  return (
    tf.data.Dataset.range(padded_count)
    .map(make_example, num_parallel_calls=tf.data.AUTOTUNE)
    .batch(batch_size, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )


def _positions(num_images, seed, first):
  """Dataset of (position, record index) from position `first` on, without end."""

  def shuffled(number):
    order = tf.random.experimental.stateless_shuffle(
      tf.range(num_images), seed=tf.stack([tf.cast(seed, tf.int64), number])
    )
    positions = number * num_images + tf.range(num_images, dtype=tf.int64)
    return tf.data.Dataset.from_tensor_slices((positions, order))

  shuffles = tf.data.Dataset.range(first // num_images, np.iinfo(np.int64).max)
  return shuffles.flat_map(shuffled).skip(first % num_images)


def _example_loader(dataset):
  """Function of a record's index to its example."""
  records = dataset.records
  load_image = _image_loader(records)
  splits = tf.constant(np.cumsum([0, *(len(r.boxes) for r in records)]), tf.int64)
  boxes = tf.constant(
    np.concatenate([r.boxes.reshape(-1, 4) for r in records]), tf.float32
  )
  classes = tf.constant(np.concatenate([r.classes for r in records]), tf.int32)
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
  if isinstance(records[0].image, str):
    paths = tf.constant([record.image for record in records])
    return lambda index: image_ops.decode_image(tf.io.read_file(paths[index]))
  pixels = tf.constant(np.stack([record.image for record in records]))
  return lambda index: pixels[index]


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
