"""The paired bootstrap: sure of what is so on every image, unsure of chance."""

import bootstrap
import numpy as np
import pytest

from ap_detect.metrics.matches import Matches


def matches(scores_of_hits, num_images=40, misses=3, seed=0):
  """A class; an object an image, found with a score, among false alarms."""
  rng = np.random.default_rng(seed)
  alarms = num_images * misses
  scores = np.concatenate([scores_of_hits, rng.random(alarms)])
  hits = np.arange(len(scores)) < num_images
  images = np.concatenate(
    [np.arange(num_images), np.repeat(np.arange(num_images), misses)]
  )
  return Matches(
    thresholds=np.linspace(0.5, 0.95, 10),
    scores=scores,
    hits=np.tile(hits, (10, 1)),
    counted=np.ones((10, len(scores)), bool),
    classes=np.ones(len(scores), int),
    images=images,
    num_objects=np.ones((1, num_images), int),
  )


def test_a_difference_on_every_image_is_sure():
  good, bad = matches(np.full(40, 0.99)), matches(np.full(40, 0.5))
  found = bootstrap.compare([(good, bad)], resamples=100)["AP"]
  expected = bootstrap.figures(good)["AP"] - bootstrap.figures(bad)["AP"]
  assert found["difference"] == pytest.approx(expected)
  assert 0 < found["low"] < expected < found["high"]
  assert found["share_above_0"] == 1


def test_a_difference_of_single_images_is_not():
  rng = np.random.default_rng(1)
  one, other = (matches(rng.permutation(np.linspace(0, 1, 40))) for _ in range(2))
  for figure in bootstrap.compare([(one, other)], resamples=100).values():
    assert figure["low"] < 0 < figure["high"]


def test_a_row_does_not_differ_from_itself():
  one = matches(np.linspace(0, 1, 40))
  for figure in bootstrap.compare([(one, one)] * 2, resamples=20).values():
    assert figure["low"] == figure["difference"] == figure["high"] == 0


def test_interval_is_as_wide_as_other_images_would_make_it():
  """Against fresh samples of images of the same kind."""

  def draw(rng, num_images=60):
    good = np.where(rng.random(num_images) < 0.7, 0.9, 0.3)
    bad = np.where(rng.random(num_images) < 0.5, 0.9, 0.3)
    seed = int(rng.integers(2**31))
    return tuple(matches(scores, num_images, seed=seed) for scores in (good, bad))

  fresh = []
  for seed in range(150):
    one, other = draw(np.random.default_rng(seed))
    fresh.append(bootstrap.figures(one)["AP"] - bootstrap.figures(other)["AP"])
  widths = []
  for seed in range(5):
    found = bootstrap.compare([draw(np.random.default_rng(seed))], resamples=150)["AP"]
    widths.append(found["high"] - found["low"])
  low, high = np.quantile(fresh, (0.025, 0.975))
  assert np.mean(widths) == pytest.approx(high - low, rel=0.3)


def test_other_images_are_refused():
  with pytest.raises(ValueError, match="same images"):
    bootstrap.compare([(matches(np.ones(40)), matches(np.ones(30), 30))])
