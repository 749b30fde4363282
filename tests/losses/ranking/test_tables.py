"""Sums of scores as integers: room for any number of logits, exact in any order."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect import losses
from ap_detect.losses import labels as labels_lib
from ap_detect.losses.ranking import intervals, knots, scans, tables


@pytest.mark.parametrize("number", [1, 72, 20_951_040, 100_000_000, 2**31 - 1])
@pytest.mark.parametrize("delta", [1e-6, 0.3, 1.0, 1e3, 1e30])
def test_the_largest_sum_fits(number, delta):
  step = knots.Step.of(delta)
  units = tables.Units.for_sum(number, step)
  largest = int(units.of(step.widest))
  assert number * (largest + 1) < 2**63
  assert float(units.per_score) * float(units.size) == 1.0
  dynamic = tables.Units.for_sum(tf.constant(number), step)
  assert dynamic.per_score == units.per_score
  if delta == 1.0:  # what the docstring of ranking_loss says
    assert float(units.size) <= 2.0**-34 * max(1, number / 2**24)


def test_more_than_fits_is_refused():
  with pytest.raises(ValueError, match=r"at most 2\^31 - 1 logits, got 2147483648"):
    tf.function(losses.ap_loss).get_concrete_function(
      tf.TensorSpec([2**24, 128]), tf.TensorSpec([2**24], tf.int32)
    )


def test_chunks_and_the_whole_agree(monkeypatch):
  random = np.random.default_rng(0)
  logits = random.normal(size=[50, 4]).astype(np.float32)
  labels = random.integers(labels_lib.IGNORED, 5, 50).astype(np.int32)
  step = knots.Step.of(0.5)
  scores = np.sort(random.normal(size=6)).astype(np.float32)
  positives = knots.Positives(tf.range(6), tf.constant(scores))
  windows = knots.windows(positives, step, scans.search_unrolled)
  low, high = tf.constant(-2.0, tf.float64), tf.constant(2.0, tf.float64)
  grid = intervals.build_grid(windows.begins, low, high, 16, scans.search_in_loop)
  interval = np.searchsorted(windows.begins[1:-1], logits, side="right")
  interval = interval.astype(np.int32)
  is_negative = labels[:, None] != np.arange(1, 5)
  is_negative &= labels[:, None] != labels_lib.IGNORED
  begin = np.where(interval > 0, windows.begins.numpy()[interval], logits)
  offset = np.minimum(logits.astype(np.float64) - begin, 4 * 0.5)
  counts = np.bincount(interval[is_negative], minlength=13)
  sums = np.bincount(interval[is_negative], offset[is_negative], minlength=13)
  monkeypatch.setattr(tables, "_CHUNK", 28)
  in_chunks = tables.in_chunks(logits, labels, grid, 2, step)
  at_once = tables.at_once(logits, labels, windows.begins, interval, step)
  for found in (tables.merged(in_chunks, 13), at_once):
    np.testing.assert_array_equal(found.counts, counts)
    np.testing.assert_allclose(found.sums, sums, atol=1e-6)
  order = random.permutation(50)
  again = tables.at_once(
    logits[order], labels[order], windows.begins, interval[order], step
  )
  np.testing.assert_array_equal(again.sums, at_once.sums)
