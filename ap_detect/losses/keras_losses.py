"""The ranking losses for `Model.compile`, of Keras 2 and of Keras 3 on TensorFlow.

Importing this module imports no Keras: a loss is of whichever ones the process has
loaded by the time it is made. Two can be loaded at once, Keras 3 for someone's model and
`tf_keras` for ours, and one that does not know a loss for its own calls it without
`sample_weight`; so a loss is of all of them.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, Callable

import numpy as np
import tensorflow as tf

from ap_detect.losses.ap_loss import ap_loss
from ap_detect.losses.auc_loss import auc_loss
from ap_detect.losses.labels import BACKGROUND, IGNORED

# Given with each call, unlike a loss's options.
_OF_A_BATCH = ("weights", "qualities")
_PLAIN = (bool, int, float, str, type(None))
# Up to here every whole number is one of the type.
_LARGEST_LABELS = {tf.bfloat16: 256, tf.float16: 2048}


def _loaded_keras() -> list[Any]:
  """The Keras packages on TensorFlow that are loaded; TensorFlow loads its own itself."""
  found: list[Any] = [sys.modules.get(name) for name in ("keras", "tf_keras")]
  return [
    keras
    for keras in found
    if hasattr(keras, "losses") and keras.backend.backend() == "tensorflow"
  ]


@functools.cache
def _join(cls, bases):
  """The class, or one of the same name that is a subclass of all bases too."""
  if all(issubclass(cls, base) for base in bases):
    return cls
  attributes = {
    "__module__": cls.__module__,
    "__doc__": cls.__doc__,
    "_joined": cls,
  }
  return type(cls.__name__, (cls, *bases), attributes)


class RankingLoss:
  """Base of the losses below: a function of logits and labels, with fixed options.

  A subclass names the function, whose keyword arguments, but `weights` and `qualities`,
  are its options. An instance is a `keras.losses.Loss`, can be saved with a compiled
  model, and is loaded with it where this module has been imported: for the formats .h5
  and SavedModel after the Keras that loads them.

  Where the first dimension of a batch is not known, as with `fit(x, y)`, compilation takes
  several times as long; batches of one size, as `tf.data`'s drop_remainder gives them, are
  also what `images_per_ranking` requires.

  Args:
    name: name of the loss in Keras' logs; by default the function's.
    **options: the function's options.

  Raises:
    TypeError: the function has no such option.
    ImportError: no Keras on TensorFlow is loaded.
  """

  function: Callable[..., Any]
  name: str
  _joined: type | None = None

  def __init_subclass__(cls, **kwargs):
    super().__init_subclass__(**kwargs)
    package = cls.__module__.split(".")[0]
    for keras in _loaded_keras():
      keras.saving.register_keras_serializable(package)(cls)

  def __new__(cls, *args, **kwargs):
    del args, kwargs
    bases = tuple(keras.losses.Loss for keras in _loaded_keras())
    if not bases:
      raise ImportError(
        f"{cls.__name__} requires Keras on TensorFlow, and this process has loaded none; "
        "set KERAS_BACKEND=tensorflow before the first import of Keras"
      )
    return super().__new__(_join(cls, bases))  # type: ignore[arg-type]

  def __init__(self, *, name=None, **options):
    defaults = _options(self.function)
    unknown = sorted(options.keys() - defaults.keys())
    if unknown:
      raise TypeError(
        f"{type(self).__name__} has no option {', '.join(unknown)}; its options are "
        f"{', '.join(defaults)}"
      )
    name = name or self.function.__name__
    for keras in _loaded_keras():
      # "sum": Keras takes the value as it is, and knows that replicas' values add up.
      keras.losses.Loss.__init__(self, name=name, reduction="sum")
    self._options = {**defaults, **options}

  def __call__(self, y_true, y_pred, sample_weight=None):
    """The loss of a mini-batch.

    Args:
      y_true: labels, either [...] or [..., 1] whole numbers, IGNORED, BACKGROUND or the
        class 1..K; or [..., K] one-hot, where all 0 is background and all -1 is ignored.
      y_pred: [..., K] logits, without an activation. Where Keras has masked some, those
        are ignored.
      sample_weight: None, or weights >= 0 of the shape of the labels or of its first
        dimensions, such as [B]. 0 has an anchor ignored. Positives are averaged with
        their weights; a background anchor counts fully whatever its weight is.

    Returns:
      [] float32. Under a `tf.distribute` strategy a replica's share of the mean over
      replicas, as Keras' own losses have it.

    Raises:
      ValueError: shapes do not fit, or labels are neither whole numbers nor one-hot; in a
        traced function, where values are not known, the loss is then NaN.
      ValueError, InvalidArgumentError: as the function.
    """
    with tf.name_scope(self.name):
      logits = tf.convert_to_tensor(y_pred)
      labels = _to_labels(tf.convert_to_tensor(y_true), logits)
      arguments = dict(self._options)
      weights = _to_weights(sample_weight, getattr(y_pred, "_keras_mask", None), labels)
      if weights is not None:
        arguments["weights"] = weights
      if not tf.executing_eagerly() and tf.distribute.in_cross_replica_context():
        # Keras 3 asks for the shape of the loss, in a graph that is never run.
        arguments["ranking_scope"] = "replica"
      loss = self.function(logits, labels, **arguments)
      return loss / tf.distribute.get_strategy().num_replicas_in_sync

  @classmethod
  def from_config(cls, config):
    """The loss that `get_config` is of; Keras loads saved models by it."""
    return cls(**config)

  def __reduce__(self):
    # Pickle looks for the class by its name, and there finds the one that was joined.
    cls = self._joined or type(self)
    return functools.partial(cls, **self.get_config()), ()

  def get_config(self):
    """What the class is called with to make this loss, as JSON can hold it."""
    options = {
      name: value if isinstance(value, _PLAIN) else np.asarray(value).tolist()
      for name, value in self._options.items()
    }
    return {"name": self.name, **options}


class APLoss(RankingLoss):
  """`ap_loss` as a Keras loss.

  Args:
    name: name of the loss in Keras' logs.
    **options: keyword arguments of `ap_loss` but `weights` and `qualities`.

  Example:
    >>> float(APLoss()(tf.constant([1, 0, 0]), tf.constant([[2.0], [0.0], [5.0]])))
    0.5
  """

  function = staticmethod(ap_loss)


class AUCLoss(RankingLoss):
  """`auc_loss` as a Keras loss.

  Args:
    name: name of the loss in Keras' logs.
    **options: keyword arguments of `auc_loss` but `weights` and `qualities`.

  Example:
    >>> float(AUCLoss()(tf.constant([1, 0, 0]), tf.constant([[2.0], [0.0], [5.0]])))
    0.5
  """

  function = staticmethod(auc_loss)


def _options(function):
  """Name -> default of a loss function's options."""
  return {
    option.name: option.default
    for option in inspect.signature(function).parameters.values()
    if option.kind is option.KEYWORD_ONLY and option.name not in _OF_A_BATCH
  }


