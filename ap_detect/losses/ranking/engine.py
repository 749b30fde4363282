"""From logits and labels to a ranking loss and its error-driven update."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect.losses.labels import BACKGROUND, IGNORED
from ap_detect.losses.ranking import branching, intervals, knots, scans, tables
from ap_detect.losses.ranking.errors import Comparisons

# Positives are collected into the smallest of these sizes that holds them, or into one
# as large as the number of anchors.
_CAPACITIES = (2**11, 2**14)
# Cells of the look-up table, which on a CPU should stay in the cache, and steps of
# bisection within a cell.
_CELLS_ON_CPU, _STEPS_ON_CPU = 2**15, 2
_CELLS_ON_GPU, _STEPS_ON_GPU = 2**20, 3
# Slices in which a GPU looks entries up where positives are many, at most.
_SLICES = 8
_NAN = np.float32(np.nan)


class Anchors(NamedTuple):
  """What is known of every anchor.

  Attributes:
    labels: [R] int32.
    weights: [R] float32, of the positives; None where all weigh the same.
    qualities: [R] float32, of the positives; None where there are none.
  """

  labels: tf.Tensor
  weights: tf.Tensor | None = None
  qualities: tf.Tensor | None = None


class Lines(NamedTuple):
  """The update of every entry, as a function of its score.

  Attributes:
    height: [M] float32; update of a negative at the beginning of its interval.
    slope: [M] float32; how it rises with the score.
    of_positives: [R] float32; update of an anchor's entry for its own class.
  """

  height: tf.Tensor
  slope: tf.Tensor
  of_positives: tf.Tensor

  def at(self, scores, labels, begins, interval, step):
    """The update [R, K] float32 of entries whose interval is known."""
    offset = intervals.offset(scores, begins, interval, step.widest)
    result = tf.gather(self.height, interval) + tf.gather(self.slope, interval) * offset
    own = self.of_positives[:, tf.newaxis]
    result = tf.where(tables.is_own_class(labels, scores.shape[-1]), own, result)
    return tf.where((labels != IGNORED)[:, tf.newaxis], result, 0.0)

  def padded(self, extra):
    """The same with `extra` intervals more."""
    return self._replace(
      height=_padded(self.height, extra, 0.0), slope=_padded(self.slope, extra, 0.0)
    )


class OnCPU:
  """The form for CPUs.

  XLA runs what is inside of a conditional on a single core, so the passes over all
  entries are outside: one conditional sorts, one more weighs, and the tables between
  them are as large as the largest may be.

  Attributes:
    search, cells: for `Ranking`, and its grid.
  """

  search = staticmethod(scans.search_in_loop)
  cells = _CELLS_ON_CPU

  @staticmethod
  def rank(logits, anchors, step, errors):
    """Compares every positive with everything else.

    Args:
      logits: [R, K] float.
      anchors: Anchors.
      step: knots.Step.
      errors: function of errors.Comparisons to errors.Errors.

    Returns:
      Loss [] float32 and, of `signature`, what `gradient` needs.
    """
    ranking = Ranking(logits, anchors, step, errors, OnCPU.search)

    def sort(capacity):
      positives, windows = ranking.sort(capacity)
      grid = ranking.grid(positives, windows, OnCPU.cells)
      extra = ranking.largest - capacity
      begins = _padded(windows.begins, 2 * extra, knots.INFINITY)
      return (
        # What is added is not used: which anchor it names does not matter.
        _padded(positives.anchors, extra, 0),
        _padded(positives.scores, extra, knots.INFINITY),
        grid._replace(begins=begins),
      )

    in_order, scores, grid = ranking.by_capacity(sort)
    negatives = tables.in_chunks(logits, anchors.labels, grid, _STEPS_ON_CPU, step)

    def weigh(capacity):
      positives = knots.Positives(in_order[:capacity], scores[:capacity])
      windows = knots.windows(positives, step, OnCPU.search)
      here = tables.merged(negatives, 2 * capacity + 1)
      loss, lines = ranking.weigh(positives, windows, here)
      return loss, lines.padded(2 * (ranking.largest - capacity))

    return *ranking.by_capacity(weigh), grid

  signature = (
    Lines(tf.float32, tf.float32, tf.float32),
    intervals.Grid(tf.float32, tf.float32, tf.float32, tf.int32, tf.int32),
  )

  @staticmethod
  def gradient(logits, labels, step, found, upstream):
    """The error-driven update of every entry, times the upstream gradient.

    Args:
      logits: [R, K] float.
      labels: [R] int32.
      step: knots.Step.
      found: from `rank`.
      upstream: [] float.

    Returns:
      [R, K] of the logits' type.
    """
    lines, grid = found
    lines = Lines(*(field * tf.cast(upstream, tf.float32) for field in lines))
    scores = tf.cast(logits, tf.float32)
    interval = grid.look_up(scores, _STEPS_ON_CPU)
    return tf.cast(lines.at(scores, labels, grid.begins, interval, step), logits.dtype)

  @staticmethod
  def tabulate(logits, labels, grid, step, units):
    """The tables of a replica's own negatives, which can be added to those of others.

    Args:
      logits: [R, K] float.
      labels: [R] int32.
      grid: intervals.Grid of M intervals.
      step: knots.Step.
      units: tables.Units.

    Returns:
      Tables as [2, M + 1], for `received`, and what `finish` needs.
    """
    del units
    found = tables.in_chunks(logits, labels, grid, _STEPS_ON_CPU, step)
    counts, sums = tables.merged(found, tables.length(grid.begins) - 1)
    sums = tf.stack([tf.cast(counts, tf.float64), sums])
    return tf.pad(sums, [[0, 0], [0, 1]]), grid

  @staticmethod
  def received(sums, units):
    """tables.Tables of sums of what `tabulate` gives."""
    del units
    return tables.Tables(tf.cast(sums[0, :-1], tf.int32), sums[1, :-1])

  @staticmethod
  def finish(logits, labels, step, lines, grid):
    """What `gradient` needs of Lines and of what `tabulate` found."""
    del logits, labels, step
    return lines, grid


class OnGPU:
  """The form for GPUs.

  All of it is in one conditional, at which the device waits for the host once, but what
  shows whether its first branch will do: the positives are few, and their knots do not
  crowd. What is looked up serves value and update alike, so both are computed together.

  Attributes:
    search, cells: for `Ranking`, and its grid.
  """

  search = staticmethod(scans.search_unrolled)
  cells = _CELLS_ON_GPU

  @staticmethod
  def rank(logits, anchors, step, errors):
    """As `OnCPU.rank`."""
    ranking = Ranking(logits, anchors, step, errors, OnGPU.search)
    scores, labels = tf.cast(logits, tf.float32), anchors.labels

    def finish(positives, windows, interval):
      begins = windows.begins
      negatives = tables.at_once(scores, labels, begins, interval, step)
      loss, lines = ranking.weigh(positives, windows, negatives)
      return loss, lines.at(scores, labels, begins, interval, step)

    few = tables.lesser(_CAPACITIES[0], ranking.largest)
    positives, windows = ranking.sort(few)
    grid = ranking.grid(positives, windows, OnGPU.cells)

    def rank_few():
      interval = grid.look_up(scores, _STEPS_ON_GPU, is_crowded=False)
      return finish(positives, windows, interval)

    def rank_many(capacity):
      positives, windows = ranking.sort(capacity)
      grid = ranking.grid(positives, windows, OnGPU.cells)
      return finish(positives, windows, _look_up_in_slices(grid, scores))

    return branching.first_that_holds(
      [(ranking.count <= few) & ~grid.is_crowded(_STEPS_ON_GPU)],
      [rank_few, lambda: ranking.by_capacity(rank_many, _CAPACITIES[1:])],
    )

  signature = (tf.float32,)

  @staticmethod
  def gradient(logits, labels, step, found, upstream):
    """As `OnCPU.gradient`."""
    del labels, step
    (update,) = found
    return tf.cast(update * tf.cast(upstream, tf.float32), logits.dtype)

  @staticmethod
  def tabulate(logits, labels, grid, step, units):
    """As `OnCPU.tabulate`."""
    scores = tf.cast(logits, tf.float32)
    interval = branching.first_that_holds(
      [~grid.is_crowded(_STEPS_ON_GPU)],
      [
        lambda: grid.look_up(scores, _STEPS_ON_GPU, is_crowded=False),
        lambda: _look_up_in_slices(grid, scores),
      ],
    )
    sums = tables.in_units(scores, labels, grid.begins, interval, step, units)
    return sums, (grid.begins, interval)

  @staticmethod
  def received(sums, units):
    """As `OnCPU.received`."""
    return tables.from_units(sums, units)

  @staticmethod
  def finish(logits, labels, step, lines, found):
    """As `OnCPU.finish`."""
    scores = tf.cast(logits, tf.float32)
    return (lines.at(scores, labels, *found, step),)


FORMS = {"cpu": OnCPU, "gpu": OnGPU}


class Ranking:
  """What both forms do with the positives.

  Args:
    logits, anchors, step, errors: as for `OnCPU.rank`.
    search: scans.search_unrolled or scans.search_in_loop.

  Attributes:
    count: [] int32; number of positives.
    largest: R + 1, the largest capacity. One more than there are anchors, so that no
      table is empty.
  """

  def __init__(self, logits, anchors, step, errors, search):
    labels, classes = anchors.labels, logits.shape[-1]
    is_positive = labels > BACKGROUND
    index = tf.clip_by_value(labels - 1, 0, classes - 1)
    own = tf.cast(tf.gather(logits, index, batch_dims=1), tf.float32)
    is_finite = tf.math.is_finite(own)
    is_bad = (labels < IGNORED) | (labels > classes) | (is_positive & ~is_finite)
    self._is_bad = tf.reduce_any(is_bad)
    self._scores = _padded(tf.where(is_finite, own, 0.0), 1, knots.INFINITY)
    count_up_to = scans.sum_up_to(tf.cast(is_positive, tf.int32))
    self._count_up_to = _padded(count_up_to, 1, tf.int32.max)
    self.count = tf.reduce_sum(tf.cast(is_positive, tf.int32))
    self.largest = tables.length(self._scores)
    self._anchors, self._step, self._errors = anchors, step, errors
    self._search = search

  def by_capacity(self, function, capacities=_CAPACITIES):
    """function(capacity) for the smallest capacity that holds all positives."""
    largest = self.largest
    smaller = [n for n in capacities if tf.is_tensor(largest) or n < largest]
    sizes = [tables.lesser(n, largest) for n in smaller] + [largest]
    branches = [functools.partial(function, size) for size in sizes]
    return branching.first_that_holds([self.count <= n for n in smaller], branches)

  def sort(self, capacity):
    """(knots.Positives, knots.Windows)."""
    positives = knots.collect(self._scores, self._count_up_to, capacity, self._search)
    return positives, knots.windows(positives, self._step, self._search)

  def grid(self, positives, windows, cells):
    """intervals.Grid over a range that holds most knots and that no outlier stretches."""
    last = tf.maximum(self.count, 1) - 1
    at = tf.stack([0, last // 8, (last // 8) * 7, last])
    at = tf.minimum(at, tables.length(positives.scores) - 1)
    scores = tf.cast(tf.gather(positives.scores, at), tf.float64)
    scores = tf.where(tf.math.is_finite(scores), scores, 0.0)
    lowest, lower, upper, highest = tf.unstack(scores)
    reach = 4.0 * (upper - lower)
    low = tf.maximum(lowest, lower - reach) - self._step.delta
    high = tf.minimum(highest, upper + reach) + self._step.delta
    return intervals.build_grid(windows.begins, low, high, cells, self._search)

  def weigh(self, positives, windows, negatives):
    """From the tables to the loss and the update.

    Args:
      positives: knots.Positives.
      windows: knots.Windows of M intervals.
      negatives: tables.Tables.

    Returns:
      (loss [] float32, Lines of M intervals).
    """
    delta, is_used = self._step.delta, positives.is_used
    own = tables.of_positives(positives, windows, self._step, self._search)
    negatives_above, positives_above = _sums_of_steps(negatives, own, windows, delta)
    shares = _shares(self._anchors.weights, positives)
    found = self._errors(
      Comparisons(
        # The sum over positives has f(0) = 1/2 for the positive itself, which counts 1.
        rank_in_positives=0.5 + positives_above,
        negatives_above=negatives_above,
        num_negatives=tf.cast(tf.reduce_sum(negatives.counts), tf.float64),
        scores=positives.scores,
        is_used=is_used,
        shares=shares,
        qualities=_of_positives(self._anchors.qualities, positives),
        delta=delta,
      )
    )
    error = tf.where(is_used, shares * found.error, 0.0)
    weight = tf.where(is_used, shares * found.weight, 0.0)
    update = -error
    if found.push is not None:
      update += tf.where(is_used, found.push, 0.0)
    height, slope = _lines(weight, windows, is_used, delta)
    rows = tables.length(self._anchors.labels)
    result = (
      tf.cast(tf.reduce_sum(error), tf.float32),
      Lines(
        tf.cast(height, tf.float32),
        tf.cast(slope, tf.float32),
        _at_anchors(tf.cast(update, tf.float32), positives.anchors, rows),
      ),
    )
    is_bad = self._is_bad | tf.reduce_any(tf.math.is_nan(negatives.sums))
    return tf.nest.map_structure(lambda x: tf.where(is_bad, _NAN, x), result)


def _look_up_in_slices(grid, scores):
  """The interval of each score [R, K], where the grid may be crowded, on a GPU."""
  # The loop of a crowded grid holds what it looks up twice: slice by slice.
  interval = tf.map_fn(
    lambda scores: grid.look_up(scores, _STEPS_ON_GPU),
    tf.reshape(scores, [_number_of_slices(scores), -1, scores.shape[-1]]),
    fn_output_signature=tf.int32,
  )
  return tf.reshape(interval, tf.shape(scores))


def _number_of_slices(scores):
  """The largest number of equal slices."""
  rows = tables.length(scores)
  if tf.is_tensor(rows):
    return 1
  return max(number for number in range(1, _SLICES + 1) if rows % number == 0)


def _padded(x, extra, value):
  return tf.pad(x, [[0, extra]], constant_values=value)


def _of_positives(values, positives):
  """[n] float64: the values [R] of the anchors that are positive, in their order."""
  if values is None:
    return None
  values = tf.gather(_padded(values, 1, 0.0), positives.anchors)
  return tf.where(positives.is_used, tf.cast(values, tf.float64), 0.0)


def _shares(weights, positives):
  """[n] float64: each positive's part in the loss."""
  weights = _of_positives(weights, positives)
  if weights is None:
    weights = tf.cast(positives.is_used, tf.float64)
  total = tf.reduce_sum(weights)
  return weights / tf.where(total > 0, total, 1.0)


