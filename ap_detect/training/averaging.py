"""Averages of a network's weights over the steps of its training."""

from __future__ import annotations

import contextlib

import tensorflow as tf


class AveragedWeights:
  """An exponential moving average of the trained weights (Polyak and Juditsky 1992).

  After step t, counted from 1, average += (1 - d) (weight - average), where
  d = min(decay, (1 + t) / (10 + t)), so that the first weights are soon forgotten (as in
  TensorFlow's ExponentialMovingAverage). Weights that are not trained, such as batch
  norm's statistics, are averages already, and have no other.

  Make it under the strategy's scope.

  Attributes:
    variables: the averages, in the order of network.trainable_weights.

  Args:
    network: tf.keras.Model.
    decay: d at last; in (0, 1).
  """

  def __init__(self, network, decay: float):
    self._weights = network.trainable_weights
    self._strategy = network.distribute_strategy
    self._decay = decay
    self.variables = [
      tf.Variable(
        weight.read_value(),
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        name="average",
      )
      for weight in self._weights
    ]

  def update(self, step):
    """Takes the weights after a step in; outside of replicas.

    Args:
      step: [] integer, steps done before it.
    """
    done = tf.cast(step, tf.float32) + 1.0
    rate = 1.0 - tf.minimum(self._decay, (1.0 + done) / (10.0 + done))

    def move(average, weight):
      average.assign_add(rate * (weight - average))

    for average, weight in zip(self.variables, self._weights):
      self._strategy.extended.update(average, move, args=(weight,))

  def reset(self) -> None:
    """Begins anew with the present weights."""
    self._assign(self.variables, self._weights)

  @contextlib.contextmanager
  def in_use(self):
    """The network has its averaged weights in this context."""
    plain = [weight.numpy() for weight in self._weights]
    self._assign(self._weights, self.variables)
    try:
      yield
    finally:
      self._assign(self._weights, plain)

  def _assign(self, variables, values):
    with self._strategy.scope():
      for variable, value in zip(variables, values):
        variable.assign(value)
