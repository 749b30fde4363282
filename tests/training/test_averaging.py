"""Averaged weights: the average itself, what is saved of it, and who uses it."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.runs import folder
from ap_detect.runs import model as model_lib
from ap_detect.training import averaging, evaluation_files, trainer

DECAY = 0.5
# The rate does not depend on the number of epochs, so that a run may end early and go on.
CHANGES = {"train.ema_decay": DECAY, "train.schedule": "constant"}


def make_network():
  return tf.keras.Sequential(
    [tf.keras.layers.Dense(3, input_shape=(2,)), tf.keras.layers.BatchNormalization()]
  )


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_average_by_hand(make_strategy, replicas, decay):
  strategy = make_strategy(replicas)
  with strategy.scope():
    network = make_network()
    averages = averaging.AveragedWeights(network, decay)
  update = tf.function(averages.update)
  rng = np.random.default_rng(0)
  expected = [weight.numpy().astype(np.float64) for weight in network.trainable_weights]
  for step in range(5):
    for place, weight in enumerate(network.trainable_weights):
      value = rng.normal(size=weight.shape)
      with strategy.scope():
        weight.assign(value)
      d = min(decay, (1 + step + 1) / (10 + step + 1))
      expected[place] = d * expected[place] + (1 - d) * value
    update(tf.constant(step))
  for average, value in zip(averages.variables, expected):
    for local in strategy.experimental_local_results(average):
      np.testing.assert_allclose(local.numpy(), value, rtol=1e-5, atol=1e-6)


def test_the_network_has_it_for_a_while(make_strategy):
  with make_strategy().scope():
    network = make_network()
    averages = averaging.AveragedWeights(network, DECAY)
    plain = [weight.numpy() for weight in network.weights]
    for average in averages.variables:
      average.assign(average + 1)
  with averages.in_use():
    for weight, value in zip(network.trainable_weights, averages.variables):
      np.testing.assert_array_equal(weight.numpy(), value.numpy())
  for weight, value in zip(network.weights, plain):
    np.testing.assert_array_equal(weight.numpy(), value)


@pytest.fixture(scope="module")
def run(make_config, tmp_path_factory):
  """Folder of a run that keeps averages."""
  model_dir = str(tmp_path_factory.mktemp("averaged") / "run")
  trainer.train(make_config(CHANGES), model_dir)
  return model_dir


def weights_of(model_dir, checkpoint="", **options):
  network = model_lib.restore(model_dir, checkpoint, **options).network
  return [weight.numpy() for weight in network.trainable_weights]


@pytest.mark.parametrize("checkpoint", ["", "latest"])
def test_a_run_opened_again_has_averages_or_not(run, checkpoint):
  path = folder.find_checkpoint(run, checkpoint)
  reader = tf.train.load_checkpoint(path)
  averaged, plain = (
    weights_of(run, checkpoint, averaged_weights=flag) for flag in (True, False)
  )
  for place, (average, weight) in enumerate(zip(averaged, plain)):
    saved = reader.get_tensor(f"averaged_weights/{place}/.ATTRIBUTES/VARIABLE_VALUE")
    np.testing.assert_array_equal(average, saved)
    assert (average != weight).any()
  assert model_lib.restore(run, checkpoint).has_averages
  assert not model_lib.restore(run, checkpoint, averaged_weights=False).has_averages


def test_a_run_without_them_has_none(trained_run):
  assert not model_lib.restore(trained_run).has_averages


def test_validation_judged_the_averages(run):
  found = evaluation_files.evaluate_run(run).metrics
  record = folder.read_record(folder.find_checkpoint(run, ""))
  assert found == pytest.approx(record["best"]["metrics"], abs=1e-6)


@pytest.mark.slow
def test_training_goes_on_as_if_it_had_not_stopped(make_config, run, tmp_path):
  """Weights are as without averages, which change nothing but what is judged."""
  plain = str(tmp_path / "plain")
  trainer.train(make_config({**CHANGES, "train.ema_decay": 0.0}), plain)
  for weight, expected in zip(
    weights_of(run, "latest", averaged_weights=False), weights_of(plain, "latest")
  ):
    np.testing.assert_allclose(weight, expected, atol=1e-6)
  stopped = str(tmp_path / "stopped")
  trainer.train(make_config({**CHANGES, "train.epochs": 2}), stopped)
  trainer.train(make_config(CHANGES), stopped)
  for weight, expected in zip(weights_of(stopped, "latest"), weights_of(run, "latest")):
    np.testing.assert_allclose(weight, expected, atol=1e-6)
