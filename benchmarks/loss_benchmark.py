"""Times AP-loss beside the focal loss, value and gradient, in one run.

  python benchmarks/loss_benchmark.py                       # the whole table
  python benchmarks/loss_benchmark.py --sizes=0.65M --repeats=5
  python benchmarks/loss_benchmark.py --sizes= --step_config=configs/shapes.py
  python benchmarks/loss_benchmark.py --sizes=21M --regimes=late --hlo_dir=hlo

Rounds of all losses alternate, so that a busy machine slows them alike: compare ratios.
Every figure is a median. Each case runs in a process of its own, for its peak memory.

Columns: milliseconds for value and gradient; ratio to the focal loss of the same case;
MiB of peak memory above inputs and gradient, and its ratio to the logits' bytes;
seconds of the first call, less one call (tracing and compilation). The plain loop over
positives (eager TensorFlow, as in the paper's Algorithm 1) is timed on a few positives
and scaled to all.

With --hlo_dir nothing is timed: each loss's value and gradient is written as a
serialized HLO module, <loss>-<size>.hlo, which XLA compiles without TensorFlow, on a
device that this machine lacks, say. Its inputs are the logits and the labels.

Regimes: early, all scores within 0.05; late, negatives N(-6, 1) and positives N(0, 2);
spread, all uniform in +-3 delta; clustered, positives within 1e-3 and negatives
uniform in +-3 delta.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from absl import app, flags

_CLASSES = 80
_SIZES = {
  "0.65M": (655_360, 100),
  "2.6M": (2_619_200, 300),
  "5.2M": (5_238_400, 500),
  "21M": (20_951_040, 1000),
  "21M/10k": (20_951_040, 10_000),
}
_REGIMES = ("early", "late", "spread", "clustered")
_LOSSES = ("ap_loss", "focal_loss")

_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "where to run")
_NAMES = flags.DEFINE_list("sizes", list(_SIZES), f"some of {', '.join(_SIZES)}")
_REGIME = flags.DEFINE_list("regimes", list(_REGIMES), f"some of {', '.join(_REGIMES)}")
_REPEATS = flags.DEFINE_integer("repeats", 7, "rounds to take the median of")
_LOOP = flags.DEFINE_integer(
  "loop_positives", 3, "positives of the plain loop; 0: none"
)
_STEP = flags.DEFINE_string(
  "step_config", "", "also time training steps of this config"
)
_HLO = flags.DEFINE_string(
  "hlo_dir", "", "write each loss as HLO into this folder instead of timing it"
)
_CASE = flags.DEFINE_string("case", "", "internal: run one case, print it as JSON")


def make_case(size, regime):
  """Logits and labels of one line of the table.

  Args:
    size: key of _SIZES.
    regime: one of _REGIMES.

  Returns:
    (logits [R, 80] float32, labels [R] int32), NumPy arrays.
  """
  import numpy as np

  number, positives = _SIZES[size]
  rows = number // _CLASSES
  random = np.random.default_rng(0)
  shape = [rows, _CLASSES]
  labels = np.zeros([rows], np.int32)
  chosen = random.permutation(rows)[:positives]
  labels[chosen] = random.integers(1, _CLASSES + 1, positives)
  if regime == "early":
    logits = random.random(shape, np.float32) * np.float32(0.05)
    own = logits[chosen, labels[chosen] - 1]
  elif regime == "late":
    logits = random.standard_normal(shape, np.float32) - 6
    own = random.normal(0, 2, positives)
  else:
    logits = random.random(shape, np.float32) * 6 - 3
    own = logits[chosen, labels[chosen] - 1]
    if regime == "clustered":
      own = random.random(positives) * 1e-3
  logits[chosen, labels[chosen] - 1] = own
  return logits, labels


def _function(name):
  import ap_detect  # noqa: F401  selects Keras 2 before TensorFlow loads
  import tensorflow as tf  # isort: skip

  from ap_detect import losses

  loss_function = getattr(losses, name)

  @tf.function(jit_compile=True, autograph=False)
  def value_and_gradient(logits, labels):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      loss = loss_function(logits, labels)
    return loss, tape.gradient(loss, logits)

  return value_and_gradient


def _seconds(function, *arguments):
  begin = time.perf_counter()
  loss, gradient = function(*arguments)
  # Reading the results waits for a GPU.
  loss.numpy()
  gradient[:1].numpy()
  return time.perf_counter() - begin


def _status_bytes(field):
  with open("/proc/self/status") as file:
    for line in file:
      if line.startswith(field + ":"):
        return int(line.split()[1]) * 1024
  raise ValueError(f"/proc/self/status has no {field}")


def _run_case(size, regime, device, only, repeats, loop_positives):
  """Times one case in this process; `only` measures the memory of one loss."""
  import ap_detect  # noqa: F401  selects Keras 2 before TensorFlow loads
  import tensorflow as tf  # isort: skip

  if device == "gpu" and not tf.config.list_physical_devices("GPU"):
    raise SystemExit("--device=gpu: TensorFlow sees no GPU; nothing was measured")
  with tf.device(f"/{device}:0"):
    arrays = make_case(size, regime)
    logits, labels = (tf.identity(tf.constant(array)) for array in arrays)
    if only:
      return _memory(_function(only), logits, labels, device)
    functions = {name: _function(name) for name in _LOSSES}
    first = {name: _seconds(functions[name], logits, labels) for name in _LOSSES}
    times = {name: [] for name in _LOSSES}
    for _ in range(repeats):
      for name in _LOSSES:
        times[name].append(_seconds(functions[name], logits, labels))
    medians = {name: sorted(times[name])[repeats // 2] for name in _LOSSES}
    result = {
      name: {"seconds": medians[name], "compile": first[name] - medians[name]}
      for name in _LOSSES
    }
    if loop_positives:
      result["plain loop"] = {"seconds": _loop(logits, labels, loop_positives)}
  return result


def _memory(function, logits, labels, device):
  # The first call compiles, which takes memory of its own; the second is measured.
  function(logits, labels)[1][:1].numpy()
  if device == "gpu":
    import tensorflow as tf

    info = tf.config.experimental
    info.reset_memory_stats("GPU:0")
    before = info.get_memory_info("GPU:0")["current"]
    _, gradient = function(logits, labels)
    gradient[:1].numpy()
    peak = info.get_memory_info("GPU:0")["peak"]
  else:
    with open("/proc/self/clear_refs", "w") as file:
      file.write("5")  # resets the peak, VmHWM (proc(5))
    before = _status_bytes("VmRSS")
    _, gradient = function(logits, labels)
    gradient[:1].numpy()
    peak = _status_bytes("VmHWM")
  size = 4 * logits.shape.num_elements()
  extra = max(peak - before - size, 0)
  return {"bytes": extra, "ratio": extra / size}


def _loop(logits, labels, number):
  """Seconds that Algorithm 1 as a loop over positives takes, scaled from a few."""
  import tensorflow as tf

  positives = tf.where(labels > 0)[:, 0]
  classes = tf.gather(labels, positives) - 1
  own = tf.gather_nd(logits, tf.stack([positives, tf.cast(classes, tf.int64)], 1))
  gradient = tf.zeros_like(logits)
  begin = time.perf_counter()
  for score in own[:number]:
    steps = tf.clip_by_value((logits - score) / 2.0 + 0.5, 0.0, 1.0)
    gradient += steps / (1.0 + tf.reduce_sum(steps))
  gradient[:1].numpy()
  return (time.perf_counter() - begin) * len(positives) / number


def _in_own_process(size, regime, only=""):
  command = [
    sys.executable,
    __file__,
    f"--case={size}:{regime}:{only}",
    f"--device={_DEVICE.value}",
    f"--repeats={_REPEATS.value}",
    f"--loop_positives={_LOOP.value}",
  ]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode:
    raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")
  return json.loads(done.stdout.splitlines()[-1])


def _table():
  header = ("size", "regime", "loss", "ms", "ratio", "MiB", "x logits", "compile s")
  line = "{:8} {:10} {:11} {:>9} {:>8} {:>8} {:>9} {:>10}"
  print(line.format(*header), flush=True)
  for size in _NAMES.value:
    for regime in _REGIME.value:
      result = _in_own_process(size, regime)
      for name in _LOSSES:
        result[name]["memory"] = _in_own_process(size, regime, name)
      focal = result["focal_loss"]["seconds"]
      for name, row in result.items():
        memory = row.get("memory")
        figures = (
          f"{1e3 * row['seconds']:.1f}",
          f"{row['seconds'] / focal:.2f}",
          f"{memory['bytes'] / 2**20:.0f}" if memory else "",
          f"{memory['ratio']:.2f}" if memory else "",
          f"{row['compile']:.1f}" if "compile" in row else "",
        )
        print(line.format(size, regime, name, *figures), flush=True)


def main(argv):
  """Prints the table; or, with --case, one case of it as JSON."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  unknown = [name for name in _NAMES.value if name not in _SIZES]
  unknown += [name for name in _REGIME.value if name not in _REGIMES]
  if unknown:
    raise app.UsageError(f"unknown {unknown}; sizes {[*_SIZES]}, regimes {_REGIMES}")
  if _CASE.value:
    size, regime, only = _CASE.value.split(":")
    result = _run_case(size, regime, _DEVICE.value, only, _REPEATS.value, _LOOP.value)
    print(json.dumps(result))
    return
  if _HLO.value:
    _write_hlo(_HLO.value)
    return
  if _NAMES.value:
    _table()
  if _STEP.value:
    import ap_detect  # noqa: F401  selects Keras 2 before TensorFlow loads
    import tensorflow as tf  # isort: skip

    with tf.device(f"/{_DEVICE.value}:0"):
      print_step_share(_STEP.value)


