"""A config's data: its splits, and the batches that a run trains on."""

from __future__ import annotations

import dataclasses
import functools
import os

import numpy as np
from absl import logging

from ap_detect import config as config_lib
from ap_detect.data import augment, pipeline, shapes, summary
from ap_detect.data.readers import splits
from ap_detect.data.records import for_training
from ap_detect.runs import files, folder


def open_split(
  config: config_lib.Config,
  split: str,
  class_names=(),
  *,
  memory=None,
  convertible=False,
):
  """Reads one split of a config's dataset, and says what was left out of it.

  Args:
    config: Config.
    split: name of the split, or of several, see splits.read_split.
    class_names: the classes 1..K; () for data.class_names, and where that is empty too,
      all that the data has.
    memory: memory.Memory of a run, whose earlier starts may have read the split, and
      held images out, which then stay so; None to read it anew.
    convertible: see image_files.make_records.

  Returns:
    DetectionDataset.

  Raises:
    DataError: faults in the data, all that were found.
  """
  data, is_known = config.data, False
  part = _find_part(data, split)

  def read(class_names):
    read_whole = functools.partial(
      _read_split, data, part.split, class_names, convertible=convertible
    )
    if memory is None or data.format == "shapes":
      return read_whole(), False
    options = [dataclasses.asdict(data), class_names]
    return memory.read(part.split, options, _sources(data, part.split), read_whole)

  # What is held out of the training split is read with it, and once.
  wanted = tuple(class_names)
  dataset, is_known = read(() if part.kind == "held out" else wanted)
  if wanted and dataset.class_names != wanted:
    dataset, is_known = read(wanted)
  count = len(dataset.records)
  listed = memory.read_list(folder.HELD_OUT) if memory is not None else frozenset()
  dataset = splits.take(dataset, part.kind, data.holdout_share, listed)
  for line in dataset.skipped:
    logging.warning("skipped: %s", line)
  logging.info(
    "%s: %d images, %d objects of %d classes%s%s%s",
    split,
    len(dataset.records),
    sum(len(record.boxes) for record in dataset.records),
    len(dataset.class_names),
    "" if dataset.has_labels else "; without labels",
    f"; {len(dataset.skipped)} faults skipped" if dataset.skipped else "",
    "; nothing changed since they were checked" if is_known else "",
  )
  if part.kind == "held out":
    line = (
      f"these images are held out of the {count} of {part.split}, which is trained on "
      f"without them, for there is no other to validate on (data.holdout_share="
      f"{data.holdout_share:g})"
    )
    if listed & {str(record.image_id) for record in dataset.records}:
      line += "; they are those that the run's first start held out"
    dataset = dataclasses.replace(dataset, notes=(line, *dataset.notes))
    if memory is not None and not listed:
      memory.write_list(folder.HELD_OUT, [r.image_id for r in dataset.records])
  for line in (*dataset.notes, *summary.describe_images(dataset.records)):
    logging.info("%s: %s", split, line)
  return dataset


def _find_part(data, split):
  """splits.Part that a split means."""
  if data.format == "shapes":
    return splits.Part(split, "all")
  return splits.find_part(
    data.root,
    split,
    train_split=data.train_split,
    val_split=data.val_split,
    holdout_share=data.holdout_share,
    **_places(data),
  )


def _places(data):
  return {
    "data_format": data.format,
    "annotations": data.annotations,
    "images": data.images,
  }


def _sources(data, split):
  """Files and folders that a split is read from: below the root, but for those named."""
  lists = [part.partition("@")[2] for part in split.split("+") if "@" in part]
  named = [path.partition("{split}")[0] for path in (data.annotations, data.images)]
  others = [os.path.join(data.root, path) for path in (*lists, *named) if path]
  return [data.root, *others]


def _read_split(data, split, class_names, **options):
  if data.format == "shapes":
    is_train = split == data.train_split
    return shapes.make_shapes(
      split,
      num_images=data.shapes_train_images if is_train else data.shapes_val_images,
      image_size_px=data.shapes_size_px,
      relative_size=data.shapes_relative_size,
      seed=data.shapes_seed,
    )
  return splits.read_whole(
    data.root,
    split,
    **_places(data),
    unannotated_are_negatives=data.unannotated_are_negatives,
    voc_one_based_inclusive=data.voc_one_based_inclusive,
    class_names=class_names or data.class_names or None,
    skip_faulty=data.skip_faulty,
    check_images=data.check_images,
    max_image_pixels=data.max_image_pixels,
    exif_orientation=data.exif_orientation,
    **options,
  )


def open_training_split(config, *, memory=None):
  """The split that a config trains on, without what it leaves out of training.

  Args:
    config: Config; data.drop_empty_images and drop_ignored_objects say what to leave out.
    memory: see `open_split`.

  Returns:
    DetectionDataset.

  Raises:
    ValueError: faults in the data, or no object to train on.
  """
  data = config.data
  dataset = open_split(config, data.train_split, memory=memory)
  check_objects(dataset, data.train_split)
  chosen = for_training(
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


def warn_of_shared_images(train_set, val_set):
  """Says how many images of a split to validate on are trained on too.

  Args:
    train_set: DetectionDataset.
    val_set: DetectionDataset.
  """
  trained = {_place(record) for record in train_set.records} - {None}
  shared = [record.image_id for record in val_set.records if _place(record) in trained]
  if shared:
    logging.warning(
      "%d of the %d images to validate on are trained on too, such as %s: what validation "
      "says of them means nothing",
      len(shared),
      len(val_set.records),
      shared[0],
    )


def _place(record):
  """Where an image lies; None where it is in memory."""
  return None if isinstance(record.image, np.ndarray) else record.image


def write_samples(config, model_dir, num_images=8):
  """Writes images to try a trained network on, where the data has no files of its own.

  Args:
    config: Config.
    model_dir: the run's folder.
    num_images: how many, from the split "test".

  Returns:
    Path of their folder; "" for data that lies on disk.
  """
  if config.data.format != "shapes":
    return ""
  data = dataclasses.replace(config.data, shapes_val_images=num_images)
  dataset = _read_split(data, "test", ())
  samples = os.path.join(model_dir, folder.SAMPLES)
  os.makedirs(samples, exist_ok=True)
  for record in dataset.records:
    path = os.path.join(samples, f"test_{record.image_id}.png")
    files.write_png(path, np.asarray(record.image))
  return samples


def make_batches(
  config,
  dataset,
  batch_size,
  first_position=0,
  *,
  share=pipeline.WHOLE,
  service_address="",
):
  """The training batches of a config: `pipeline.training_batches` with its augmentation.

  Args:
    config: Config.
    dataset: DetectionDataset of the training split.
    batch_size: images a batch, over all replicas.
    first_position: of the stream of images, where the first batch begins.
    share: of the stream, see `pipeline.training_batches`.
    service_address: of a tf.data service, see `pipeline.training_batches`.

  Returns:
    See `pipeline.training_batches`.
  """
  return pipeline.training_batches(
    dataset,
    steps=augmentation_steps(config.data),
    batch_size=batch_size,
    seed=config.train.seed,
    first_position=first_position,
    share=share,
    service_address=service_address,
  )


def augmentation_steps(data):
  """The steps of a DataConfig's augmentation, see `augment`; list."""
  if data.augmentation == "none":
    return augment.fit_steps(data.image_size_px)
  options = {
    "horizontal_flip": data.horizontal_flip,
    "color_strength": data.color_jitter,
  }
  if data.augmentation == "ssd":
    return augment.ssd_steps(data.image_size_px, **options)
  return augment.zoom_steps(data.image_size_px, zoom_range=data.zoom_range, **options)
