"""One ranking of what several replicas hold, each of which keeps its logits.

Every replica makes the knots of all positives, adds its own negatives up between them,
and weighs all positives by the sum of those tables. So three things cross between the
replicas, none of the logits' size: how many positives each has, the positives' scores,
and the tables, of two intervals a positive. Tables in whole units (the form for GPUs)
add up to those of one replica with all logits, to the bit.

All of it is exchanged outside of conditionals and of compiled functions, so that no
replica waits for one that took another branch. What is exchanged has the size of the
positives at hand; what XLA compiles has one of few static sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect.losses import compiling
from ap_detect.losses.labels import BACKGROUND, IGNORED, INVALID
from ap_detect.losses.ranking import branching, engine, knots, tables

# Sizes of the list of all positives that functions are compiled for; and one that has
# room for all anchors.
_CAPACITIES = (2**11, 2**14, 2**17)


class Group(NamedTuple):
  """Replicas of consecutive numbers that rank together.

  Attributes:
    context: tf.distribute.ReplicaContext of one of them.
    size: int; how many they are; divides the number of all replicas.
  """

  context: tf.distribute.ReplicaContext
  size: int

  @property
  def count(self):
    """int; how many groups there are."""
    return self.context.num_replicas_in_sync // self.size

  @property
  def replica(self):
    """[] int32; the replica's number among all."""
    return tf.cast(self.context.replica_id_in_sync_group, tf.int32)

  @property
  def number(self):
    """[] int32; the group's number among all."""
    return self.replica // self.size

  def sum(self, x):
    """The sum of a tensor over all replicas of all groups, which all must ask for."""
    return self.context.all_reduce(tf.distribute.ReduceOp.SUM, x)


class List(NamedTuple):
  """The positives of a group, of all its replicas in their order.

  Attributes:
    scores: [n] float32; +inf where an entry is none: one a replica, so that none sends
      nothing.
    weights, qualities: [n] float32; None where the anchors have none.
  """

  scores: tf.Tensor
  weights: tf.Tensor | None
  qualities: tf.Tensor | None

  def padded(self, size):
    """As a list of `size` entries."""
    padded = (
      None if field is None else _padded(field[tf.newaxis], size, value)[0]
      for field, value in zip(self, (knots.INFINITY, 0.0, 0.0))
    )
    return List(*padded)


class Across:
  """Compares every positive of a group of replicas with everything else in the group.

  Args:
    errors: function of errors.Comparisons to errors.Errors.
    form: engine.OnCPU or engine.OnGPU.
    jit_compile: whether XLA compiles what a replica does by itself.
  """

  def __init__(self, errors, form, jit_compile):
    self._errors, self._form = errors, form
    compiled = compiling.compiled if jit_compile else lambda function: function
    self._tabulate = compiled(self._tabulate_negatives)
    self._weigh = compiled(self._weigh_positives)
    self._finish = compiled(form.finish)
    self.gradient = compiled(form.gradient)

  def rank(self, logits, anchors, step, group):
    """Value and what `gradient` needs; call it in every replica of all groups.

    Args:
      logits: [R, K] float; the replica's own, as all of `anchors`.
      anchors: engine.Anchors.
      step: knots.Step.
      group: Group.

    Returns:
      The group's loss [] float32 and what `form.gradient` takes, of the replica's own
      entries.
    """
    labels, rows = anchors.labels, tables.length(anchors.labels)
    index, own, is_invalid = _own_positives(logits, anchors)
    counts, number, is_invalid = _exchange_counts(
      tf.shape(index)[0], tf.size(logits), is_invalid, group
    )
    listed, begin = _exchange_positives(own, counts, group)
    units = tables.Units.for_sum(number, step)
    room = (rows + 1) * group.size
    sizes = [n for n in _CAPACITIES if tf.is_tensor(room) or n < room]
    sizes.append(room if sizes else _CAPACITIES[0])

    def by_size(function):
      branches = [
        lambda size=size: function(listed.padded(size), size) for size in sizes
      ]
      size = tf.shape(listed.scores)[0]
      return branching.first_that_holds([size <= n for n in sizes[:-1]], branches)

    sums, found = by_size(
      lambda positives, _: self._tabulate(positives, logits, labels, step, units)
    )
    most = tf.reduce_max(tf.reduce_sum(counts, 1))
    sums = _exchange_sums(sums, 2 * most + 1, group)
    loss, lines = by_size(
      lambda positives, size: self._weigh(
        positives,
        is_invalid,
        self._form.received(_widened(sums, 2 * size + 2), units),
        step,
      )
    )
    own = lines.of_positives[begin : begin + tf.shape(index)[0]]
    own = tf.scatter_nd(index[:, tf.newaxis], own, [rows])
    own = tf.where(is_invalid, np.float32(np.nan), own)
    lines = lines._replace(of_positives=own)
    return loss, *self._finish(logits, labels, step, lines, found)

  def _tabulate_negatives(self, listed, logits, labels, step, units):
    ranking = self._make_ranking(listed, False, step)
    positives, windows = ranking.sort(tables.length(listed.scores))
    grid = ranking.grid(positives, windows, self._form.cells)
    return self._form.tabulate(logits, labels, grid, step, units)

  def _weigh_positives(self, listed, is_invalid, negatives, step):
    ranking = self._make_ranking(listed, is_invalid, step)
    positives, windows = ranking.sort(tables.length(listed.scores))
    return ranking.weigh(positives, windows, negatives)

  def _make_ranking(self, listed, is_invalid, step):
    """engine.Ranking of a list of positives, as if they were all anchors."""
    labels = tf.where(tf.math.is_finite(listed.scores), 1, IGNORED)
    anchors = engine.Anchors(
      tf.where(is_invalid, INVALID, labels), listed.weights, listed.qualities
    )
    return engine.Ranking(
      listed.scores[:, tf.newaxis], anchors, step, self._errors, self._form.search
    )


