"""AP-loss."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ap_detect.losses import labels as labels_lib


def ap_loss(logits, labels, *, delta=1.0, interpolated=True):
  if not delta > 0:
    raise ValueError(f"delta must be positive, got {delta}")
  logits = tf.convert_to_tensor(logits)
  labels = tf.convert_to_tensor(labels)
  labels_lib.check_logits_and_labels(logits, labels)

  @tf.custom_gradient
  def loss(logits):
    value, gradient = _simple(
      tf.reshape(logits, [-1, logits.shape[-1]]),
      tf.reshape(labels, [-1]), delta, interpolated)
    gradient = tf.cast(tf.reshape(gradient, tf.shape(logits)), logits.dtype)
    return value, lambda upstream: tf.cast(upstream, logits.dtype) * gradient

  return loss(logits)


def _scan(x, op, identity):
  n = tf.shape(x)[0]
  index = tf.range(n)

  def body(shift, x):
    moved = tf.where(index >= shift, tf.gather(x, tf.maximum(index - shift, 0)),
                     identity)
    return shift * 2, op(x, moved)

  return tf.while_loop(lambda shift, _: shift < n, body, [1, x])[1]


def _sum_scan(x):
  return _scan(x, tf.add, tf.zeros([], x.dtype))


def _exclusive(x):
  return tf.concat([tf.zeros([1], x.dtype), _sum_scan(x)], 0)


def _ceil32(x):
  y = tf.cast(x, tf.float32)
  bits = tf.bitcast(y, tf.int32)
  up = tf.where(y >= 0, bits + 1, bits - 1)
  up = tf.where(y == 0, 1, up)
  return tf.where(tf.cast(y, tf.float64) < x, tf.bitcast(up, tf.float32), y)


def _rank(knots, values):
  """Number of knots <= value."""
  n = knots.shape[0]
  steps = int(n).bit_length() if n is not None else 31
  low = tf.zeros_like(values, tf.int32)
  for k in reversed(range(steps)):
    probe = low + ((1 << k) - 1)
    inside = probe < tf.shape(knots)[0]
    knot = tf.gather(knots, tf.minimum(probe, tf.shape(knots)[0] - 1))
    low = tf.where(inside & (knot <= values), low + (1 << k), low)
  return low


def _simple(logits, labels, delta, interpolated):
  logits = tf.cast(logits, tf.float32)
  classes = logits.shape[-1]
  labels = tf.cast(labels, tf.int32)
  keep = labels != labels_lib.IGNORED
  valid = labels > 0
  bad = tf.reduce_any(~tf.math.is_finite(logits) & keep[:, None])
  logits = tf.where(tf.math.is_finite(logits), logits, 0.0)
  own = tf.gather(logits, tf.maximum(labels - 1, 0), batch_dims=1)
  own = tf.where(valid, own, np.float32(np.inf))
  order = tf.argsort(own)
  s = tf.gather(own, order)
  real = s < np.inf
  count = tf.reduce_sum(tf.cast(real, tf.int32))
  s64 = tf.cast(s, tf.float64)
  low64, high64 = s64 - delta, s64 + delta
  knots64 = tf.sort(tf.concat([low64, high64], 0))
  knots = _ceil32(knots64)
  m = tf.shape(knots)[0] + 1
  low, high = _ceil32(low64), _ceil32(high64)
  low_rank, high_rank = _rank(knots, low), _rank(knots, high)
  f64 = tf.float64
  finite = knots < np.inf
  gap = tf.where(finite[1:], tf.cast(knots[1:], f64) - tf.cast(knots[:-1], f64), 0)
  gap = tf.minimum(gap, 4.0 * delta)
  gap = tf.concat([gap, tf.zeros([1], f64)], 0)
  safe_knots = tf.where(finite, knots, 0.0)

  def offset(x, rank):
    left = tf.gather(safe_knots, tf.maximum(rank - 1, 0))
    return tf.clip_by_value(x - left, 0.0, np.float32(4.0 * delta))

  def counts_and_sums(x, rank, mask):
    rank = tf.where(mask, rank, 0)
    number = tf.math.unsorted_segment_sum(tf.cast(mask, tf.int32), rank, m)
    total = tf.math.unsorted_segment_sum(
      tf.where(mask, tf.cast(offset(x, rank), f64), 0), rank, m)
    return number, total

  def soft_count(number, total):
    # above[k]: how many lie at or above knot k.
    above = tf.reverse(_sum_scan(tf.reverse(number[1:], [0])), [0])
    above = tf.cast(above, f64)
    excess = tf.reverse(_sum_scan(tf.reverse(total[1:] + tf.concat(
      [above[1:], tf.zeros([1], f64)], 0) * gap, [0])), [0])

    def at(rank, knot64, knot32):
      a = tf.gather(above, rank - 1)
      fix = tf.where(real, tf.cast(knot32, f64) - knot64, 0)
      return tf.gather(excess, rank - 1) + a * fix

    return tf.maximum(at(low_rank, low64, low) - at(high_rank, high64, high), 0) / (
      2 * delta)

  rank = _rank(knots, logits)
  is_positive = labels[:, None] == tf.range(1, classes + 1)
  negative = keep[:, None] & ~is_positive
  flat = lambda t: tf.reshape(t, [-1])
  number, total = counts_and_sums(flat(logits), flat(rank), flat(negative))
  safe_s = tf.where(real, s, 0.0)
  pnumber, ptotal = counts_and_sums(safe_s, _rank(knots, safe_s), real)
  b = tf.where(real, soft_count(number, total), 0)
  a = 0.5 + soft_count(pnumber, ptotal)
  error = tf.where(b > 0, b / (a + b), 0)
  if interpolated:
    error = _scan(error, tf.minimum, tf.constant(np.inf, f64))
  error = tf.where(real, error, 0)
  weight = tf.where(b > 0, error / tf.where(b > 0, b, 1), 0)
  p = tf.cast(tf.maximum(count, 1), f64)
  value = tf.reduce_sum(error) / p
  # Lines.
  weight = weight / (2 * delta * p)
  zeros = tf.zeros([m], f64)
  def place(rank, value):
    return tf.math.unsorted_segment_sum(tf.where(real, value, 0), rank, m)
  jump = place(low_rank, weight) - place(high_rank, weight)
  fix = (place(low_rank, weight * tf.where(real, tf.cast(low, f64) - low64, 0))
         - place(high_rank, weight * tf.where(real, tf.cast(high, f64) - high64, 0)))
  cover = (tf.math.unsorted_segment_sum(tf.cast(real, tf.int32), low_rank, m)
           - tf.math.unsorted_segment_sum(tf.cast(real, tf.int32), high_rank, m))
  slope = tf.where(_sum_scan(cover) > 0, _sum_scan(jump), 0)
  # Interval r starts at knot r - 1 and is gap[r - 1] wide.
  rise = tf.concat([tf.zeros([1], f64), slope[1:-1] * gap[:-1]], 0)
  height = _sum_scan(fix + tf.concat([tf.zeros([1], f64), rise], 0))
  height = tf.maximum(height, 0)
  slope32, height32 = tf.cast(slope, tf.float32), tf.cast(height, tf.float32)
  gradient = tf.gather(height32, rank) + tf.gather(slope32, rank) * offset(logits, rank)
  own_gradient = tf.scatter_nd(order[:, None], tf.cast(-error / p, tf.float32),
                               tf.shape(order))
  gradient = tf.where(is_positive, own_gradient[:, None], gradient)
  gradient = tf.where(keep[:, None], gradient, 0.0)
  nan = np.float32(np.nan)
  return (tf.where(bad, nan, tf.cast(value, tf.float32)),
          tf.where(bad & keep[:, None], nan, gradient))
