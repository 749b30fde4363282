"""Prefix sums and the like on small tables.

`tf.cumsum` becomes a reduce-window of quadratic cost under XLA on a CPU, so these take
log2(n) steps of shifting and combining. The steps are in a `tf.while_loop`: unrolled,
XLA would fuse them and compute every use of every step anew.
"""

from __future__ import annotations

import tensorflow as tf


def scan(x, combine, identity):
  """Inclusive scan along the first dimension: y[i] = combine(x[0], ..., x[i]).

  Args:
    x: [n, ...] tensor.
    combine: associative function of two tensors, element by element.
    identity: scalar of x's type with combine(identity, a) = a.

  Returns:
    [n, ...], as x.

  Example:
    >>> scan(tf.constant([3, 1, 2]), tf.minimum, tf.int32.max).numpy().tolist()
    [3, 1, 1]
  """
  size = tf.shape(x)[0]
  shape = x.shape
  identity = tf.constant(identity, x.dtype)
  rest = shape.rank - 1

  def double(shift, x):
    padded = tf.pad(x, [[size, 0]] + [[0, 0]] * rest, constant_values=identity)
    begin = tf.stack([size - shift] + [0] * rest)
    shifted = tf.slice(padded, begin, tf.shape(x))
    return 2 * shift, tf.ensure_shape(combine(shifted, x), shape)

  return tf.while_loop(lambda shift, _: shift < size, double, [1, x])[1]


def sum_up_to(x):
  """y[i] = x[0] + ... + x[i], along the first dimension of [n, ...]."""
  return scan(x, tf.add, 0)


def sum_from(x):
  """y[i] = x[i] + ... + x[n - 1], along the first dimension of [n, ...]."""
  return tf.reverse(sum_up_to(tf.reverse(x, [0])), [0])


def minimum_up_to(x):
  """y[i] = min(x[0], ..., x[i]), along the first dimension of [n, ...] floats."""
  return scan(x, tf.minimum, float("inf"))
