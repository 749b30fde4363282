"""Times ranking losses beside focal loss, value and gradient, in one run.

  python benchmarks/loss_benchmark.py                       # the whole table
  python benchmarks/loss_benchmark.py --sizes=0.65M --repeats=5
  python benchmarks/loss_benchmark.py --losses=rank_and_sort_loss,focal_loss
  python benchmarks/loss_benchmark.py --sizes= --step_config=configs/shapes.py
  python benchmarks/loss_benchmark.py --sizes=21M --hlo_dir=hlo --form=gpu

Rounds of all losses alternate, so that a busy machine slows them alike: compare ratios.
Times are medians over rounds. Memory is measured in a process for each loss.

Evaluations are timed inside of one compiled graph, in a loop in which each depends on the
one before, so that nothing is left out or done once for all. The time with fewer of them
is subtracted from that with more, and with it what calling and waiting for the device
take. "read and write" is the limit: it reads the logits and writes them, doubled.

Columns: milliseconds for value and gradient; ratio to the focal loss, and to the limit, of
the same case; MiB of peak memory above inputs and gradient, and its ratio to the logits'
bytes; seconds of the first call, less one call (tracing and compilation). The plain loop
over positives (eager TensorFlow, as in the paper's Algorithm 1) is timed on a few
positives, each scaled to all.

With --hlo_dir nothing is timed: each loss's value and gradient is written as a
serialized HLO module, <loss>-<size>.hlo, which XLA compiles without TensorFlow, on a
device that this machine lacks, say. Its inputs are the logits, the labels and, for losses
that take them, the qualities.

Regimes: early, all scores within 0.05; late, negatives N(-6, 1) and positives N(0, 2);
spread, all uniform in +-3 delta; clustered, positives within 1e-3 and negatives
uniform in +-3 delta.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import statistics
import subprocess
import sys
import time

from absl import flags

from ap_detect import command_line, provenance

_CLASSES = 80
_SIZES = {
  "8k": (8_000, 10),  # to try the command
  "0.65M": (655_360, 100),
  "2.6M": (2_619_200, 300),
  "5.2M": (5_238_400, 500),
  "21M": (20_951_040, 1000),
  "21M/10k": (20_951_040, 10_000),
}
_REGIMES = ("early", "late", "spread", "clustered")
_LIMIT = "read and write"
# Logits that a round goes over, in so many evaluations at most, so that it is long enough
# to be timed: of the limit, which takes less, so many times as many.
_LOGITS_OF_A_ROUND = {"cpu": 2**24, "gpu": 2**30}
_EVALUATIONS = 256
_TIMES_FOR_THE_LIMIT = 16
# What one call freed must not hide what the next one takes. TensorFlow with oneDNN keeps
# memory for itself, and so does malloc (mallopt(3)).
_GIVING_BACK = {"TF_ENABLE_ONEDNN_OPTS": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}

_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "where to run")
_FORM = flags.DEFINE_enum(
  "form", None, ["cpu", "gpu"], "form of the ranking losses; by default the device's"
)
_LOSSES = flags.DEFINE_list(
  "losses", ["ap_loss", "focal_loss"], "names of losses of ap_detect.losses"
)
_NAMES = flags.DEFINE_list("sizes", list(_SIZES)[1:], f"some of {', '.join(_SIZES)}")
_REGIME = flags.DEFINE_list("regimes", list(_REGIMES), f"some of {', '.join(_REGIMES)}")
_REPEATS = flags.DEFINE_integer("repeats", 7, "rounds to take the median of")
_LOOP = flags.DEFINE_integer(
  "loop_positives", 3, "positives of the plain loop; 0: none"
)
_STEP = flags.DEFINE_string(
  "step_config", "", "also time training steps of this config"
)
_HLO = command_line.define_path(
  "hlo_dir", "", "write each loss as HLO into this folder instead of timing it"
)
_CASE = flags.DEFINE_string("case", "", "internal: run one case, print it as JSON")
_report = provenance.define_flags()


def make_case(size, regime):
  """Inputs of the losses in one line of the table.

  Args:
    size: key of _SIZES.
    regime: one of _REGIMES.

  Returns:
    (logits [R, 80] float32, labels [R] int32, qualities [R] float32), NumPy arrays.
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
  return logits, labels, random.random(rows, np.float32)


