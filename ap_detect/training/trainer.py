"""Trains a run from its config, or continues it where it was."""

from __future__ import annotations

import math
import os
import sys

import tensorflow as tf
from absl import logging

from ap_detect.data import pipeline
from ap_detect.training import (
  callbacks,
  detector,
  distribution,
  optimizers,
  schedules,
)
from ap_detect.training import evaluation as evaluation_lib
from ap_detect.training import run as run_lib


def train(config, model_dir, *, strategy=None):
  """Trains to the last epoch; started again, continues after the last finished one.

  Args:
    config: Config.
    model_dir: folder of the run; made if missing.
    strategy: tf.distribute strategy; None for all GPUs, or the CPU.

  Raises:
    ValueError: faults in config or data, or the folder holds another run.
    callbacks.NonFiniteLossError: a loss was not finite; checkpoints are from before.
  """
  train_set = run_lib.open_split(config, config.data.train_split)
  val_set = run_lib.open_split(config, config.data.val_split, train_set.class_names)
  _check_objects(train_set, config.data.train_split)
  _check_objects(val_set, config.data.val_split)
  classes = run_lib.Classes(train_set.class_names, train_set.category_ids)
  run_lib.start(model_dir, config, classes)
  strategy = strategy or distribution.make_strategy()
  tf.keras.utils.set_random_seed(config.train.seed)
  batch_size = config.train.batch_size * strategy.num_replicas_in_sync
  steps_per_epoch = math.ceil(len(train_set.records) / batch_size)
  with strategy.scope():
    schedule = _make_schedule(config.train, steps_per_epoch)
    model = _make_detector(config, len(classes.names), schedule, strategy, model_dir)
    epoch = tf.Variable(0, trainable=False, dtype=tf.int64, name="epoch")
  managers = _make_managers(config, model_dir, model, epoch)
  _restore_or_start(managers[0], model, strategy)
  first_epoch = int(epoch.numpy())
  batches = _make_batches(config, train_set, batch_size, first_epoch * steps_per_epoch)
  writer = tf.summary.create_file_writer(os.path.join(model_dir, "tensorboard"))
  try:
    model.fit(
      strategy.experimental_distribute_dataset(batches),
      initial_epoch=first_epoch,
      epochs=config.train.epochs,
      steps_per_epoch=steps_per_epoch,
      verbose=1 if sys.stdout.isatty() else 0,
      callbacks=[
        _step_logger(config, train_set, batch_size, schedule, writer),
        callbacks.EpochLogger(
          epochs=config.train.epochs,
          steps_per_epoch=steps_per_epoch,
          images_per_step=batch_size,
        ),
        callbacks.CheckpointAndValidate(
          manager=managers[0],
          best_manager=managers[1],
          epoch_variable=epoch,
          evaluator=evaluation_lib.Evaluator(model.network, config, strategy),
          dataset=val_set,
          class_names=classes.names,
          model_dir=model_dir,
          writer=writer,
          epochs=config.train.epochs,
          every_epochs=config.train.validate_every_epochs,
        ),
      ],
    )
  except KeyboardInterrupt:
    logging.warning(
      "interrupted; the checkpoint of epoch %d stays, and the same command continues "
      "from there",
      int(epoch.numpy()),
    )
    raise
  finally:
    writer.close()


def _check_objects(dataset, split):
  num_objects = sum(int((~record.ignored).sum()) for record in dataset.records)
  if not num_objects:
    raise ValueError(
      f"split {split!r} requires at least one object that is neither crowd nor "
      f"difficult; its {len(dataset.records)} images have none"
    )


def _make_schedule(train, steps_per_epoch):
  return schedules.WarmupSchedule(
    train.learning_rate,
    kind=train.schedule,
    total_steps=train.epochs * steps_per_epoch,
    decay_steps=[epoch * steps_per_epoch for epoch in train.decay_epochs],
    decay_factor=train.decay_factor,
    warmup_steps=train.warmup_steps,
    warmup_start_factor=train.warmup_start_factor,
  )


def _make_detector(config, num_classes, schedule, strategy, model_dir):
  train = config.train
  # A run that goes on does not need the backbone's file any more.
  is_fresh = not run_lib.latest_checkpoint(model_dir)
  if not config.model.backbone_weights:
    logging.info(
      "no model.backbone_weights: the backbone is trained from scratch, which takes "
      "several times the pictures or epochs that a pretrained one takes"
    )
  network = run_lib.build_network(config, num_classes, pretrained=is_fresh)
  compile_step = train.jit_compile == "always" or (
    train.jit_compile == "auto" and distribution.compiles_by_default(strategy)
  )
  model = detector.Detector(
    network,
    run_lib.make_anchors(config),
    model=config.model,
    train=train,
    compile_step=compile_step,
  )
  optimizer = optimizers.make_optimizer(
    train.optimizer,
    schedule,
    momentum=train.momentum,
    weight_decay=train.weight_decay,
  )
  model.compile(optimizer=optimizer)
  return model


def _make_managers(config, model_dir, model, epoch):
  """CheckpointManagers of the latest epochs and of the best one."""
  latest = tf.train.CheckpointManager(
    tf.train.Checkpoint(network=model.network, optimizer=model.optimizer, epoch=epoch),
    os.path.join(model_dir, "checkpoints"),
    max_to_keep=config.train.keep_checkpoints,
    checkpoint_name="epoch",
  )
  # Two, so that best.json never names a checkpoint that is already gone.
  best = tf.train.CheckpointManager(
    tf.train.Checkpoint(network=model.network),
    os.path.join(model_dir, "best"),
    max_to_keep=2,
    checkpoint_name="epoch",
  )
  return latest, best


def _restore_or_start(manager, model, strategy):
  """Restores the latest checkpoint, or saves that of epoch 0."""
  with strategy.scope():
    optimizers.create_state(model.optimizer, model.network.trainable_variables)
  path = manager.restore_or_initialize()
  if path:
    logging.info("continuing from %s", path)
  else:
    manager.save(checkpoint_number=0)


def _make_batches(config, dataset, batch_size, first_step):
  data = config.data
  return pipeline.training_batches(
    dataset,
    image_size=data.image_size_px,
    batch_size=batch_size,
    seed=config.train.seed,
    first_step=first_step,
    horizontal_flip=data.horizontal_flip,
    zoom_range=data.zoom_range,
    color_jitter=data.color_jitter,
  )


def _step_logger(config, dataset, batch_size, schedule, writer):
  def image_ids_of_step(step):
    indices = pipeline.images_of_step(
      len(dataset.records), step, batch_size=batch_size, seed=config.train.seed
    )
    return [dataset.records[index].image_id for index in indices]

  return callbacks.StepLogger(
    writer,
    schedule=schedule,
    images_per_step=batch_size,
    image_ids_of_step=image_ids_of_step,
  )
