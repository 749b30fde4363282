"""A config's training step and batches of noise, for the benchmarks beside it."""

from __future__ import annotations

import itertools

import tensorflow as tf

from ap_detect.runs import model as model_lib
from ap_detect.training import step as step_lib
from ap_detect.training import trainer

# Trains so little that no loss diverges on noise.
_LEARNING_RATE = 1e-6


def make_step(config, num_classes, strategy):
  """A config's training step on a new network, as `trainer.train` makes it.

  Args:
    config: Config.
    num_classes: K.
    strategy: tf.distribute strategy.

  Returns:
    Function of a batch, as the strategy's distributed datasets give it. It does one
    step, waits for it, and returns its total loss.
  """
  with strategy.scope():
    network = model_lib.build_network(config, num_classes, pretrained=False)
    feed = step_lib.Feed()
    optimizer = trainer.make_optimizer(config.train, feed, network)
    step = trainer.make_step(config, network, optimizer, feed, strategy)
  numbers = itertools.count()

  def run(batch):
    logs = step([batch], [_LEARNING_RATE], next(numbers))
    return float(logs["total_loss"].numpy()[0])

  return run


def noise(config, num_classes, replicas=1):
  """One step's images of random pixels, with 8 random objects each.

  Args:
    config: Config.
    num_classes: K.
    replicas: int, how many share the batch.

  Returns:
    Dict of "image", "boxes", "classes" and "ignored", see `pipeline.training_batches`.
  """
  size = config.data.image_size_px
  images = config.train.images_per_replica * replicas
  sides = [float(side) for side in size]
  corner = tf.random.stateless_uniform([images, 8, 2], [0, 2], 0.0, 0.5) * sides
  extent = tf.random.stateless_uniform([images, 8, 2], [0, 3], 0.1, 0.5) * sides
  return {
    "image": tf.random.stateless_uniform([images, *size, 3], [0, 4]) * 255,
    "boxes": tf.concat([corner, corner + extent], -1),
    "classes": tf.random.stateless_uniform(
      [images, 8], [0, 5], 1, num_classes + 1, tf.int32
    ),
    "ignored": tf.zeros([images, 8], tf.bool),
  }


def distribute(strategy, batch):
  """Endless iterator of one batch, as a strategy's distributed datasets give it."""
  dataset = tf.data.Dataset.from_tensors(batch).repeat()
  return iter(strategy.experimental_distribute_dataset(dataset))
