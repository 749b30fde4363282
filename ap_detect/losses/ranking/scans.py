"""Prefix sums, running minima and searches on small tables."""

from __future__ import annotations

import tensorflow as tf

# Entries that are combined directly, each with all before it. `tf.cumsum` becomes a
# reduce-window of quadratic cost under XLA on a CPU, and a loop with an iteration for
# every doubling is a wait for the host each on a GPU.
_BLOCK = 32


def sum_up_to(x):
  """y[i] = x[0] + ... + x[i], along the last dimension of [..., n]."""
  return _scan(x, tf.reduce_sum, tf.add, tf.zeros([], x.dtype), _levels(x))


def sum_from(x):
  """y[i] = x[i] + ... + x[n - 1], along the last dimension of [..., n]."""
  return tf.reverse(sum_up_to(tf.reverse(x, [-1])), [-1])


def minimum_up_to(x):
  """y[i] = min(x[0], ..., x[i]), along the last dimension of [..., n].

  Example:
    >>> minimum_up_to(tf.constant([3, 1, 2])).numpy().tolist()
    [3, 1, 1]
  """
  largest = tf.constant(x.dtype.max, x.dtype)
  return _scan(x, tf.reduce_min, tf.minimum, largest, _levels(x))


def _levels(x):
  """How many times blocks are blocks of blocks: until one is left."""
  size = 2**31 if x.shape[-1] is None else x.shape[-1]
  levels = 0
  while size > _BLOCK:
    size, levels = -(-size // _BLOCK), levels + 1
  return levels


def _scan(x, reduce, combine, identity, levels):
  """Scans blocks by themselves, and adds to each what the blocks before it come to."""
  if levels == 0:
    return _scan_directly(x, reduce, identity)
  size = tf.shape(x)[-1] if x.shape[-1] is None else x.shape[-1]
  extra = -size % _BLOCK
  leading = [[0, 0]] * (x.shape.rank - 1)
  blocks = tf.pad(x, [*leading, [0, extra]], constant_values=identity)
  shape = [*x.shape[:-1].as_list(), (size + extra) // _BLOCK, _BLOCK]
  blocks = _scan_directly(tf.reshape(blocks, shape), reduce, identity)
  before = _scan(blocks[..., -1], reduce, combine, identity, levels - 1)
  before = tf.pad(before[..., :-1], [*leading, [1, 0]], constant_values=identity)
  blocks = combine(blocks, before[..., tf.newaxis])
  return tf.reshape(blocks, [*shape[:-2], size + extra])[..., :size]


def _scan_directly(x, reduce, identity):
  place = tf.range(tf.shape(x)[-1])
  is_up_to = place <= place[:, tf.newaxis]
  return reduce(tf.where(is_up_to, x[..., tf.newaxis, :], identity), -1)


def search_unrolled(values, ascending, *, strictly=False):
  """How many entries of a sorted table are at or below each value: on GPUs.

  Args:
    values: [...] tensor.
    ascending: [n] of the same type.
    strictly: whether to count those below instead.

  Returns:
    [...] int32.

  Example:
    >>> search_unrolled(tf.constant([1, 2]), tf.constant([1, 1, 3])).numpy().tolist()
    [2, 2]
  """
  count = tf.zeros_like(values, tf.int32)
  for bit in reversed(range(_bits(ascending))):
    count = _further(count, 2**bit, values, ascending, strictly)
  return count


def search_in_loop(values, ascending, *, strictly=False):
  """As `search_unrolled`, on CPUs, where XLA would compute every step many times."""
  start = [2 ** _bits(ascending) // 2, tf.zeros_like(values, tf.int32)]

  def body(stride, count):
    return stride // 2, _further(count, stride, values, ascending, strictly)

  return tf.while_loop(lambda stride, _: stride > 0, body, start)[1]


def _bits(ascending):
  return 31 if ascending.shape[0] is None else ascending.shape[0].bit_length()


def _further(count, stride, values, ascending, strictly):
  probe = count + (stride - 1)
  size = tf.shape(ascending)[0]
  entry = tf.gather(ascending, tf.minimum(probe, size - 1))
  is_counted = entry < values if strictly else entry <= values
  return tf.where((probe < size) & is_counted, count + stride, count)
