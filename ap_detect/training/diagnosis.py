"""Which tensor of a training step is the first that is not finite.

A step is gone through eagerly, without its update: batch, weights, every layer's output
in the order in which they are computed, losses, their gradients by the network's outputs,
by every layer's output from the last to the first, and by the weights. Of what is not
finite, the first in this order is the source of the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf


class Range(NamedTuple):
  """The values of a tensor.

  Attributes:
    group: which of the parts of a step, as in Examination.
    name: of the tensor, for people.
    shape: of the tensor.
    low: the least of its finite values; 0 where there is none.
    high: the greatest.
    num_nan: how many values are no number.
    num_infinite: how many are infinite.
    of_what: what it was computed from, for a layer's output; else "".
  """

  group: str
  name: str
  shape: tuple[int, ...]
  low: float
  high: float
  num_nan: int
  num_infinite: int
  of_what: str = ""

  @property
  def is_finite(self) -> bool:
    return not (self.num_nan or self.num_infinite)

  @property
  def largest(self) -> float:
    """Largest absolute value of the finite ones."""
    return max(abs(self.low), abs(self.high))

  def describe(self) -> str:
    """Name and values in a sentence without its end."""
    number = tf.TensorShape(self.shape).num_elements()
    text = f"{self.name}, {list(self.shape)}: "
    if not self.is_finite:
      text += (
        f"{self.num_nan} NaN and {self.num_infinite} infinite of {number}, others "
      )
    text += f"from {self.low:.4g} to {self.high:.4g}"
    return f"{text}; {self.of_what}" if self.of_what else text


# The groups of Ranges, in the order in which a step makes them. Moving statistics come
# last: it keeps them for evaluation.
BATCH, WEIGHTS, FORWARD, LOSSES = ("batch", "weights", "forward pass", "losses")
LOSS_GRADIENTS, BACKWARD = ("gradient of the losses", "backward pass")
WEIGHT_GRADIENTS, STATISTICS = ("gradient of the weights", "moving statistics")


class Examination(NamedTuple):
  """What a step's tensors are like.

  Attributes:
    ranges: Ranges in the order in which the step makes them.
  """

  ranges: list[Range]

  @property
  def first_non_finite(self) -> Range | None:
    return next((found for found in self.ranges if not found.is_finite), None)

  def verdict(self) -> str:
    """A sentence: which tensor is the first that is not finite, if any is."""
    found = self.first_non_finite
    if found is None:
      return "all tensors are finite"
    return (
      f"the first tensor that is not finite, in the {found.group}: {found.describe()}"
    )

  def table(self) -> str:
    """Lines: of each group how many tensors, their range, and where it is widest."""
    groups: dict[str, list[Range]] = {}
    for found in self.ranges:
      groups.setdefault(found.group, []).append(found)
    lines = [f"{'':23}  tensors        from          to  largest in"]
    for group, members in groups.items():
      low, high = min(x.low for x in members), max(x.high for x in members)
      widest = max(members, key=lambda x: x.largest)
      broken = sum(not x.is_finite for x in members)
      note = f"; {broken} not finite" if broken else ""
      lines.append(
        f"{group:<23}  {len(members):>7}  {low:>10.4g}  {high:>10.4g}  "
        f"{widest.name}{note}"
      )
    return "\n".join(lines)


def examine(step, network, batch, step_number, *, replica=0) -> Examination:
  """Goes through a step of one replica eagerly; nothing is updated but batch statistics.

  Args:
    step: training.step.TrainingStep of the network, made with nothing compiled.
    network: tf.keras.Model; not under a strategy's scope.
    batch: dict of tensors, what the replica gets of the batch.
    step_number: of the step, from which random masks follow.
    replica: number of the replica, from which they follow too.
  """
  calls: list[_Call] = []
  unused = {
    id(weight)
    for layer in network.submodules
    if _is_trained_norm(layer)
    for weight in layer.non_trainable_weights
  }
  # Now, for the forward pass changes statistics.
  weight_ranges = [
    _range(STATISTICS if id(weight) in unused else WEIGHTS, weight.name, weight)
    for weight in network.weights
  ]
  with _recorded(network, calls):
    found = step.differentiate(
      batch, step_number, lambda: [call.output for call in calls], replica=replica
    )
  ranges = [_range(BATCH, name, value) for name, value in batch.items()]
  ranges += [found for found in weight_ranges if found.group == WEIGHTS]
  ranges += [call.range() for call in calls]
  scalars = {**found.scalars.means, **found.scalars.sums}
  ranges += [_range(LOSSES, name, value) for name, value in scalars.items()]
  names = ("by the class logits", "by the box outputs")
  ranges += [
    _range(LOSS_GRADIENTS, name, gradient)
    for name, gradient in zip(names, found.output_gradients)
  ]
  by_calls = list(zip(calls, found.source_gradients))
  ranges += [
    call.gradient_range(gradient, calls)
    for call, gradient in reversed(by_calls)
    if gradient is not None
  ]
  by_weights = zip(network.trainable_weights, found.weight_gradients)
  ranges += [
    _range(WEIGHT_GRADIENTS, weight.name, gradient)
    for weight, gradient in by_weights
    if gradient is not None
  ]
  ranges += [found for found in weight_ranges if found.group == STATISTICS]
  return Examination(ranges)


def _is_trained_norm(layer):
  """Whether it has moving statistics that a training step does not compute with."""
  return isinstance(layer, tf.keras.layers.BatchNormalization) and layer.trainable


class _Call(NamedTuple):
  """One call of a layer."""

  layer: Any
  number: int
  inputs: list
  output: Any

  @property
  def name(self):
    kind = type(self.layer).__name__
    text = f"layer {self.layer.name} ({kind})"
    return text if self.number == 1 else f"{text}, call {self.number}"

  def range(self):
    found = _range(FORWARD, f"output of {self.name}", self.output)
    if found.is_finite:
      return found
    layer = self.layer
    weights = layer.trainable_weights if _is_trained_norm(layer) else layer.weights
    parts = [
      *(("input", value) for value in self.inputs),
      *((weight.name.rpartition("/")[2], weight) for weight in weights),
    ]
    of_what = ", ".join(
      f"{name} from {part.low:.4g} to {part.high:.4g}"
      + ("" if part.is_finite else ", not finite")
      for name, part in ((name, _range("", name, value)) for name, value in parts)
    )
    return found._replace(of_what=f"computed of {of_what}")

  def gradient_range(self, gradient, calls):
    found = _range(BACKWARD, f"by the output of {self.name}", gradient)
    if found.is_finite:
      return found
    takers = [
      call.name for call in calls if any(value is self.output for value in call.inputs)
    ]
    of_what = f"which goes into {', '.join(takers)}" if takers else ""
    return found._replace(of_what=of_what)


@contextlib.contextmanager
def _recorded(network, calls: list[_Call]) -> Iterator[None]:
  """In this context, what every layer of a network computes is appended to `calls`.

  Keras' own way, a second network with all tensors as outputs, does not reach into layers
  that consist of others.
  """
  layers = [
    layer
    for layer in network.submodules
    if isinstance(layer, tf.keras.layers.Layer)
    and not isinstance(layer, (tf.keras.Model, tf.keras.layers.InputLayer))
  ]
  own = {id(layer): vars(layer).get("call") for layer in layers}
  counts: dict[int, int] = {}

  def wrap(layer, call):
    def record(*args, **kwargs):
      output = call(*args, **kwargs)
      counts[id(layer)] = counts.get(id(layer), 0) + 1
      for tensor in _floats(output):
        calls.append(_Call(layer, counts[id(layer)], _floats((args, kwargs)), tensor))
      return output

    return record

  try:
    for layer in layers:
      layer.call = wrap(layer, layer.call)
    yield
  finally:
    for layer in layers:
      if own[id(layer)] is None:
        del layer.call
      else:
        layer.call = own[id(layer)]


def _floats(structure):
  """The floating tensors in a structure."""
  return [
    value
    for value in tf.nest.flatten(structure)
    if tf.is_tensor(value) and value.dtype.is_floating
  ]


def _range(group, name, tensor):
  tensor = tf.convert_to_tensor(tensor)
  values = tf.reshape(tf.cast(tensor, tf.float32), [-1])
  is_finite = tf.math.is_finite(values)
  finite = tf.boolean_mask(values, is_finite)
  has_any = int(tf.size(finite)) > 0
  is_nan = tf.math.is_nan(values)
  return Range(
    group,
    name,
    tuple(tensor.shape),
    float(tf.reduce_min(finite)) if has_any else 0.0,
    float(tf.reduce_max(finite)) if has_any else 0.0,
    int(tf.math.count_nonzero(is_nan)),
    int(tf.math.count_nonzero(~is_finite & ~is_nan)),
  )
