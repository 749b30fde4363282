"""What is named as the first tensor that is not finite, where one was planted."""

import numpy as np
import pytest
import tensorflow as tf
from training import test_step

from ap_detect.runs import model as model_lib
from ap_detect.training import diagnosis, trainer
from ap_detect.training import step as step_lib

NUM_CLASSES = 3
SMALL = {"data.image_size_px": (64, 64)}


def nan_loss(logits, labels):
  return tf.reduce_mean(logits) * float("nan")


@tf.custom_gradient
def finite_loss_with_nan_gradient(logits, labels):
  return tf.reduce_mean(logits), lambda upstream: (
    tf.fill(tf.shape(logits), float("nan")),
    None,
  )


class BrokenBackwards(tf.keras.layers.Layer):
  """Passes on what it gets; its gradient is infinite."""

  def call(self, features):
    return _pass_on(features)


@tf.custom_gradient
def _pass_on(features):
  return tf.identity(features), lambda upstream: upstream * float("inf")


def build(config, strategy=None):
  """(network, TrainingStep); always the same weights. None is one device."""
  strategy = strategy or tf.distribute.get_strategy()
  with strategy.scope():
    tf.keras.utils.set_random_seed(0)
    network = model_lib.build_network(config, NUM_CLASSES, pretrained=False)
    return network, make_step(config, network, strategy)


def make_step(config, network, strategy):
  feed = step_lib.Feed()
  optimizer = trainer.make_optimizer(config.train, feed, network)
  return trainer.make_step(config, network, optimizer, feed, strategy)


@pytest.fixture(scope="module")
def parts(make_config):
  """(network, TrainingStep) that tests share, and leave as they are."""
  return build(make_config({**SMALL, "train.jit_compile": "never"}))


@pytest.fixture(scope="module")
def examine(parts, make_config):
  """Function of a loss, changes of the network and a batch to what is found."""
  network, usual_step = parts

  def run(loss=None, spoil=lambda network: None, batch=None):
    step = usual_step
    if loss:
      changes = {"train.classification_loss": loss, "train.jit_compile": "never"}
      config = make_config({**SMALL, **changes})
      step = make_step(config, network, tf.distribute.get_strategy())
    before = network.get_weights()
    spoil(network)
    found = diagnosis.examine(step, network, batch or tensors(make_batch(1)), 7)
    network.set_weights(before)
    return found

  return run


def make_batch(seed):
  return test_step.make_batch(seed, side=64)


def tensors(batch):
  return {name: tf.constant(value) for name, value in batch.items()}


def test_gradients_are_those_of_the_step(make_config, make_strategy):
  """Of SGD without decay and clipping, the update shows them."""
  config = make_config(
    {
      **SMALL,
      **{"train.optimizer": "sgd", "train.momentum": 0.0, "train.weight_decay": 0.0},
      **{"train.clip_norm": 0.0, "train.classification_loss": "ap_loss"},
      "train.jit_compile": "never",
    }
  )
  batch = make_batch(1)
  _, step = build(config)
  found = step.differentiate(tensors(batch), 0, list)
  strategy = make_strategy()
  same, same_step = build(config, strategy)
  before = test_step.weights_of(same)
  logs = test_step.one_step(same_step, strategy, [batch], rate=0.1)
  assert float(found.scalars.means["total_loss"]) == pytest.approx(logs["total_loss"])
  moved = [(a - b) / 0.1 for a, b in zip(before, test_step.weights_of(same))]
  assert max(np.abs(value).max() for value in moved) > 0.1
  for gradient, value in zip(found.weight_gradients, moved):
    np.testing.assert_allclose(gradient, value, rtol=1e-3, atol=1e-4)


