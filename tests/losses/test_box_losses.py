import numpy as np
import pytest
import tensorflow as tf

from ap_detect import losses


def oracle(outputs, targets, is_positive, beta):
  total = 0.0
  for anchor in range(len(outputs)):
    if is_positive[anchor]:
      for offset in range(4):
        x = abs(float(outputs[anchor][offset]) - float(targets[anchor][offset]))
        total += x * x / (2 * beta) if x < beta else x - beta / 2
  return total / (4 * max(sum(is_positive), 1))


@pytest.mark.parametrize("beta", [0.11, 1.0])
def test_against_loops(beta):
  random = np.random.default_rng(0)
  outputs, targets = random.normal(size=[2, 30, 4]).astype(np.float32)
  is_positive = random.random(30) < 0.3
  loss = losses.smooth_l1(outputs, targets, is_positive, beta=beta)
  assert loss.dtype == tf.float32
  expected = oracle(outputs, targets, is_positive, beta)
  assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_by_hand():
  # Offsets 0.5 and 3 off at beta 1: (0.5^2 / 2 + 2.5) / 4, for the one positive.
  outputs = tf.constant([[[0.5, 0.0, 0.0, 3.0], [9.0, 9.0, 9.0, 9.0]]])
  loss = losses.smooth_l1(outputs, tf.zeros([1, 2, 4]), tf.constant([[True, False]]))
  assert loss == 0.65625


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_positive_have_no_influence(bad):
  outputs = tf.constant([[0.5, 0.0, 0.0, 3.0], [bad] * 4])
  targets = tf.constant([[0.0] * 4, [bad] * 4])
  with tf.GradientTape() as tape:
    tape.watch(outputs)
    loss = losses.smooth_l1(outputs, targets, tf.constant([True, False]))
  gradient = tape.gradient(loss, outputs)
  assert loss == 0.65625
  # x / beta inside, the sign outside, over 4 offsets.
  np.testing.assert_allclose(gradient, [[0.125, 0, 0, 0.25], [0, 0, 0, 0]])


def test_no_positives():
  zeros = tf.zeros([3, 4])
  assert losses.smooth_l1(zeros + 1, zeros, tf.zeros([3], tf.bool)) == 0


def test_errors():
  zeros = tf.zeros([3, 4])
  positive = tf.ones([3], tf.bool)
  with pytest.raises(ValueError, match="beta must be positive"):
    losses.smooth_l1(zeros, zeros, positive, beta=0)
  with pytest.raises(ValueError, match="box_targets must have"):
    losses.smooth_l1(zeros, tf.zeros([2, 4]), positive)
  with pytest.raises(ValueError, match="is_positive must be bool"):
    losses.smooth_l1(zeros, zeros, tf.ones([3]))