def _own_positives(logits, anchors):
  """The anchors [n] that are positive, their List, and whether anything is invalid."""
  labels, classes = anchors.labels, logits.shape[-1]
  index = tf.where(labels > BACKGROUND)[:, 0]
  of_class = tf.clip_by_value(tf.gather(labels, index) - 1, 0, classes - 1)
  scores = tf.gather(tf.gather(logits, index), of_class, batch_dims=1)
  scores = tf.cast(scores, tf.float32)
  is_finite = tf.math.is_finite(scores)
  is_invalid = tf.reduce_any((labels < IGNORED) | (labels > classes))
  is_invalid |= ~tf.reduce_all(is_finite)
  fields = (
    None if field is None else tf.gather(field, index)
    for field in (anchors.weights, anchors.qualities)
  )
  return index, List(tf.where(is_finite, scores, 0.0), *fields), is_invalid


def _exchange_counts(positives, number, is_invalid, group):
  """How much there is.

  Returns:
    [groups, group.size] int32, positives of all replicas; [] int32, logits of the group;
    [] bool, whether any of the group is invalid.
  """
  replicas = group.context.num_replicas_in_sync
  found = [tf.cast(x, tf.int64) for x in (positives, number, is_invalid)]
  is_own = tf.one_hot(group.replica, replicas, dtype=tf.int64)
  found = group.sum(tf.stack(found)[:, tf.newaxis] * is_own)
  found = tf.reshape(found, [3, group.count, group.size])
  of_group = tf.reduce_sum(found[:, group.number], 1)
  return (
    tf.cast(found[0], tf.int32),
    tf.cast(of_group[1], tf.int32),
    of_group[2] > 0,
  )


def _exchange_positives(own, counts, group):
  """The group's List, and the place of the replica's own first one in it."""
  own = own.padded(tf.shape(own.scores)[0] + 1)
  columns = tf.stack([field for field in own if field is not None], 1)
  gathered = tf.ensure_shape(
    group.context.all_gather(columns, 0), [None, columns.shape[1]]
  )
  ends = tf.cumsum(tf.reshape(counts + 1, [-1]))
  begins = ends - tf.reshape(counts + 1, [-1])
  first = group.number * group.size
  begin, end = begins[first], ends[first + group.size - 1]
  columns = iter(tf.unstack(gathered[begin:end], axis=1))
  listed = List(*(None if field is None else next(columns) for field in own))
  return listed, begins[group.replica] - begin


def _exchange_sums(sums, width, group):
  """The group's sum of tables [2, M + 1], of whose first columns `width` are in use."""
  sums = tf.concat([sums[:, :width], sums[:, -1:]], 1)
  if group.count == 1:
    return group.sum(sums)
  # Where it is not finite, it shall be so in its own group alone: no product.
  is_own = tf.range(group.count) == group.number
  sums = tf.where(is_own[:, tf.newaxis, tf.newaxis], sums, tf.zeros([], sums.dtype))
  return group.sum(sums)[group.number]


def _widened(sums, width):
  """Tables again of `width` columns, the last of which stays the last."""
  zeros = tf.cast(0, sums.dtype)
  return tf.concat([_padded(sums[:, :-1], width - 1, zeros), sums[:, -1:]], 1)


def _padded(x, size, value):
  """[m, n] as [m, size]."""
  padded = tf.pad(x, [[0, 0], [0, size - tf.shape(x)[1]]], constant_values=value)
  if not tf.is_tensor(size):
    padded.set_shape([x.shape[0], size])
  return padded
