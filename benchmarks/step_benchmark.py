"""Times our training step beside that of another RetinaNet, in one run.

  python benchmarks/step_benchmark.py --peer=keras_cv                  # TensorFlow 2.15
  python benchmarks/step_benchmark.py --peer=keras_cv --loss=focal_loss
  python benchmarks/step_benchmark.py --peer=keras_hub                 # the newest
  python benchmarks/step_benchmark.py --peer=keras_hub --loss=focal_loss

Bar: a median ratio of ours to the peer's of at most 1.05, for both losses and peers.

keras-hub comes with '.[test]' from Python 3.12 on. It runs on Keras 3, in the same
process as our Keras 2.

Both train a ResNet-50 RetinaNet for 20 classes by SGD with momentum, with the same
random images and boxes, the same treatment of batch normalisation and the same number
of anchors. Ours is the step of `trainer.train`, called from outside with one batch of
the strategy's dataset; the peer's is its train_function, as `fit` calls it, always with
the focal loss, for it has no AP-loss. Ours also decays the weights and measures the
gradient's norm. After each step its loss is read. Steps alternate, so that a busy
machine slows them alike.

Where the peers leave no choice, ours follows: 9 anchors a cell and 3 hidden
convolutions a head for keras-cv; 6 and 4, our own defaults, for KerasHub. Both get
Keras' own ResNet-50, which is ours, unless --peer_resnet: keras-cv's has no biases,
which ours adds and differentiates in 53 layers; KerasHub's has none either, but its
strides come one convolution later, which is more work.

XLA compiles both on GPUs and neither on CPUs, our rule; --peer_jit_compile is
KerasHub's own, which compiles everywhere.
"""

from __future__ import annotations

import importlib.util
import statistics
import time

import kerashub_peer
from absl import flags

from ap_detect import command_line, provenance

_BAR = 1.05
_CLASSES = 20
_PEER = flags.DEFINE_enum(
  "peer", "keras_cv", ["keras_cv", "keras_hub"], "Whose RetinaNet to compare with."
)
_LOSS = flags.DEFINE_enum(
  "loss", "ap_loss", ["ap_loss", "focal_loss"], "Our classification loss."
)
_PAIRS = flags.DEFINE_integer("pairs", 30, "Pairs of steps to time.", lower_bound=2)
_WARM_UP = flags.DEFINE_integer("warm_up", 3, "Pairs before them.", lower_bound=1)
_SIZE = flags.DEFINE_integer("image_size", 256, "Side of the images, pixels.")
_BATCH = flags.DEFINE_integer("batch_size", 4, "Images a step.", lower_bound=1)
_FREEZE = flags.DEFINE_bool(
  "freeze_batch_norm", False, "Whether batch normalisation is frozen, in both."
)
_OWN_RESNET = flags.DEFINE_bool(
  "peer_resnet", False, "Whether the peer's network has the peer's own ResNet-50."
)
_PEER_JIT = flags.DEFINE_bool(
  "peer_jit_compile", False, "Whether XLA compiles the peer's step on CPUs, too."
)
_report = provenance.define_flags()


def main(_):
  if importlib.util.find_spec(_PEER.value) is None:
    name = _PEER.value.replace("_", "-")
    raise ValueError(f"--peer={_PEER.value} needs {name}: pip install {name}")
  steps = {"ours": _make_ours(), "peer": _make_peer()}
  for step in steps.values():
    step()  # builds the graph
  rounds = [_time_pair(steps) for _ in range(_WARM_UP.value + _PAIRS.value)]
  result = _summarize(rounds[_WARM_UP.value :])
  _print(result)
  _report(result, ["keras", _PEER.value.replace("_", "-")])


def _time_pair(steps):
  """{name: seconds} of one step each."""
  seconds = {}
  for name, step in steps.items():
    begin = time.perf_counter()
    step()
    seconds[name] = time.perf_counter() - begin
  return seconds


def _make_ours():
  """Function that does one step of ours and returns its loss."""
  import training_step

  from ap_detect.runs import replicas

  config = _config()
  strategy = replicas.make_strategy(1)
  step = training_step.make_step(config, _CLASSES, strategy)
  batches = training_step.distribute(strategy, training_step.noise(config, _CLASSES))
  return lambda: step(next(batches))


