"""Random numbers of an example: each depends on the example's seed and on a name.

See `ap_detect.data.augment` on examples.
"""

from __future__ import annotations

import hashlib

import tensorflow as tf


def uniform(example, name, value_range=(0.0, 1.0), shape=()):
  """Numbers in the range that depend on the example's seed and the name only."""
  low, high = value_range
  return low + (high - low) * tf.random.stateless_uniform(shape, _seed(example, name))


def integer(example, name, end):
  """An integer below `end` that depends on the example's seed and the name only."""
  return tf.random.stateless_uniform(
    [], _seed(example, name), maxval=end, dtype=tf.int32
  )


def normal(example, name, shape):
  """Numbers N(0, 1) that depend on the example's seed and the name only."""
  return tf.random.stateless_normal(shape, _seed(example, name))


def jitter(example, name, neutral, spread):
  """Uniform in neutral +- spread half of the time, else neutral."""
  value = uniform(example, name, (neutral - spread, neutral + spread))
  return tf.where(uniform(example, name + "?") < 0.5, value, neutral)


def _seed(example, name):
  return tf.random.experimental.stateless_fold_in(example["seed"], stream_key(name))


def stream_key(name):
  """Key of the random stream of a draw, by its whole name; int below 2^31.

  Example:
    >>> stream_key("brightness") == stream_key("sharpness")
    False
  """
  digest = hashlib.sha256(name.encode()).digest()
  return int.from_bytes(digest[:4], "little") % 2**31
