"""The training step: assign targets, forward, rank, backward, update.

In a replica, forward pass, ranking and backward pass are one function, which XLA may
compile. They can also run apart, with the gradients of the losses by the network's
outputs handed from ranking to backward pass: where what is ranked together is more than
a replica's memory takes at once (`accumulate_steps`), or than a replica holds (a loss
across replicas, which exchanges what it needs in between). What crosses replicas, and
the update, stay outside of compiled functions, conditionals and loops: compiled, they
leak or abort with several GPUs (keras issue 18145), and replicas must not disagree on
whether to exchange.
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import losses, matching
from ap_detect.models import drop_connect
from ap_detect.training.classification_losses import ClassificationLoss

# Between the seeds that two replicas draw their masks from.
MASK_SEEDS_APART = 1_000_003


class Scalars(NamedTuple):
  """What a replica tells of its step; all [] float32.

  Attributes:
    means: numbers whose mean over replicas is logged, by name.
    sums: numbers whose sum is.
  """

  means: dict[str, Any]
  sums: dict[str, Any]


class Derivatives(NamedTuple):
  """What `TrainingStep.differentiate` finds.

  Attributes:
    scalars: Scalars.
    output_gradients: of the total loss by class logits and box outputs.
    source_gradients: by the tensors that were asked for; None where one has none.
    weight_gradients: by the trainable weights, before decay and clipping.
  """

  scalars: Scalars
  output_gradients: tuple
  source_gradients: list
  weight_gradients: list


class _FedRate(tf.keras.optimizers.schedules.LearningRateSchedule):
  """The learning rate that the loop has set, whatever the optimiser's own step."""

  def __init__(self, variable):
    self._variable = variable

  def __call__(self, step):
    return tf.convert_to_tensor(self._variable)

  def get_config(self):
    return {}


class Feed:
  """What the loop tells every step: its learning rate and what random masks follow from.

  Make it under the strategy's scope. Neither is saved: both follow from the clock.

  Attributes:
    learning_rate: LearningRateSchedule for an optimiser.
  """

  def __init__(self):
    options = {
      "trainable": False,
      "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA,
    }
    self._rate = tf.Variable(0.0, name="learning_rate", **options)
    # Not int32, which TensorFlow keeps on the host, where a GPU's compiled step cannot
    # read it.
    self._seed = tf.Variable(tf.zeros([2], tf.int64), name="mask_seed", **options)
    self._batch = None
    self.learning_rate = _FedRate(self._rate)

  def set(self, rate, seed, step):
    """Sets the learning rate [] float32, and what masks are drawn from [] int32."""
    self._rate.assign(rate)
    self._seed.assign(tf.cast(tf.stack([seed, step]), tf.int64))

  @contextlib.contextmanager
  def batch(self, number, count):
    """While the network is traced for the number-th of the batches of a replica's step."""
    self._batch = (number, count)
    yield
    self._batch = None

  def draw_seed(self):
    """[2] int32 for the random masks of this replica, step and batch."""
    context = tf.distribute.get_replica_context()
    place = tf.cast(context.replica_id_in_sync_group, tf.int32)
    if self._batch is not None:
      number, count = self._batch
      place = place * count + number
    seed, step = tf.unstack(tf.cast(self._seed, tf.int32))
    return tf.stack([seed + MASK_SEEDS_APART * place, step])


