import numpy as np
import pytest
import tensorflow as tf
from oracles import ap_loss as oracle

from ap_detect import losses

pytestmark = pytest.mark.usefixtures("form")


@pytest.mark.parametrize("delta", [1e-2, 1.0, 5.0])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_against_the_oracle(delta, jit_compile):
  for seed in range(5):
    random = np.random.default_rng(seed)
    logits = np.round(random.normal(size=[20, 3]) * 4) / 4
    logits = logits.astype(np.float32)
    labels = random.integers(-1, 4, 20)
    expected = oracle.auc_loss(logits, labels, delta)
    value, gradient = losses.auc_loss_and_gradient(
      logits, labels, delta=delta, jit_compile=jit_compile
    )
    error = 1e-6 + 2.0**-22 * np.abs(logits).max() / delta
    assert abs(value - expected[0]) <= error
    assert np.abs(gradient - expected[1]).max() <= error * np.abs(expected[1]).max()


def test_by_hand():
  # Positives 0 and 2, negatives 1 and 5, delta 1: f(1) = 1, f(5) = 1, f(-1) = 0 and
  # f(3) = 1: three of four pairs.
  logits = tf.constant([[0.0], [2.0], [1.0], [5.0]])
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.auc_loss(logits, [1, 1, 0, 0])
  assert loss == 0.75
  expected = [[-0.5], [-0.25], [0.25], [0.5]]
  np.testing.assert_allclose(tape.gradient(loss, logits), expected)


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [-1, -1]])
def test_zero_without_pairs(labels):
  loss, gradient = losses.auc_loss_and_gradient(np.float32([[1.0], [2.0]]), labels)
  assert loss == 0 and not np.any(gradient)
