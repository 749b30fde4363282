"""Prefix sums and the like on small one-dimensional tables.

`tf.cumsum` becomes a reduce-window of quadratic cost under XLA on a CPU, so these take
log2(n) steps of shifting and combining. The steps are in a `tf.while_loop`: unrolled,
XLA would fuse them and compute every use of every step anew.
"""

from __future__ import annotations

import tensorflow as tf


def scan(x, combine, identity):
  """Inclusive scan: y[i] = combine(x[0], ..., x[i]).

  Args:
    x: [n] tensor.
    combine: associative function of two tensors, element by element.
    identity: scalar of x's type with combine(identity, a) = a.

  Returns:
    [n], as x.

  Example:
    >>> scan(tf.constant([3, 1, 2]), tf.minimum, tf.int32.max).numpy().tolist()
    [3, 1, 1]
  """
  size = tf.shape(x)[0]
  index = tf.range(size)
  identity = tf.constant(identity, x.dtype)

  def double(shift, x):
    shifted = tf.gather(x, tf.maximum(index - shift, 0))
    return 2 * shift, combine(tf.where(index >= shift, shifted, identity), x)

  return tf.while_loop(lambda shift, _: shift < size, double, [1, x])[1]


def sum_up_to(x):
  """y[i] = x[0] + ... + x[i], of an [n] tensor."""
  return scan(x, tf.add, 0)


def sum_from(x):
  """y[i] = x[i] + ... + x[n - 1], of an [n] tensor."""
  return tf.reverse(sum_up_to(tf.reverse(x, [0])), [0])


def minimum_up_to(x):
  """y[i] = min(x[0], ..., x[i]), of an [n] floating tensor."""
  return scan(x, tf.minimum, float("inf"))