def _at_anchors(values, anchors, rows):
  """[R] float32: the values of the sorted positives at their anchors, 0 elsewhere."""
  # As integers: where an index might come twice, XLA adds floats in any order.
  bits = tf.bitcast(values, tf.int32)
  bits = tf.scatter_nd(anchors[:, tf.newaxis], bits, [rows + 1])
  return tf.bitcast(bits, tf.float32)[:-1]


def _sums_of_steps(negatives, positives, windows, delta):
  """sum_j f(s_j - s_i) for every positive i, over the scores in two Tables.

  Returns:
    Two [capacity] float64, >= 0; exactly 0 where no score lies above s_i - delta.
  """
  # above[r], excess[r]: number of the scores from the beginning of interval r on, and
  # their sum relative to it: R(t) of the package's docstring.
  above = scans.sum_from(tf.stack([negatives.counts, positives.counts]))
  next_above = tf.cast(tf.pad(above[:, 1:], [[0, 0], [0, 1]]), tf.float64)
  sums = tf.stack([negatives.sums, positives.sums])
  excess = scans.sum_from(sums + next_above * windows.width)
  above = tf.cast(above, tf.float64)

  def beyond(interval, shift):
    number = tf.gather(above, interval, axis=1)
    return tf.gather(excess, interval, axis=1) + number * shift

  inside = beyond(windows.first, windows.first_shift)
  inside -= beyond(windows.last, windows.last_shift)
  return tf.unstack(tf.maximum(inside, 0.0) / (2.0 * delta))


def _lines(weight, windows, is_used, delta):
  """Height and slope of sum_i w_i f(s - s_i) on each interval; [M] float64 each."""
  rise = weight / (2.0 * delta)

  def at_knots(at_first, at_last):
    return tf.gather(tf.concat([at_first, -at_last], 0), windows.order)

  is_used = tf.cast(is_used, tf.int32)
  covering = scans.sum_up_to(at_knots(is_used, is_used))
  slope = scans.sum_up_to(at_knots(rise, rise))
  # Where no window is, the slope is 0 and not what rounding leaves of it.
  slope = tf.where(covering > 0, tf.maximum(slope, 0.0), 0.0)
  slope = tf.pad(slope, [[1, 0]])
  moved = at_knots(rise * windows.first_shift, rise * windows.last_shift)
  climb = tf.pad((slope * windows.width)[:-1] + moved, [[1, 0]])
  return tf.maximum(scans.sum_up_to(climb), 0.0), slope
