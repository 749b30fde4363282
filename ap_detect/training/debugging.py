"""Steps of a training gone through eagerly, to find what is not finite; see diagnosis."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from ap_detect import config as config_lib
from ap_detect.data import pipeline
from ap_detect.runs import data as data_lib
from ap_detect.runs import folder, replicas
from ap_detect.runs import memory as memory_lib
from ap_detect.runs import model as model_lib
from ap_detect.training import (
  classification_losses,
  diagnosis,
  initial_weights,
  restarts,
  state,
  trainer,
)
from ap_detect.training import step as step_lib


class ExaminedStep(NamedTuple):
  """A step that was gone through.

  Attributes:
    step: its number.
    images: ids of its images.
    replica: which replica's share of the batch it is.
    examination: diagnosis.Examination.
  """

  step: int
  images: list
  replica: int
  examination: diagnosis.Examination


def debug(config, model_dir, *, num_steps=3):
  """Goes through the next steps of a training, op by op, and writes nothing.

  Args:
    config: Config.
    model_dir: the run's folder; where it holds a run, these are the steps that a start
      would go on with, else a new run's first ones.
    num_steps: how many, unless something is not finite before.

  Yields:
    ExaminedSteps, of one replica with train.batch_size images; only the last one may have
    what is not finite.

  Raises:
    ValueError: as training.trainer.train.
  """
  is_new = folder.is_unused(model_dir)
  record = None if is_new else restarts.read_newest_record(model_dir)
  if record:
    restarts.check_changes(model_dir, record, config)
  train_set = data_lib.open_training_split(config, memory=memory_lib.Memory(model_dir))
  config = _of_one_batch(config)
  num_classes, size = len(train_set.class_names), config.train.batch_size
  classification_losses.check(config.train, num_classes)
  tf.keras.utils.set_random_seed(config.train.seed)
  network, optimizer, step = _build(config, num_classes, pretrained=is_new)
  clock = state.Clock(len(train_set.records), config.train.warmup_steps * size)
  if not is_new:
    clock = _restore(model_dir, network, optimizer)
  elif config.model.initial_checkpoint:
    initial_weights.load_initial_weights(network, config.model.initial_checkpoint)
  schedule = trainer.make_schedule(config.train, clock, size)
  batches = iter(data_lib.make_batches(config, train_set, size, clock.position))
  for _ in range(num_steps):
    batch = next(batches)
    indices = pipeline.images_at(
      len(train_set.records), clock.position, size, seed=config.train.seed
    )
    images = [train_set.records[index].image_id for index in indices]
    examination = diagnosis.examine(step, network, batch, clock.step)
    yield ExaminedStep(clock.step, images, 0, examination)
    if examination.first_non_finite:
      return
    with _eagerly():
      step([batch], [schedule(clock.epochs_done, clock.images)], clock.step)
    clock = clock.after(1, size)


def debug_batch(failed):
  """Goes through a step again that a training could not do, op by op.

  Args:
    failed: failed_batch.FailedBatch.

  Yields:
    An ExaminedStep for what each replica had of the batch; where it took several batches
    to the step (train.accumulate_steps), for each of them, as if of a replica of its own.

  Raises:
    ValueError: the weights do not fit the config's network.
  """
  about = failed.about
  config = _of_one_batch(config_lib.resolve(about["config"]))
  network, _, step = _build(config, len(about["class_names"]), pretrained=False)
  shapes = [tuple(weight.shape) for weight in network.weights]
  if shapes != [value.shape for value in failed.weights]:
    raise ValueError(
      "the file's weights are not those of its config's network; it must be read by the "
      "version of ap_detect that wrote it"
    )
  size = config.train.batch_size
  for replica in range(about["replicas"]):
    network.set_weights(failed.weights)
    share = slice(replica * size, (replica + 1) * size)
    batch = {name: tf.constant(value[share]) for name, value in failed.batch.items()}
    examination = diagnosis.examine(
      step, network, batch, about["step"], replica=replica
    )
    images = about["images"][share]
    yield ExaminedStep(about["step"], images, replica, examination)


def report(examined, num_replicas=1) -> str:
  """Lines on an ExaminedStep: the table of its tensors, and the first that is broken."""
  of_replicas = f", replica {examined.replica + 1} of {num_replicas}"
  return (
    f"step {examined.step}{of_replicas if num_replicas > 1 else ''}, images "
    f"{', '.join(map(str, examined.images))}\n{examined.examination.table()}\n"
    f"{examined.examination.verdict()}"
  )


def _of_one_batch(config):
  """The same training of a single replica that ranks every batch by itself."""
  train = config.train
  options = dict(train.loss_options)
  if (options.get("images_per_ranking") or 0) > train.batch_size:
    options["images_per_ranking"] = None
  train = dataclasses.replace(
    train,
    jit_compile="never",
    accumulate_steps=1,
    ranking_scope="replica",
    loss_options=options,
  )
  return dataclasses.replace(config, train=train)


def _build(config, num_classes, *, pretrained):
  """(network, optimizer, TrainingStep) on one device, with nothing compiled."""
  replicas.make_strategy(1)  # for its settings of the device
  train = config.train
  network = model_lib.build_network(
    config,
    num_classes,
    pretrained=pretrained and not config.model.initial_checkpoint,
    precision=train.precision,
  )
  feed = step_lib.Feed()
  optimizer = trainer.make_optimizer(train, feed, network)
  strategy = tf.distribute.get_strategy()
  return (
    network,
    optimizer,
    trainer.make_step(config, network, optimizer, feed, strategy),
  )


def _restore(model_dir, network, optimizer):
  """Restores a run's latest state, as far as steps need it; returns its Clock."""

  def restore(path):
    status = tf.train.Checkpoint(network=network, optimizer=optimizer).read(path)
    status.assert_existing_objects_matched().expect_partial()

  path = model_lib.restore_first(folder.checkpoint_paths(model_dir), restore)
  logging.info("restored %s", path)
  record: Any = folder.read_record(path)
  return state.Record.from_json(record).clock


@contextlib.contextmanager
def _eagerly():
  before = tf.config.functions_run_eagerly()
  tf.config.run_functions_eagerly(True)
  try:
    yield
  finally:
    tf.config.run_functions_eagerly(before)