def _value_and_gradient(name):
  """A loss in the form that was asked for, as a function of what make_case gives.

  Where the loss takes no qualities, they may be left out.
  """
  import tensorflow as tf

  from ap_detect import losses

  loss_function = losses.CLASSIFICATION_LOSSES[name]
  if "form" in inspect.signature(loss_function).parameters:
    loss_function = functools.partial(loss_function, form=_form())

  def value_and_gradient(logits, labels, *qualities):
    taken = {"qualities": qualities[0]} if _takes_qualities(name) else {}
    with tf.GradientTape() as tape:
      tape.watch(logits)
      loss = loss_function(logits, labels, **taken)
    return loss, tape.gradient(loss, logits)

  return value_and_gradient


def _takes_qualities(name):
  from ap_detect import losses

  return "qualities" in inspect.signature(losses.CLASSIFICATION_LOSSES[name]).parameters


def _form():
  return _FORM.value or _DEVICE.value


def _read_and_write(logits, labels, qualities):
  del labels, qualities
  return logits[0, 0], 2.0 * logits


def _compiled(function):
  import tensorflow as tf

  return tf.function(function, jit_compile=True, autograph=False)


def _repeated(function):
  """A function that evaluates another one again and again within one graph.

  Each time the last results are added to the first logit, times a zero that XLA does not
  know to be one. That is done in place, and behind a barrier: without it XLA copies the
  logits to change them while they are read, and does once for all what follows from the
  labels.

  Args:
    function: of (logits, labels, qualities) to (loss [], gradient of the logits).

  Returns:
    Function of (number of evaluations, 0.0, logits, labels, qualities) to the last
    results.
  """
  import tensorflow as tf
  from tensorflow.compiler.tf2xla.python import xla

  def evaluate(number, zero, logits, *others):
    def body(i, loss, gradient, logits):
      first = logits[:1, :1] + zero * (loss + gradient[:1, :1])
      logits = xla.dynamic_update_slice(logits, first, [0, 0])
      inputs = xla.optimization_barrier(logits, *others)
      return i + 1, *function(*inputs), inputs[0]

    begin = (0, 0.0, tf.zeros_like(logits), logits)
    return tf.while_loop(lambda i, *_: i < number, body, begin)[1:3]

  return _compiled(evaluate)