class TrainingStep:
  """Updates a network by batches of images.

  Losses are means over replicas: each replica ranks its own images, as in the authors'
  release, and its gradient counts 1 / replicas. A loss across replicas is made such that
  this mean is its gradient.

  Args:
    network: tf.keras.Model of images -> Outputs.
    optimizer: Keras optimizer with `feed.learning_rate` as its rate.
    feed: Feed.
    strategy: the tf.distribute strategy that all of them were made under.
    assign_targets: function of a batch to matching.Targets.
    anchors: [A, 4] float32, yxyx, pixels; those of the network's outputs.
    classification: ClassificationLoss.
    accumulate_steps: batches that a replica's images are divided into, whose logits are
      ranked together. Each is run forward twice, the second time to be differentiated.
      They have random masks of their own, and each changes the statistics of batch
      normalisation once.
    box_loss: name of a loss in losses.OFFSET_LOSSES or losses.BOX_LOSSES.
    box_loss_weight: weight of the box loss beside the classification loss.
    balance_box_loss: whether the box loss is scaled to the classification loss's value
      before that, by a factor without gradient, the self-balancing of Rank & Sort loss
      (Oksuz et al., ICCV 2021).
    box_loss_normalizer: "replica": the box loss is a mean over the positive anchors of
      the replica's own batch, as in the authors' release. "global": over those of all
      replicas, so that the step is that of one replica with the whole batch.
    weight_decay: L2 on the trainable weights; 0 where the optimiser decays by itself.
    decayed: function of a weight to whether weight_decay is on it.
    clip_norm: bound of the gradient's global norm; 0 for none.
    averages: averaging.AveragedWeights that take every step in; None for none.
    compile_replica: whether XLA compiles what a replica does by itself.
    in_pieces: whether forward, ranking and backward pass are functions apart.
    seed: of random masks in the network.
  """

  def __init__(
    self,
    network,
    optimizer,
    feed,
    strategy,
    *,
    assign_targets: Callable,
    anchors,
    classification: ClassificationLoss,
    accumulate_steps=1,
    box_loss="smooth_l1",
    box_loss_weight=1.0,
    balance_box_loss=False,
    box_loss_normalizer="replica",
    weight_decay=0.0,
    decayed: Callable = lambda weight: True,
    clip_norm=0.0,
    averages=None,
    compile_replica=False,
    in_pieces=False,
    seed=0,
  ):
    self._network = network
    self._optimizer = optimizer
    self._feed = feed
    self._strategy = strategy
    self._anchors = anchors
    self._classification = classification
    self._accumulate_steps = accumulate_steps
    self._box_loss = box_loss
    self._box_loss_weight = box_loss_weight
    self._balance_box_loss = balance_box_loss
    self._box_loss_normalizer = box_loss_normalizer
    self._weight_decay = weight_decay
    self._decayed = decayed
    self._averages = averages
    self._clip_norm = clip_norm
    self._seed = seed
    drop_connect.draw_from(network, feed.draw_seed)
    compiled = functools.partial(tf.function, jit_compile=True, autograph=False)
    compile_all = compiled if compile_replica else lambda function: function
    is_across = classification.is_across_replicas
    is_whole = not (in_pieces or is_across or accumulate_steps > 1)
    compile_piece = (lambda function: function) if is_whole else compile_all
    self._assign_targets = compile_all(assign_targets)
    self._forward = compile_piece(self._run_forward)
    self._backward = compile_piece(self._run_backward)
    # What is exchanged in a ranking across replicas stays outside; the rest of it
    # compiles itself.
    self._rank = self._run_ranking if is_across else compile_piece(self._run_ranking)
    if accumulate_steps > 1:
      self._differentiate = self._accumulate
    elif is_whole:
      self._differentiate = compile_all(self._forward_rank_backward)
    else:
      self._differentiate = self._forward_rank_backward
    self._execute = tf.function(self._run_steps, autograph=False)

  def __call__(self, batches, rates, first_step):
    """One update per batch.

    Args:
      batches: list of batches as the strategy's distributed dataset gives them.
      rates: list of as many learning rates.
      first_step: number of the first of these steps.

    Returns:
      Dict of [n] float32 tensors, an entry per step: the losses, "gradient_norm" (before
      clipping), "num_positive_anchors", "objects_without_anchor", and "is_finite", which
      is 0 where loss or gradient are not.
    """
    return self._execute(
      tuple(batches),
      tf.constant(rates, tf.float32),
      tf.constant(first_step % 2**31, tf.int32),
    )

  def differentiate(self, batch, step_number, get_sources, *, replica=0):
    """Losses and gradients of what one replica gets of a batch, for `diagnosis`.

    Call it eagerly, outside of the strategy, with nothing compiled.

    Args:
      batch: dict of tensors.
      step_number: of the step.
      get_sources: function of no arguments, called after the forward pass, to tensors of
        it whose gradients are wanted too.
      replica: number of the replica.

    Returns:
      Derivatives.
    """
    self._feed.set(0.0, self._seed + MASK_SEEDS_APART * replica, step_number)
    targets = self._assign_targets(batch)
    weights = self._network.trainable_variables
    divisor = self._box_divisor(targets.labels, tf.distribute.get_replica_context())
    with tf.GradientTape() as tape:
      outputs = tuple(self._forward(batch["image"]))
    scalars, output_gradients = self._rank(outputs, targets, divisor)
    sources = get_sources()
    gradients = tape.gradient(
      outputs, [*sources, *weights], output_gradients=output_gradients
    )
    return Derivatives(
      scalars,
      tuple(output_gradients),
      *(gradients[: len(sources)], gradients[len(sources) :]),
    )

  def _run_steps(self, batches, rates, first_step):
    logs = []
    # Unrolled, for replicas exchange gradients in each.
    for index, batch in enumerate(batches):
      self._feed.set(rates[index], self._seed, first_step + index)
      found = self._strategy.run(self._run_replica, args=(batch,))
      if self._averages is not None:
        self._averages.update(first_step + index)
      logs.append(
        tf.nest.map_structure(
          lambda part: self._strategy.experimental_local_results(part)[0], found
        )
      )
    return {name: tf.stack([log[name] for log in logs]) for name in logs[0]}

  def _run_replica(self, batch):
    replica = tf.distribute.get_replica_context()
    targets = self._assign_targets(batch)
    scalars, gradients = self._differentiate(
      batch["image"], targets, self._box_divisor(targets.labels, replica)
    )
    gradients = replica.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
    weights = self._network.trainable_variables
    if self._weight_decay:
      gradients = [
        gradient + self._weight_decay * weight if self._decayed(weight) else gradient
        for gradient, weight in zip(gradients, weights)
      ]
    norm = tf.linalg.global_norm(gradients)
    if self._clip_norm:
      gradients, _ = tf.clip_by_global_norm(gradients, self._clip_norm, norm)
    self._optimizer.apply_gradients(
      zip(gradients, weights), experimental_aggregate_gradients=False
    )
    means = replica.all_reduce(tf.distribute.ReduceOp.MEAN, scalars.means)
    sums = replica.all_reduce(tf.distribute.ReduceOp.SUM, scalars.sums)
    is_finite = tf.math.is_finite(means["total_loss"]) & tf.math.is_finite(norm)
    return {
      **means,
      **sums,
      "gradient_norm": norm,
      "is_finite": tf.cast(is_finite, tf.float32),
    }

  def _box_divisor(self, labels, replica):
    """[] float32: by how many positive anchors a replica divides its box loss."""
    positives = tf.reduce_sum(tf.cast(labels > matching.BACKGROUND, tf.float32))
    if self._box_loss_normalizer == "replica":
      return tf.maximum(positives, 1.0)
    # The mean of the replicas' losses shall be divided by the positives of all.
    positives = replica.all_reduce(tf.distribute.ReduceOp.SUM, positives)
    return tf.maximum(positives, 1.0) / replica.num_replicas_in_sync

  def _forward_rank_backward(self, images, targets, box_divisor):
    """(Scalars, gradients of the trainable variables) of one replica."""
    weights = self._network.trainable_variables
    with tf.GradientTape() as tape:
      outputs = tuple(self._forward(images))
    scalars, output_gradients = self._rank(outputs, targets, box_divisor)
    return scalars, tape.gradient(outputs, weights, output_gradients=output_gradients)

  def _run_forward(self, images, number=None):
    if number is None:
      return self._network(images, training=True)
    with self._feed.batch(number, self._accumulate_steps):
      return self._network(images, training=True)

  def _accumulate(self, images, targets, box_divisor):
    """As `_forward_rank_backward`, with the memory of one batch, and the logits of all."""
    count = self._accumulate_steps
    numbers = tf.range(count)
    batches = tf.reshape(images, [count, -1, *images.shape[1:]])
    statistics = self._batch_statistics()
    before = [statistic.read_value() for statistic in statistics]
    outputs = tf.map_fn(
      lambda batch: tuple(self._forward(*batch)),
      (batches, numbers),
      fn_output_signature=(tf.float32, tf.float32),
      parallel_iterations=1,
    )
    for statistic, value in zip(statistics, before):
      statistic.assign(value)
    whole = tuple(tf.reshape(output, [-1, *output.shape[2:]]) for output in outputs)
    scalars, output_gradients = self._rank(whole, targets, box_divisor)
    output_gradients = tuple(
      tf.reshape(gradient, tf.shape(output))
      for gradient, output in zip(output_gradients, outputs)
    )

    def add(number, *sums):
      found = self._backward(
        batches[number], number, tuple(part[number] for part in output_gradients)
      )
      return number + 1, *(total + gradient for total, gradient in zip(sums, found))

    weights = self._network.trainable_variables
    _, *gradients = tf.while_loop(
      lambda number, *_: number < count,
      add,
      [0, *(tf.zeros_like(weight) for weight in weights)],
      parallel_iterations=1,
    )
    return scalars, gradients

  def _batch_statistics(self):
    """The variables that a forward pass changes."""
    return [
      statistic
      for layer in self._network.submodules
      if isinstance(layer, tf.keras.layers.BatchNormalization) and layer.trainable
      for statistic in layer.non_trainable_variables
    ]

  def _run_backward(self, images, number, output_gradients):
    """Gradients of the trainable variables, of one batch's part of the losses."""
    with tf.GradientTape() as tape:
      outputs = tuple(self._run_forward(images, number))
    weights = self._network.trainable_variables
    return tape.gradient(
      outputs,
      weights,
      output_gradients=output_gradients,
      unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )

  def _run_ranking(self, outputs, targets, box_divisor):
    """(Scalars, gradients of the total loss by the two outputs)."""
    is_positive = targets.labels > matching.BACKGROUND
    with tf.GradientTape() as tape:
      tape.watch(outputs)
      classification = self._rank_classes(outputs, targets, is_positive)
      box = self._compare_boxes(outputs, targets, is_positive, box_divisor)
      total = classification + self._weigh_boxes(classification, box) * box
    means = {
      "total_loss": total,
      self._classification.name: classification,
      "box_loss": box,
    }
    sums = {
      "num_positive_anchors": tf.reduce_sum(tf.cast(is_positive, tf.float32)),
      "objects_without_anchor": tf.cast(targets.num_unmatched_objects, tf.float32),
    }
    return Scalars(means, sums), tape.gradient(total, outputs)

  def _weigh_boxes(self, classification, box):
    """The weight of the box loss in the total one."""
    if not self._balance_box_loss:
      return self._box_loss_weight
    return self._box_loss_weight * tf.stop_gradient(
      tf.math.divide_no_nan(classification, box)
    )

  def _rank_classes(self, outputs, targets, is_positive):
    class_logits, box_outputs = outputs
    loss = functools.partial(
      self._classification.function, class_logits, targets.labels
    )
    if not self._classification.takes_qualities:
      return loss()
    boxes = self._decode(tf.stop_gradient(box_outputs), is_positive)
    objects = self._decode(targets.box_targets, is_positive)
    iou = box_ops.iou(boxes[..., tf.newaxis, :], objects[..., tf.newaxis, :])
    return loss(qualities=tf.where(is_positive, iou[..., 0, 0], 0.0))

  def _compare_boxes(self, outputs, targets, is_positive, normalizer):
    _, box_outputs = outputs
    if self._box_loss in losses.OFFSET_LOSSES:
      loss, pair = losses.OFFSET_LOSSES, (box_outputs, targets.box_targets)
    else:
      loss = losses.BOX_LOSSES
      pair = tuple(
        self._decode(offsets, is_positive)
        for offsets in (box_outputs, targets.box_targets)
      )
    return loss[self._box_loss](*pair, is_positive, normalizer=normalizer)

  def _decode(self, offsets, is_positive):
    """Boxes [B, A, 4] of offsets; the anchor itself where it is not positive."""
    # Before decoding, for what is not finite would be so in the gradient: 0 times NaN.
    offsets = tf.where(is_positive[..., tf.newaxis], offsets, 0.0)
    return box_ops.decode(offsets, self._anchors)
