import numpy as np
import pytest
import tensorflow as tf
from oracles import quality_focal_loss as oracle

from ap_detect import losses


def run(logits, labels, qualities, **options):
  logits = tf.convert_to_tensor(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.quality_focal_loss(logits, labels, qualities=qualities, **options)
  return loss, tape.gradient(loss, logits)


def a_case(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  logits = (rng.normal(size=[40, 4]) * scale).astype(np.float32)
  qualities = rng.random(40).astype(np.float32)
  qualities[:8] = [0, 1] * 4
  return logits, rng.integers(-1, 5, 40), qualities


@pytest.mark.parametrize("beta", [2.0, 1.0, 1.5])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_against_the_oracle(beta, scale, jit_compile):
  case = a_case(0, scale)
  loss, gradient = tf.function(run, jit_compile=jit_compile)(*case, beta=beta)
  assert loss.dtype == tf.float32
  logits, labels, qualities = case
  logits = logits.astype(np.float64)
  expected = oracle.quality_focal_loss(logits, labels, qualities, beta)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  for at in [(row, k) for row in range(0, 40, 3) for k in range(4)]:
    step = np.zeros([40, 4])
    step[at] = 1e-5
    above, below = (
      oracle.quality_focal_loss(logits + sign * step, labels, qualities, beta)
      for sign in (1, -1)
    )
    expected = (above - below) / 2e-5
    assert gradient.numpy()[at] == pytest.approx(expected, rel=1e-3, abs=2e-6)


def test_by_hand():
  # p = 1/2: own class (1/4)^2 x log 2, whatever y is in the cross-entropy; the other
  # class (1/2)^2 log 2. Slopes p - y = 1/4 and 1/2:
  # own 2/4 x 1/4 log 2 + (1/4)^3, other 2/2 x 1/4 log 2 + (1/2)^3.
  loss, gradient = run([[0.0, 0.0]], [1], [0.25])
  log = np.log(2)
  np.testing.assert_allclose(loss, (1 / 16 + 1 / 4) * log, rtol=1e-6)
  expected = [[log / 8 + 1 / 64, log / 4 + 1 / 8]]
  np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_a_score_equal_to_the_quality_costs_nothing():
  logit = np.float32(np.log(0.8 / 0.2))
  loss, gradient = run([[logit]], [1], [0.8])
  assert float(loss) == pytest.approx(0, abs=1e-12)
  np.testing.assert_allclose(gradient, [[0.0]], atol=1e-7)


def test_quality_1_is_focal_loss_without_alpha():
  logits, labels, _ = a_case(3)
  loss, gradient = run(logits, labels, np.ones(40, np.float32))
  logits = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    expected = 2 * losses.focal_loss(logits, labels, alpha=0.5)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  slopes = tape.gradient(expected, logits)
  np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 5.0])
def test_ignored_anchors_have_no_influence(bad):
  loss, gradient = run([[1.0, -1.0], [bad, bad]], [2, losses.IGNORED], [0.6, bad])
  expected, _ = run([[1.0, -1.0]], [2], [0.6])
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  np.testing.assert_array_equal(gradient[1], [0.0, 0.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.9])
def test_qualities_of_background_have_no_influence(bad):
  found = run([[1.0, -1.0], [0.5, 0.0]], [2, 0], [0.6, bad])
  expected = run([[1.0, -1.0], [0.5, 0.0]], [2, 0], [0.6, 0.0])
  for one, other in zip(found, expected):
    np.testing.assert_array_equal(one, other)


def test_nothing_is_differentiated_by_the_qualities():
  qualities = tf.constant([0.3, 0.0])
  with tf.GradientTape() as tape:
    tape.watch(qualities)
    loss = losses.quality_focal_loss(
      tf.constant([[1.0], [0.0]]), [1, 0], qualities=qualities
    )
  assert tape.gradient(loss, qualities) is None


def test_no_positives_divides_by_one():
  loss, _ = run([[0.0]], [0], [0.0])
  np.testing.assert_allclose(loss, 0.25 * np.log(2), rtol=1e-6)


def test_extreme_logits_stay_finite():
  loss, gradient = run([[1e30], [-1e30], [100.0]], [0, 1, 1], [0.0, 0.5, 1.0])
  assert np.isfinite(loss) and np.isfinite(gradient).all()
  assert loss > 1e29


def test_half_precision_gradient_has_the_logits_type():
  loss, gradient = run(tf.constant([[0.5]], tf.bfloat16), [1], [0.5])
  assert loss.dtype == tf.float32 and gradient.dtype == tf.bfloat16


def test_upstream_gradient():
  logits = tf.constant([[0.3], [-2.0]])
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(logits)
    loss = losses.quality_focal_loss(logits, [1, 0], qualities=[0.4, 0.0])
    tripled = 3.0 * loss
  expected = 3 * tape.gradient(loss, logits)
  np.testing.assert_allclose(tape.gradient(tripled, logits), expected, rtol=1e-6)


def test_errors():
  logits = np.zeros([2, 3], np.float32)
  with pytest.raises(ValueError, match=r"beta must be at least 1, got 0\.5"):
    run(logits, [0, 1], [0.0, 1.0], beta=0.5)
  with pytest.raises(ValueError, match="labels must have shape"):
    run(logits, [0, 1, 2], [0.0, 1.0, 0.0])
  with pytest.raises(ValueError, match=r"qualities must have shape \(2,\), got"):
    run(logits, [0, 1], [0.0, 1.0, 0.0])
