"""The parts below the ranking losses: scans, the grid of intervals, branching."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.losses import branching, interval_grid, ranking, scans


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_scans(size, jit_compile):
  x = np.random.default_rng(size).normal(size=[size, 2])
  compiled = {"jit_compile": jit_compile}
  up_to = tf.function(scans.sum_up_to, **compiled)(x)
  np.testing.assert_allclose(up_to, np.cumsum(x, 0), atol=1e-12)
  down = tf.function(scans.sum_from, **compiled)(x)
  np.testing.assert_allclose(down, np.cumsum(x[::-1], 0)[::-1], atol=1e-12)
  least = tf.function(scans.minimum_up_to, **compiled)(x)
  np.testing.assert_array_equal(least, np.minimum.accumulate(x, 0))


KNOTS = {
  "spread": np.linspace(-3, 3.1, 50),
  "equal": np.full(50, 0.25),
  "clustered": np.concatenate([1 + 1e-6 * np.arange(40), [-1e30, -5, 7, 1e30]]),
  "one": np.array([2.0]),
}


@pytest.mark.parametrize("name", sorted(KNOTS))
@pytest.mark.parametrize("bounds", [(-4.0, 4.0), (0.0, 0.0), (-1e30, 1e30), (5.0, 9.0)])
def test_look_up_is_exact_whatever_the_bounds(name, bounds):
  knots = np.sort(KNOTS[name]).astype(np.float32)
  random = np.random.default_rng(0)
  near = np.concatenate([knots, np.nextafter(knots, -np.inf), np.nextafter(knots, 9)])
  extremes = np.float32([-3e38, -1e30, -0.0, 0.0, 1e30, 3e38])
  scores = [near, extremes, 3 * random.normal(size=200)]
  scores = np.concatenate(scores).astype(np.float32)
  unused = np.full([3], np.inf, np.float32)
  grid = interval_grid.build(
    tf.constant(np.concatenate([knots, unused])),
    tf.constant(bounds[0], tf.float64),
    tf.constant(bounds[1], tf.float64),
  )
  interval = interval_grid.look_up(tf.constant(scores), grid).numpy()
  np.testing.assert_array_equal(interval, np.searchsorted(knots, scores, side="right"))
  offset = interval_grid.offset(tf.constant(scores), grid, interval, 4.0).numpy()
  begin = np.concatenate([np.float32([np.inf]), knots])[interval]
  np.testing.assert_array_equal(offset, np.clip(scores - begin, 0, np.float32(4)))


def test_knots_are_rounded_up():
  random = np.random.default_rng(0)
  x = np.concatenate([random.normal(size=100), [0.0, -0.0, 1.0, -1.0, 1e30, -1e30]])
  rounded = ranking._round_up(tf.constant(x)).numpy()
  assert np.all(rounded >= x)
  below = np.nextafter(rounded, np.float32(-np.inf)).astype(np.float64)
  assert np.all((below < x) | (rounded == x))


def test_the_upper_knot_of_a_huge_score_lies_above_it():
  scores = np.float32([1e30, -1e30, 1e9, 0.0, -0.0])
  low, high = ranking._knots(tf.constant(scores), tf.constant(1e-3, tf.float64))
  assert np.all(low <= scores) and np.all(high > scores)


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_first_that_holds(chosen):
  conditions = [tf.constant(chosen == 0), tf.constant(chosen <= 1)]
  branches = [lambda: 0, lambda: 1, lambda: 2]
  assert branching.first_that_holds(conditions, branches) == chosen