def _write_hlo(folder):
  import ap_detect  # noqa: F401  selects Keras 2 before TensorFlow loads
  import tensorflow as tf  # isort: skip

  os.makedirs(folder, exist_ok=True)
  for size in _NAMES.value:
    shape = [_SIZES[size][0] // _CLASSES, _CLASSES]
    inputs = tf.zeros(shape), tf.zeros(shape[:1], tf.int32)
    for name in _LOSSES:
      lower = _function(name).experimental_get_compiler_ir(*inputs)
      path = os.path.join(folder, f"{name}-{size.replace('/', '-')}.hlo")
      with open(path, "wb") as file:
        file.write(lower(stage="hlo_serialized"))
      print(path, flush=True)


def print_step_share(config_path):
  """Prints each classification loss's share of a training step of a config.

  The step runs on noise with 8 objects an image. The loss is timed alone, value and
  gradient, on logits and labels of the step's shapes.
  """
  import runpy

  import ap_detect  # noqa: F401  selects Keras 2 before TensorFlow loads
  from ap_detect import config as config_lib

  values = runpy.run_path(config_path)["get_config"]()
  values.model.backbone_weights = ""  # does not change the time
  values.data.root = values.data.root or "not read"
  for name in _LOSSES:
    values.train.classification_loss = name
    step, loss = _step_seconds(config_lib.resolve(values))
    print(
      f"{config_path} {name}: step {1e3 * step:.1f} ms, loss {1e3 * loss:.1f} ms, "
      f"share {loss / step:.1%}",
      flush=True,
    )


def _step_seconds(config):
  """(median seconds of a training step, of its loss alone)."""
  import tensorflow as tf
  import training_step

  from ap_detect import matching
  from ap_detect.runs import model as model_lib

  classes = 20
  strategy = tf.distribute.MirroredStrategy([f"{_DEVICE.value}:0"])
  step = training_step.make_step(config, classes, strategy)
  batch = training_step.noise(config, classes)
  batches = training_step.distribute(strategy, batch)
  function = _function(config.train.classification_loss)
  labels = matching.match_anchors(
    model_lib.make_anchors(config),
    batch["boxes"],
    batch["classes"],
    batch["ignored"],
    positive_iou=config.model.positive_iou,
    negative_iou=config.model.negative_iou,
    force_match=config.model.force_match,
  ).labels
  logits = tf.random.stateless_normal([*labels.shape, classes], [0, 1]) - 4.6
  steps, alone = [], []
  for _ in range(_REPEATS.value + 1):
    begin = time.perf_counter()
    step(next(batches))
    steps.append(time.perf_counter() - begin)
    alone.append(_seconds(function, logits, labels))
  # The first round compiles.
  return sorted(steps[1:])[_REPEATS.value // 2], sorted(alone[1:])[_REPEATS.value // 2]


if __name__ == "__main__":
  app.run(main)