class _Timer:
  """Seconds that one evaluation of a function takes."""

  def __init__(self, function, inputs, times=1):
    import tensorflow as tf

    self._function = _repeated(function)
    self._inputs = (tf.constant(0.0), *inputs)
    number = -(-_LOGITS_OF_A_ROUND[_DEVICE.value] // inputs[0].shape.num_elements())
    number = self._number = times * min(number, _EVALUATIONS)
    if _DEVICE.value == "gpu":
      # Constants: in loops of unknown length, XLA waits for the GPU in every round.
      self._few, self._many = number, 2 * number
    else:
      # One graph for both is compiled once; a copy of the logits is made in either.
      self._few, self._many = tf.constant(0), tf.constant(number)

  def __call__(self):
    few, many = (
      _seconds(self._function, number, *self._inputs)
      for number in (self._few, self._many)
    )
    return round((many - few) / self._number, 8)


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


def _run_case(size, regime, only):
  """Times one case in this process; `only` measures the memory of one loss."""
  import tensorflow as tf

  if _DEVICE.value == "gpu" and not tf.config.list_physical_devices("GPU"):
    raise ValueError("--device=gpu: TensorFlow sees no GPU; nothing was measured")
  with tf.device(f"/{_DEVICE.value}:0"):
    inputs = [tf.identity(tf.constant(array)) for array in make_case(size, regime)]
    if only:
      return _compilation_and_memory(_compiled(_value_and_gradient(only)), inputs)
    timers = {name: _Timer(_value_and_gradient(name), inputs) for name in _LOSSES.value}
    timers[_LIMIT] = _Timer(_read_and_write, inputs, _TIMES_FOR_THE_LIMIT)
    for timer in timers.values():
      timer()  # compiles
    seconds = {name: [] for name in timers}
    for _ in range(_REPEATS.value):
      for name, timer in timers.items():
        seconds[name].append(timer())
    if _LOOP.value and "ap_loss" in timers:
      seconds["plain loop"] = _plain_loop(*inputs[:2], _LOOP.value)
  return {name: {"seconds": values} for name, values in seconds.items()}


def _compilation_and_memory(function, inputs):
  # The first call compiles, which takes memory of its own; the second is measured.
  first = _seconds(function, *inputs)
  if _DEVICE.value == "gpu":
    import tensorflow as tf

    info = tf.config.experimental
    info.reset_memory_stats("GPU:0")
    before = info.get_memory_info("GPU:0")["current"]
    second = _seconds(function, *inputs)
    peak = info.get_memory_info("GPU:0")["peak"]
  else:
    with open("/proc/self/clear_refs", "w") as file:
      file.write("5")  # resets the peak, VmHWM (proc(5))
    before = _status_bytes("VmRSS")
    second = _seconds(function, *inputs)
    peak = _status_bytes("VmHWM")
  memory = max(peak - before - 4 * inputs[0].shape.num_elements(), 0)
  return {"compile_seconds": round(first - second, 2), "memory_bytes": memory}


def _plain_loop(logits, labels, number):
  """Seconds that Algorithm 1 as a loop over positives takes, as each of a few says."""
  import tensorflow as tf

  positives = tf.where(labels > 0)[:, 0]
  classes = tf.gather(labels, positives) - 1
  own = tf.gather_nd(logits, tf.stack([positives, tf.cast(classes, tf.int64)], 1))
  gradient = tf.zeros_like(logits)
  seconds = []
  for score in own[: number + 1]:
    begin = time.perf_counter()
    steps = tf.clip_by_value((logits - score) / 2.0 + 0.5, 0.0, 1.0)
    gradient += steps / (1.0 + tf.reduce_sum(steps))
    gradient[:1].numpy()
    seconds.append(round((time.perf_counter() - begin) * len(positives), 4))
  # The first one loads what the others use.
  return seconds[1:]


def _in_own_process(size, regime, only=""):
  command = [
    sys.executable,
    __file__,
    f"--case={size}:{regime}:{only}",
    f"--losses={','.join(_LOSSES.value)}",
    f"--device={_DEVICE.value}",
    f"--form={_form()}",
    f"--repeats={_REPEATS.value}",
    f"--loop_positives={_LOOP.value}",
  ]
  environment = {**os.environ, **(_GIVING_BACK if only else {})}
  done = subprocess.run(
    command, env=environment, stdout=subprocess.PIPE, text=True, check=False
  )
  if done.returncode:
    raise ValueError(f"{' '.join(command)} failed with status {done.returncode}")
  return json.loads(done.stdout.splitlines()[-1])


def _print_table():
  """Prints the table as it is measured; returns its rows for the JSON file."""
  line = "{:8} {:10} {:24} {:>9} {:>8} {:>8} {:>8} {:>9} {:>10}"
  header = ("size", "regime", "loss", "ms", "x focal", "x limit", "MiB", "x logits")
  print(line.format(*header, "compile s"), flush=True)
  rows = []
  for size in _NAMES.value:
    number, positives = _SIZES[size]
    for regime in _REGIME.value:
      results = _in_own_process(size, regime)
      for name in _LOSSES.value:
        results[name].update(_in_own_process(size, regime, name))
      medians = {
        name: statistics.median(row["seconds"]) for name, row in results.items()
      }
      for name, row in results.items():
        figures = [1e3 * medians[name]]
        figures += [
          medians[name] / medians[other] if other in medians else None
          for other in ("focal_loss", _LIMIT)
        ]
        if "memory_bytes" in row:
          memory = row["memory_bytes"]
          figures += [memory / 2**20, memory / (4 * number), row["compile_seconds"]]
        figures += [None] * (6 - len(figures))
        texts = ("" if figure is None else f"{figure:.2f}" for figure in figures)
        print(line.format(size, regime, name, *texts), flush=True)
        case = {"size": size, "logits": number, "positives": positives}
        rows.append({**case, "regime": regime, "loss": name, **row})
  return rows


def main(_):
  """Prints the table; or, with --case, one case of it as JSON."""
  from ap_detect import losses

  for given, known in (
    (_NAMES.value, _SIZES),
    (_REGIME.value, _REGIMES),
    (_LOSSES.value, losses.CLASSIFICATION_LOSSES),
  ):
    if unknown := [name for name in given if name not in known]:
      raise ValueError(f"unknown {unknown}; there are {', '.join(known)}")
  if _CASE.value:
    print(json.dumps(_run_case(*_CASE.value.split(":"))))
    return
  if _HLO.value:
    _write_hlo(_HLO.value)
    return
  rows = _print_table() if _NAMES.value else []
  results = {"device": _DEVICE.value, "form": _form(), "rows": rows}
  if _STEP.value:
    import tensorflow as tf

    with tf.device(f"/{_DEVICE.value}:0"):
      results["steps"] = _print_step_share(_STEP.value)
  _report(results)


def _write_hlo(folder):
  import tensorflow as tf

  os.makedirs(folder, exist_ok=True)
  for size in _NAMES.value:
    rows = _SIZES[size][0] // _CLASSES
    inputs = tf.zeros([rows, _CLASSES]), tf.zeros([rows], tf.int32), tf.zeros([rows])
    for name in _LOSSES.value:
      function = _compiled(_value_and_gradient(name))
      taken = inputs if _takes_qualities(name) else inputs[:2]
      lower = function.experimental_get_compiler_ir(*taken)
      path = os.path.join(folder, f"{name}-{size.replace('/', '-')}.hlo")
      with open(path, "wb") as file:
        file.write(lower(stage="hlo_serialized"))
      print(path, flush=True)


def _print_step_share(config_path):
  """Prints each classification loss's share of a training step of a config.

  The step runs on noise with 8 objects an image. The loss is timed alone, value and
  gradient, on logits and labels of the step's size.

  Returns:
    List of {"config", "loss", "step_seconds", "loss_seconds"}.
  """
  import runpy

  from ap_detect import config as config_lib

  values = runpy.run_path(config_path)["get_config"]()
  values.model.backbone_weights = ""  # does not change the time
  values.data.root = values.data.root or "not read"
  found = []
  for name in _LOSSES.value:
    values.train.classification_loss = name
    step, loss = _step_seconds(config_lib.resolve(values))
    print(
      f"{config_path} {name}: step {1e3 * step:.1f} ms, loss {1e3 * loss:.1f} ms, "
      f"share {loss / step:.1%}",
      flush=True,
    )
    seconds = {"step_seconds": step, "loss_seconds": loss}
    found.append({"config": os.path.basename(config_path), "loss": name, **seconds})
  return found


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
  labels = matching.match_anchors(
    model_lib.make_anchors(config),
    batch["boxes"],
    batch["classes"],
    batch["ignored"],
    positive_iou=config.model.positive_iou,
    negative_iou=config.model.negative_iou,
    force_match=config.model.force_match,
  ).labels
  labels = tf.reshape(labels, [-1])
  logits = tf.random.stateless_normal([*labels.shape, classes], [0, 1]) - 4.6
  qualities = tf.random.stateless_uniform(labels.shape, [0, 2])
  function = _value_and_gradient(config.train.classification_loss)
  timer = _Timer(function, [logits, labels, qualities])
  steps, alone = [], []
  for _ in range(_REPEATS.value + 1):
    begin = time.perf_counter()
    step(next(batches))
    steps.append(time.perf_counter() - begin)
    alone.append(timer())
  # The first round compiles.
  return statistics.median(steps[1:]), statistics.median(alone[1:])


if __name__ == "__main__":
  command_line.run(main)
