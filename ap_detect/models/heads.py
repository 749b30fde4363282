"""Prediction heads, shared by all pyramid levels."""

from __future__ import annotations

import tensorflow as tf

INITIALIZERS = ("normal", "he")


def build_head(
  features,
  *,
  num_outputs,
  num_convolutions=4,
  channels=256,
  initializer="normal",
  output_stddev=0.01,
  output_bias=0.0,
  name,
):
  """Runs one head over every level.

  Args:
    features: Keras tensors, [B, h, w, c] each, all of the same c.
    num_outputs: channels of the last convolution.
    num_convolutions: hidden 3x3 convolutions with ReLU.
    channels: of the hidden convolutions.
    initializer: of the hidden convolutions; "normal" is N(0, 0.01), the paper's, "he"
      keeps the variance of the activations.
    output_stddev: of the last convolution's normal initialiser.
    output_bias: initial bias of the last convolution.
    name: prefix of the layers' names.

  Returns:
    Keras tensors [B, h, w, num_outputs], a level each.

  Raises:
    ValueError: unknown initializer.
  """
  layers = [
    tf.keras.layers.Conv2D(
      channels,
      3,
      padding="same",
      activation="relu",
      kernel_initializer=_hidden_initializer(initializer),
      name=f"{name}_conv{position}",
    )
    for position in range(num_convolutions)
  ]
  layers.append(
    tf.keras.layers.Conv2D(
      num_outputs,
      3,
      padding="same",
      kernel_initializer=tf.keras.initializers.RandomNormal(stddev=output_stddev),
      bias_initializer=tf.keras.initializers.Constant(output_bias),
      dtype=tf.float32,  # the scores that are ranked, whatever the network computes in
      name=f"{name}_output",
    )
  )
  outputs = []
  for feature in features:
    for layer in layers:
      feature = layer(feature)
    outputs.append(feature)
  return outputs


def _hidden_initializer(initializer):
  if initializer == "normal":
    return tf.keras.initializers.RandomNormal(stddev=0.01)
  if initializer == "he":
    return tf.keras.initializers.HeNormal()
  raise ValueError(
    f"model.head_initializer must be one of {INITIALIZERS}, got {initializer!r}"
  )
