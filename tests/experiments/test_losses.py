"""Losses of experiments: AP-loss with other steps, and AP-loss's value beside another."""

import doctest

import figure_5b
import numpy as np
import pytest
import step_losses
import tensorflow as tf

from ap_detect import losses


def case(seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 1.5, (2, 30, 3)).astype(np.float32)
  labels = np.where(rng.random((2, 30)) < 0.2, rng.integers(1, 4, (2, 30)), 0)
  labels[:, :4] = losses.IGNORED
  return tf.constant(logits), tf.constant(labels, tf.int32)


def value_and_gradient(loss, logits, labels, **options):
  with tf.GradientTape() as tape:
    tape.watch(logits)
    value = loss(logits, labels, **options)
  return float(value), tape.gradient(value, logits).numpy()


@pytest.mark.parametrize("delta", [0.3, 1.0])
def test_linear_step_is_the_package_s_ap_loss(delta):
  for seed in range(3):
    logits, labels = case(seed)
    found = value_and_gradient(
      step_losses.ap_loss_with_step, logits, labels, step="linear", delta=delta
    )
    expected = value_and_gradient(
      losses.ap_loss, logits, labels, delta=delta, jit_compile=False
    )
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("name", step_losses.STEPS)
def test_steps_rise_from_0_to_1_and_have_one_slope_at_0(name):
  x = tf.constant(np.linspace(-9, 9, 1801), tf.float32)
  y = step_losses.STEPS[name](x).numpy()
  assert (np.diff(y) >= -1e-6).all() and y[0] < 1e-6 and y[-1] > 1 - 1e-6
  np.testing.assert_allclose(y + y[::-1], 1, atol=1e-6)
  assert (y[901] - y[899]) / 0.02 == pytest.approx(0.5, abs=1e-3)


def test_step_losses_at_edges():
  logits, labels = case()
  nothing = tf.zeros_like(labels)
  value, gradient = value_and_gradient(step_losses.ap_loss_with_step, logits, nothing)
  assert value == 0 and not gradient.any()
  with pytest.raises(
    ValueError, match="one of linear, logistic, normal, cubic, got 'x'"
  ):
    step_losses.ap_loss_with_step(logits, labels, step="x")
  assert doctest.testmod(step_losses, extraglobs={"tf": tf}).failed == 0


@pytest.mark.parametrize(
  "function, other",
  [
    (figure_5b.error_driven_update, "ap_loss"),
    (figure_5b.approximate_gradient, "smooth_ap_loss"),
    (figure_5b.structured_hinge, "structured_hinge_ap_loss"),
  ],
)
def test_value_is_1_minus_ap_and_gradient_another_loss_s(function, other):
  logits, labels = case()
  value, gradient = value_and_gradient(function, logits, labels, jit_compile=False)
  scores = logits.numpy()[labels.numpy() != losses.IGNORED].ravel()
  is_positive = (labels.numpy()[..., None] == np.arange(1, 4))[
    labels.numpy() != losses.IGNORED
  ].ravel()
  ranked = is_positive[np.argsort(-scores)]
  precisions = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
  assert value == pytest.approx(1 - precisions[ranked].mean(), abs=1e-5)
  loss = losses.CLASSIFICATION_LOSSES[other]
  _, expected = value_and_gradient(loss, logits, labels, jit_compile=False)
  np.testing.assert_array_equal(gradient, expected)
