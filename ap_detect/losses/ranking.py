"""The sums over all pairs of positives and negatives that AP-loss and AUC-loss need.

The step f (Chen et al. 2019, eq. 14) is piecewise linear with two knots for a positive
i, at s_i - delta and s_i + delta. With R(t) = sum_j max(s_j - t, 0) over the negatives,

  b_i = sum_j f(s_j - s_i) = (R(s_i - delta) - R(s_i + delta)) / (2 delta),

and R follows from the number and the sum of the scores between every two neighbouring
knots; what all positives together do to a negative, sum_i w_i f(s_j - s_i), is a
straight line between every two knots. So two passes over the scores are enough, and no
pair is ever formed.

Three things keep this exact. Knots are rounded up to float32, so that comparing float32
scores with them is comparing with the true knots; what the rounding moved is added in
float64. Scores are summed relative to the knot below them. And all sums run over terms
that are not negative, from the end at which they are small: counting R from the top, a
positive above most negatives does not inherit the rounding of theirs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect.losses import branching, interval_grid, scans
from ap_detect.losses.labels import BACKGROUND, IGNORED

# Positives are collected into the smallest of these sizes that holds them, or into one
# as large as the number of anchors.
_CAPACITIES = (2**11, 2**14)
# Scores that are looked up and added to the tables at a time: their intermediate values
# stay in the processor's cache.
_CHUNK = 2**17
# Intervals wider than this many delta lie in no positive's window, of 2 delta.
_WIDEST = 4.0
_INFINITY = np.float32(np.inf)


class Lines(NamedTuple):
  """The gradient of every entry, as a function of its score.

  Attributes:
    grid: IntervalGrid of M intervals.
    height: [M] float32; gradient of a negative at the left end of its interval.
    slope: [M] float32; how it rises with the score.
    limit: [] float32; intervals wider than this have slope 0.
    own: [R] float32; gradient of an anchor's entry for its own class.
  """

  grid: interval_grid.IntervalGrid
  height: tf.Tensor
  slope: tf.Tensor
  limit: tf.Tensor
  own: tf.Tensor

  @classmethod
  def signature(cls):
    """The type of every field, in the same structure."""
    grid = interval_grid.IntervalGrid(
      tf.float32, tf.float32, tf.float32, tf.int32, tf.int32
    )
    return cls(grid, tf.float32, tf.float32, tf.float32, tf.float32)


class _Windows(NamedTuple):
  """Intervals of which each positive's window from -delta to delta is made.

  Attributes:
    gap: [M] float64; width of each interval, 0 where it has no end.
    first, last: [capacity] int32; interval that begins at the lower, upper knot.
    first_shift, last_shift: [capacity] float64; how far rounding moved the knot up.
  """

  gap: tf.Tensor
  first: tf.Tensor
  last: tf.Tensor
  first_shift: tf.Tensor
  last_shift: tf.Tensor


def rank(logits, labels, delta, errors):
  """Compares every positive with everything else.

  Args:
    logits: [R, K] float.
    labels: [R] int32.
    delta: [] float64, > 0.
    errors: function of (ranks among positives a_i, negatives above b_i, number of
      negatives), [capacity] float64 in ascending order of score and [] float64, to
      (e_i, w_i): the positive's share of the loss, and its weight on a negative that
      lies wholly above it.

  Returns:
    (loss [] float32, Lines).
  """
  classes = logits.shape[-1]
  rows = _length(labels)
  is_positive = labels > BACKGROUND
  index = tf.clip_by_value(labels - 1, 0, classes - 1)
  own = tf.cast(tf.gather(logits, index, batch_dims=1), tf.float32)
  is_bad = tf.reduce_any((labels < IGNORED) | (labels > classes))
  is_bad |= tf.reduce_any(is_positive & ~tf.math.is_finite(own))
  key = tf.where(tf.math.is_finite(own), -own, 0.0)
  # One entry more than anchors, so that no table is empty.
  key = tf.pad(
    tf.where(is_positive, key, -_INFINITY), [[0, 1]], constant_values=-_INFINITY
  )
  count = tf.reduce_sum(tf.cast(is_positive, tf.int32))
  anchors, scores, grid = _by_capacity(
    count, rows + 1, lambda capacity: _sort_positives(key, delta, count, capacity)
  )
  limit = tf.cast(_WIDEST * delta, tf.float32)
  counts, sums = _add_negatives(logits, labels, grid, limit)
  is_bad |= tf.reduce_any(tf.math.is_nan(sums))

  def weigh(capacity):
    knots = 2 * capacity
    return _weigh(
      scores[:capacity],
      grid.left[: knots + 2],
      tf.cast(counts[: knots + 1], tf.float64),
      sums[: knots + 1],
      delta,
      errors,
      rows + 1,
    )

  loss, error, height, slope = _by_capacity(count, rows + 1, weigh)
  own = tf.scatter_nd(anchors[:, tf.newaxis], -error, [rows + 1])[:rows]
  nan = np.float32(np.nan)
  loss, height, own = (tf.where(is_bad, nan, x) for x in (loss, height, own))
  return loss, Lines(grid, height, slope, limit, own)


def gradient(logits, labels, lines, upstream):
  """The error-driven gradient, times the upstream gradient.

  Args:
    logits: [R, K] float.
    labels: [R] int32.
    lines: Lines from `rank`.
    upstream: [] float.

  Returns:
    [R, K] of the logits' type.
  """
  upstream = tf.cast(upstream, tf.float32)
  height, slope = lines.height * upstream, lines.slope * upstream
  scores = tf.cast(logits, tf.float32)
  interval = interval_grid.look_up(scores, lines.grid)
  offset = interval_grid.offset(scores, lines.grid, interval, lines.limit)
  result = tf.gather(height, interval) + tf.gather(slope, interval) * offset
  own = (lines.own * upstream)[:, tf.newaxis]
  result = tf.where(_is_own_class(labels, logits.shape[-1]), own, result)
  result = tf.where((labels != IGNORED)[:, tf.newaxis], result, 0.0)
  return tf.cast(result, logits.dtype)


def _length(x):
  """Number of entries, as a Python number where it is known while tracing."""
  return tf.shape(x)[0] if x.shape[0] is None else x.shape[0]


def _lesser(a, b):
  return tf.minimum(a, b) if tf.is_tensor(a) or tf.is_tensor(b) else min(a, b)


def _greater(a, b):
  return tf.maximum(a, b) if tf.is_tensor(a) or tf.is_tensor(b) else max(a, b)


def _is_own_class(labels, classes):
  return labels[:, tf.newaxis] == tf.range(1, classes + 1)


def _by_capacity(count, largest, function):
  """function(capacity) for the smallest capacity that holds `count` positives."""
  smaller = [size for size in _CAPACITIES if tf.is_tensor(largest) or size < largest]
  sizes = [_lesser(size, largest) for size in smaller] + [largest]
  branches = [functools.partial(function, size) for size in sizes]
  return branching.first_that_holds([count <= size for size in smaller], branches)


def _sort_positives(key, delta, count, capacity):
  """The positives in ascending order of score, and the grid of their knots.

  Args:
    key: [R + 1] float32; the negated scores of the positives, -inf elsewhere.

  Returns:
    (anchors [R + 1] int32, scores [R + 1] float32, IntervalGrid); from the number of
    positives on, scores and knots are +inf.
  """
  extra = _length(key) - capacity
  key, anchors = tf.math.top_k(key, capacity)
  scores = -key
  knots = tf.sort(tf.concat(_knots(scores, delta), 0))
  grid = interval_grid.build(knots, *_middle(scores, delta, count))
  left = tf.pad(grid.left, [[0, 2 * extra]], constant_values=_INFINITY)
  return (
    # Added entries get a gradient of 0: which anchor they name does not matter.
    tf.pad(anchors, [[0, extra]]),
    tf.pad(scores, [[0, extra]], constant_values=_INFINITY),
    grid._replace(left=left),
  )


def _knots(scores, delta):
  """Lower and upper knot of each score, rounded up to float32; [n] float32 each."""
  exact = tf.cast(scores, tf.float64)
  low = _round_up(exact - delta)
  # Where delta is lost beside a huge score, its own upper knot still lies above it.
  high = tf.maximum(_round_up(exact + delta), _next_up(scores))
  return low, high


def _round_up(x):
  """The smallest float32 that is not below a float64."""
  rounded = tf.cast(x, tf.float32)
  is_below = tf.cast(rounded, tf.float64) < x
  return tf.where(is_below, _next_up(rounded), rounded)


def _next_up(x):
  """The smallest normal float32 above each; +inf stays."""
  bits = tf.bitcast(x, tf.int32)
  bits = tf.where(x > 0, bits + 1, bits - 1)
  smallest = np.float32(np.finfo(np.float32).tiny)
  is_small = (x > -smallest) & (x < smallest)  # float32 below are taken for 0
  following = tf.where(is_small, smallest, tf.bitcast(bits, tf.float32))
  return tf.where(x == _INFINITY, x, following)


def _middle(scores, delta, count):
  """A range that holds most positives' knots and that no outlier stretches."""
  last = tf.maximum(count, 1) - 1
  at = tf.stack([0, last // 8, (last // 8) * 7, last])
  scores = tf.cast(tf.gather(scores, at), tf.float64)
  scores = tf.where(tf.math.is_finite(scores), scores, 0.0)
  lowest, lower, upper, highest = tf.unstack(scores)
  reach = 4.0 * (upper - lower)
  low = tf.maximum(lowest, lower - reach) - delta
  return low, tf.minimum(highest, upper + reach) + delta


def _add_negatives(logits, labels, grid, limit):
  """Number of negatives in each interval, and their sum relative to its left end.

  Returns:
    (counts [M] int32, sums [M] float64); sums has a NaN where a score is not finite.
  """
  rows, classes = _length(labels), logits.shape[-1]
  intervals = _length(grid.left) - 1
  chunk = _lesser(max(_CHUNK // classes, 1), rows)

  def body(begin, counts, sums):
    # The last chunk is moved back into the array; rows it has seen do not count again.
    start = tf.minimum(begin, rows - chunk)
    scores = tf.cast(tf.slice(logits, [start, 0], [chunk, classes]), tf.float32)
    targets = tf.slice(labels, [start], [chunk])
    is_new = (start + tf.range(chunk) >= begin) & (targets != IGNORED)
    is_negative = is_new[:, tf.newaxis] & ~_is_own_class(targets, classes)
    interval = interval_grid.look_up(scores, grid)
    offset = interval_grid.offset(scores, grid, interval, limit)
    offset = tf.where(tf.math.is_finite(scores), offset, np.float32(np.nan))
    offset = tf.cast(tf.where(is_negative, offset, 0.0), tf.float64)
    number = tf.cast(is_negative, tf.int32)
    at = tf.reshape(interval, [-1, 1])
    return (
      begin + chunk,
      tf.tensor_scatter_nd_add(counts, at, tf.reshape(number, [-1])),
      tf.tensor_scatter_nd_add(sums, at, tf.reshape(offset, [-1])),
    )

  start = [0, tf.zeros([intervals], tf.int32), tf.zeros([intervals], tf.float64)]
  return tf.while_loop(lambda begin, *_: begin < rows, body, start)[1:]


def _weigh(scores, left, counts, sums, delta, errors, largest):
  """From the tables to the loss and the gradient's lines.

  Args:
    scores: [capacity] float32; ascending, +inf where not used.
    left: [M + 1] float32; as in IntervalGrid.
    counts, sums: [M] float64; from `_add_negatives`.
    delta, errors: see `rank`.
    largest: the capacity for which tables are padded.

  Returns:
    (loss [], errors [largest], height [M of `largest`], slope [same]), float32.
  """
  is_used = tf.math.is_finite(scores)
  windows = _windows(scores, left, delta, is_used)
  counts, sums = _with_positives(scores, left, counts, sums, delta, is_used)
  negatives_above, positives_above = _sum_of_steps(counts, sums, windows, delta)
  # The sum over positives has f(0) = 1/2 for the positive itself; its rank counts 1.
  error, weight = errors(
    0.5 + positives_above, negatives_above, tf.reduce_sum(counts[:, 0])
  )
  share = 1.0 / tf.maximum(tf.reduce_sum(tf.cast(is_used, tf.float64)), 1.0)
  error = tf.where(is_used, error * share, 0.0)
  weight = tf.where(is_used, weight * share, 0.0)
  height, slope = _lines(weight, windows, is_used, delta)
  extra = largest - _length(scores)
  return (
    tf.cast(tf.reduce_sum(error), tf.float32),
    tf.pad(tf.cast(error, tf.float32), [[0, extra]]),
    tf.pad(tf.cast(height, tf.float32), [[0, 2 * extra]]),
    tf.pad(tf.cast(slope, tf.float32), [[0, 2 * extra]]),
  )


def _windows(scores, left, delta, is_used):
  low, high = _knots(scores, delta)
  first, last = tf.split(_rank_among(tf.concat([low, high], 0), left[1:-1]), 2)
  widest = _WIDEST * delta

  def above_score(knot):
    difference = tf.cast(knot, tf.float64) - tf.cast(scores, tf.float64)
    return tf.where(is_used, tf.minimum(difference, widest), 0.0)

  first_shift = above_score(low) + delta
  last_shift = above_score(high) - delta
  is_finite = tf.math.is_finite(left)
  width = tf.where(is_finite, tf.cast(left, tf.float64), 0.0)
  width = tf.minimum(width[1:] - width[:-1], widest)
  gap = tf.where(is_finite[1:] & is_finite[:-1], width, 0.0)
  return _Windows(gap, first, last, first_shift, last_shift)


def _rank_among(values, knots):
  """[n] int32: how many of the sorted knots are at or below each value."""
  size = _length(knots)

  def body(stride, ranks):
    probe = ranks + stride - 1
    knot = tf.gather(knots, tf.minimum(probe, size - 1))
    ranks = tf.where((probe < size) & (knot <= values), ranks + stride, ranks)
    return stride // 2, ranks

  start = [2**30, tf.zeros_like(values, tf.int32)]
  return tf.while_loop(lambda stride, _: stride > 0, body, start)[1]


def _with_positives(scores, left, counts, sums, delta, is_used):
  """Adds a column for the positives to the tables; [M, 2] float64 each."""
  intervals = _length(counts)
  interval = _rank_among(scores, left[1:-1])
  begin = tf.where(is_used, tf.gather(left, interval), 0.0)
  offset = tf.cast(scores, tf.float64) - tf.cast(begin, tf.float64)
  # No positive lies below its own lower knot, so that every one has a left end.
  offset = tf.where(is_used, tf.minimum(offset, _WIDEST * delta), 0.0)
  number = tf.cast(is_used, tf.float64)
  own = [tf.math.unsorted_segment_sum(x, interval, intervals) for x in (number, offset)]
  return tf.stack([counts, own[0]], 1), tf.stack([sums, own[1]], 1)


def _sum_of_steps(counts, sums, windows, delta):
  """sum_j f(s_j - s_i) for every positive i, over the scores in the tables.

  Args:
    counts, sums: [M, 2] float64; of the negatives and of the positives.

  Returns:
    Two [capacity] float64, >= 0; exactly 0 where no score lies above s_i - delta.
  """
  # above[r], excess[r]: number of the scores from the beginning of interval r on, and
  # their sum relative to it: R(t) of the module's docstring.
  above = scans.sum_from(counts)
  next_above = tf.pad(above[1:], [[0, 1], [0, 0]])
  excess = scans.sum_from(sums + next_above * windows.gap[:, tf.newaxis])

  def beyond(interval, shift):
    shift = shift[:, tf.newaxis]
    return tf.gather(excess, interval) + tf.gather(above, interval) * shift

  inside = beyond(windows.first, windows.first_shift)
  inside -= beyond(windows.last, windows.last_shift)
  return tf.unstack(tf.maximum(inside, 0.0) / (2.0 * delta), axis=1)


def _lines(weight, windows, is_used, delta):
  """Height and slope of sum_i w_i f(s - s_i) on each interval; [M] float64 each."""
  intervals = _length(windows.gap)
  rise = weight / (2.0 * delta)
  number = tf.cast(is_used, tf.float64)

  def at_knots(at_first, at_last):
    at_first = tf.math.unsorted_segment_sum(at_first, windows.first, intervals)
    return at_first - tf.math.unsorted_segment_sum(at_last, windows.last, intervals)

  changes = tf.stack([at_knots(rise, rise), at_knots(number, number)], 1)
  slope, covering = tf.unstack(scans.sum_up_to(changes), axis=1)
  # Where no window is, the slope is 0 and not what rounding leaves of it.
  slope = tf.where(covering > 0, tf.maximum(slope, 0.0), 0.0)
  climb = tf.pad((slope * windows.gap)[:-1], [[1, 0]])
  moved = at_knots(rise * windows.first_shift, rise * windows.last_shift)
  return tf.maximum(scans.sum_up_to(climb + moved), 0.0), slope
