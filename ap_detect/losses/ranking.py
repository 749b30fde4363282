"""The sums over all pairs of positives and negatives that AP-loss and AUC-loss need.

The step f (Chen et al. 2019, eq. 14) is piecewise linear with two knots for a positive
i, at s_i - delta and s_i + delta. With R(t) = sum_j max(s_j - t, 0) over the negatives,

  b_i = sum_j f(s_j - s_i) = (R(s_i - delta) - R(s_i + delta)) / (2 delta),

and R follows from the number and the sum of the scores between every two neighbouring
knots; what all positives together do to a negative, sum_i w_i f(s_j - s_i), is a
straight line between every two knots. So two passes over the scores are enough, and no
pair is ever formed.

Three things keep this exact. Knots are rounded up to float32, so that a float32 score is
compared with the true knot; what the rounding moved is added in float64. Scores are
summed relative to the knot below them. And all sums run over terms that are not
negative, from the end at which they are small: counting R from the top, a positive
above most negatives does not inherit the rounding of theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect.losses import interval_grid, scans
from ap_detect.losses.labels import BACKGROUND, IGNORED

# Positives are collected into the smallest of these sizes that holds them, or into one
# as large as the number of anchors.
_CAPACITIES = (2**11, 2**14)
# Scores that are looked up and added to the tables at a time: their intermediate values
# stay in the processor's cache.
_CHUNK = 2**17
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


class _Positives(NamedTuple):
  """The positives in ascending order of score; `capacity` entries.

  Attributes:
    anchors: [capacity] int32; which anchor each is.
    is_used: [capacity] bool; the first |P| entries.
    scores: [capacity] float64; 0 where not used.
    count: [] int32; |P|.
  """

  anchors: tf.Tensor
  is_used: tf.Tensor
  scores: tf.Tensor
  count: tf.Tensor


class _Knots(NamedTuple):
  """Intervals of which a positive's window from -delta to delta is made.

  Attributes:
    grid: IntervalGrid of all knots.
    gap: [M] float64; width of each interval, 0 where it has no end.
    first, last: [capacity] int32; interval that begins at the lower, upper knot.
    first_shift, last_shift: [capacity] float64; how far rounding moved the knot up.
    limit: [] float32; wider intervals lie in no window and count as this wide.
  """

  grid: interval_grid.IntervalGrid
  gap: tf.Tensor
  first: tf.Tensor
  last: tf.Tensor
  first_shift: tf.Tensor
  last_shift: tf.Tensor
  limit: tf.Tensor


def rank(logits, labels, delta, errors):
  """Compares every positive with everything else.

  Args:
    logits: [R, K] float.
    labels: [R] int32.
    delta: [] float64, > 0.
    errors: function of (ranks among positives a_i, weighted negatives above b_i,
      number of negatives, is_used), [capacity] float64 in ascending order of score,
      to (e_i, w_i): the positive's share of the loss, and its weight on a negative
      that lies wholly above it.

  Returns:
    (loss [] float32, Lines).
  """
  classes = logits.shape[-1]
  is_positive = labels > BACKGROUND
  index = tf.clip_by_value(labels - 1, 0, classes - 1)
  own = tf.cast(tf.gather(logits, index, batch_dims=1), tf.float32)
  count = tf.reduce_sum(tf.cast(is_positive, tf.int32))
  is_bad = tf.reduce_any((labels < IGNORED) | (labels > classes))
  is_bad |= tf.reduce_any(is_positive & ~tf.math.is_finite(own))
  key = tf.where(tf.math.is_finite(own), -own, 0.0)
  # One entry more than anchors, so that no table is empty.
  key = tf.pad(tf.where(is_positive, key, -_INFINITY), [[0, 1]], constant_values=-_INFINITY)
  rows = _length(labels) + 1

  def branch(capacity):
    def run():
      positives = _collect(key, count, capacity)
      return _rank(logits, labels, positives, delta, is_bad, errors)

    return run

  smaller = [size for size in _CAPACITIES if tf.is_tensor(rows) or size < rows]
  branches = [branch(_lesser(size, rows)) for size in smaller] + [branch(rows)]
  tier = tf.reduce_sum(tf.cast(count > tf.constant(smaller, tf.int32), tf.int32))
  return tf.switch_case(tier, branches)


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


def _rank(logits, labels, positives, delta, is_bad, errors):
  knots = _knots(positives, delta)
  counts, sums = _add_negatives(logits, labels, knots)
  is_bad |= tf.reduce_any(tf.math.is_nan(sums))
  negatives = tf.reduce_sum(counts)
  above = _sum_of_steps(counts, sums, knots, delta)
  rank_in_positives = 0.5 + _sum_of_steps(*_add_positives(positives, knots), knots, delta)
  error, weight = errors(rank_in_positives, above, negatives, positives.is_used)
  error = tf.where(positives.is_used, error, 0.0)
  weight = tf.where(positives.is_used, weight, 0.0)
  share = 1.0 / tf.cast(tf.maximum(positives.count, 1), tf.float64)
  height, slope = _lines(weight * share, positives, knots, delta)
  rows = _length(labels)
  own = tf.scatter_nd(
    positives.anchors[:, tf.newaxis], tf.cast(-error * share, tf.float32), [rows + 1]
  )[:rows]
  loss = tf.cast(tf.reduce_sum(error) * share, tf.float32)
  loss, height, own = (
    tf.where(is_bad, np.float32(np.nan), x) for x in (loss, height, own)
  )
  # Tables of the same length whichever the capacity.
  extra = 2 * (rows + 1 - _length(positives.anchors))
  left = tf.pad(knots.grid.left, [[0, extra]], constant_values=_INFINITY)
  height, slope = (tf.pad(x, [[0, extra]]) for x in (height, slope))
  grid = knots.grid._replace(left=left)
  return loss, Lines(grid, height, slope, knots.limit, own)


def _collect(key, count, capacity):
  # The largest negated scores, in descending order: the positives, ascending.
  key, anchors = tf.math.top_k(key, capacity)
  is_used = tf.range(capacity) < count
  scores = tf.where(is_used, -tf.cast(key, tf.float64), 0.0)
  return _Positives(anchors, is_used, scores, count)


def _knots(positives, delta):
  infinity = tf.constant(float("inf"), tf.float64)
  low = tf.where(positives.is_used, positives.scores - delta, infinity)
  high = tf.where(positives.is_used, positives.scores + delta, infinity)
  low32, high32 = _round_up(low), _round_up(high)
  knots = tf.sort(tf.concat([low32, high32], 0))
  grid = interval_grid.build(knots, *_middle(positives, delta))
  first, last = tf.split(_rank_among(tf.concat([low32, high32], 0), knots), 2)
  limit = 4.0 * delta

  def shift(rounded, true):
    return tf.where(positives.is_used, tf.cast(rounded, tf.float64) - true, 0.0)

  is_finite = tf.math.is_finite(grid.left)
  left = tf.where(is_finite, tf.cast(grid.left, tf.float64), 0.0)
  width = tf.minimum(left[1:] - left[:-1], limit)
  return _Knots(
    grid=grid,
    gap=tf.where(is_finite[1:] & is_finite[:-1], width, 0.0),
    first=first,
    last=last,
    first_shift=shift(low32, low),
    last_shift=shift(high32, high),
    limit=tf.cast(limit, tf.float32),
  )


def _round_up(x):
  """The smallest float32 that is not below a float64."""
  rounded = tf.cast(x, tf.float32)
  bits = tf.bitcast(rounded, tf.int32)
  bits = tf.where(rounded == 0, 1, tf.where(rounded > 0, bits + 1, bits - 1))
  is_below = tf.cast(rounded, tf.float64) < x
  return tf.where(is_below, tf.bitcast(bits, tf.float32), rounded)


def _rank_among(values, knots):
  """[n] int32: how many of the sorted knots are at or below each value."""
  size = tf.shape(knots)[0]

  def body(stride, ranks):
    probe = ranks + stride - 1
    knot = tf.gather(knots, tf.minimum(probe, size - 1))
    return stride // 2, tf.where((probe < size) & (knot <= values), ranks + stride, ranks)

  largest = tf.while_loop(lambda x: 2 * x <= size, lambda x: (2 * x,), [1])[0]
  start = [largest, tf.zeros_like(values, tf.int32)]
  return tf.while_loop(lambda stride, _: stride > 0, body, start)[1]


def _middle(positives, delta):
  """A range with most positives' knots in it that an outlier cannot stretch."""
  count = tf.maximum(positives.count, 1)
  at = [0, count // 8, (7 * count) // 8, count - 1]
  lowest, lower, upper, highest = tf.unstack(tf.gather(positives.scores, at))
  reach = 4.0 * (upper - lower)
  low = tf.maximum(lowest, lower - reach) - delta
  return low, tf.minimum(highest, upper + reach) + delta


def _add_negatives(logits, labels, knots):
  """Number of negatives in each interval, and their sum relative to its left end.

  Returns:
    (counts [M] int32, sums [M] float64); sums has a NaN where a score is not finite.
  """
  rows, classes = _length(labels), logits.shape[-1]
  intervals = _length(knots.gap)
  # A chunk's tables are added to the whole ones: keep them short beside the chunk.
  chunk = _greater(_CHUNK, 4 * intervals) // classes
  chunk = _lesser(_greater(chunk, 1), rows)

  def body(begin, counts, sums):
    # The last chunk is moved back into the array; rows it has seen do not count again.
    start = tf.minimum(begin, rows - chunk)
    scores = tf.cast(tf.slice(logits, [start, 0], [chunk, classes]), tf.float32)
    targets = tf.slice(labels, [start], [chunk])
    is_new = (start + tf.range(chunk) >= begin) & (targets != IGNORED)
    is_negative = is_new[:, tf.newaxis] & ~_is_own_class(targets, classes)
    interval = interval_grid.look_up(scores, knots.grid)
    offset = interval_grid.offset(scores, knots.grid, interval, knots.limit)
    offset = tf.where(tf.math.is_finite(scores), offset, float("nan"))
    offset = tf.cast(tf.where(is_negative, offset, 0.0), tf.float64)
    added = _add(interval, tf.cast(is_negative, tf.int32), offset, intervals)
    return begin + chunk, counts + added[0], sums + added[1]

  start = [0, tf.zeros([intervals], tf.int32), tf.zeros([intervals], tf.float64)]
  return tf.while_loop(lambda begin, *_: begin < rows, body, start)[1:]


def _add_positives(positives, knots):
  """As `_add_negatives`, for the positives."""
  scores = tf.cast(positives.scores, tf.float32)
  interval = interval_grid.look_up(scores, knots.grid)
  offset = interval_grid.offset(scores, knots.grid, interval, knots.limit)
  offset = tf.where(positives.is_used, tf.cast(offset, tf.float64), 0.0)
  number = tf.cast(positives.is_used, tf.int32)
  return _add(interval, number, offset, _length(knots.gap))


def _add(interval, number, offset, intervals):
  interval = tf.reshape(interval, [-1])
  counts = tf.math.unsorted_segment_sum(tf.reshape(number, [-1]), interval, intervals)
  sums = tf.math.unsorted_segment_sum(tf.reshape(offset, [-1]), interval, intervals)
  return counts, sums


def _sum_of_steps(counts, sums, knots, delta):
  """sum_j f(s_j - s_i) for every positive i, over the scores in the tables.

  Returns:
    [capacity] float64, >= 0; exactly 0 where no score lies above s_i - delta.
  """
  # above[r], excess[r]: number of the scores from the beginning of interval r on, and
  # their sum relative to it (R in the module's docstring).
  above = tf.cast(scans.sum_from(counts), tf.float64)
  next_above = tf.concat([above[1:], tf.zeros([1], tf.float64)], 0)
  excess = scans.sum_from(sums + next_above * knots.gap)

  def beyond(interval, shift):
    return tf.gather(excess, interval) + tf.gather(above, interval) * shift

  window = beyond(knots.first, knots.first_shift) - beyond(knots.last, knots.last_shift)
  return tf.maximum(window, 0.0) / (2.0 * delta)


def _lines(weight, positives, knots, delta):
  """Height and slope of sum_i w_i f(s - s_i) on each interval; [M] float32 each."""
  intervals = _length(knots.gap)
  rise = weight / (2.0 * delta)

  def at_knots(at_first, at_last):
    at_first = tf.math.unsorted_segment_sum(at_first, knots.first, intervals)
    return at_first - tf.math.unsorted_segment_sum(at_last, knots.last, intervals)

  slope = scans.sum_up_to(at_knots(rise, rise))
  number = tf.cast(positives.is_used, tf.int32)
  covering = scans.sum_up_to(at_knots(number, number))
  slope = tf.where(covering > 0, tf.maximum(slope, 0.0), 0.0)
  climb = slope * knots.gap
  climb = tf.concat([tf.zeros([1], tf.float64), climb[:-1]], 0)
  moved = at_knots(rise * knots.first_shift, rise * knots.last_shift)
  height = tf.maximum(scans.sum_up_to(climb + moved), 0.0)
  return tf.cast(height, tf.float32), tf.cast(slope, tf.float32)
