"""Class targets of an anchor: class k is 1..K, and two constants for the rest."""

from __future__ import annotations

import tensorflow as tf

IGNORED = -1
BACKGROUND = 0
# What is none of all these; losses of it are NaN.
INVALID = -2


def checked(logits, labels):
  """The arguments of a loss, checked as far as they are known now.

  Args:
    logits: [..., K] float; tensor, array or list.
    labels: [...] integer in [IGNORED, K]; likewise.

  Returns:
    (logits [..., K] tensor, labels [...] int32 tensor).

  Raises:
    ValueError: a type or a shape does not fit, or a label is out of range and labels is
      no tensor.
    InvalidArgumentError: a label is out of range and labels is an eager tensor.
  """
  logits = tf.convert_to_tensor(logits)
  is_tensor = tf.is_tensor(labels)
  labels = tf.convert_to_tensor(labels)
  _check_types_and_shapes(logits, labels)
  _check_values(labels, logits.shape[-1], is_tensor)
  return logits, tf.cast(labels, tf.int32)


def _check_types_and_shapes(logits, labels):
  if not logits.dtype.is_floating:
    raise ValueError(f"logits must be floating, got {logits.dtype.name}")
  if not labels.dtype.is_integer:
    raise ValueError(f"labels must be integer, got {labels.dtype.name}")
  if logits.shape.rank is None or labels.shape.rank is None:
    raise ValueError("logits and labels must have a known rank")
  if logits.shape.rank < 1:
    raise ValueError("logits must have shape [..., K], got []")
  if logits.shape[-1] is None or logits.shape[-1] < 1:
    raise ValueError(
      f"logits must have a known number of classes >= 1, got shape {logits.shape}"
    )
  if not logits.shape[:-1].is_compatible_with(labels.shape):
    raise ValueError(
      f"labels must have shape {logits.shape[:-1]}, one for each anchor of the "
      f"logits {logits.shape}, got {labels.shape}"
    )


def _check_values(labels, classes, is_tensor):
  """Labels of a traced function are not known: the losses become NaN for those."""
  values = tf.get_static_value(labels)
  if values is None or values.size == 0:
    return
  if values.min() >= IGNORED and values.max() <= classes:
    return
  _refuse(
    f"labels must lie in [{IGNORED}, {classes}], for logits of {classes} classes; got "
    f"values from {values.min()} to {values.max()}",
    is_tensor,
  )


def checked_numbers(name, numbers, shape):
  """Checks numbers that must not be negative, as `checked` checks labels.

  Args:
    name: of the argument.
    numbers: tensor, array or list.
    shape: the shape that is required.

  Returns:
    The numbers as a float32 tensor.

  Raises:
    ValueError: the shape does not fit, or a number is negative or not finite and the
      caller passed no tensor.
    InvalidArgumentError: the same, and the caller passed an eager tensor.
  """
  is_tensor = tf.is_tensor(numbers)
  numbers = tf.cast(tf.convert_to_tensor(numbers), tf.float32)
  check_shape(name, numbers, shape)
  values = tf.get_static_value(numbers)
  if values is not None and not ((values >= 0) & (values < float("inf"))).all():
    _refuse(f"{name} must be finite and not negative, got {values}", is_tensor)
  return numbers


def check_number(number, shape, advice=""):
  """Raises ValueError where a ranking has more logits than its counts can hold.

  Args:
    number: of the ranking's logits; None where it is not known.
    shape: of the logits that it is of.
    advice: what else the message says.
  """
  if number is not None and number >= 2**31:
    raise ValueError(
      f"a ranking takes at most 2^31 - 1 logits, got {number} (shape {shape}){advice}"
    )


def check_shape(name, tensor, shape):
  """Raises ValueError where the static shape of an argument does not fit."""
  if not tensor.shape.is_compatible_with(shape):
    raise ValueError(f"{name} must have shape {shape}, got {tensor.shape}")


def _refuse(message, is_tensor):
  if is_tensor and tf.executing_eagerly():
    raise tf.errors.InvalidArgumentError(None, None, message)
  raise ValueError(message)
