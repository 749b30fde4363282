"""Number and sum of the scores in every interval between knots."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect.losses.labels import IGNORED
from ap_detect.losses.ranking import intervals

# Scores that are looked up and added at a time on a CPU: their intermediate values stay
# in the processor's cache.
_CHUNK = 2**15
# Copies of the tables on a CPU, in turn: early in training most scores fall into one
# interval, and each would wait for the one before it to be added.
_COPIES = 2
# Entries of all copies of the tables on a GPU. Early in training most scores
# fall into one interval: with copies, fewer of them wait for each other to be added.
_COPIED_ENTRIES = 2**20
# Of the 63 bits of a sum; one is left for what rounding adds.
_SUM_BITS = 62


class Tables(NamedTuple):
  """Number and sum of the scores in every interval.

  Attributes:
    counts: [M] int32.
    sums: [M] float64; sum of the scores' offsets above the begin of the interval. One of
      them is NaN where a score is not finite.
  """

  counts: tf.Tensor
  sums: tf.Tensor


class Units(NamedTuple):
  """What offsets are counted in, so that their sums are the same in any order.

  Attributes:
    per_score: [] float32; units in one unit of the scores, a power of 2.
    size: [] float64; its inverse.
  """

  per_score: tf.Tensor
  size: tf.Tensor

  @classmethod
  def for_sum(cls, number, step):
    """The finest units in which the sum of `number` offsets fits 63 bits."""
    if tf.is_tensor(number):
      bits = tf.reduce_sum(tf.cast(2 ** tf.range(31) <= number, tf.int32))
    else:
      bits = number.bit_length()
    power = tf.clip_by_value(_SUM_BITS - bits - step.exponent, -126, 126)
    # From their bits, for a power that is computed need not be exact.
    return cls(
      tf.bitcast((127 + power) * 2**23, tf.float32),
      tf.cast(tf.bitcast((127 - power) * 2**23, tf.float32), tf.float64),
    )

  def of(self, offset):
    """[...] int64, from float32 in units of the scores."""
    return tf.cast(tf.round(offset * self.per_score), tf.int64)

  def back(self, sums):
    """[...] float64 in units of the scores."""
    return tf.cast(sums, tf.float64) * self.size


def in_chunks(logits, labels, grid, steps, step):
  """The tables of the negatives among all entries, chunk by chunk: for CPUs.

  Args:
    logits: [R, K] float.
    labels: [R] int32.
    grid: intervals.Grid of M intervals.
    steps: int; of its `look_up`.
    step: knots.Step.

  Returns:
    Tables of fields [M, copies], for `merged`.
  """
  rows, classes = length(labels), logits.shape[-1]
  size = length(grid.begins) - 1
  chunk = lesser(max(_CHUNK // classes, 1), rows)

  def body(begin, counts, sums):
    # The last chunk is moved back into the array; rows it has seen do not count again.
    start = tf.minimum(begin, rows - chunk)
    scores = tf.cast(tf.slice(logits, [start, 0], [chunk, classes]), tf.float32)
    labels_here = tf.slice(labels, [start], [chunk])
    is_counted = (start + tf.range(chunk) >= begin) & (labels_here != IGNORED)
    is_counted = is_counted[:, tf.newaxis] & ~is_own_class(labels_here, classes)
    interval = grid.look_up(scores, steps)
    offset = intervals.offset(scores, grid.begins, interval, step.widest)
    offset = tf.where(tf.math.is_finite(scores), offset, np.float32(np.nan))
    offset = tf.cast(tf.where(is_counted, offset, 0.0), tf.float64)
    turn = tf.reshape(tf.range(chunk * classes) % _COPIES, [chunk, classes])
    # Added one after another, floats have the same sum every time.
    return begin + chunk, *_add(
      counts, sums, interval * _COPIES + turn, is_counted, offset
    )

  start = [tf.zeros([size * _COPIES], kind) for kind in (tf.int32, tf.float64)]
  _, *found = tf.while_loop(lambda begin, *_: begin < rows, body, [0, *start])
  return Tables(*(tf.reshape(table, [size, _COPIES]) for table in found))


def merged(tables, number):
  """The Tables of the first intervals alone, from `in_chunks`."""
  return Tables(*(tf.reduce_sum(table[:number], 1) for table in tables))


def at_once(scores, labels, begins, interval, step):
  """The same without a loop: for GPUs.

  Args:
    scores: [R, K] float32.
    labels, step: as `in_chunks`.
    begins: [M + 1] float32; see knots.Windows.
    interval: [R, K] int32; that each score lies in.

  Returns:
    Tables.
  """
  units = Units.for_sum(length(labels) * scores.shape[-1], step)
  return from_units(in_units(scores, labels, begins, interval, step, units), units)


def in_units(scores, labels, begins, interval, step, units):
  """What `at_once` makes Tables of, which can be added to that of other scores.

  Args:
    scores, labels, begins, interval, step: as for `at_once`.
    units: Units for the sum of all scores that shall be added.

  Returns:
    [2, M + 1] int64: number and sum in units of the scores of each interval; last, of
    those that are not finite.
  """
  rows, size = length(labels), length(begins)
  number = rows * scores.shape[-1]
  copies = 1
  if not tf.is_tensor(number) and not tf.is_tensor(size):
    copies = max(min(_COPIED_ENTRIES, number // 4) // size, 1)
  is_counted = (labels != IGNORED)[:, tf.newaxis]
  is_counted &= ~is_own_class(labels, scores.shape[-1])
  offset = intervals.offset(scores, begins, interval, step.widest)
  # Integers know no NaN: what is not finite counts in an interval of its own.
  at = tf.where(tf.math.is_finite(scores), interval, size - 1)
  at += size * (tf.range(rows) % copies)[:, tf.newaxis]
  counts, sums = _add(
    tf.zeros([copies * size], tf.int32),
    tf.zeros([copies * size], tf.int64),
    *(at, is_counted, units.of(tf.where(is_counted, offset, 0.0))),
  )
  counts, sums = (
    tf.reduce_sum(tf.reshape(table, [copies, size]), 0) for table in (counts, sums)
  )
  return tf.stack([tf.cast(counts, tf.int64), sums])


def from_units(found, units):
  """Tables of what `in_units` gives."""
  counts, sums = found[0], units.back(found[1, :-1])
  sums = tf.where(counts[-1] > 0, np.float64(np.nan), sums)
  return Tables(tf.cast(counts[:-1], tf.int32), sums)


def of_positives(positives, windows, step, search):
  """The tables of the positives themselves.

  Args:
    positives: knots.Positives.
    windows: knots.Windows of M intervals.
    step: knots.Step.
    search: scans.search_unrolled or scans.search_in_loop.

  Returns:
    Tables.
  """
  scores, size = positives.scores, length(windows.width)
  units = Units.for_sum(length(scores), step)
  interval = search(scores, windows.begins[1:-1])
  offset = intervals.offset(scores, windows.begins, interval, step.widest)
  counts, sums = _add(
    tf.zeros([size], tf.int32),
    tf.zeros([size], tf.int64),
    *(interval, positives.is_used, units.of(tf.where(positives.is_used, offset, 0.0))),
  )
  return Tables(counts, units.back(sums))


def _add(counts, sums, interval, is_counted, offset):
  at = tf.reshape(interval, [-1, 1])
  number = tf.reshape(tf.cast(is_counted, counts.dtype), [-1])
  return (
    tf.tensor_scatter_nd_add(counts, at, number),
    tf.tensor_scatter_nd_add(sums, at, tf.reshape(offset, [-1])),
  )


def length(x):
  """Number of entries, as a Python number where it is known while tracing."""
  return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def lesser(a, b):
  """The lesser of two numbers, each a Python number or a tensor."""
  return tf.minimum(a, b) if tf.is_tensor(a) or tf.is_tensor(b) else min(a, b)


def is_own_class(labels, classes):
  """[R, K] bool: the entry of each anchor's own class."""
  return labels[:, tf.newaxis] == tf.range(1, classes + 1)
