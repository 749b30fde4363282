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
# Numbers of bisection steps that are unrolled, to be fused into one loop over the
# scores. Crowded cells, of more than 2^8 knots, take a loop over steps instead.
_UNROLLED_STEPS = (2, 4, 8)


class IntervalGrid(NamedTuple):
  """Sorted knots and a look-up table for them. M intervals, numbered from 0.

  Interval r holds the scores that have exactly r knots at or below them.

  Attributes:
    left: [M + 1] float32; left[r] is the knot at which interval r begins; +inf for
      interval 0, which has none, and from the first knot that is not in use on.
    low: [] float32; where the first cell begins, in units of the scores.
    scale: [] float32; cells in a unit of the scores.
    starts: [cells] int32; how many knots lie in lower cells.
    crowd: [] int32; how many knots the fullest cell holds.
  """

  left: tf.Tensor
  low: tf.Tensor
  scale: tf.Tensor
  starts: tf.Tensor
  crowd: tf.Tensor


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
  infinity = tf.constant([float("inf")], tf.float32)
  return IntervalGrid(
    left=tf.concat([infinity, knots, infinity], 0),
    low=low,
    scale=scale,
    starts=scans.sum_up_to(counts) - counts,
    crowd=tf.reduce_max(counts),
  )


def look_up(scores, grid):
  """The interval that each score lies in.

  Args:
    scores: [...] float32. A NaN gets an arbitrary interval.
    grid: an IntervalGrid.

  Returns:
    [...] int32 in [0, M).
  """

  def unrolled(steps):
    def branch():
      interval = tf.gather(grid.starts, _cell(scores, grid.low, grid.scale))
      for step in reversed(range(steps)):
        interval = _bisect(scores, grid.left, interval, 2**step)
      return interval

    return branch

  def looped():
    interval = tf.gather(grid.starts, _cell(scores, grid.low, grid.scale))

    def body(stride, interval):
      return stride // 2, _bisect(scores, grid.left, interval, stride)

    half = tf.while_loop(
      lambda stride: 2 * stride <= grid.crowd, lambda stride: (2 * stride,), [1]
    )[0]
    return tf.while_loop(lambda stride, _: stride > 0, body, [half, interval])[1]

  limits = tf.constant([2**steps for steps in _UNROLLED_STEPS], tf.int32)
  branch = tf.reduce_sum(tf.cast(grid.crowd >= limits, tf.int32))
  branches = [unrolled(steps) for steps in _UNROLLED_STEPS] + [looped]
  return tf.switch_case(branch, branches)


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
