"""Trains a detector, or continues a run.

ap_detect train [--config=...] [--model_dir=...] [--config.<section>.<field>=<value> ...]

Ends with COCO's figures on the validation split and the next commands to type.
"""

import shlex
import sys

from absl import flags

from ap_detect import command_line, logs
from ap_detect import config as config_lib
from ap_detect.runs import cluster as cluster_lib
from ap_detect.runs import lock

CONFIG = command_line.define_config("shapes")
MODEL_DIR = command_line.define_model_dir()
REPLICAS = command_line.define_replicas()
PROFILE_STEPS = flags.DEFINE_string(
  "profile_steps",
  "",
  "a:b writes what TensorFlow's profiler sees of steps a to b - 1 into the run's "
  "TensorBoard folder, and says how to look at it. The first steps build the graph: 10:20 "
  "says more of a training than 0:10.",
)
OVERFIT = flags.DEFINE_integer(
  "overfit",
  0,
  "n: trains on the first n images alone, without augmentation, until their AP is as good "
  "as it can be, 2000 steps at most, in a folder beside the run's; if that fails, says what "
  "is in the way. What cannot learn 8 images will not learn 8000.",
  lower_bound=0,
)
DEBUG = flags.DEFINE_bool(
  "debug",
  False,
  "Goes through the next three steps op by op on one device, names the first tensor that "
  "is not finite, or shows the ranges of all, and ends. Writes nothing, and leaves a run "
  "that is there as it is.",
)


def main(_):
  config, model_dir = config_lib.resolve(CONFIG.value), MODEL_DIR.value
  if DEBUG.value:
    _debug(config, model_dir)
    return
  if OVERFIT.value:
    _overfit(config, model_dir)
    return
  cluster = cluster_lib.from_environment()
  # Before the seconds that importing TensorFlow takes.
  kept = cluster.on_chief(lock.lock(model_dir), logs.kept(model_dir))
  with kept, cluster.naming_lost():
    command_line.load_tensorflow()
    from ap_detect.runs import data, replicas, workers
    from ap_detect.training import evaluation_files, profiling, trainer

    steps = profiling.Steps.parse(PROFILE_STEPS.value) if PROFILE_STEPS.value else None
    strategy = replicas.make_strategy(REPLICAS.value, cluster)
    trainer.train(config, model_dir, strategy=strategy, profile_steps=steps)
    evaluation_files.evaluate_run(model_dir, strategy=strategy)
    samples = data.write_samples(config, model_dir) if cluster.is_chief else ""
    workers.Workers(strategy).leave()
  if not cluster.is_chief:
    return
  run = shlex.quote(model_dir)
  print(
    f"run          {model_dir}/\n\nNext:\n"
    f"  tensorboard --logdir={run}/tensorboard\n"
    f"  ap_detect evaluate --model_dir={run}\n"
    f"  ap_detect export --model_dir={run} --export_dir={run}/export\n"
    f"  ap_detect predict --model_dir={run} --output_dir={run}/predictions "
    f"{shlex.quote(samples) if samples else 'IMAGE_OR_FOLDER ...'}"
  )


def _overfit(config, model_dir):
  command_line.load_tensorflow()
  from ap_detect.runs import replicas
  from ap_detect.training import overfitting

  strategy = replicas.make_strategy(REPLICAS.value)
  outcome = overfitting.overfit(config, model_dir, OVERFIT.value, strategy=strategy)
  print("\n".join(outcome.lines))
  if outcome.model_dir:
    print(f"run: {outcome.model_dir}/ (tensorboard --logdir={outcome.model_dir})")
  if not outcome.is_reached:
    sys.exit(1)


def _debug(config, model_dir):
  command_line.load_tensorflow()
  from ap_detect.training import debugging

  for examined in debugging.debug(config, model_dir):
    print(debugging.report(examined), end="\n\n", flush=True)
  if examined.examination.first_non_finite:
    sys.exit(f"error: step {examined.step}: {examined.examination.verdict()}")


if __name__ == "__main__":
  command_line.run(main)
