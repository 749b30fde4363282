"""Each optimiser's step by its formula, its rate, and its state through a checkpoint."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.training import optimizers
from ap_detect.training import step as step_lib

try:
  import tensorflow_addons  # noqa: F401

  HAS_ADDONS = True
except ImportError:
  HAS_ADDONS = False

needs_addons = pytest.mark.skipif(
  not HAS_ADDONS, reason="tensorflow-addons cannot be imported with this TensorFlow"
)
ALL = [
  "sgd",
  "adam",
  pytest.param("sgdw", marks=needs_addons),
  pytest.param("lamb", marks=needs_addons),
]
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 0.05
START = np.array([1.0, -2.0, 0.5])
RATES = (0.05, 0.08, 0.1)
GRADIENTS = np.array([[0.3, -0.1, 0.2], [-0.4, 0.25, 0.15], [0.05, 0.6, -0.35]])


def oracle(name, weights, gradients):
  """Weights after the gradients, by the published formulas, in float64."""
  first, second = np.zeros_like(weights), np.zeros_like(weights)
  for step, gradient in enumerate(gradients, start=1):
    if name in ("sgd", "sgdw"):
      decay = WEIGHT_DECAY * weights if name == "sgdw" else 0.0
      first = MOMENTUM * first - LEARNING_RATE * gradient
      weights = weights + first - LEARNING_RATE * decay
      continue
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    mean, square = first / (1 - 0.9**step), second / (1 - 0.999**step)
    update = mean / (np.sqrt(square) + 1e-7)
    if name == "lamb":
      update = update + WEIGHT_DECAY * weights
      update *= np.linalg.norm(weights) / np.linalg.norm(update)
    weights = weights - LEARNING_RATE * update
  return weights


def make(name, learning_rate=LEARNING_RATE):
  return optimizers.make_optimizer(
    name, learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
  )


def apply(optimizer, weights, gradients, feed=None, rates=()):
  """Updates by each of the gradients, whose rates a Feed may set."""
  for index, gradient in enumerate(gradients):
    if feed:
      feed.set(rates[index], 0, index)
    optimizer.apply_gradients(
      [(tf.constant(gradient, tf.float32), weights)],
      experimental_aggregate_gradients=False,
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("num_steps", [1, 3])
def test_formula(name, num_steps):
  weights = tf.Variable(START, dtype=tf.float32)
  apply(make(name), weights, GRADIENTS[:num_steps])
  expected = oracle(name, START, GRADIENTS[:num_steps])
  np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_update_is_never_compiled(name):
  """Keras compiles these two on GPUs, unless told not to."""
  assert make(name).jit_compile is False


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("in_graph", [True, False])
def test_each_step_has_the_rate_that_it_is_fed(name, in_graph):
  """The first update after none is proportional to the rate, whatever came before."""
  moved = []
  for rate in (0.02, 0.1):
    feed = step_lib.Feed()
    optimizer = make(name, feed.learning_rate)
    weights = tf.Variable(START, dtype=tf.float32)
    optimizers.create_state(optimizer, [weights])

    def run(rate, gradient, optimizer=optimizer, weights=weights, feed=feed):
      feed.set(rate, 0, 0)
      optimizer.apply_gradients(
        [(gradient, weights)], experimental_aggregate_gradients=False
      )

    run = tf.function(run) if in_graph else run
    zero, gradient = (tf.constant(g, tf.float32) for g in (np.zeros(3), GRADIENTS[0]))
    run(tf.constant(0.0), zero)
    np.testing.assert_array_equal(weights.numpy(), START.astype(np.float32))
    run(tf.constant(rate), gradient)
    moved.append(weights.numpy() - START)
  np.testing.assert_allclose(5 * moved[0], moved[1], rtol=1e-3)
  assert np.abs(moved[1]).min() > 1e-3


@needs_addons
def test_decoupled_decay_follows_the_rate():
  """SGDW alone subtracts its decay unscaled; here the rate of the step scales it."""
  feed = step_lib.Feed()
  weights = tf.Variable(START, dtype=tf.float32)
  optimizer = make("sgdw", feed.learning_rate)
  apply(optimizer, weights, np.zeros((2, 3)), feed, (0.05, 0.075))
  # Rates 0.05 and 0.075, no gradient: only the decay is left.
  expected = START * (1 - 0.05 * WEIGHT_DECAY) * (1 - 0.075 * WEIGHT_DECAY)
  np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


@needs_addons
@pytest.mark.parametrize("name", ["sgdw", "lamb"])
@pytest.mark.parametrize("weight", ["kernel", "bias", "gamma", "beta"])
def test_decoupled_decay_may_spare_biases_and_norms(name, weight):
  start = tf.constant([1.0, -2.0])
  weights = tf.Variable(start, name=f"layer/{weight}")
  assert optimizers.is_decayed(weights) == (weight == "kernel")
  optimizer = optimizers.make_optimizer(
    name, 0.1, weight_decay=0.5, decay_all_weights=False
  )
  optimizer.apply_gradients([(tf.zeros(2), weights)])
  assert (weights.numpy() != start.numpy()).any() == (weight == "kernel")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("creates_state", [True, False])
def test_resumes_from_a_checkpoint(name, creates_state, tmp_path):
  def start():
    feed = step_lib.Feed()
    weights = tf.Variable(START, dtype=tf.float32)
    optimizer = make(name, feed.learning_rate)
    checkpoint = tf.train.Checkpoint(weights=weights, optimizer=optimizer)
    return weights, optimizer, checkpoint, feed

  weights, optimizer, checkpoint, feed = start()
  apply(optimizer, weights, GRADIENTS[:2], feed, RATES[:2])
  path = checkpoint.save(str(tmp_path / "state"))
  apply(optimizer, weights, GRADIENTS[2:], feed, RATES[2:])

  resumed, optimizer, checkpoint, feed = start()
  if creates_state:
    optimizers.create_state(optimizer, [resumed])
  status = checkpoint.restore(path)
  if creates_state:
    status.assert_consumed()
  assert int(optimizer.iterations.numpy()) == 2
  apply(optimizer, resumed, GRADIENTS[2:], feed, RATES[2:])
  np.testing.assert_array_equal(resumed.numpy(), weights.numpy())
  # And it could have failed: a fresh optimiser's third step is another one.
  fresh, other, _, feed = start()
  apply(other, fresh, GRADIENTS[:2], feed, RATES[:2])
  _, other, _, feed = start()
  apply(other, fresh, GRADIENTS[2:], feed, RATES[2:])
  assert np.abs(fresh.numpy() - weights.numpy()).max() > 1e-3


def test_unknown_name():
  with pytest.raises(ValueError, match="sgd, adam, sgdw or lamb, got 'rmsprop'"):
    make("rmsprop")


@pytest.mark.parametrize("name", ["sgdw", "lamb"])
def test_without_addons_the_alternatives_are_named(name, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "tensorflow_addons", None)
  with pytest.raises(ValueError) as caught:
    make(name)
  message = str(caught.value)
  assert repr(name) in message
  assert "tensorflow-addons" in message
  assert "Alternatives: 'sgd' and 'adam'" in message
