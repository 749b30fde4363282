"""Average precision with a sigmoid for the step: AP-loss by approximate gradient."""

from __future__ import annotations

import functools
from typing import NamedTuple

import tensorflow as tf

from ap_detect.losses import compiling
from ap_detect.losses.ranking import entries as entries_lib
from ap_detect.losses.ranking import tables

# Pairs of a positive and an entry that are compared at a time.
_PAIRS = 2**22


def smooth_ap_loss(logits, labels, *, delta=1.0, epsilon=1e-6, jit_compile=True):
  """-log(AP + epsilon), with a smooth step and the true gradient.

  What the error-driven update is compared with (Chen et al. 2019, section 4.2.3, after
  Henderson and Ferrari, ACCV 2016): with f(x) = sigmoid(2 x / delta), whose slope at 0 is
  that of the piecewise step (eq. 14),

    AP = 1/|P| sum_{i in P} a_i / (a_i + b_i)
    a_i = 1 + sum_{k in P, k != i} f(s_k - s_i), b_i = sum_{j in N} f(s_j - s_i)

  It takes O(|P| (|P| + |N|)) time, for value and gradient each, and O(|P| + |N|) memory:
  pairs are formed for a few positives at a time, and anew for the gradient.

  Args:
    logits: [..., K] float; scores of every anchor for every class. Ranked as one list.
      float16 and bfloat16 are computed in float32.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    delta: width of the step, in logit units; > 0.
    epsilon: > 0. The smaller, the steeper the loss where AP is next to 0.
    jit_compile: whether to compile the loss with XLA when it is called outside of a
      function that is compiled itself.

  Returns:
    [] float32. 0 where there is no positive. NaN, as is the gradient of all entries that
    are not ignored, where a logit that is not ignored is not finite, or where a label is
    out of range in a traced function.

  Raises:
    ValueError: shapes do not fit, delta or epsilon is not positive, or a label that is not
      a tensor is out of range.
    InvalidArgumentError: a label of an eager tensor is out of range.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [90.0]])  # a negative is far above
    >>> loss = smooth_ap_loss(logits, tf.constant([1, 0, 0]), delta=0.1)
    >>> round(float(loss), 5)  # log(2), for the positive is the second of two
    0.69315
  """
  for name, number in (("delta", delta), ("epsilon", epsilon)):
    if not 0 < number < float("inf"):
      raise ValueError(f"{name} must be positive and finite, got {number}")
  logits, flat_labels = entries_lib.checked(logits, labels)
  compiled = compiling.compiled if jit_compile else lambda function: function
  step = tf.constant([2.0 / delta, epsilon], tf.float64)

  @tf.custom_gradient
  def with_gradient(logits):
    value, *ranks = compiled(_value)(tf.stop_gradient(logits), flat_labels, step)
    return value, functools.partial(
      compiled(_gradient), logits, flat_labels, step, ranks
    )

  return with_gradient(logits)


def _value(logits, labels, step):
  """(loss [], a [R + 1], b [R + 1]); the ranks are float64."""
  entries = entries_lib.Entries.of(logits, labels)
  slope = tf.cast(step[0], tf.float32)
  scores = entries.positive_scores

  def add(block, rank, above):
    of_positives = tf.sigmoid((scores - block.scores) * slope)
    of_positives = tf.where(block.is_new & entries.is_used, of_positives, 0.0)
    of_entries = tf.sigmoid((entries.scores - block.scores[..., tf.newaxis]) * slope)
    is_counted = block.is_new[..., tf.newaxis] & entries.is_negative
    of_entries = tf.where(is_counted, of_entries, 0.0)
    return (
      block.add(rank, _sums(of_positives[..., tf.newaxis])),
      block.add(above, _sums(of_entries)),
    )

  rank, above = _over_blocks(entries, add, [tf.zeros_like(scores, tf.float64)] * 2)
  # f(0) = 1/2 of the positive itself is among them, which counts 1.
  rank += 0.5
  loss = -tf.math.log(_precision(entries, rank, above) + step[1])
  return entries.value(loss), rank, above


def _gradient(logits, labels, step, ranks, upstream):
  """[..., K] of the logits' type."""
  entries = entries_lib.Entries.of(logits, labels)
  rank, above = ranks
  slope = tf.cast(step[0], tf.float32)
  # dL/da_i and dL/db_i, where L = -log(mean of a / (a + b) + epsilon).
  share = tf.cast(upstream, tf.float64) * step[0] / _number(entries)
  share /= (_precision(entries, rank, above) + step[1]) * tf.square(rank + above)
  by_rank, by_above = (tf.cast(x, tf.float32) for x in (-share * above, share * rank))

  def add(block, of_all, of_positives):
    distance = (entries.scores - block.scores[..., tf.newaxis]) * slope
    small = tf.exp(-tf.abs(distance))
    pulls = tf.where(entries.is_negative, block.of(by_above), block.of(by_rank))
    is_counted = block.is_new[..., tf.newaxis] & (entries.is_negative | entries.is_own)
    pulls = tf.where(is_counted, pulls * small / tf.square(1.0 + small), 0.0)
    return (
      of_all + tf.reduce_sum(pulls, 0),
      block.add(of_positives, -_sums(pulls)),
    )

  start = [tf.zeros_like(entries.scores), tf.zeros_like(rank)]
  result = entries.gradient(*_over_blocks(entries, add, start))
  return tf.cast(tf.reshape(result, tf.shape(logits)), logits.dtype)


class _Block(NamedTuple):
  """Some of the positives.

  Attributes:
    at: [n, 1] int32; which ones.
    scores: [n, 1] float32.
    is_new: [n, 1] bool; whether they are there, and were in no block before.
  """

  at: tf.Tensor
  scores: tf.Tensor
  is_new: tf.Tensor

  def of(self, values):
    """[n, 1, 1]: the entries of values [R + 1] for these."""
    return tf.gather(values, self.at)[..., tf.newaxis]

  def add(self, values, here):
    """Values [R + 1], with `here` [n] added for these."""
    return tf.tensor_scatter_nd_add(values, self.at, here)


def _over_blocks(entries, add, state):
  """Goes over all positives, in blocks of them.

  Args:
    entries: Entries.
    add: function of a _Block and the state to the new state.
    state: list of tensors.

  Returns:
    The last state.
  """
  scores = entries.positive_scores
  size = tables.length(scores)
  pairs = size * entries.scores.shape[-1]
  if tf.is_tensor(size):
    width = tf.maximum(_PAIRS // pairs, 1)
  else:
    width = max(_PAIRS // pairs, 1)
  width = tables.lesser(width, size)

  def body(begin, *state):
    # The last block is moved back; what it has seen does not count again.
    start = tf.minimum(begin, size - width)
    at = start + tf.range(width)
    is_new = (at >= begin) & (at < entries.count)
    own = tf.slice(scores, [start], [width])
    block = _Block(*(x[:, tf.newaxis] for x in (at, own, is_new)))
    return begin + width, *add(block, *state)

  start = [0, *state]
  return tf.while_loop(lambda begin, *_: begin < entries.count, body, start)[1:]


def _sums(x):
  """[n] float64: sums of [n, R, K] float32."""
  return tf.reduce_sum(tf.cast(tf.reduce_sum(x, 2), tf.float64), 1)


def _number(entries):
  return tf.maximum(tf.cast(entries.count, tf.float64), 1.0)


def _precision(entries, rank, above):
  """[] float64: the mean of the positives' precisions a / (a + b)."""
  precisions = tf.where(entries.is_used, rank / (rank + above), 0.0)
  return tf.reduce_sum(precisions) / _number(entries)
