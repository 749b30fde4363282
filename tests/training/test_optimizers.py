"""Each optimiser's step by its formula, and its state through a checkpoint."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.training import optimizers, schedules

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


def apply(optimizer, weights, gradients):
  for gradient in gradients:
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


@needs_addons
def test_decoupled_decay_follows_the_schedule():
  """SGDW alone subtracts its decay unscaled; here the rate of the step scales it."""
  schedule = schedules.WarmupSchedule(0.1, warmup_steps=2, warmup_start_factor=0.5)
  weights = tf.Variable(START, dtype=tf.float32)
  apply(make("sgdw", schedule), weights, np.zeros((2, 3)))
  # Rates 0.05 and 0.075, no gradient: only the decay is left.
  expected = START * (1 - 0.05 * WEIGHT_DECAY) * (1 - 0.075 * WEIGHT_DECAY)
  np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("creates_state", [True, False])
def test_resumes_from_a_checkpoint(name, creates_state, tmp_path):
  def start():
    schedule = schedules.WarmupSchedule(0.1, warmup_steps=5)
    weights = tf.Variable(START, dtype=tf.float32)
    optimizer = make(name, schedule)
    return weights, optimizer, tf.train.Checkpoint(weights=weights, optimizer=optimizer)

  weights, optimizer, checkpoint = start()
  apply(optimizer, weights, GRADIENTS[:2])
  path = checkpoint.save(str(tmp_path / "state"))
  apply(optimizer, weights, GRADIENTS[2:])

  resumed, optimizer, checkpoint = start()
  if creates_state:
    optimizers.create_state(optimizer, [resumed])
  status = checkpoint.restore(path)
  if creates_state:
    status.assert_consumed()
  assert int(optimizer.iterations.numpy()) == 2
  apply(optimizer, resumed, GRADIENTS[2:])
  np.testing.assert_array_equal(resumed.numpy(), weights.numpy())
  # And it could have failed: a fresh optimiser's third step is another one.
  fresh, other, _ = start()
  fresh.assign(START)
  apply(other, fresh, GRADIENTS[:2])
  apply(start()[1], fresh, GRADIENTS[2:])
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
