"""What a step costs that ranks more images together than a replica's batch has.

  python benchmarks/ranking_benchmark.py
  python benchmarks/ranking_benchmark.py --config=voc07_r50 --config.data.root=none \
    --replicas=4

Images are noise: data.root is not read. Times, in turns so that a busy machine slows them
alike, with the same images a step:

  replicas   --replicas of them, each of which ranks its own batch: the yardstick
  global     the same, one ranking of all (train.ranking_scope=global)
  plain      as many steps as --accumulate_steps, of a batch each, on one replica: what
             accumulating gradients of batches that are ranked by themselves costs, with
             some updates too many
  accumulate one step of these batches in one ranking (train.accumulate_steps)

Replicas are GPUs where there are that many, else logical CPUs, which share the cores.
There the exchange is a copy in memory: what is sent over a wire is counted by
tests/losses/ranking/test_across_replicas.py.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

from absl import flags

from ap_detect import command_line, provenance

_CLASSES = 20
_CONFIG = command_line.define_config("shapes")
_REPLICAS = flags.DEFINE_integer("replicas", 2, "Replicas.", lower_bound=2)
_ACCUMULATE = flags.DEFINE_integer("accumulate_steps", 4, "Batches.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds to time.", lower_bound=2)
_report = provenance.define_flags()


def main(_):
  import tensorflow as tf

  from ap_detect import config as config_lib

  config = config_lib.resolve(_CONFIG.value)
  devices = _devices(tf)
  steps = _make_steps(config, devices)
  for step in steps.values():
    step()  # builds the graph
  rounds = [
    {name: _time(step) for name, step in steps.items()} for _ in range(_ROUNDS.value)
  ]
  result = {
    "batch": f"{config.train.batch_size} images of {config.data.image_size_px} px",
    "devices": devices,
    "accumulate_steps": _ACCUMULATE.value,
    "ratio_quartiles": {
      "global to replicas": _ratio(rounds, "global", "replicas"),
      "accumulate to plain": _ratio(rounds, "accumulate", "plain"),
    },
    "seconds": rounds,
  }
  print(result["batch"])
  for name, (lower, median, upper) in result["ratio_quartiles"].items():
    print(f"{name}: {median:.3f} (quartiles {lower:.3f} to {upper:.3f})")
  _report(result)


def _devices(tf):
  gpus = tf.config.list_physical_devices("GPU")
  if len(gpus) >= _REPLICAS.value:
    return [f"GPU:{number}" for number in range(_REPLICAS.value)]
  tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * _REPLICAS.value,
  )
  return [f"CPU:{number}" for number in range(_REPLICAS.value)]


def _make_steps(config, devices):
  """{name: function that does what is timed}."""
  import tensorflow as tf

  several = tf.distribute.MirroredStrategy(devices)
  one = tf.distribute.MirroredStrategy(devices[:1])
  plain = _make_step(config, one)

  def several_plain():
    for _ in range(_ACCUMULATE.value):
      plain()

  return {
    "replicas": _make_step(config, several),
    "global": _make_step(config, several, ranking_scope="global"),
    "plain": several_plain,
    "accumulate": _make_step(config, one, accumulate_steps=_ACCUMULATE.value),
  }


def _make_step(config, strategy, **changes):
  """Function that does one step with changes of TrainConfig."""
  import training_step

  config = dataclasses.replace(
    config, train=dataclasses.replace(config.train, **changes)
  )
  step = training_step.make_step(config, _CLASSES, strategy)
  replicas = strategy.num_replicas_in_sync
  noise = training_step.noise(config, _CLASSES, replicas)
  batches = training_step.distribute(strategy, noise)
  return lambda: step(next(batches))


def _time(step):
  begin = time.perf_counter()
  step()
  return time.perf_counter() - begin


def _ratio(rounds, name, yardstick):
  ratios = [seconds[name] / seconds[yardstick] for seconds in rounds]
  return statistics.quantiles(ratios, n=4)


if __name__ == "__main__":
  command_line.run(main)
