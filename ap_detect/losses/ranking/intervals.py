"""Which interval between sorted knots a score lies in, for millions of scores."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Grid(NamedTuple):
  """A look-up table of intervals between knots.

  The range of the knots is divided into equal cells. A score's cell says how many knots
  lie in the cells below; the few knots of its own cell are then found by bisection.
  Knots and scores get their cells from the same float32 arithmetic, which never
  decreases with the score, so the interval is exact whatever the rounding.

  Attributes:
    begins: [M + 1] float32; see knots.Windows.
    low: [] float32; where the first cell begins, in units of the scores.
    scale: [] float32; cells in a unit of the scores.
    starts: [cells] int32; how many knots lie in lower cells.
    stride: [] int32; the largest power of 2 that is not above the number of knots in
      the fullest cell; at least 1.
  """

  begins: tf.Tensor
  low: tf.Tensor
  scale: tf.Tensor
  starts: tf.Tensor
  stride: tf.Tensor

  def is_crowded(self, steps):
    """[] bool; whether so many steps of bisection are too few for its fullest cell."""
    return self.stride >= 2**steps

  def look_up(self, scores, steps, *, is_crowded=True):
    """The interval that each score lies in.

    Args:
      scores: [...] float32. A NaN gets an arbitrary interval.
      steps: int, steps of bisection that are unrolled, to be fused. Where the grid is
        crowded for so few, those before take a loop over the scores each.
      is_crowded: whether it may be; False leaves that loop out.

    Returns:
      [...] int32 in [0, M).
    """
    # No `tf.cond` here: XLA runs what is inside one on a single core.
    cell = _cell(scores, self.low, self.scale, self.starts.shape[0])
    interval = tf.gather(self.starts, cell)
    if is_crowded:
      _, interval = tf.while_loop(
        lambda stride, _: stride >= 2**steps,
        lambda stride, interval: (stride // 2, self._bisect(scores, interval, stride)),
        [self.stride, interval],
      )
    for step in reversed(range(steps)):
      interval = self._bisect(scores, interval, 2**step)
    return interval

  def _bisect(self, scores, interval, stride):
    candidate = interval + stride
    last = tf.shape(self.begins)[0] - 1
    knot = tf.gather(self.begins, tf.minimum(candidate, last))
    return tf.where(knot <= scores, candidate, interval)


def build_grid(begins, low, high, cells, search):
  """The look-up table of sorted knots.

  Args:
    begins: [M + 1] float32; see knots.Windows.
    low, high: [] float64; the range to divide into cells. Intervals come out right
      for any; one that holds most scores and knots makes it fast.
    cells: int, how many.
    search: scans.search_unrolled or scans.search_in_loop.

  Returns:
    A Grid of M intervals.
  """
  knots = begins[1:-1]
  low = tf.cast(low, tf.float32)
  width = tf.maximum(tf.cast(high, tf.float32) - low, 1e-30)
  scale = (cells - 1) / tf.minimum(width, tf.float32.max)
  cell = _cell(knots, low, scale, cells)
  starts = search(tf.range(cells), cell, strictly=True)
  in_use = tf.reduce_sum(tf.cast(tf.math.is_finite(knots), tf.int32))
  crowd = tf.reduce_max(tf.concat([starts[1:], in_use[tf.newaxis]], 0) - starts)
  powers = tf.constant([2**i for i in range(31)], tf.int32)
  stride = tf.reduce_max(tf.where(powers <= tf.maximum(crowd, 1), powers, 1))
  return Grid(begins, low, scale, starts, stride)


def offset(scores, begins, interval, limit):
  """How far a score lies above the knot at which its interval begins.

  Args:
    scores: [...] float32.
    begins: [M + 1] float32; see knots.Windows.
    interval: [...] int32; as from `look_up`.
    limit: [] float32; larger offsets are taken for this one.

  Returns:
    [...] float32 in [0, limit]; 0 in interval 0, and where the score is a NaN.
  """
  distance = scores - tf.gather(begins, interval)
  return tf.where(distance > 0, tf.minimum(distance, limit), 0.0)


def _cell(scores, low, scale, cells):
  position = tf.minimum(tf.maximum((scores - low) * scale, 0.0), cells - 1.0)
  # A NaN passes the bounds on floats and becomes some integer.
  return tf.minimum(tf.maximum(tf.cast(position, tf.int32), 0), cells - 1)
