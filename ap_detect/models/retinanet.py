"""RetinaNet (Lin et al. 2017): backbone, feature pyramid, two shared heads."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import tensorflow as tf

from ap_detect.models import fpn, heads

LEVELS = (3, 4, 5, 6, 7)


class Outputs(NamedTuple):
  """Raw outputs of the network.

  Attributes:
    class_logits: [B, A, K] float32.
    box_outputs: [B, A, 4] float32, offsets from the anchors as `boxes.encode` has them.
  """

  class_logits: tf.Tensor
  box_outputs: tf.Tensor


def build_retinanet(
  backbone,
  *,
  num_classes,
  anchors_per_cell=6,
  fpn_channels=256,
  head_convolutions=4,
  head_initializer="normal",
  score_prior=0.01,
):
  """Builds the network on a backbone.

  Anchors are ordered level by level, row by row, cell by cell, as
  `anchors.generate_anchors` gives them.

  Args:
    backbone: Keras model, [B, H, W, 3] -> [C3, C4, C5].
    num_classes: K.
    anchors_per_cell: number of anchors of a cell.
    fpn_channels: channels of the pyramid and of the heads.
    head_convolutions: hidden convolutions of each head.
    head_initializer: see `heads.build_head`.
    score_prior: probability that a fresh network gives every class (RetinaNet, section
      4.1).

  Returns:
    tf.keras.Model: [B, H, W, 3] float32 RGB 0..255 -> Outputs.
  """
  pyramid = fpn.build_fpn(backbone.outputs, channels=fpn_channels)

  def head(outputs_per_anchor, **options):
    levels = heads.build_head(
      pyramid,
      num_outputs=anchors_per_cell * outputs_per_anchor,
      num_convolutions=head_convolutions,
      channels=fpn_channels,
      initializer=head_initializer,
      **options,
    )
    flatten = functools.partial(tf.keras.layers.Reshape, (-1, outputs_per_anchor))
    flat = [flatten(dtype=tf.float32)(level) for level in levels]
    join = tf.keras.layers.Concatenate(
      axis=1, dtype=tf.float32, name=f"{options['name']}_outputs"
    )
    return join(flat)

  prior_logit = math.log(score_prior / (1 - score_prior))
  class_logits = head(num_classes, output_bias=prior_logit, name="class_head")
  box_outputs = head(4, output_stddev=0.001, name="box_head")
  return tf.keras.Model(
    backbone.inputs, Outputs(class_logits, box_outputs), name="retinanet"
  )
