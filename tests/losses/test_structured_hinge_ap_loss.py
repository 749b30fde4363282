"""The structured hinge loss of AP, held to its definition over all rankings."""

import numpy as np
import pytest
import tensorflow as tf
from oracles import ap_loss as ap_oracle
from oracles import structured_hinge_ap_loss as oracle

from ap_detect import losses


def run(logits, labels, jit_compile=False):
  logits = tf.convert_to_tensor(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.structured_hinge_ap_loss(logits, labels, jit_compile=jit_compile)
  return loss, tape.gradient(loss, logits)


def a_case(random, positives, negatives, scale, ties):
  logits = random.normal(size=[positives + negatives, 1]) * scale
  if ties:
    logits = np.round(logits / scale * 2) / 2 * scale
  labels = random.permutation([1] * positives + [0] * negatives)
  return logits.astype(np.float32), labels


@pytest.mark.parametrize("ties", [False, True])
def test_value_is_the_maximum_and_gradient_a_subgradient(ties):
  random = np.random.default_rng(0)
  for scale in (0.05, 0.3, 1.0, 3.0):
    for positives, negatives in ((1, 4), (2, 3), (3, 3), (4, 1)):
      logits, labels = a_case(random, positives, negatives, scale, ties)
      loss, gradient = run(logits, labels)
      expected = oracle.over_all_rankings(logits, labels)
      assert float(loss) == pytest.approx(expected, abs=1e-6)
      for _ in range(2):
        # What defines a subgradient of a convex function.
        move = random.normal(size=logits.shape) * scale
        bound = expected + (gradient.numpy() * move).sum()
        assert oracle.over_all_rankings(logits + move, labels) >= bound - 1e-6


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0, 3000.0])
@pytest.mark.parametrize("ties", [False, True])
def test_against_placing_every_negative(scale, ties):
  random = np.random.default_rng(1)
  logits, labels = a_case(random, 30, 300, scale, ties)
  loss, gradient = run(logits, labels)
  expected = oracle.by_placing_negatives(logits, labels)
  np.testing.assert_allclose(loss, expected[0], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(gradient, expected[1], atol=1e-8)


def test_the_two_oracles_agree():
  random = np.random.default_rng(2)
  for scale in (0.1, 1.0):
    logits, labels = a_case(random, 3, 4, scale, False)
    one = oracle.over_all_rankings(logits, labels)
    assert one == pytest.approx(oracle.by_placing_negatives(logits, labels)[0])


def test_several_classes_and_ignored_anchors():
  random = np.random.default_rng(3)
  logits = random.normal(size=[20, 3]).astype(np.float32)
  labels = random.integers(-1, 4, 20)
  expected = oracle.by_placing_negatives(logits, labels)
  for jit_compile in (False, True):
    loss, gradient = run(logits, labels, jit_compile)
    assert float(loss) == pytest.approx(expected[0], abs=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-8)


def test_by_hand():
  # The positive is best last of three, 2/3 + (2 x 1 + 2 x 0.5) / 2, rather than second,
  # 1/2 + 2 x 1 / 2; each negative pushes by 2 / (1 x 2).
  loss, gradient = run(np.float32([[0.0], [1.0], [0.5]]), [1, 0, 0])
  assert float(loss) == pytest.approx(2 / 3 + 1.5, abs=1e-6)
  assert gradient.numpy().ravel().tolist() == [-2.0, 1.0, 1.0]


def test_is_a_bound_of_average_precision():
  random = np.random.default_rng(4)
  for scale in (0.1, 1.0, 100.0):
    logits, labels = a_case(random, 10, 60, scale, False)
    error, _ = ap_oracle.ap_loss(logits, labels, delta=1e-9, interpolated=False)
    assert run(logits, labels)[0] >= error - 1e-6


def test_margin_that_is_enough():
  # A first negative above the positive adds 1/2 to 1 - AP, and costs 2 / |N| margins.
  labels = [1, *[0] * 8]
  for margin, is_enough in ((2.001, True), (1.999, False)):
    loss, gradient = run(np.float32([[margin], *[[0.0]] * 8]), labels)
    assert (loss == 0) == is_enough == (not gradient.numpy().any())


def test_gradient_sums_to_zero_and_shift_changes_nothing():
  logits, labels = a_case(np.random.default_rng(5), 9, 50, 1.0, True)
  loss, gradient = run(logits, labels)
  assert abs(gradient.numpy().sum(dtype=np.float64)) < 1e-6
  for one, other in zip(run(logits + 4, labels), (loss, gradient)):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("labels", [[0, 0], [-1, -1], [1, 1]])
def test_without_positives_or_negatives(labels):
  loss, gradient = run(np.float32([[3.0], [1.0]]), labels)
  assert loss == 0 and not gradient.numpy().any()


@pytest.mark.parametrize("name", ["smooth_ap_loss", "structured_hinge_ap_loss"])
def test_labels_out_of_range(name):
  loss, logits = losses.CLASSIFICATION_LOSSES[name], np.zeros([3, 2], np.float32)
  with pytest.raises(ValueError, match="labels must lie in"):
    loss(logits, np.array([0, 1, 3]))
  with pytest.raises(tf.errors.InvalidArgumentError, match="labels must lie in"):
    loss(logits, tf.constant([0, 1, 3]))
  traced = tf.function(lambda labels: loss(logits, labels), autograph=False)
  assert np.isnan(traced(tf.constant([0, 1, 3])))
