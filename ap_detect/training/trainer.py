"""Trains a run from its config, or continues it where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import tensorflow as tf
from absl import logging

from ap_detect import logs, matching
from ap_detect.data import pipeline
from ap_detect.runs import data as data_lib
from ap_detect.runs import folder, replicas
from ap_detect.runs import lock as lock_lib
from ap_detect.runs import memory as memory_lib
from ap_detect.runs import model as model_lib
from ap_detect.runs import workers as workers_lib
from ap_detect.training import (
  averaging,
  classification_losses,
  evaluation,
  failed_batch,
  initial_weights,
  loop,
  measurements,
  monitoring,
  optimizers,
  profiling,
  restarts,
  schedules,
  signals,
  state,
  validation,
)
from ap_detect.training import step as step_lib

# Of the random streams that follow from train.seed, the one of masks in the network.
# pipeline.py has those of order and transforms.
_MASK_STREAM = 2


def train(
  config,
  model_dir,
  *,
  strategy=None,
  profile_steps=None,
  datasets=None,
  callbacks=(),
):
  """Trains to the last epoch; started again, continues where the last start was stopped.

  Of several workers, which all call this, the first one writes the run's folder, and the
  others read checkpoints from it. Callbacks are called on each of them.

  Args:
    config: Config. That of a run that is continued may differ from its own in what
      config.changes allows; the run goes on with the new values, and records the change.
    model_dir: folder of the run; made if missing.
    strategy: tf.distribute strategy; None for all GPUs, or the CPU, of all workers that
      TF_CONFIG lists.
    profile_steps: profiling.Steps to profile; None for none.
    datasets: DetectionDatasets to train and to validate on; None for the config's.
    callbacks: Keras callbacks beside the config's.

  Raises:
    ValueError: faults in config or data, or the folder holds another run, is in use, or
      holds results without a checkpoint, or workers differ in what they are given or
      read; nothing was changed.
    state.NonFiniteError: a loss was not finite; checkpoints are from before.
    KeyboardInterrupt, SystemExit: Ctrl-C or SIGTERM came; the state is saved.
  """
  cluster = workers_lib.cluster_of(strategy)
  kept = cluster.on_chief(lock_lib.lock(model_dir), logs.kept(model_dir))
  with kept, signals.StopSignals() as stops:
    classification_losses.find(config.train)
    config = classification_losses.with_defaults(config)
    # Before TensorFlow does anything.
    strategy = strategy or replicas.make_strategy(cluster=cluster)
    workers = workers_lib.Workers(strategy)
    workers.require_same("config", dataclasses.asdict(config))
    workers.require_same("--model_dir", model_dir)
    workers.require_shared(model_dir)
    is_new = workers.ask_chief(lambda: folder.is_unused(model_dir))
    record = None
    if not is_new:
      record = workers.ask_chief(lambda: restarts.read_newest_record(model_dir))
    if record:
      restarts.check_changes(model_dir, record, config)
    if profile_steps:
      done = record["clock"]["step"] if record else 0
      profiling.check_ahead(profile_steps, done)
    memory = memory_lib.Memory(model_dir)
    train_set, val_set = datasets or _open_data(config, memory)
    classes = folder.Classes(train_set.class_names, tuple(train_set.category_ids))
    workers.require_same_images(config.data.train_split, train_set)
    workers.require_same_images(config.data.val_split, val_set)
    if record:
      restarts.check_classes(model_dir, record, classes)
    classification_losses.check(
      config.train, len(classes.names), strategy.num_replicas_in_sync
    )
    if config.train.deterministic:
      tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(config.train.seed)
    if config.train.jit_compile != "never":
      logs.start_xla()
    with strategy.scope():
      network = _build_network(config, len(classes.names), is_new)
      feed = step_lib.Feed()
      optimizer = make_optimizer(config.train, feed, network)
      averages = None
      if config.train.ema_decay:
        averages = averaging.AveragedWeights(network, config.train.ema_decay)
      step = make_step(config, network, optimizer, feed, strategy, averages=averages)
    callback_list = monitoring.make_callbacks(
      config.train.callbacks, callbacks, network, epochs=config.train.epochs
    )
    run_state = state.TrainingState(
      model_dir,
      network,
      optimizer,
      _new_record(config, classes, strategy, len(train_set.records)),
      keep_checkpoints=config.train.keep_checkpoints,
      averages=averages,
      workers=workers,
    )
    if is_new:
      _start(run_state, network, config.model.initial_checkpoint, averages)
    else:
      restored_from = run_state.restore_latest()
    run_state.check_workers()
    if workers.is_chief:
      logs.begin(model_dir)
      memory.save()
    first_step = run_state.record.clock.step
    with (
      _monitor(model_dir, first_step, workers) as (writer, metrics_file),
      profiling.profiled(
        step, profile_steps if workers.is_chief else None, model_dir
      ) as step,
    ):
      monitoring.write_hyper_parameters(writer, config, model_dir)
      validator = validation.Validator(
        model_dir,
        run_state,
        evaluation.Evaluator(network, config, strategy, workers),
        val_set,
        writer,
        config,
        count_scores=_make_score_counter(config, network, train_set, strategy),
        workers=workers,
      )
      if not is_new:
        is_changed = restarts.bring_best_up_to_date(run_state, validator, restored_from)
        is_changed |= restarts.enter_changes(
          run_state.record,
          config,
          num_replicas=strategy.num_replicas_in_sync,
          split_size=len(train_set.records),
        )
        if is_changed:
          run_state.save(is_changed=True)
        _tell_start(run_state.record, config.train)
      _tell_rate(config.train, strategy)
      run_state.write_views()
      _make_loop(
        config,
        model_dir,
        network,
        step,
        run_state,
        train_set,
        strategy,
        workers,
        validate=validator.validate,
        signals=stops,
        metrics_file=metrics_file,
        writer=writer,
        callbacks=callback_list,
        measure=_make_measure(network),
      ).run()
      if run_state.record.clock.step > first_step:
        _tell_end(run_state.record, config.train)


def _open_data(config, memory):
  """The DetectionDatasets to train and to validate on."""
  train_set = data_lib.open_training_split(config, memory=memory)
  names = train_set.class_names
  val_set = data_lib.open_split(config, config.data.val_split, names, memory=memory)
  data_lib.check_objects(val_set, config.data.val_split)
  data_lib.warn_of_shared_images(train_set, val_set)
  return train_set, val_set


def _build_network(config, num_classes, is_new):
  model = config.model
  if is_new and not (model.backbone_weights or model.initial_checkpoint):
    logging.info(
      "no model.backbone_weights: the backbone is trained from scratch, which takes "
      "several times the images or epochs that a pretrained one takes"
    )
  # A run that goes on, or starts from another one, does not need the backbone's file.
  pretrained = is_new and not model.initial_checkpoint
  return model_lib.build_network(
    config, num_classes, pretrained=pretrained, precision=config.train.precision
  )


def make_optimizer(train, feed, network):
  """The optimiser of a TrainConfig for a network, with its variables.

  Args:
    train: TrainConfig.
    feed: step.Feed, which gives the learning rate.
    network: tf.keras.Model.

  Returns:
    A Keras optimizer.
  """
  optimizer = optimizers.make_optimizer(
    train.optimizer,
    feed.learning_rate,
    momentum=train.momentum,
    weight_decay=train.weight_decay,
    decay_all_weights=train.decay_all_weights,
  )
  optimizers.create_state(optimizer, network.trainable_variables)
  return optimizer


def make_step(
  config, network, optimizer, feed, strategy, *, averages=None, in_pieces=False
):
  """The training step of a config; call it under the strategy's scope.

  Args:
    config: Config.
    network: see runs.model.build_network.
    optimizer: Keras optimizer whose rate is feed.learning_rate.
    feed: step.Feed.
    strategy: tf.distribute strategy.
    averages: see step.TrainingStep.
    in_pieces: see step.TrainingStep.

  Returns:
    step.TrainingStep.
  """
  train = config.train
  is_decayed_by_optimizer = train.optimizer in optimizers.DECOUPLED_WEIGHT_DECAY
  compile_replica = train.jit_compile == "always" or (
    train.jit_compile == "auto" and replicas.compiles_by_default(strategy)
  )
  return step_lib.TrainingStep(
    network,
    optimizer,
    feed,
    strategy,
    assign_targets=make_assign_targets(config),
    anchors=model_lib.make_anchors(config),
    classification=classification_losses.find(train),
    accumulate_steps=train.accumulate_steps,
    box_loss=train.box_loss,
    box_loss_weight=train.box_loss_weight,
    balance_box_loss=train.balance_box_loss,
    box_loss_normalizer=train.box_loss_normalizer,
    weight_decay=0.0 if is_decayed_by_optimizer else train.weight_decay,
    decayed=(
      optimizers.is_decayed if not train.decay_all_weights else lambda weight: True
    ),
    clip_norm=train.clip_norm,
    averages=averages,
    compile_replica=compile_replica,
    in_pieces=in_pieces,
    seed=train.seed + _MASK_STREAM,
  )


def make_assign_targets(config):
  """Function of a batch to matching.Targets, as a config has it."""
  model, anchors = config.model, model_lib.make_anchors(config)

  def assign_targets(batch):
    return matching.match_anchors(
      anchors,
      *(batch["boxes"], batch["classes"], batch["ignored"]),
      positive_iou=model.positive_iou,
      negative_iou=model.negative_iou,
      force_match=model.force_match,
    )

  return assign_targets


def _make_score_counter(config, network, train_set, strategy):
  """measurements.ScoreCounter on the first batch of the training's stream."""

  def read_batch():
    size = config.train.batch_size
    return next(iter(data_lib.make_batches(config, train_set, size)))

  return measurements.ScoreCounter(
    network, strategy, make_assign_targets(config), read_batch
  )


