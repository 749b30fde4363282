"""Trains a run from its config, or continues it where it was."""

from __future__ import annotations

import math
import os
import sys

import tensorflow as tf
from absl import logging

from ap_detect.data import augment, pipeline
from ap_detect.data import dataset as dataset_lib
from ap_detect.training import (
  callbacks,
  detector,
  distribution,
  initial_weights,
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
  train_set = open_training_split(config)
  val_set = run_lib.open_split(config, config.data.val_split, train_set.class_names)
  check_objects(val_set, config.data.val_split)
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
  _restore_or_start(config, managers[0], model, strategy)
  first_epoch = int(epoch.numpy())
  batches = make_batches(
    config,
    train_set,
    batch_size,
    first_epoch * steps_per_epoch,
    service_address=config.data.service_address,
  )
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


def open_training_split(config):
  """The split that a config trains on, without what it leaves out of training.

  Args:
    config: Config; data.drop_empty_images and drop_ignored_objects say what to leave out.

  Returns:
    DetectionDataset.

  Raises:
    ValueError: faults in the data, or no object to train on.
  """
  data = config.data
  dataset = run_lib.open_split(config, data.train_split)
  check_objects(dataset, data.train_split)
  chosen = dataset_lib.for_training(
    dataset,
    drop_empty=data.drop_empty_images,
    drop_ignored=data.drop_ignored_objects,
  )
  dropped = [before - after for before, after in zip(_count(dataset), _count(chosen))]
  if any(dropped):
    logging.info(
      "left out of training: %d images without objects, %d ignored objects", *dropped
    )
  return chosen


def _count(dataset):
  """(images, objects)."""
  return len(dataset.records), sum(len(record.boxes) for record in dataset.records)


def check_objects(dataset, split):
  """Raises ValueError where a split has no object to train or validate on."""
  if not dataset.has_labels:
    raise ValueError(
      f"split {split!r} has no labels: its {len(dataset.records)} images are not "
      "annotated; it can be neither trained nor validated on"
    )
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
  # A run that goes on, or starts from another one, does not need the backbone's file.
  has_checkpoint = (
    run_lib.latest_checkpoint(model_dir) or config.model.initial_checkpoint
  )
  if not (config.model.backbone_weights or config.model.initial_checkpoint):
    logging.info(
      "no model.backbone_weights: the backbone is trained from scratch, which takes "
      "several times the pictures or epochs that a pretrained one takes"
    )
  network = run_lib.build_network(config, num_classes, pretrained=not has_checkpoint)
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


def _restore_or_start(config, manager, model, strategy):
  """Restores the latest checkpoint, or saves that of epoch 0 with the initial weights."""
  with strategy.scope():
    optimizers.create_state(model.optimizer, model.network.trainable_variables)
  path = manager.restore_or_initialize()
  if path:
    logging.info("continuing from %s", path)
    return
  if config.model.initial_checkpoint:
    initial_weights.load_initial_weights(model.network, config.model.initial_checkpoint)
  manager.save(checkpoint_number=0)


def make_batches(config, dataset, batch_size, first_step=0, *, service_address=""):
  """The training batches of a config: `pipeline.training_batches` with its augmentation.

  Args:
    config: Config.
    dataset: DetectionDataset of the training split.
    batch_size: images a batch, over all replicas.
    first_step: number of the first batch.
    service_address: of a tf.data service, see `pipeline.training_batches`.

  Returns:
    See `pipeline.training_batches`.
  """
  return pipeline.training_batches(
    dataset,
    steps=augmentation_steps(config.data),
    batch_size=batch_size,
    seed=config.train.seed,
    first_step=first_step,
    service_address=service_address,
  )


def augmentation_steps(data):
  """The steps of a DataConfig's augmentation, see `augment`; list."""
  options = {
    "horizontal_flip": data.horizontal_flip,
    "color_strength": data.color_jitter,
  }
  if data.augmentation == "ssd":
    return augment.ssd_steps(data.image_size_px, **options)
  return augment.zoom_steps(data.image_size_px, zoom_range=data.zoom_range, **options)


def _step_logger(config, dataset, batch_size, schedule, writer):
  def image_ids_of_step(step):
    if config.data.service_address:
      return "unknown (a tf.data service keeps no fixed order)"
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
