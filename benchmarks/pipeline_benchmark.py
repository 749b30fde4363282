"""Times the training input of a config, step by step, beside plain decoding.

  python benchmarks/pipeline_benchmark.py --config=configs/voc07_r50.py \
    --config.data.root=VOCdevkit --config.data.train_split=VOC2007/trainval
  python benchmarks/pipeline_benchmark.py --config=configs/voc07_lite0.py \
    --config.data.root=VOCdevkit/VOC2007 --train_steps=100

The yardsticks read and decode, and then resize, images of the same split in the same
order, with nothing of ours. Each line below adds one step of the augmentation to those
above it; the last is the whole, in batches. Rounds of all lines alternate, so that a busy
machine slows them alike, and every figure is a median.

Columns: images a second; milliseconds of processor time an image, over all cores; those
of the line's own step, and their share of the whole.

With --train_steps the config's network is trained for so many steps on these batches, and
the time that it waits for them is given as a share of the steps. The pipeline fills its
buffer while the first step is compiled: take many more steps than that lasts.

Bars: 80 images/s at 512 x 512 with the "ssd" augmentation on 2 cores, the first command; a
wait below 5 % of a step with configs/voc07_lite0.py, the second.
"""

from __future__ import annotations

import os
import statistics
import time

from absl import flags

from ap_detect import command_line, provenance
from ap_detect import config as config_lib

_BAR_IMAGES_PER_SECOND = 80
_BAR_WAIT = 0.05
# Not timed, of each line and of the training.
_WARM_UP = 8

_CONFIG = command_line.define_config("voc07_lite0")
_IMAGES = flags.DEFINE_integer("num_images", 300, "Images a line.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds to take the median of.")
_STEPS = flags.DEFINE_integer("train_steps", 0, "Training steps to time; 0: none.")
_report = provenance.define_flags()


def _yardsticks(config, dataset):
  """{name: dataset of single images}; read and decoded, then resized too."""
  import tensorflow as tf

  paths = tf.constant([record.image for record in dataset.records])
  indices = tf.data.Dataset.range(len(dataset.records))
  indices = indices.shuffle(len(dataset.records), seed=0).repeat()

  def decode(index):
    return tf.io.decode_image(
      tf.io.read_file(paths[index]), channels=3, expand_animations=False
    )

  def resize(index):
    return tf.image.resize(decode(index), config.data.image_size_px)

  return {
    "yardstick: read, decode": indices.map(
      lambda index: decode(index)[0, 0], tf.data.AUTOTUNE
    ),
    "yardstick: and resize": indices.map(
      lambda index: resize(index)[0, 0], tf.data.AUTOTUNE
    ),
  }


def _growing(config, dataset):
  """{name: dataset of single examples}; each with a step more than the one before."""
  import tensorflow as tf

  from ap_detect.data import pipeline
  from ap_detect.runs import data as data_lib

  def keep_corner(example):
    """Passes little on, but needs all that the steps before it make."""
    corner = tf.cast(example["image"][:1, :1], tf.float32)
    needed = corner + tf.reduce_sum(example.get("window", 0.0))
    return {**example, "image": needed}

  steps = data_lib.augmentation_steps(config.data)
  names = ["read, decode", *(step.__qualname__.split(".")[0] for step in steps)]
  return {
    name: pipeline.training_batches(
      dataset, steps=[*steps[:number], keep_corner], batch_size=1
    )
    for number, name in enumerate(names)
  }


def _measure(batches, images_per_batch):
  """(images a second, seconds of processor time an image)."""
  iterator = iter(batches)
  for _ in range(_WARM_UP):
    next(iterator)
  number = -(-_IMAGES.value // images_per_batch)
  begin, begin_busy = time.perf_counter(), time.process_time()
  for _ in range(number):
    next(iterator)
  images = number * images_per_batch
  busy = time.process_time() - begin_busy
  return images / (time.perf_counter() - begin), busy / images


def print_table(config, dataset):
  """Prints a line a step of the training input, as the module says.

  Returns:
    Dict of a line's name to (images a second, seconds of processor time an image).
  """
  from ap_detect.runs import data as data_lib

  yardsticks, growing = _yardsticks(config, dataset), _growing(config, dataset)
  batch_size = config.train.batch_size
  whole = data_lib.make_batches(config, dataset, batch_size)
  lines = {**yardsticks, **growing, "whole": whole}
  rounds = {name: [] for name in lines}
  for _ in range(_REPEATS.value):
    for name, batches in lines.items():
      rounds[name].append(_measure(batches, batch_size if name == "whole" else 1))
  medians = {name: [*map(statistics.median, zip(*rounds[name]))] for name in rounds}
  print(f"{'':28} images/s   core ms    own ms    share")
  before = 0.0
  for name, (rate, busy) in medians.items():
    text = f"{name:28} {rate:8.1f} {1e3 * busy:9.2f}"
    if name in growing:
      own, before = busy - before, busy
      text += f" {1e3 * own:9.2f} {own / medians['whole'][1]:8.0%}"
    print(text)
  print(
    f"whole: {medians['whole'][0]:.1f} images/s at {config.data.image_size_px}, "
    f"{config.data.augmentation!r}, {os.cpu_count()} cores; the bar is "
    f"{_BAR_IMAGES_PER_SECOND} at (512, 512), 'ssd', 2 cores",
    flush=True,
  )
  return medians


def print_wait(config, dataset, num_steps):
  """Prints the share of training steps that passes waiting for their batches.

  Returns:
    (mean seconds of a step, of waiting in it).
  """
  import training_step

  from ap_detect.runs import data as data_lib
  from ap_detect.runs import replicas

  strategy = replicas.make_strategy(1)
  step = training_step.make_step(config, len(dataset.class_names), strategy)
  batches = data_lib.make_batches(config, dataset, config.train.batch_size)
  iterator = iter(replicas.distribute(strategy, batches))
  waits, steps = [], []
  for _ in range(_WARM_UP + num_steps):
    begin = time.perf_counter()
    batch = next(iterator)
    waits.append(time.perf_counter() - begin)
    step(batch)
    steps.append(time.perf_counter() - begin)
  wait, step = (statistics.mean(seconds[_WARM_UP:]) for seconds in (waits, steps))
  print(
    f"training: step {1e3 * step:.1f} ms, wait {1e3 * wait:.1f} ms, share "
    f"{wait / step:.1%}; the bar is {_BAR_WAIT:.0%}"
  )
  return step, wait


def main(_):
  from ap_detect.runs import data as data_lib

  config = config_lib.resolve(_CONFIG.value)
  dataset = data_lib.open_training_split(config)
  if not isinstance(dataset.records[0].image, str):
    raise ValueError(
      f"the yardsticks need pictures in files of their own; data.format is "
      f"{config.data.format!r}"
    )
  medians = print_table(config, dataset)
  results = {
    "image_size_px": config.data.image_size_px,
    "augmentation": config.data.augmentation,
    "images_per_second": {name: rate for name, (rate, _) in medians.items()},
    "processor_seconds_per_image": {name: busy for name, (_, busy) in medians.items()},
  }
  if _STEPS.value:
    step, wait = print_wait(config, dataset, _STEPS.value)
    results.update(step_seconds=step, wait_seconds=wait)
  _report(results)


if __name__ == "__main__":
  command_line.run(main)