def _make_measure(network):
  norm = measurements.make_weight_norm(network)
  return lambda: {"weight_norm": norm(), **measurements.measure_memory()}


def _new_record(config, classes, strategy, split_size):
  num_replicas = strategy.num_replicas_in_sync
  images_per_step = config.train.images_per_replica * num_replicas
  clock = state.Clock(split_size, config.train.warmup_steps * images_per_step)
  return state.Record(
    clock, dataclasses.asdict(config), classes._asdict(), num_replicas
  )


def _start(run_state, network, initial_checkpoint, averages):
  """Gives a new run its first checkpoint."""
  if initial_checkpoint:
    initial_weights.load_initial_weights(network, initial_checkpoint)
  if averages:
    averages.reset()
  run_state.save()


@contextlib.contextmanager
def _monitor(model_dir, step, workers):
  """(tf.summary writer, MetricsFile) of a run that is at some step."""
  if not workers.is_chief:
    yield tf.summary.create_noop_writer(), monitoring.NoMetricsFile()
    return
  writer = monitoring.open_tensorboard(model_dir, step)
  metrics_file = monitoring.MetricsFile(model_dir, step)
  try:
    yield writer, metrics_file
  finally:
    writer.close()
    metrics_file.close()


def _tell_start(record, train):
  """Says where a run that is continued is."""
  clock, epochs = record.clock, train.epochs
  if clock.epochs_done >= epochs and record.is_validated:
    logging.info(
      "this run is finished: %.2f of %d epochs are done. To train on, give more: "
      "--config.train.epochs=%d",
      *(clock.epochs_done, epochs, 2 * math.ceil(clock.epochs_done)),
    )
    return
  if record.is_out_of_patience(train.patience):
    logging.info(
      "this run ended early, for %d validations after the best were no better. To train "
      "on, give more: --config.train.patience=%d",
      *(record.validations_since_best, 2 * record.validations_since_best),
    )
    return
  batch_size = train.images_per_replica * record.replicas
  rate = make_schedule(train, clock, batch_size)(clock.epochs_done, clock.images)
  logging.info(
    "continuing at step %d, epoch %.2f of %d, learning rate %.3g",
    *(clock.step, clock.epochs_done, epochs, rate),
  )