def _config():
  from ap_detect import config as config_lib

  values = config_lib.default_config()
  values.data.root = "not read"
  values.data.image_size_px = (_SIZE.value, _SIZE.value)
  # Says that batch normalisation is frozen; the weights themselves are not read.
  values.model.backbone_weights = "imagenet" if _FREEZE.value else ""
  values.model.frozen_levels = 0
  if _PEER.value == "keras_cv":
    values.model.anchor_octave_scales = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    values.model.head_convolutions = 3
  values.train.batch_size = _BATCH.value
  values.train.classification_loss = _LOSS.value
  return config_lib.resolve(values)


def _make_peer():
  """Function that does one step of the peer and returns its loss."""
  import tensorflow as tf
  import training_step

  is_compiled = _PEER_JIT.value or bool(tf.config.list_physical_devices("GPU"))
  batch = training_step.noise(_config(), _CLASSES)
  # The peers count classes from 0.
  boxes, classes = batch["boxes"], tf.cast(batch["classes"] - 1, tf.float32)
  if _PEER.value == "keras_cv":
    model = _build_keras_cv(is_compiled)
    batch = {
      "images": batch["image"],
      "bounding_boxes": {"boxes": boxes, "classes": classes},
    }
  else:
    model = _build_keras_hub(is_compiled)
    batch = batch["image"], {"boxes": boxes, "labels": classes}
  iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
  train = model.make_train_function() or model.train_function
  return lambda: float(train(iterator)["loss"])


def _build_keras_cv(is_compiled):
  import keras_cv
  import tensorflow as tf

  if _OWN_RESNET.value:
    backbone = keras_cv.models.ResNetBackbone(
      stackwise_filters=[64, 128, 256, 512],
      stackwise_blocks=[3, 4, 6, 3],
      stackwise_strides=[1, 2, 2, 2],
      include_rescaling=True,
    )
  else:
    backbone = tf.keras.applications.ResNet50(include_top=False, weights=None)
    backbone.pyramid_level_inputs = kerashub_peer.RESNET_ENDS
  model = keras_cv.models.RetinaNet(
    backbone, num_classes=_CLASSES, bounding_box_format="yxyx"
  )
  _freeze(model.submodules, tf.keras.layers.BatchNormalization)
  model.compile(
    box_loss="smoothl1",
    classification_loss="focal",
    optimizer=tf.keras.optimizers.SGD(1e-6, momentum=0.9),
    jit_compile=is_compiled,
  )
  return model


def _build_keras_hub(is_compiled):
  import keras

  model = kerashub_peer.build(_CLASSES, own_resnet=_OWN_RESNET.value)
  _freeze(model.backbone.image_encoder.layers, keras.layers.BatchNormalization)
  model.compile(
    optimizer=keras.optimizers.SGD(1e-6, momentum=0.9), jit_compile=is_compiled
  )
  return model


def _freeze(layers, batch_normalization):
  for layer in layers:
    if _FREEZE.value and isinstance(layer, batch_normalization):
      layer.trainable = False


def _summarize(rounds):
  """The figures of the timed pairs."""
  ratios = [seconds["ours"] / seconds["peer"] for seconds in rounds]
  return {
    "peer": _PEER.value,
    "loss": _LOSS.value,
    "batch": f"{_BATCH.value} images of {_SIZE.value} px",
    "batch_norm": "frozen" if _FREEZE.value else "trained",
    "peer_resnet": "its own" if _OWN_RESNET.value else "ours",
    "ratio_quartiles": statistics.quantiles(ratios, n=4),
    "median_seconds": {
      name: statistics.median(seconds[name] for seconds in rounds)
      for name in ("ours", "peer")
    },
    "seconds": rounds,
  }


def _print(result):
  lower, median, upper = result["ratio_quartiles"]
  seconds = result["median_seconds"]
  print(
    f"{result['batch']}, batch normalisation {result['batch_norm']}, the peer's "
    f"ResNet-50 {result['peer_resnet']}"
  )
  print(
    f"{result['loss']} beside {result['peer']}: ratio {median:.3f} (quartiles "
    f"{lower:.3f} to {upper:.3f}, {len(result['seconds'])} pairs); ours "
    f"{seconds['ours']:.3f} s, the peer's {seconds['peer']:.3f} s; the bar is {_BAR}"
  )


if __name__ == "__main__":
  command_line.run(main)
