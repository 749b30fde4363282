"""-log(AP + epsilon), by its own gradient."""

import importlib

import numpy as np
import pytest
import tensorflow as tf
from oracles import smooth_ap_loss as oracle

from ap_detect import losses

smooth_ap = importlib.import_module("ap_detect.losses.smooth_ap_loss")


def run(logits, labels, **options):
  logits = tf.convert_to_tensor(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.smooth_ap_loss(logits, labels, **{"jit_compile": False, **options})
  return loss, tape.gradient(loss, logits)


def a_case(seed, rows=14, classes=2):
  random = np.random.default_rng(seed)
  logits = np.round(random.normal(size=[rows, classes]) * 8) / 4
  return logits.astype(np.float32), random.integers(-1, classes + 1, rows)


@pytest.mark.parametrize(
  ("delta", "epsilon"), [(1.0, 1e-6), (0.25, 1e-6), (4.0, 1e-6), (1.0, 0.5)]
)
def test_value_and_derivative(delta, epsilon):
  options = {"delta": delta, "epsilon": epsilon}
  for seed in range(3):
    logits, labels = a_case(seed)
    loss, gradient = run(logits, labels, **options)
    expected = oracle.smooth_ap_loss(logits, labels, **options)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for at in np.ndindex(logits.shape):
      step = np.zeros(logits.shape)
      step[at] = 1e-5
      above, below = (
        oracle.smooth_ap_loss(logits + sign * step, labels, **options)
        for sign in (1, -1)
      )
      assert gradient.numpy()[at] == pytest.approx((above - below) / 2e-5, abs=2e-6)


def test_compiled_by_itself_and_within_a_function():
  logits, labels = a_case(3)
  expected = run(logits, labels)
  compiled = tf.function(lambda *case: run(*case, jit_compile=True), autograph=False)
  for found in (run(logits, labels, jit_compile=True), compiled(logits, labels)):
    for one, other in zip(found, expected):
      np.testing.assert_allclose(one, other, atol=1e-6)


def test_narrow_step_is_average_precision():
  # Positives are first, third and fifth of five: AP = (1 + 2/3 + 3/5) / 3.
  logits, labels = np.float32([[5], [4], [3], [2], [1]]), [1, 0, 1, 0, 1]
  loss, _ = run(logits, labels, delta=1e-2, epsilon=0.01)
  assert float(loss) == pytest.approx(-np.log((1 + 2 / 3 + 3 / 5) / 3 + 0.01), rel=1e-6)


def test_gradient_sums_to_zero_and_shift_changes_nothing():
  logits, labels = a_case(4)
  loss, gradient = run(logits, labels)
  assert abs(gradient.numpy().sum(dtype=np.float64)) < 1e-6
  for one, other in zip(run(logits + 4, labels), (loss, gradient)):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_blocks_of_positives(monkeypatch):
  logits, labels = a_case(5)
  expected = run(logits, labels)
  for positives in (1, 4):  # 15 in the table: the last block is moved back
    monkeypatch.setattr(smooth_ap, "_PAIRS", positives * 15 * 2)
    for found, whole in zip(run(logits, labels), expected):
      np.testing.assert_allclose(found, whole, atol=1e-7)


def test_no_tensor_has_all_pairs(monkeypatch):
  monkeypatch.setattr(smooth_ap, "_PAIRS", 40_000)
  labels = np.arange(1000) % 3  # 666 positives and 1,334 negatives
  function = tf.function(lambda logits: run(logits, labels), autograph=False)
  graph = function.get_concrete_function(tf.TensorSpec([1000, 2])).graph
  graph = graph.as_graph_def(add_shapes=True)
  sizes = [
    np.prod([dim.size for dim in shape.dim])
    for nodes in (graph.node, *(each.node_def for each in graph.library.function))
    for node in nodes
    for shape in node.attr["_output_shapes"].list.shape
  ]
  # The largest are blocks of 19 positives with all 2,000 entries.
  assert max(sizes) == 38_000


def test_gradient_vanishes_where_the_update_of_ap_loss_does_not():
  """Why descending the smoothed AP stops: the worst positive is no longer pulled."""
  logits, labels = np.float32([[0.0], [-40.0], [20.0]]), [1, 1, 0]
  loss, gradient = run(logits, labels)
  assert float(loss) > 0.5 and np.abs(gradient).max() < 1e-12
  _, update = losses.ap_loss_and_gradient(logits, labels, jit_compile=False)
  np.testing.assert_allclose(update, [[-1 / 4], [-1 / 6], [1 / 4 + 1 / 6]], atol=0.1)


@pytest.mark.parametrize("label", [losses.BACKGROUND, losses.IGNORED])
def test_without_positives(label):
  loss, gradient = run(np.float32([[3.0], [1.0]]), [label] * 2)
  assert loss == 0 and not gradient.numpy().any()


def test_extreme_logits():
  loss, gradient = run(np.float32([[3e38], [-3e38], [1.0]]), [0, 1, 1])
  assert float(loss) == pytest.approx(-np.log((1 / 2 + 2 / 3) / 2 + 1e-6), rel=1e-6)
  assert not gradient.numpy().any()


def test_errors():
  logits = np.zeros([2, 3], np.float32)
  for name in ("delta", "epsilon"):
    for bad in (0.0, np.inf, np.nan):
      with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
        run(logits, [0, 1], **{name: bad})