def _tell_rate(train, strategy):
  """Says what the learning rate is for, where that is not plain."""
  batch_size = train.images_per_replica * strategy.num_replicas_in_sync
  if train.reference_batch_size:
    logging.info(
      "learning rate %.3g, for batches of %d images: %.3g, for %d, scaled linearly",
      *(_learning_rate(train, batch_size), batch_size),
      *(train.learning_rate, train.reference_batch_size),
    )
  elif strategy.num_replicas_in_sync > 1:
    logging.info(
      "learning rate %.3g, for batches of %d images on %d replicas, as it is; "
      "train.reference_batch_size would scale it",
      *(train.learning_rate, batch_size, strategy.num_replicas_in_sync),
    )


def _tell_end(record, train):
  """Says that a training is finished, and what came of it."""
  clock, best, epochs = record.clock, record.best, train.epochs
  if clock.epochs_done >= epochs:
    how = "is finished"
  elif record.is_out_of_patience(train.patience):
    how = f"ended after {train.patience} validations without a better one"
  else:
    how = "was stopped by a callback"
  logging.info(
    "training %s, at step %d, epoch %.2f of %d%s",
    *(how, clock.step, clock.epochs_done, epochs),
    f"; best validation AP {best['metrics']['AP']:.3f} ({best['checkpoint']})"
    if best
    else "",
  )