def test_all_finite(examine):
  found = examine("ap_loss")
  assert found.first_non_finite is None
  assert found.verdict() == "all tensors are finite"
  groups = list(dict.fromkeys(part.group for part in found.ranges))
  assert groups == [
    *("batch", "weights", "forward pass", "losses", "gradient of the losses"),
    *("backward pass", "gradient of the weights", "moving statistics"),
  ]
  rows = found.table().splitlines()
  assert [row[:23].strip() for row in rows[1:]] == groups
  (image,) = [part for part in found.ranges if part.name == "image"]
  values = make_batch(1)["image"]
  assert (image.low, image.high) == (values.min(), values.max())
  # Five convolutions, then the heads' calls on five levels.
  names = [part.name for part in found.ranges if part.group == "forward pass"]
  assert "output of layer class_head_output (Conv2D), call 5" in names
  assert names.index("output of layer input_normalization (InputNormalization)") == 0


class TestFirst:
  def test_an_image(self, examine):
    batch = make_batch(1)
    batch["image"][0, 3, 4, 1] = np.nan
    found = examine(batch=tensors(batch)).first_non_finite
    assert (found.group, found.name) == ("batch", "image")
    assert (found.num_nan, found.num_infinite) == (1, 0)

  def test_a_weight(self, examine):
    def spoil(network):
      layer = network.get_layer("class_head_conv0")
      layer.bias.assign(tf.fill(layer.bias.shape, float("inf")))

    found = examine(spoil=spoil).first_non_finite
    assert (found.group, found.num_infinite) == ("weights", 16)
    assert "class_head_conv0/bias" in found.name

  def test_a_layer_that_overflows(self, examine):
    def spoil(network):
      for name in ("class_head_conv0", "class_head_output"):
        kernel = network.get_layer(name).kernel
        kernel.assign(tf.fill(kernel.shape, 1e25))

    found = examine(spoil=spoil)
    first = found.first_non_finite
    assert first.group == "forward pass"
    assert first.name.startswith("output of layer class_head_output (Conv2D)")
    assert first.of_what.startswith("computed of input from ")
    assert "kernel:0 from 1e+25 to 1e+25" in first.of_what
    assert first.describe() in found.verdict()

  def test_a_loss(self, examine):
    found = examine(f"{__name__}.nan_loss").first_non_finite
    assert (found.group, found.name) == ("losses", "total_loss")

  def test_a_loss_s_gradient(self, examine):
    first = examine(f"{__name__}.finite_loss_with_nan_gradient").first_non_finite
    assert (first.group, first.name) == (
      *("gradient of the losses", "by the class logits"),
    )

  def test_a_layer_in_the_backward_pass(self, parts, make_config):
    """The gradient by what goes into the broken layer, which is the one before it."""
    network, _ = parts
    features = tf.keras.layers.Conv2D(3, 3, padding="same", name="before")
    images = tf.keras.Input((64, 64, 3))
    outputs = network(BrokenBackwards(name="broken")(features(images)))
    whole = tf.keras.Model(images, outputs)
    config = make_config({**SMALL, "train.jit_compile": "never"})
    step = make_step(config, whole, tf.distribute.get_strategy())
    found = diagnosis.examine(step, whole, tensors(make_batch(1)), 0).first_non_finite
    assert found.group == "backward pass"
    assert found.name == "by the output of layer before (Conv2D)"
    assert found.of_what == "which goes into layer broken (BrokenBackwards)"

  def test_statistics_that_a_step_does_not_use_come_last(self, examine):
    def spoil(network):
      for weight in network.non_trainable_weights:
        if "moving_mean" in weight.name:
          weight.assign(tf.fill(weight.shape, float("nan")))

    found = examine(spoil=spoil).first_non_finite
    assert found.group == "moving statistics"


def test_the_network_is_as_before(parts):
  network, step = parts
  layers = [m for m in network.submodules if isinstance(m, tf.keras.layers.Layer)]
  own = [vars(layer).get("call") for layer in layers]
  before = test_step.weights_of(network)
  first = diagnosis.examine(step, network, tensors(make_batch(1)), 0)
  assert [vars(layer).get("call") for layer in layers] == own
  for weight, value in zip(network.trainable_weights, before):
    np.testing.assert_array_equal(weight.numpy(), value)
  # Not the names alone: the statistics that changed are used by no step.
  again = diagnosis.examine(step, network, tensors(make_batch(1)), 0)
  assert [*first.ranges[:-10]] == [*again.ranges[:-10]]
