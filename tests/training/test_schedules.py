"""Learning-rate schedules against their formulas, written by hand."""

import math

import pytest

from ap_detect.training import schedules

# 100 epochs of 50 images; warm-up in the first 500 images, 10 epochs.
SPLIT_SIZE, EPOCHS, WARMUP_IMAGES = 50, 100, 500


def oracle(epochs_done, images, kind):
  """Rate 0.4, warm-up of 500 images from a third, 100 epochs, decays at 40 and 80."""
  rate = 0.4
  if images < 500:
    rate *= 1 / 3 + (1 - 1 / 3) * images / 500
  if kind == "step":
    rate *= 0.1 ** sum(epochs_done >= at for at in (40, 80))
  if kind == "cosine":
    rate *= (1 + math.cos(math.pi * min(epochs_done, 100) / 100)) / 2
  return rate


def make(kind, **changes):
  options = {
    "epochs": EPOCHS,
    "decay_epochs": (40, 80),
    "warmup_images": WARMUP_IMAGES,
    **changes,
  }
  return schedules.Schedule(0.4, kind, **options)


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
def test_every_step(kind):
  schedule = make(kind)
  # Steps of 20 images, so that epochs have fractions; past the end too.
  for images in range(0, 120 * SPLIT_SIZE, 20):
    epochs_done = images / SPLIT_SIZE
    expected = oracle(epochs_done, images, kind)
    assert schedule(epochs_done, images) == pytest.approx(expected, rel=1e-12)


def test_points_by_hand():
  schedule = make("step")
  # 0.4 / 3; 0.4 (1/3 + 2/3 / 2) = 0.4 x 2/3; 0.4; a tenth from 40 on; a hundredth.
  expected = {0: 0.4 / 3, 5: 0.8 / 3, 10: 0.4, 39.99: 0.4, 40: 0.04, 80: 0.004}
  for epochs_done, rate in expected.items():
    assert schedule(epochs_done, epochs_done * SPLIT_SIZE) == pytest.approx(rate)
  cosine = make("cosine")
  assert cosine(50, 2500) == pytest.approx(0.2)
  assert cosine(100, 5000) == cosine(101, 5050) == 0.0


def test_decay_goes_by_epochs_and_warm_up_by_images():
  """As after a start with another split: epochs and images are no multiples then."""
  # A third of the epochs' worth of images, and three times as many.
  assert make("step")(40, 100) == pytest.approx(0.04 * (1 / 3 + 2 / 3 * 100 / 500))
  assert make("step")(39, 6000) == pytest.approx(0.4)
  assert make("cosine")(50, 250) == pytest.approx(0.2 * 2 / 3)


def test_no_warm_up():
  assert make("constant", warmup_images=0)(0, 0) == pytest.approx(0.4)


def test_start_and_decay_factors():
  schedule = make("step", warmup_start_factor=0.5, decay_factor=0.2)
  assert schedule(0, 0) == pytest.approx(0.2)
  assert schedule(0, 250) == pytest.approx(0.3)
  assert schedule(85, 4250) == pytest.approx(0.4 * 0.04)


def test_errors():
  with pytest.raises(ValueError, match="'linear'"):
    schedules.Schedule(0.1, "linear")
  with pytest.raises(ValueError, match="epochs > 0, got 0"):
    schedules.Schedule(0.1, "cosine")
