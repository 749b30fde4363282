"""Which interval between sorted knots a score lies in, for millions of scores.

The range of the knots is divided into equal cells. A score's cell says how many knots
lie in the cells below; the few knots of its own cell are then found by bisection. Knots
and scores get their cells from the same float32 arithmetic, which never decreases with
the score, so the interval is exact whatever the rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from ap_detect.losses import scans

_CELLS = 2**15
# Bisection steps that are unrolled, to be fused into one loop over the scores. Where a
# cell holds 2^steps knots or more, those before take a loop over the scores each.
_UNROLLED_STEPS = 2


class IntervalGrid(NamedTuple):
  """Sorted knots and a look-up table for them. M intervals, numbered from 0.

  Interval r holds the scores that have exactly r knots at or below them.

  Attributes:
    left: [M + 1] float32; left[r] is the knot at which interval r begins; +inf for
      interval 0, which has none, and from the first knot that is not in use on.
    low: [] float32; where the first cell begins, in units of the scores.
    scale: [] float32; cells in a unit of the scores.
    starts: [cells] int32; how many knots lie in lower cells.
    stride: [] int32; the largest power of 2 that is not above the number of knots in
      the fullest cell; at least 1.
  """

  left: tf.Tensor
  low: tf.Tensor
  scale: tf.Tensor
  starts: tf.Tensor
  stride: tf.Tensor


def build(knots, low, high):
  """Builds the look-up table of sorted knots.

  Args:
    knots: [n] float32, ascending; +inf from the first that is not in use on.
    low, high: [] float64; the range to divide into cells. Intervals come out right
      for any; one that holds most scores and knots makes it fast.

  Returns:
    An IntervalGrid of n + 1 intervals.
  """
  low = tf.cast(low, tf.float32)
  width = tf.maximum(tf.cast(high, tf.float32) - low, 1e-30)
  scale = (_CELLS - 1) / tf.minimum(width, tf.float32.max)
  cell = _cell(knots, low, scale)
  in_use = tf.cast(tf.math.is_finite(knots), tf.int32)
  counts = tf.math.unsorted_segment_sum(in_use, cell, _CELLS)
  crowd = tf.reduce_max(counts)
  powers = tf.constant([2**i for i in range(31)], tf.int32)
  infinity = tf.constant([float("inf")], tf.float32)
  return IntervalGrid(
    left=tf.concat([infinity, knots, infinity], 0),
    low=low,
    scale=scale,
    starts=scans.sum_up_to(counts) - counts,
    stride=tf.reduce_max(tf.where(powers <= tf.maximum(crowd, 1), powers, 1)),
  )


def look_up(scores, grid):
  """The interval that each score lies in.

  Args:
    scores: [...] float32. A NaN gets an arbitrary interval.
    grid: an IntervalGrid.

  Returns:
    [...] int32 in [0, M).
  """
  # No `tf.cond` here: XLA runs what is inside one on a single core.
  interval = tf.gather(grid.starts, _cell(scores, grid.low, grid.scale))

  def bisect(stride, interval):
    return stride // 2, _bisect(scores, grid.left, interval, stride)

  smallest = 2**_UNROLLED_STEPS
  start = [grid.stride, interval]
  _, interval = tf.while_loop(lambda stride, _: stride >= smallest, bisect, start)
  for step in reversed(range(_UNROLLED_STEPS)):
    interval = _bisect(scores, grid.left, interval, 2**step)
  return interval


def offset(scores, grid, interval, limit):
  """How far a score lies above the knot at which its interval begins.

  Args:
    scores: [...] float32.
    grid: an IntervalGrid.
    interval: [...] int32 from `look_up`.
    limit: [] float32; larger offsets are taken for this one.

  Returns:
    [...] float32 in [0, limit]; 0 in interval 0, and where the score is a NaN.
  """
  distance = scores - tf.gather(grid.left, interval)
  return tf.where(distance > 0, tf.minimum(distance, limit), 0.0)


def _cell(scores, low, scale):
  position = tf.minimum(tf.maximum((scores - low) * scale, 0.0), _CELLS - 1.0)
  # A NaN passes the bounds on floats and becomes some integer.
  return tf.minimum(tf.maximum(tf.cast(position, tf.int32), 0), _CELLS - 1)


def _bisect(scores, left, interval, stride):
  candidate = interval + stride
  knot = tf.gather(left, tf.minimum(candidate, tf.shape(left)[0] - 1))
  return tf.where(knot <= scores, candidate, interval)
