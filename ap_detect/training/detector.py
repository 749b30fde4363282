"""The training step: forward pass, matching, losses, gradients, update."""

from __future__ import annotations

import functools

import tensorflow as tf

from ap_detect import losses, matching
from ap_detect.training import optimizers


def make_classification_loss(train):
  """Function (logits [B, A, K], labels [B, A]) -> [] float32, of a TrainConfig."""
  if train.classification_loss == "focal_loss":
    return losses.focal_loss
  options = {
    "delta": train.delta,
    "images_per_ranking": train.images_per_ranking or None,
  }
  if train.classification_loss == "auc_loss":
    return functools.partial(losses.auc_loss, **options)
  return functools.partial(losses.ap_loss, interpolated=train.interpolated, **options)


class Detector(tf.keras.Model):
  """A RetinaNet that Keras' fit can train.

  Losses are means over replicas: each replica ranks its own images, and its gradient
  counts 1 / replicas.

  Args:
    network: retinanet.build_retinanet's model.
    anchors: [A, 4] float32, yxyx, pixels.
    model: ModelConfig, for the matching.
    train: TrainConfig.
    compile_step: whether XLA compiles forward and backward pass of a replica. The
      exchange of gradients and the update stay outside, where several GPUs need them.
  """

  def __init__(self, network, anchors, *, model, train, compile_step=False):
    super().__init__(name="detector")
    # train_step has reduced its logs already; Keras would add them up over replicas.
    self.distribute_reduction_method = "first"
    self.network = network
    self._anchors = tf.constant(anchors)
    self._model = model
    self._train = train
    self._classification_loss = make_classification_loss(train)
    self._loss_name = train.classification_loss
    self._gradients = tf.function(
      self._forward_and_backward, jit_compile=True if compile_step else None
    )

  def call(self, images, training=False):
    return self.network(images, training=training)

  def train_step(self, batch):
    """One update; returns its losses and counts for the logs."""
    scalars, gradients = self._gradients(batch)
    replica = tf.distribute.get_replica_context()
    gradients = replica.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
    weights = self.network.trainable_variables
    gradients = self._regularize(gradients, weights)
    norm = tf.linalg.global_norm(gradients)
    if self._train.clip_norm:
      gradients, _ = tf.clip_by_global_norm(gradients, self._train.clip_norm, norm)
    self.optimizer.apply_gradients(
      zip(gradients, weights), experimental_aggregate_gradients=False
    )
    means = {name: scalars.pop(name) for name in list(scalars) if "loss" in name}
    return {
      **replica.all_reduce(tf.distribute.ReduceOp.MEAN, means),
      **replica.all_reduce(tf.distribute.ReduceOp.SUM, scalars),
      "gradient_norm": norm,
    }

  def _forward_and_backward(self, batch):
    targets = matching.match_anchors(
      self._anchors,
      batch["boxes"],
      batch["classes"],
      batch["ignored"],
      positive_iou=self._model.positive_iou,
      negative_iou=self._model.negative_iou,
      force_match=self._model.force_match,
    )
    is_positive = targets.labels > matching.BACKGROUND
    with tf.GradientTape() as tape:
      outputs = self.network(batch["image"], training=True)
      classification = self._classification_loss(outputs.class_logits, targets.labels)
      box = losses.smooth_l1(outputs.box_outputs, targets.box_targets, is_positive)
      total = classification + self._train.box_loss_weight * box
    gradients = tape.gradient(total, self.network.trainable_variables)
    scalars = {
      "total_loss": total,
      self._loss_name: classification,
      "box_loss": box,
      "num_positive_anchors": tf.reduce_sum(tf.cast(is_positive, tf.float32)),
      "gt_without_anchor": tf.cast(targets.num_unmatched_objects, tf.float32),
    }
    return scalars, gradients

  def _regularize(self, gradients, weights):
    """Adds L2 on every trainable weight, biases too (authors' release)."""
    decay = self._train.weight_decay
    if not decay or self._train.optimizer in optimizers.DECOUPLED_WEIGHT_DECAY:
      return gradients
    return [gradient + decay * weight for gradient, weight in zip(gradients, weights)]
