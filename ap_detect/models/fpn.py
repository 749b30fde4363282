"""Feature pyramid network, P3-P7 (Lin et al. 2017; P6 and P7 as in RetinaNet)."""

from __future__ import annotations

import tensorflow as tf


def build_fpn(features, *, channels=256):
  """Adds a feature pyramid to C3-C5.

  P6 is a stride-2 3x3 convolution on C5, P7 one on ReLU(P6); no normalisation
  (authors' release).

  Args:
    features: Keras tensors [C3, C4, C5], [B, h, w, c] each, h and w halving.
    channels: of every level.

  Returns:
    Keras tensors [P3, P4, P5, P6, P7], [B, h, w, channels] each.
  """
  laterals = [
    tf.keras.layers.Conv2D(channels, 1, name=f"fpn_lateral{level}")(feature)
    for level, feature in zip((3, 4, 5), features)
  ]
  merged = [laterals[-1]]
  for lateral in reversed(laterals[:-1]):
    merged.insert(0, lateral + Upsample2x()(merged[0]))
  pyramid = [
    tf.keras.layers.Conv2D(channels, 3, padding="same", name=f"fpn_output{level}")(top)
    for level, top in zip((3, 4, 5), merged)
  ]
  p6 = _stride2(channels, "fpn_output6")(features[-1])
  p7 = _stride2(channels, "fpn_output7")(tf.nn.relu(p6))
  return [*pyramid, p6, p7]


class Upsample2x(tf.keras.layers.Layer):
  """Nearest-neighbour upsampling by 2, by broadcasting.

  UpSampling2D has no gradient under XLA; this has, and gives the same bits. Of operations
  that other runtimes have too: TensorFlow Lite slices no six dimensions, which indexing
  with tf.newaxis would need, and knows no EnsureShape.
  """

  def call(self, features):
    batch, height, width = tf.unstack(tf.shape(features)[:3])
    channels = features.shape[-1]
    cells = tf.reshape(features, [batch, height, 1, width, 1, channels])
    repeated = tf.broadcast_to(cells, [batch, height, 2, width, 2, channels])
    upsampled = tf.reshape(repeated, [batch, 2 * height, 2 * width, channels])
    sides = [side and 2 * side for side in features.shape[1:3]]
    upsampled.set_shape([features.shape[0], *sides, channels])
    return upsampled


def _stride2(channels, name):
  return tf.keras.layers.Conv2D(channels, 3, strides=2, padding="same", name=name)
