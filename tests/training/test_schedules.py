"""Learning-rate schedules against their formulas, written by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.training import schedules


def oracle(step, kind):
  """Rate 0.4, warm-up of 10 steps from a third, 100 steps, decays at 40 and 80."""
  rate = 0.4
  if step < 10:
    rate *= 1 / 3 + (1 - 1 / 3) * step / 10
  if kind == "step":
    rate *= 0.1 ** sum(step >= at for at in (40, 80))
  if kind == "cosine":
    rate *= (1 + math.cos(math.pi * min(step, 100) / 100)) / 2
  return rate


def make(kind, **changes):
  options = {
    "total_steps": 100,
    "decay_steps": (40, 80),
    "warmup_steps": 10,
    **changes,
  }
  return schedules.WarmupSchedule(0.4, kind=kind, **options)


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
def test_every_step(kind):
  schedule = tf.function(make(kind).__call__)
  for step in range(0, 120):
    rate = schedule(tf.constant(step, tf.int64)).numpy()
    np.testing.assert_allclose(rate, oracle(step, kind), rtol=1e-5, atol=1e-8)


def test_points_by_hand():
  schedule = make("step")
  # 0.4 / 3; 0.4 (1/3 + 2/3 / 2) = 0.4 x 2/3; 0.4; a tenth from 40 on; a hundredth.
  expected = {0: 0.4 / 3, 5: 0.8 / 3, 10: 0.4, 39: 0.4, 40: 0.04, 80: 0.004}
  for step, rate in expected.items():
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-6)
  assert float(make("cosine")(100)) == 0.0


def test_no_warm_up():
  assert float(make("constant", warmup_steps=0)(0)) == pytest.approx(0.4)


def test_copy_from_its_config_is_the_same():
  schedule = make("cosine")
  copy = schedules.WarmupSchedule.from_config(schedule.get_config())
  assert [float(copy(s)) for s in (0, 7, 50)] == [
    float(schedule(s)) for s in (0, 7, 50)
  ]


def test_errors():
  with pytest.raises(ValueError, match="'linear'"):
    schedules.WarmupSchedule(0.1, kind="linear")
  with pytest.raises(ValueError, match="total_steps > 0, got 0"):
    schedules.WarmupSchedule(0.1, kind="cosine")
