"""Knots are rounded up exactly, also where XLA for GPUs folds conversions away."""

import fractions

import numpy as np
import pytest
import tensorflow as tf

from ap_detect import losses
from ap_detect.losses.ranking import knots, scans

LARGEST = np.finfo(np.float32).max
LARGEST_EXACTLY = fractions.Fraction(float(LARGEST))


def exactly_up(x):
  """The smallest float32 that is not below a Fraction."""
  nearest = np.float32(float(x))
  if np.isfinite(nearest) and fractions.Fraction(float(nearest)) < x:
    nearest = np.nextafter(nearest, np.float32(np.inf))
  return nearest


@pytest.mark.parametrize("delta", [1e-6, 1e-3, 0.1, 0.5, 1.0, 3.3, 1e4])
def test_rounded_up_to_the_next_float32(delta):
  random = np.random.default_rng(0)
  scores = np.concatenate(
    [random.normal(size=50), [0.1, 1.0, -1.0, delta, -delta, 1e30, -1e30, 123456.7]]
  ).astype(np.float32)
  step = knots.Step.of(delta)
  # What the step computes with: delta to 48 bits.
  exact = fractions.Fraction(float(step.high)) + fractions.Fraction(float(step.low))
  assert abs(float(exact) - delta) <= 2.0**-47 * delta
  low, high = knots.rounded_up(tf.constant(scores), step)
  for score, found_low, found_high in zip(scores, low.numpy(), high.numpy()):
    score = fractions.Fraction(float(score))
    assert found_low == exactly_up(score - exact)
    above = np.nextafter(np.float32(float(score)), np.float32(np.inf))
    assert found_high == max(exactly_up(score + exact), above)


def test_at_the_ends_of_float32():
  scores = np.float32([LARGEST, -LARGEST, 0.0, -0.0])
  low, high = knots.rounded_up(tf.constant(scores), knots.Step.of(1e-3))
  assert np.all(low <= scores) and np.all(high > scores)
  step = knots.Step.of(1e38)
  low, high = knots.rounded_up(tf.constant(scores), step)
  delta = fractions.Fraction(float(step.high)) + fractions.Fraction(float(step.low))
  below, above = (
    exactly_up(LARGEST_EXACTLY - delta),
    exactly_up(delta - LARGEST_EXACTLY),
  )
  np.testing.assert_array_equal(low, [below, -LARGEST, *[exactly_up(-delta)] * 2])
  np.testing.assert_array_equal(high, [np.inf, above, *[exactly_up(delta)] * 2])


@pytest.mark.parametrize("search", [scans.search_in_loop, scans.search_unrolled])
def test_windows_are_a_merge(search):
  random = np.random.default_rng(1)
  scores = np.sort(np.round(random.normal(size=20), 1)).astype(np.float32)
  scores = np.concatenate([scores, np.float32([np.inf] * 5)])
  step = knots.Step.of(0.3)
  positives = knots.Positives(tf.zeros(25, tf.int32), tf.constant(scores))
  windows = knots.windows(positives, step, search)
  low, high = knots.rounded_up(tf.constant(scores), step)
  expected = np.sort(np.concatenate([low, high]))
  np.testing.assert_array_equal(windows.begins[1:-1], expected)
  np.testing.assert_array_equal(tf.gather(windows.begins, windows.first), low)
  np.testing.assert_array_equal(tf.gather(windows.begins, windows.last), high)
  places = np.concatenate([windows.first, windows.last]) - 1
  assert sorted(places) == list(range(50))
  np.testing.assert_array_equal(np.argsort(places), windows.order)


class TestConversionsFolded:
  """XLA for GPUs takes a float64 that became float32 and float64 again for itself."""

  @pytest.fixture(autouse=True)
  def folding(self, monkeypatch):
    cast, wide = tf.cast, []

    def folded(x, dtype, name=None):
      if tf.is_tensor(x) and x.dtype == tf.float32 and dtype == tf.float64:
        for narrow, source in wide:
          if narrow is x:
            return source
      result = cast(x, dtype, name)
      if tf.is_tensor(x) and x.dtype == tf.float64 and dtype == tf.float32:
        wide.append((result, x))
      return result

    monkeypatch.setattr(tf, "cast", folded)

  def test_the_folding_does_what_it_says(self):
    third = tf.constant(1 / 3, tf.float64)
    assert tf.cast(tf.cast(third, tf.float32), tf.float64) == third

  @pytest.mark.parametrize("form", ["cpu", "gpu"])
  def test_equal_negatives_one_rounding_step_inside_a_window(self, form):
    # The positive's window begins at no float32, and would be rounded down; the negatives
    # lie at the first float32 above. f there, times 200,000, is far from nothing.
    positive = np.float32(0.15)
    begin = fractions.Fraction(float(positive)) - 1
    negative = exactly_up(begin)
    f = float((fractions.Fraction(float(negative)) - begin) / 2)
    assert fractions.Fraction(float(np.float32(float(begin)))) < begin  # rounds down
    logits = np.full([200_001, 1], negative, np.float32)
    logits[0] = positive
    labels = np.zeros([200_001], np.int32)
    labels[0] = 1
    above = 200_000 * f
    assert above > 1e-4
    value, gradient = losses.ap_loss_and_gradient(
      logits, labels, jit_compile=False, form=form
    )
    assert float(value) == pytest.approx(above / (1 + above), rel=1e-5)
    assert float(gradient[1, 0]) == pytest.approx(f / (1 + above), rel=1e-5)