def _to_labels(y_true, logits):
  """[...] integer labels of whole numbers or one-hot rows, see `RankingLoss.__call__`."""
  if y_true.shape.rank is None or logits.shape.rank is None or not logits.shape.rank:
    raise ValueError("y_true and y_pred must have a known rank, and y_pred at least 1")
  classes = logits.shape[-1]
  if y_true.shape.rank == logits.shape.rank:
    if y_true.shape[-1] not in (1, classes):
      raise ValueError(
        "y_true must be labels of shape [...] or [..., 1], or one-hot rows of shape "
        f"[..., K], for y_pred of shape {logits.shape}; got {y_true.shape}"
      )
    if y_true.shape[-1] == 1:
      y_true = tf.squeeze(y_true, -1)
    else:
      return _from_one_hot(tf.cast(y_true, tf.float32), classes)
  if not y_true.dtype.is_floating:
    return y_true
  # Keras hands labels over as floats in places, Keras 2 as floats of the logits' type.
  largest = _LARGEST_LABELS.get(y_true.dtype)
  if largest and classes > largest:
    raise ValueError(
      f"y_true is {y_true.dtype.name}, which holds whole numbers up to {largest} only, for "
      f"{classes} classes; give integer labels, or logits of float32"
    )
  rounded = tf.round(y_true)
  _check(tf.equal(rounded, y_true), "whole numbers")
  return tf.where(tf.equal(rounded, y_true), tf.cast(rounded, tf.int32), classes + 1)


def _from_one_hot(rows, classes):
  ones, zeros, minus_ones = (
    tf.math.count_nonzero(tf.equal(rows, value), -1, dtype=tf.int32)
    for value in (1.0, 0.0, -1.0)
  )
  is_positive = tf.equal(ones, 1) & tf.equal(zeros, classes - 1)
  is_background = tf.equal(zeros, classes)
  is_ignored = tf.equal(minus_ones, classes)
  _check(is_positive | is_background | is_ignored, "one-hot, all 0 or all -1")
  labels = tf.where(is_positive, 1 + tf.argmax(rows, -1, tf.int32), classes + 1)
  labels = tf.where(is_background, BACKGROUND, labels)
  return tf.where(is_ignored, IGNORED, labels)


def _check(are_valid, required):
  """Raises ValueError where it is known now that some labels are not valid."""
  values = tf.get_static_value(are_valid)
  if values is not None and not values.all():
    raise ValueError(
      f"y_true must be {required}; {(~values).sum()} of {values.size} labels are not"
    )


def _to_weights(sample_weight, mask, labels):
  """[...] float32 weights of the labels, or None where there is neither."""
  given = [
    _spread(values, labels) for values in (sample_weight, mask) if values is not None
  ]
  return functools.reduce(tf.multiply, given) if given else None


def _spread(values, labels):
  """Values of the labels' first dimensions as float32 of their shape."""
  values = tf.cast(tf.convert_to_tensor(values), tf.float32)
  if values.shape.rank == labels.shape.rank + 1 and values.shape[-1] == 1:
    values = tf.squeeze(values, -1)
  missing = labels.shape.rank - values.shape.rank
  shape = [*values.shape, *([1] * missing)]
  if missing < 0 or any(
    None not in sizes and sizes[0] not in (1, sizes[1])
    for sizes in zip(shape, labels.shape)
  ):
    raise ValueError(
      f"sample_weight must have the shape of the labels, {labels.shape}, or of its "
      f"first dimensions; got {values.shape}"
    )
  values = tf.reshape(values, tf.concat([tf.shape(values), [1] * missing], 0))
  return tf.broadcast_to(values, tf.shape(labels))
