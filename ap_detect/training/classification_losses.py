"""The classification loss that a config names: found, checked, with its options."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from ap_detect import errors, losses
from ap_detect.losses.ranking_loss import replicas_per_ranking

# Keyword arguments of a loss that are no options, for they are of a batch or the step's.
_GIVEN = ("qualities", "weights", "jit_compile", "ranking_scope")


class ClassificationLoss(NamedTuple):
  """A loss with its options.

  Attributes:
    name: of the loss in the logs, "..._loss".
    function: (logits [B, A, K], labels [B, A]) -> loss [] float32.
    takes_qualities: whether it takes a keyword `qualities` [B, A] too: the IoU of every
      positive anchor's predicted box with its object, 0 elsewhere.
    is_across_replicas: whether it must be called in every replica, and not be compiled
      with what is around it.
  """

  name: str
  function: Callable[..., Any]
  takes_qualities: bool = False
  is_across_replicas: bool = False


def find(train) -> ClassificationLoss:
  """The loss of a TrainConfig.

  A function that takes a keyword `jit_compile` is told by it whether to compile itself,
  which train.jit_compile decides; other losses are compiled with the step or not at all.

  Args:
    train: TrainConfig.

  Returns:
    ClassificationLoss.

  Raises:
    ValueError: there is no such function, or it does not take those options, or it ranks
      nothing that train.ranking_scope could be for.
  """
  name, options = train.classification_loss, dict(train.loss_options)
  function = _import(name)
  _check_call(name, function, options)
  parameters = _parameters(name, function)
  if "jit_compile" in parameters:
    options["jit_compile"] = train.jit_compile != "never"
  is_global = train.ranking_scope == "global"
  if is_global and "ranking_scope" not in parameters:
    raise ValueError(
      "train.ranking_scope=global is for losses that take a keyword ranking_scope, as "
      f"the ranking losses of ap_detect.losses do; {name} does not"
    )
  if is_global:
    options["ranking_scope"] = train.ranking_scope
  return ClassificationLoss(
    _name_in_logs(name),
    functools.partial(function, **options),
    "qualities" in parameters,
    is_global,
  )


def with_defaults(config, of=None):
  """A Config whose train.loss_options also has those that are left out.

  So a run's record holds the values that it is trained with, and two starts do not differ
  where they differ in what is spelled out alone.

  Args:
    config: Config.
    of: name or import path of the loss whose defaults fill in; None for its own.

  Returns:
    Config.

  Raises:
    ValueError: there is no such function.
  """
  train = config.train
  of = of or train.classification_loss
  parameters = _parameters(of, _import(of))
  defaults = {
    name: parameters[name].default
    for name in _options(parameters)
    if isinstance(parameters[name].default, (bool, int, float, str, type(None)))
  }
  train = dataclasses.replace(train, loss_options={**defaults, **train.loss_options})
  return dataclasses.replace(config, train=train)


def check(train, num_classes, replicas=1):
  """Calls the loss of a TrainConfig on a batch of two anchors an image.

  What it does not accept is found before anything is built or written.

  Args:
    train: TrainConfig.
    num_classes: K.
    replicas: int, how many take part in a step.

  Raises:
    ValueError: it refuses its options, or returns no loss with a gradient.
  """
  loss = find(dataclasses.replace(train, jit_compile="never", ranking_scope="replica"))
  images = train.images_per_replica
  images_per_ranking = train.loss_options.get("images_per_ranking")
  try:
    if find(train).is_across_replicas and replicas > 1:
      images *= (
        replicas_per_ranking(images, replicas, images_per_ranking)
        if images_per_ranking is not None
        else replicas
      )
    logits = tf.zeros([images, 2, num_classes])
    labels = tf.tile([[1, losses.BACKGROUND]], [images, 1])
    qualities = (
      {"qualities": tf.cast(labels, tf.float32)} if loss.takes_qualities else {}
    )
    with tf.GradientTape() as tape:
      tape.watch(logits)
      value = tf.convert_to_tensor(loss.function(logits, labels, **qualities))
    gradient = tape.gradient(value, logits)
  except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
    raise ValueError(
      f"{train.classification_loss} with train.loss_options={dict(train.loss_options)}: "
      f"{errors.first_line(error)}"
    ) from error
  if value.shape.rank != 0 or value.dtype != tf.float32 or gradient is None:
    raise ValueError(
      f"train.classification_loss={train.classification_loss} must return a loss [] "
      "float32 that has a gradient by the logits, got shape "
      f"{value.shape} {value.dtype.name}{' without one' if gradient is None else ''}"
    )


def _import(name):
  """The function of a name of ours, or of an import path."""
  module_name, _, function_name = name.rpartition(".")
  if not module_name:
    if name not in losses.CLASSIFICATION_LOSSES:
      raise ValueError(
        "train.classification_loss must be one of "
        f"{', '.join(losses.CLASSIFICATION_LOSSES)}, or an import path "
        f"'package.module.function', got {name!r}"
      )
    return losses.CLASSIFICATION_LOSSES[name]
  try:
    function = getattr(importlib.import_module(module_name), function_name)
  except (ImportError, AttributeError) as error:
    raise ValueError(f"train.classification_loss={name}: {error}") from error
  if not callable(function):
    raise ValueError(
      f"train.classification_loss={name} must be a function, got {function!r}"
    )
  return function


def _parameters(name, function):
  """The parameters of a loss behind the first two, by name."""
  try:
    parameters = inspect.signature(function).parameters
  except (TypeError, ValueError) as error:
    raise ValueError(f"train.classification_loss={name}: {error}") from error
  return dict(list(parameters.items())[2:])


def _check_call(name, function, options):
  """Raises ValueError where a loss cannot be called with those options."""
  parameters = _parameters(name, function)
  valid = _options(parameters)
  takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
  unknown = [option for option in options if option not in valid]
  of_batch = [option for option in unknown if option in parameters]
  if of_batch:
    raise ValueError(
      f"{name}: {', '.join(map(repr, of_batch))} is of a batch or the step's to give, and "
      "cannot be in train.loss_options"
    )
  if unknown and not takes_any:
    raise ValueError(
      f"{name} has no option {', '.join(map(repr, unknown))}; train.loss_options may "
      f"have {', '.join(valid) or 'none'}"
    )
  given = [option for option in _GIVEN if option in parameters]
  try:
    inspect.signature(function).bind(None, None, **dict.fromkeys([*options, *given]))
  except TypeError as error:
    raise ValueError(
      f"train.classification_loss={name} is called with logits, labels and "
      f"train.loss_options: {error}"
    ) from error


def _options(parameters):
  """Names of the parameters that train.loss_options may have."""
  return [
    name
    for name, item in parameters.items()
    if item.kind in (item.KEYWORD_ONLY, item.POSITIONAL_OR_KEYWORD)
    and name not in _GIVEN
  ]


def _name_in_logs(name):
  """Such that logs and charts take it for a loss, and not for another one."""
  name = name.rpartition(".")[2]
  if name in ("box_loss", "total_loss"):
    return "classification_loss"
  return name if name.endswith("_loss") else f"{name}_loss"
