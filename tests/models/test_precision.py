"""A network whose hidden layers compute in bfloat16: what does, and what does not."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.runs import model as model_lib
from ap_detect.training import trainer


def build(config, precision):
  tf.keras.utils.set_random_seed(0)
  return model_lib.build_network(config, 3, pretrained=False, precision=precision)


@pytest.fixture(scope="module", params=["five_convolutions", "csp_darknet_nano"])
def networks(request, make_config):
  config = make_config({"model.backbone": request.param})
  return {name: build(config, name) for name in ("float32", "bfloat16")}


def test_layers_compute_in_it_but_the_first_and_the_last(networks):
  network = networks["bfloat16"]
  kinds = {
    layer.name: layer.compute_dtype
    for layer in network.submodules
    if isinstance(layer, tf.keras.layers.Conv2D)
  }
  outputs = {"class_head_output", "box_head_output"}
  assert {kinds.pop(name) for name in outputs} == {"float32"}
  assert set(kinds.values()) == {"bfloat16"} and len(kinds) > 5
  (first,) = [
    layer for layer in network.submodules if layer.name == "input_normalization"
  ]
  images = tf.random.uniform([1, 64, 64, 3], maxval=255)
  assert first(images).dtype == tf.float32
  assert {weight.dtype for weight in network.weights} == {tf.float32}


def test_outputs_and_gradients_are_float32_and_near(networks):
  images = np.random.default_rng(0).uniform(0, 255, [2, 128, 128, 3])
  images = images.astype(np.float32)
  exact, rounded = (networks[name] for name in ("float32", "bfloat16"))
  for weight, value in zip(rounded.weights, exact.weights):
    weight.assign(value)
  gradients = []
  for network in (exact, rounded):
    with tf.GradientTape() as tape:
      # Not in training: of two images alone, batch norm magnifies any rounding.
      outputs = network(images, training=False)
      total = tf.add_n([tf.reduce_sum(tf.square(output)) for output in outputs])
    assert {output.dtype for output in outputs} == {tf.float32}
    gradients.append(tape.gradient(total, network.trainable_weights))
  assert {gradient.dtype for gradient in gradients[1]} == {tf.float32}
  expected, found = (
    np.concatenate([np.ravel(g).astype(np.float64) for g in gs]) for gs in gradients
  )
  cosine = found @ expected / (np.linalg.norm(found) * np.linalg.norm(expected))
  assert cosine > 0.9  # an untrained network of 30 layers adds up its roundings
  # It is bfloat16 that was computed in.
  assert (found != expected).any()


def test_policy_is_as_before(make_config):
  build(make_config(), "bfloat16")
  assert tf.keras.mixed_precision.global_policy().name == "float32"


@pytest.mark.slow
def test_a_run_learns_and_is_used_in_float32(make_config, tmp_path):
  changes = {"train.precision": "bfloat16", "train.jit_compile": "always"}
  changes["train.epochs"] = 1
  changes["train.classification_loss"] = "ap_loss"
  trainer.train(make_config(changes), str(tmp_path))
  network = model_lib.restore(str(tmp_path)).network
  assert network.get_layer("fpn_lateral3").compute_dtype == "float32"
  outputs = network(tf.random.uniform([1, 128, 128, 3], maxval=255))
  assert all(tf.reduce_all(tf.math.is_finite(output)) for output in outputs)
