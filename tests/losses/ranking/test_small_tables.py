"""The parts below the ranking losses: scans, searches, the grid, branching."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.losses.ranking import branching, intervals, scans

SEARCHES = [scans.search_in_loop, scans.search_unrolled]


@pytest.mark.parametrize("size", [1, 2, 7, 32, 33, 1000, 2000])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_scans(size, jit_compile):
  x = np.random.default_rng(size).normal(size=[2, size])
  compiled = {"jit_compile": jit_compile}
  up_to = tf.function(scans.sum_up_to, **compiled)(x)
  np.testing.assert_allclose(up_to, np.cumsum(x, 1), atol=1e-12)
  down = tf.function(scans.sum_from, **compiled)(x)
  np.testing.assert_allclose(down, np.cumsum(x[:, ::-1], 1)[:, ::-1], atol=1e-12)
  least = tf.function(scans.minimum_up_to, **compiled)(x)
  np.testing.assert_array_equal(least, np.minimum.accumulate(x, 1))


def test_scan_of_unknown_length():
  x = np.arange(70)
  function = tf.function(
    scans.sum_up_to, input_signature=[tf.TensorSpec([None], tf.int64)]
  )
  np.testing.assert_array_equal(function(x), np.cumsum(x))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_searches(search, size):
  random = np.random.default_rng(size)
  ascending = np.sort(random.integers(0, 20, size)).astype(np.float32)
  values = np.concatenate([np.arange(-1, 22), [np.inf, -np.inf]]).astype(np.float32)
  for strictly, side in ((False, "right"), (True, "left")):
    found = search(tf.constant(values), tf.constant(ascending), strictly=strictly)
    np.testing.assert_array_equal(found, np.searchsorted(ascending, values, side))


KNOTS = {
  "spread": np.linspace(-3, 3.1, 50),
  "equal": np.full(50, 0.25),
  "clustered": np.concatenate([1 + 1e-6 * np.arange(40), [-1e30, -5, 7, 1e30]]),
  "one": np.array([2.0]),
}


@pytest.mark.parametrize("name", sorted(KNOTS))
@pytest.mark.parametrize("bounds", [(-4.0, 4.0), (0.0, 0.0), (-1e30, 1e30), (5.0, 9.0)])
@pytest.mark.parametrize("search", SEARCHES)
def test_look_up_is_exact_whatever_the_bounds(name, bounds, search):
  knots = np.sort(KNOTS[name]).astype(np.float32)
  random = np.random.default_rng(0)
  near = np.concatenate([knots, np.nextafter(knots, -np.inf), np.nextafter(knots, 9)])
  extremes = np.float32([-3e38, -1e30, -0.0, 0.0, 1e30, 3e38])
  scores = [near, extremes, 3 * random.normal(size=200)]
  scores = np.concatenate(scores).astype(np.float32)
  infinity = np.float32([np.inf])
  begins = np.concatenate([infinity, knots, np.repeat(infinity, 4)])
  low, high = (tf.constant(bound, tf.float64) for bound in bounds)
  grid = intervals.build_grid(tf.constant(begins), low, high, 2**15, search)
  expected = np.searchsorted(knots, scores, side="right")
  for steps in (2, 3):
    interval = grid.look_up(tf.constant(scores), steps)
    np.testing.assert_array_equal(interval, expected)
    if not grid.is_crowded(steps):
      interval = grid.look_up(tf.constant(scores), steps, is_crowded=False)
      np.testing.assert_array_equal(interval, expected)
  offset = intervals.offset(tf.constant(scores), begins, interval, 4.0).numpy()
  begin = begins[interval]
  np.testing.assert_array_equal(offset, np.clip(scores - begin, 0, np.float32(4)))


@pytest.mark.parametrize("chosen", [0, 1, 2])
def test_first_that_holds(chosen):
  conditions = [tf.constant(chosen == 0), tf.constant(chosen <= 1)]
  branches = [lambda: 0, lambda: 1, lambda: 2]
  assert branching.first_that_holds(conditions, branches) == chosen
