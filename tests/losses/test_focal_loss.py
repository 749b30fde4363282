import numpy as np
import pytest
import tensorflow as tf
from oracles import focal_loss as oracle

from ap_detect import losses


def run(logits, labels, **options):
  logits = tf.convert_to_tensor(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.focal_loss(logits, labels, **options)
  return loss, tape.gradient(loss, logits)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_against_the_oracle(alpha, gamma, scale, jit_compile):
  random = np.random.default_rng(0)
  logits = (random.normal(size=[40, 4]) * scale).astype(np.float32)
  labels = random.integers(-1, 5, 40)
  expected = oracle.focal_loss(logits.astype(np.float64), labels, alpha, gamma)
  function = tf.function(run, jit_compile=jit_compile)
  loss, gradient = function(logits, labels, alpha=alpha, gamma=gamma)
  assert loss.dtype == tf.float32
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
  np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-7)


def test_gradient_is_the_derivative():
  random = np.random.default_rng(1)
  logits = random.normal(size=[3, 2]).astype(np.float32)
  labels = np.array([1, 0, 2])
  _, gradient = run(logits, labels)
  for at in np.ndindex(3, 2):
    step = np.zeros([3, 2])
    step[at] = 1e-5
    above = oracle.focal_loss(logits + step, labels, 0.25, 2.0)[0]
    below = oracle.focal_loss(logits - step, labels, 0.25, 2.0)[0]
    assert gradient.numpy()[at] == pytest.approx((above - below) / 2e-5, rel=1e-3)


def test_by_hand():
  # One anchor of class 1 at logit 0: 0.25 * 0.5^2 * log 2; its other class, with
  # weight 0.75, gives three times as much.
  loss, _ = run([[0.0, 0.0]], [1])
  np.testing.assert_allclose(loss, 0.25 * np.log(2), rtol=1e-6)


def test_ignored_anchors_have_no_influence():
  for bad in (np.nan, np.inf, 5.0):
    loss, gradient = run([[1.0, -1.0], [bad, bad]], [2, losses.IGNORED])
    expected, _ = run([[1.0, -1.0]], [2])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], [0.0, 0.0])


def test_no_positives_divides_by_one():
  loss, _ = run([[0.0]], [0])
  np.testing.assert_allclose(loss, 0.75 * 0.25 * np.log(2), rtol=1e-6)


def test_extreme_logits_stay_finite():
  loss, gradient = run([[1e30], [-1e30], [100.0]], [0, 1, 1])
  assert np.isfinite(loss) and np.isfinite(gradient).all()
  assert loss > 1e29


def test_half_precision_gradient_has_the_logits_type():
  loss, gradient = run(tf.constant([[0.5]], tf.bfloat16), [1])
  assert loss.dtype == tf.float32 and gradient.dtype == tf.bfloat16


def test_upstream_gradient():
  logits = tf.constant([[0.3], [-2.0]])
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(logits)
    loss = losses.focal_loss(logits, [1, 0])
    tripled = 3.0 * loss
  expected = 3 * tape.gradient(loss, logits)
  np.testing.assert_allclose(tape.gradient(tripled, logits), expected, rtol=1e-6)


def test_errors():
  logits = np.zeros([2, 3], np.float32)
  with pytest.raises(ValueError, match="alpha must lie in"):
    losses.focal_loss(logits, [0, 1], alpha=1.5)
  with pytest.raises(ValueError, match="gamma must not be negative"):
    losses.focal_loss(logits, [0, 1], gamma=-1.0)
  with pytest.raises(ValueError, match="labels must have shape"):
    losses.focal_loss(logits, [0, 1, 2])
