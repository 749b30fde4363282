"""From logits and labels to a loss of all positive-negative pairs, and its update."""

from __future__ import annotations

import atexit
import functools
import gc
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from ap_detect.losses import labels as labels_lib
from ap_detect.losses import ranking


# Nothing in here needs AutoGraph, which would take longer than the tracing itself.
@tf.autograph.experimental.do_not_convert
def loss(logits, labels, errors, *, delta, images_per_ranking, jit_compile):
  """A ranking loss whose gradient is the error-driven update.

  Args:
    logits, labels, delta, images_per_ranking, jit_compile: see `ap_loss`.
    errors: see `ranking.rank`; what tells AP-loss from AUC-loss.

  Returns:
    [] float32.

  Raises:
    ValueError, InvalidArgumentError: see `ap_loss`.
  """
  logits, labels = _checked(logits, labels, delta, images_per_ranking)
  engine = _engine(errors, images_per_ranking, jit_compile)
  delta = tf.constant(delta, tf.float64)

  @tf.custom_gradient
  def with_update(logits):
    value, lines = engine.rank(tf.stop_gradient(logits), labels, delta)
    return value, functools.partial(engine.gradient, logits, labels, lines)

  return with_update(logits)


@tf.autograph.experimental.do_not_convert
def loss_and_gradient(
  logits, labels, errors, *, delta, images_per_ranking, jit_compile
):
  """The value of `loss` and the update, without a gradient tape.

  Returns:
    (loss [] float32, update of the logits' shape and type).
  """
  logits, labels = _checked(logits, labels, delta, images_per_ranking)
  engine = _engine(errors, images_per_ranking, jit_compile)
  logits = tf.stop_gradient(logits)
  value, lines = engine.rank(logits, labels, tf.constant(delta, tf.float64))
  return value, engine.gradient(logits, labels, lines, tf.constant(1.0))


def _checked(logits, labels, delta, images_per_ranking):
  if not (delta > 0 and delta < float("inf")):
    raise ValueError(f"delta must be positive and finite, got {delta}")
  logits = tf.convert_to_tensor(logits)
  is_tensor = tf.is_tensor(labels)
  labels = tf.convert_to_tensor(labels)
  labels_lib.check_logits_and_labels(logits, labels)
  labels_lib.check_values(labels, logits.shape[-1], is_tensor)
  if images_per_ranking is not None:
    images = logits.shape[0] if logits.shape.rank > 1 else None
    if logits.shape.rank < 2 or images_per_ranking < 1:
      raise ValueError(
        "images_per_ranking must be at least 1, for logits of at least 2 dimensions; "
        f"got {images_per_ranking} for logits of shape {logits.shape}"
      )
    if images is not None and images % images_per_ranking:
      raise ValueError(
        f"images_per_ranking must divide the first dimension of the logits, {images}, "
        f"got {images_per_ranking}"
      )
  return logits, tf.cast(labels, tf.int32)


class _Engine(NamedTuple):
  rank: Callable[..., Any]
  gradient: Callable[..., Any]


@functools.cache
def _engine(errors, images_per_ranking, jit_compile):
  """Value and update as functions of tensors; traced once for each shape."""

  def rank(logits, labels, delta):
    if images_per_ranking is None:
      rows, targets = _one_list(logits, labels)
      return ranking.rank(rows, targets, delta, errors)
    groups = _grouped(logits, labels, images_per_ranking)
    values, lines = tf.map_fn(
      lambda group: ranking.rank(group[0], group[1], delta, errors),
      groups,
      fn_output_signature=(tf.float32, ranking.Lines.signature()),
    )
    number = tf.cast(tf.maximum(tf.shape(values)[0], 1), tf.float32)
    return tf.reduce_sum(values) / number, lines

  def gradient(logits, labels, lines, upstream):
    if images_per_ranking is None:
      update = _update(_one_list(logits, labels), lines, upstream)
      return tf.reshape(update, tf.shape(logits))
    grouped, targets = _grouped(logits, labels, images_per_ranking)
    number = tf.cast(tf.maximum(tf.shape(grouped)[0], 1), tf.float32)
    share = tf.cast(upstream, tf.float32) / number
    update = tf.map_fn(
      lambda group: _update(group[:2], group[2], share),
      (grouped, targets, lines),
      fn_output_signature=logits.dtype,
    )
    return tf.reshape(update, tf.shape(logits))

  if not jit_compile:
    return _Engine(rank, gradient)
  return _Engine(
    tf.function(rank, jit_compile=True, autograph=False),
    tf.function(gradient, jit_compile=True, autograph=False),
  )


@atexit.register
def _release():
  # Compiled functions that outlive TensorFlow's modules print errors at exit.
  _engine.cache_clear()
  gc.collect()


def _update(rows, lines, upstream):
  return ranking.gradient(rows[0], rows[1], lines, upstream)


def _one_list(logits, labels):
  return tf.reshape(logits, [-1, logits.shape[-1]]), tf.reshape(labels, [-1])


def _grouped(logits, labels, images):
  """([groups, R, K], [groups, R])."""
  shape = tf.shape(logits)
  rows = images * tf.reduce_prod(shape[1:-1])
  groups = shape[0] // images
  logits = tf.reshape(logits, tf.stack([groups, rows, logits.shape[-1]]))
  return logits, tf.reshape(labels, tf.stack([groups, rows]))
