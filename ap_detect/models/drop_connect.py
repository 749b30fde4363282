"""Drop-connect (stochastic depth; Huang et al., ECCV 2016) whose masks can be drawn anew."""

from __future__ import annotations

import zlib
from typing import Callable

import tensorflow as tf

# One algorithm everywhere, so that compiled and uncompiled steps draw the same masks.
_PHILOX = "philox"


class DropConnect(tf.keras.layers.Layer):
  """Leaves out a residual branch, for each image of a batch by itself, in training.

  A frozen one (`trainable = False`) leaves out nothing, as a frozen batch normalisation
  keeps its statistics: frozen stages answer the same in training and in evaluation.

  Args:
    rate: probability of leaving out, in [0, 1).
  """

  def __init__(self, rate, **kwargs):
    super().__init__(**kwargs)
    self._rate = rate
    # A function, for Keras would save a variable with the network.
    self._draw_seed: Callable | None = None

  def call(self, features, training=None):
    if not training or not self.trainable:
      return features
    shape = tf.concat([tf.shape(features)[:1], [1] * (features.shape.rank - 1)], 0)
    # The bits and not a float: XLA makes other floats of the same bits.
    kept = self._random_bits(shape) >= int(self._rate * 2**32)
    return tf.where(kept, features / (1.0 - self._rate), tf.zeros_like(features))

  def _random_bits(self, shape):
    """Integers of 0 to 2^32 - 1; uint32."""
    if self._draw_seed is None:
      bits = tf.random.uniform(shape, tf.int32.min, tf.int32.max, tf.int32)
      return tf.bitcast(bits, tf.uint32)
    seed = tf.random.experimental.stateless_fold_in(
      self._draw_seed(), zlib.crc32(self.name.encode()) % 2**31, alg=_PHILOX
    )
    return tf.random.stateless_uniform(
      shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg=_PHILOX
    )

  def get_config(self):
    return {**super().get_config(), "rate": self._rate}


def draw_from(network, draw_seed) -> None:
  """Makes all masks of a network follow from a seed instead of TensorFlow's global one.

  Args:
    network: tf.keras.Model, not traced yet.
    draw_seed: function of no arguments that gives [2] int32 inside the training step;
      equal seeds give equal masks, layers of different names different ones. None for
      TensorFlow's global seed again: tf.saved_model.save takes no network that reads a
      variable it does not own.
  """
  for layer in network.submodules:
    if isinstance(layer, DropConnect):
      layer._draw_seed = draw_seed


def replace_dropout(network):
  """The same network, with new weights, and DropConnect for tf.keras.layers.Dropout.

  Args:
    network: functional tf.keras.Model whose Dropout layers drop whole images.

  Returns:
    Functional tf.keras.Model with layers of the same names in the same order.
  """

  def clone(layer):
    if isinstance(layer, tf.keras.layers.Dropout):
      return DropConnect(layer.rate, name=layer.name)
    return layer.__class__.from_config(layer.get_config())

  return tf.keras.models.clone_model(network, clone_function=clone)
