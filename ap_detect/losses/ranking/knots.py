"""The positives in order of score, and the knots at which their windows begin and end."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

INFINITY = np.float32(np.inf)
# Intervals wider than this many delta lie in no positive's window, of 2 delta.
_WIDEST = 4.0


class Step(NamedTuple):
  """The half-width delta of the smoothed step, in the forms that are computed with.

  Attributes:
    delta: [] float64.
    high, low: [] float32; their sum is delta to 48 bits.
    widest: [] float32; 4 delta. No interval between knots that is wider lies in a window.
    exponent: [] int32; widest < 2^exponent.
  """

  delta: tf.Tensor
  high: tf.Tensor
  low: tf.Tensor
  widest: tf.Tensor
  exponent: tf.Tensor

  @classmethod
  def of(cls, delta: float) -> Step:
    """The Step of a Python number > 0."""
    high = np.float32(delta)
    widest = min(np.float32(_WIDEST * delta), np.finfo(np.float32).max)
    return cls(
      tf.constant(delta, tf.float64),
      tf.constant(high),
      tf.constant(np.float32(delta - float(high)) if np.isfinite(high) else 0.0),
      tf.constant(widest),
      tf.constant(math.frexp(widest)[1]),
    )


class Positives(NamedTuple):
  """Positives in ascending order of score.

  Attributes:
    anchors: [capacity] int32; the anchor of each; R, as if one more, where not used.
    scores: [capacity] float32; +inf where not used.
  """

  anchors: tf.Tensor
  scores: tf.Tensor

  @property
  def is_used(self):
    """[capacity] bool."""
    return tf.math.is_finite(self.scores)


class Windows(NamedTuple):
  """The intervals between knots, and which of them make up each positive's window.

  With M = 2 capacity + 1 intervals; interval r has r knots at or below its scores.

  Attributes:
    begins: [M + 1] float32, ascending from the second on: begins[r] is the knot at which
      interval r begins; +inf for interval 0, which has none, and from the first knot that
      is not in use on.
    order: [2 capacity] int32; which of all lower, then upper knots each knot is.
    first, last: [capacity] int32; interval that begins at the lower, upper knot.
    first_shift, last_shift: [capacity] float64; how far rounding moved the knot up.
    width: [M] float64; width of each interval, 0 where it has no end.
  """

  begins: tf.Tensor
  order: tf.Tensor
  first: tf.Tensor
  last: tf.Tensor
  first_shift: tf.Tensor
  last_shift: tf.Tensor
  width: tf.Tensor


def collect(scores, count_of_positives, capacity, search):
  """The positives among all anchors, sorted.

  Args:
    scores: [R + 1] float32; of every anchor's own class, finite where it is positive,
      and +inf at the end.
    count_of_positives: [R + 1] int32; number of positives up to and with each anchor,
      and the largest integer at the end.
    capacity: int, at least the number of positives.
    search: scans.search_unrolled or scans.search_in_loop.

  Returns:
    Positives.
  """
  anchors = search(tf.range(capacity), count_of_positives)
  # Sorted by the negated score, for `top_k` is what gives the order too.
  negated, order = tf.math.top_k(-tf.gather(scores, anchors), capacity)
  return Positives(tf.gather(anchors, order), -negated)


def windows(positives, step, search):
  """Sorts the knots of all positives and finds every positive's window among them.

  The scores ascend, so their lower knots do, and their upper ones: it takes a merge.

  Args:
    positives: Positives.
    step: Step.
    search: as for `collect`.

  Returns:
    Windows.
  """
  scores = positives.scores
  low, high = rounded_up(scores, step)
  place = tf.range(tf.shape(scores)[0])
  low_place = place + search(low, high, strictly=True)
  high_place = place + search(high, low)
  places = tf.concat([low_place, high_place], 0)
  size = tf.shape(places)
  order = tf.scatter_nd(places[:, tf.newaxis], tf.range(size[0]), size)
  knots = tf.gather(tf.concat([low, high], 0), order)
  begins = tf.pad(knots, [[1, 1]], constant_values=INFINITY)
  widest = tf.cast(step.widest, tf.float64)

  def above_score(knot):
    distance = tf.cast(knot, tf.float64) - tf.cast(scores, tf.float64)
    return tf.where(positives.is_used, tf.minimum(distance, widest), 0.0)

  is_finite = tf.math.is_finite(begins)
  begin = tf.where(is_finite, tf.cast(begins, tf.float64), 0.0)
  width = tf.minimum(begin[1:] - begin[:-1], widest)
  return Windows(
    begins=begins,
    order=order,
    first=low_place + 1,
    last=high_place + 1,
    first_shift=above_score(low) + step.delta,
    last_shift=above_score(high) - step.delta,
    width=tf.where(is_finite[1:] & is_finite[:-1], width, 0.0),
  )


def rounded_up(scores, step):
  """Lower and upper knot of each score, rounded up to float32; [n] float32 each."""
  low = _sum_rounded_up(scores, -step.high, -step.low)
  high = _sum_rounded_up(scores, step.high, step.low)
  # Where delta is lost beside a huge score, its own upper knot still lies above it.
  return low, tf.maximum(high, _next_up(scores))


def _sum_rounded_up(x, high, low):
  """The smallest float32 that is not below x + high + low.

  In float32 alone, by sums whose rounding error is known exactly (Knuth's two-sum): XLA
  would fold a comparison with the float64 sum away on GPUs.
  """
  total, error = _two_sum(x, high)
  total, error = _two_sum(total, error + low)
  result = tf.where(error > 0, _next_up(total), total)
  # Beyond the largest numbers there is no error to know.
  return tf.where(tf.math.is_finite(error), result, tf.maximum(x + high, -_LARGEST))


_LARGEST = np.finfo(np.float32).max


def _two_sum(a, b):
  """(a + b rounded, what is missing to the exact sum)."""
  total = a + b
  b_part = total - a
  return total, (a - (total - b_part)) + (b - b_part)


def _next_up(x):
  """The smallest normal float32 above each; +inf stays."""
  bits = tf.bitcast(x, tf.int32)
  bits = tf.where(x > 0, bits + 1, bits - 1)
  smallest = np.float32(np.finfo(np.float32).tiny)
  is_small = (x > -smallest) & (x < smallest)  # float32 below are taken for 0
  following = tf.where(is_small, smallest, tf.bitcast(bits, tf.float32))
  return tf.where(x == INFINITY, x, following)
