"""Rank & Sort loss against the loops of its oracle."""

import importlib

import numpy as np
import pytest
import tensorflow as tf
from oracles import rank_and_sort as oracle

from ap_detect import losses

pytestmark = pytest.mark.usefixtures("form")

ROWS, CLASSES = 24, 3


@pytest.mark.parametrize("delta", [1e-3, 0.5, 4.0])
@pytest.mark.parametrize("ties", [False, True])
def test_against_the_oracle(delta, ties):
  for seed in range(4):
    random = np.random.default_rng(seed)
    logits = random.normal(size=[ROWS, CLASSES]) * 2
    labels = random.integers(-1, CLASSES + 1, ROWS)
    qualities, weights = random.random([2, ROWS]).astype(np.float32)
    if ties:
      logits, qualities = np.round(logits), np.round(qualities * 4) / 4
    logits = logits.astype(np.float32)
    expected = oracle.rank_and_sort_loss(logits, labels, qualities, delta, weights)
    value, gradient = losses.rank_and_sort_loss_and_gradient(
      logits, labels, qualities=qualities, delta=delta, weights=weights
    )
    assert value.numpy() == pytest.approx(expected[0], abs=2e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=2e-6)


def test_pairs_in_blocks(monkeypatch):
  random = np.random.default_rng(5)
  logits = random.normal(size=[ROWS, CLASSES]).astype(np.float32)
  labels = random.integers(0, CLASSES + 1, ROWS)
  qualities = random.random(ROWS).astype(np.float32)

  def run():
    return losses.rank_and_sort_loss_and_gradient(
      logits, labels, qualities=qualities, jit_compile=False
    )

  expected = run()
  module = importlib.import_module("ap_detect.losses.rank_and_sort_loss")
  for pairs in (1, 7 * (ROWS + 1)):  # one positive at a time; blocks that do not divide
    monkeypatch.setattr(module, "_PAIRS", pairs)
    for found, whole in zip(run(), expected):
      np.testing.assert_allclose(found, whole, atol=1e-8)


def test_by_hand():
  # delta -> 0. Positives: 2 with quality 0.4, 1 with quality 0.9; a negative at 1.5.
  # The upper one: rank 1/2, no negative above, nothing better below it: no error.
  # The lower one: rank 1 + 1/2 + 1, ranking error 1 / 2.5; of positives above, itself
  # half and the worse one: (1 * 0.6 + 0.5 * 0.1) / 1.5 - 0.1 = 1/3.
  logits, labels = np.float32([[2.0], [1.0], [1.5]]), [1, 1, 0]
  value, gradient = losses.rank_and_sort_loss_and_gradient(
    logits, labels, qualities=[0.4, 0.9, 0.0], delta=1e-4, jit_compile=False
  )
  assert value.numpy() == pytest.approx((0.4 + 1 / 3) / 2, abs=1e-6)
  expected = [[1 / 3 / 2], [-(0.4 + 1 / 3) / 2], [0.4 / 2]]
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_best_order_has_no_error():
  logits, labels = np.float32([[9.0], [6.0], [3.0], [0.0]]), [1, 1, 1, 0]
  value, gradient = losses.rank_and_sort_loss_and_gradient(
    logits, labels, qualities=[0.9, 0.9, 0.2, 0.0], jit_compile=False
  )
  assert value == 0 and not np.any(gradient)


def test_a_quality_that_is_not_finite_is_seen():
  logits, labels = np.zeros([2, 1], np.float32), [1, 0]
  value, _ = losses.rank_and_sort_loss_and_gradient(
    logits, labels, qualities=[np.nan, 0.0], jit_compile=False
  )
  assert np.isnan(value)
  with pytest.raises(ValueError, match="qualities must have shape"):
    losses.rank_and_sort_loss(logits, labels, qualities=[0.5])
  with pytest.raises(TypeError, match="qualities"):
    losses.rank_and_sort_loss(tf.constant(logits), labels)
