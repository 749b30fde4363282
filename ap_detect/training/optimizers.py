"""Optimisers by name. tensorflow-addons is imported here, and only when asked for."""

from __future__ import annotations

import warnings

import tensorflow as tf

# Of the names of biases, and of normalisation's scales and offsets.
_NOT_DECAYED = ("bias", "gamma", "beta")

# These bring a decoupled weight decay of their own; for the others the training step
# adds L2 to the gradient (Keras' own `weight_decay` is decoupled, not the paper's L2).
DECOUPLED_WEIGHT_DECAY = ("sgdw", "lamb")


def is_decayed(weight) -> bool:
  """Whether a weight has decay where biases and normalisation have none."""
  return not any(name in weight.name.split("/")[-1] for name in _NOT_DECAYED)


def make_optimizer(
  name, learning_rate, *, momentum=0.9, weight_decay=0.0, decay_all_weights=True
):
  """An optimiser, whose update XLA never compiles: with several GPUs that leaks or aborts.

  Args:
    name: "sgd" (with momentum), "adam", or tensorflow-addons' "sgdw" or "lamb".
    learning_rate: float or schedule.
    momentum: of sgd and sgdw.
    weight_decay: of sgdw and lamb; decoupled. For SGDW, which does not multiply it by
      the rate, a schedule of the learning rate scales it too.

  Returns:
    A Keras optimizer.

  Raises:
    ValueError: unknown name, or one that needs tensorflow-addons where that cannot be
      imported.
  """
  if name == "sgd":
    return tf.keras.optimizers.SGD(learning_rate, momentum=momentum, jit_compile=False)
  if name == "adam":
    return tf.keras.optimizers.Adam(learning_rate, jit_compile=False)
  if name not in DECOUPLED_WEIGHT_DECAY:
    raise ValueError(f"optimizer must be sgd, adam, sgdw or lamb, got {name!r}")
  addons = _import_addons(name)
  # Regular expressions of names.
  excluded = None if decay_all_weights else list(_NOT_DECAYED)
  if name == "lamb":
    return addons.LAMB(
      learning_rate, weight_decay=weight_decay, exclude_from_weight_decay=excluded
    )
  return addons.SGDW(
    weight_decay=_times(weight_decay, learning_rate),
    learning_rate=learning_rate,
    momentum=momentum,
    exclude_from_weight_decay=excluded,
  )


def create_state(optimizer, weights):
  """Makes an optimiser's variables at once, not at the first step: they get restored.

  Args:
    optimizer: from make_optimizer.
    weights: the variables that it will update.
  """
  if hasattr(optimizer, "build"):
    optimizer.build(weights)
  else:  # tensorflow-addons' optimisers are of Keras' older kind.
    optimizer._create_all_weights(weights)


def _times(weight_decay, learning_rate):
  """weight_decay x learning_rate, as what SGDW subtracts from the weights a step."""
  if not callable(learning_rate):
    return weight_decay * learning_rate
  return _ScaledSchedule(learning_rate, weight_decay)


class _ScaledSchedule(tf.keras.optimizers.schedules.LearningRateSchedule):
  def __init__(self, schedule, factor):
    self._schedule, self._factor = schedule, factor

  def __call__(self, step):
    return self._factor * self._schedule(step)

  def get_config(self):
    return {"schedule": self._schedule, "factor": self._factor}


def _import_addons(name):
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # its end-of-life banner
      from tensorflow_addons import optimizers
  except ImportError as error:
    raise ValueError(
      f"optimizer {name!r} comes from tensorflow-addons, which cannot be imported here "
      f"({error}); it needs TensorFlow 2.15, that is Python 3.11 or earlier. "
      "Alternatives: 'sgd' and 'adam'"
    ) from error
  return optimizers