def _learning_rate(train, batch_size):
  """After warm-up, for batches of so many images over all replicas."""
  return train.learning_rate * batch_size / (train.reference_batch_size or batch_size)


def make_schedule(train, clock, batch_size):
  """The schedules.Schedule of a TrainConfig, for a Clock and images per global step."""
  return schedules.Schedule(
    _learning_rate(train, batch_size),
    train.schedule,
    epochs=train.epochs,
    decay_epochs=train.decay_epochs,
    decay_factor=train.decay_factor,
    warmup_images=clock.warmup_images,
    warmup_start_factor=train.warmup_start_factor,
  )


def _make_loop(
  config, model_dir, network, step, run_state, train_set, strategy, workers, **parts
):
  train = config.train
  batch_size = train.images_per_replica * strategy.num_replicas_in_sync
  share = pipeline.Share(workers.index, workers.count, batch_size // workers.count)

  def batches(position):
    read = workers.distribute(
      lambda size: data_lib.make_batches(
        config,
        train_set,
        size,
        position,
        share=share,
        service_address=config.data.service_address,
      ),
      batch_size,
    )
    first = position + share.index * share.size
    return pipeline.naming_unreadable(
      read, lambda number: records_at(first + number * batch_size, share.size)
    )

  def records_at(position, count):
    if config.data.service_address:
      return []  # it keeps no fixed order
    indices = pipeline.images_at(
      len(train_set.records), position, count, seed=train.seed
    )
    return [train_set.records[index] for index in indices]

  def image_ids(position, count):
    ids = [record.image_id for record in records_at(position, count)]
    return ids or "unknown (a tf.data service keeps no fixed order)"

  def run_step(batch, clock):
    rate = schedule(clock.epochs_done, clock.images)
    return bool(step([batch], [rate], clock.step)["is_finite"].numpy()[0])

  def repeat(clock):
    return failed_batch.repeat(
      clock,
      state=run_state,
      path=folder.checkpoint_paths(model_dir)[0],
      batches=batches,
      run_step=run_step,
      batch_size=batch_size,
      signals=parts["signals"],
    )

  schedule = make_schedule(train, run_state.record.clock, batch_size)
  return loop.TrainingLoop(
    step,
    run_state,
    schedule=schedule,
    batches=batches,
    pace=loop.Pace(
      epochs=train.epochs,
      batch_size=batch_size,
      steps_per_execution=train.steps_per_execution,
      log_every_steps=train.log_every_steps,
      checkpoint_every_minutes=train.checkpoint_every_minutes,
      validate_every_epochs=train.validate_every_epochs,
      patience=train.patience,
    ),
    image_ids=image_ids,
    keep_failed=failed_batch.Keeper(
      model_dir,
      config,
      train_set.class_names,
      network,
      repeat=repeat,
      read_batch=lambda position: next(
        iter(data_lib.make_batches(config, train_set, batch_size, position))
      ),
      image_ids=image_ids,
      batch_size=batch_size,
      is_writer=workers.is_chief,
    ),
    workers=workers,
    **parts,
  )
