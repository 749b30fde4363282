"""The compiled training step and AP-loss go through XLA's compiler for GPUs, without a GPU."""

import json
import os
import pathlib
import runpy
import subprocess

import pytest
import tensorflow as tf

from ap_detect import config as config_lib
from ap_detect import losses, matching
from ap_detect.runs import model as model_lib
from ap_detect.training import optimizers, trainer
from ap_detect.training import step as step_lib

_HERE = pathlib.Path(__file__).parent
_PYTHON = os.environ.get("AP_DETECT_JAX_PYTHON", "")
_CLASSES = 20

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    not _PYTHON,
    reason="AP_DETECT_JAX_PYTHON does not name a Python with the packages that "
    "tests/training/compile_for_gpu.py lists",
  ),
]


def _compile(function, specs, folder):
  """The figures that compile_for_gpu.py prints of a function; else RuntimeError."""
  function = tf.function(function, jit_compile=True, autograph=False)
  path = folder / "module.hlo"
  path.write_bytes(
    function.experimental_get_compiler_ir(*specs)(stage="hlo_serialized")
  )
  command = [_PYTHON, _HERE / "compile_for_gpu.py", path, _HERE / "h100.txtpb"]
  # Its packages are other ones than ours.
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=False
  )
  if done.returncode:
    raise RuntimeError(done.stderr)
  print(done.stdout)
  return json.loads(done.stdout.splitlines()[-1])


def _make_replica_step(config):
  """What TrainingStep compiles: (images, labels, box targets, ...) -> gradients."""
  strategy = tf.distribute.MirroredStrategy(["CPU:0"])
  with strategy.scope():
    network = model_lib.build_network(
      config, _CLASSES, pretrained=False, precision=config.train.precision
    )
    feed = step_lib.Feed()
    optimizer = optimizers.make_optimizer("sgd", feed.learning_rate)
    optimizers.create_state(optimizer, network.trainable_variables)
    step = trainer.make_step(config, network, optimizer, feed, strategy)

  def differentiate(images, labels, box_targets, num_unmatched_objects, box_divisor):
    targets = matching.Targets(labels, box_targets, num_unmatched_objects)
    return step._differentiate(images, targets, box_divisor)

  return differentiate


_IMAGES, _ANCHORS = 8, 32736


def _compile_step(folder, precision):
  """The figures of the step of ResNet-50 on 8 images of 512 x 512."""
  # With pretrained weights, batch normalisation is frozen: the step assigns nothing,
  # and so can be exported. The weights themselves are not read.
  values = runpy.run_path(_HERE.parents[1] / "configs/voc07_r50.py")["get_config"]()
  values.data.root = "not read"
  values.train.jit_compile = "always"
  values.train.precision = precision
  # As on a GPU; the devices here are CPUs.
  values.train.loss_options = {**values.train.loss_options, "form": "gpu"}
  config = config_lib.resolve(values)
  assert config.train.batch_size == _IMAGES
  assert len(model_lib.make_anchors(config)) == _ANCHORS
  specs = [
    tf.TensorSpec([_IMAGES, 512, 512, 3]),
    tf.TensorSpec([_IMAGES, _ANCHORS], tf.int32),
    tf.TensorSpec([_IMAGES, _ANCHORS, 4]),
    tf.TensorSpec([], tf.int32),
    tf.TensorSpec([]),
  ]
  return _compile(_make_replica_step(config), specs, folder)


@pytest.fixture(scope="module")
def float32_step(tmp_path_factory):
  return _compile_step(tmp_path_factory.mktemp("float32"), "float32")


def test_training_step_compiles_for_an_h100(float32_step):
  figures = float32_step
  calls = figures["library_calls"]
  assert figures["kernels"] > sum(calls.values()) > 0
  # ResNet-50 has 53 convolutions, 11 of them in C1 and C2, which are frozen; the
  # pyramid has 8; each of the two heads has 5, on 5 levels. cuDNN has to compute the
  # gradient of every one of them by its weights, and of the frozen ones none.
  assert calls["__cudnn$convBackwardFilter"] == (53 - 11) + 8 + 2 * 5 * 5
  # The ranking's tables are float64, which is slow; nothing of the logits' size may be.
  assert 0 < figures["largest_float64"] < _IMAGES * _ANCHORS * _CLASSES
  # A GPU with a quarter of an H100's memory has room for it.
  assert figures["argument_bytes"] + figures["temporary_bytes"] < 20e9


def test_bfloat16_takes_less_memory(float32_step, tmp_path):
  figures = _compile_step(tmp_path, "bfloat16")
  calls = figures["library_calls"]
  assert calls["__cudnn$convBackwardFilter"] == (53 - 11) + 8 + 2 * 5 * 5
  assert figures["temporary_bytes"] <= 0.65 * float32_step["temporary_bytes"]


def test_ap_loss_in_the_form_for_gpus(tmp_path):
  anchors, classes = 261_888, 80
  logits_bytes = 4 * anchors * classes

  def value_and_gradient(logits, labels):
    return losses.ap_loss_and_gradient(logits, labels, form="gpu")

  specs = [tf.TensorSpec([anchors, classes]), tf.TensorSpec([anchors], tf.int32)]
  figures = _compile(value_and_gradient, specs, tmp_path)
  # The first branch is that of few positives. No loop: the host is not waited for.
  assert figures["first_branches"]["unknown_loops"] == 0
  assert 0 < figures["first_branches"]["kernels"] <= 90
  assert figures["temporary_bytes"] <= 2 * logits_bytes
  # Floats that are added in any order would give other bits every time.
  assert figures["float_scatter"] < anchors
  # XLA folds conversions away, but not the two two-sums of 4 subtractions each that
  # decide whether a knot is rounded up: lower and upper knots, at 3 capacities.
  assert figures["float32_guards"].count(8) >= 2 * 3


def test_what_is_counted(tmp_path):
  def compute(x, at, is_first):
    x = tf.cond(
      is_first,
      lambda: tf.tensor_scatter_nd_add(x, at, tf.gather(x, at[:, 0])),
      lambda: tf.while_loop(
        lambda x: tf.reduce_sum(x) < 1e3, lambda x: [tf.sort(x) * 2], [x]
      )[0],
    )
    # A loop that the first branches do not leave out.
    return tf.while_loop(
      lambda x: tf.reduce_max(x) < 1e3, lambda x: [tf.sort(x) * 2], [x]
    )[0]

  specs = [
    tf.TensorSpec([700]),
    tf.TensorSpec([300, 1], tf.int32),
    tf.TensorSpec([], tf.bool),
  ]
  figures = _compile(compute, specs, tmp_path)
  assert figures["float_scatter"] == 300
  assert figures["first_branches"]["unknown_loops"] == 1
  assert 0 < figures["first_branches"]["kernels"] < figures["kernels"]
  assert figures["float32_guards"] == []


def test_convolution_that_no_gpu_has_fails(tmp_path):
  # CPUs convolve int32, and TensorFlow exports it without a word.
  def convolve(images):
    return tf.nn.conv2d(images, tf.ones([3, 3, 3, 5], tf.int32), 1, "SAME")

  with pytest.raises(RuntimeError, match="Unsupported convs"):
    _compile(convolve, [tf.TensorSpec([1, 4, 4, 3], tf.int32)], tmp_path)
