"""Calibration errors, by hand and bin by bin, on data that no map was fitted to."""

import numpy as np
import pytest

from ap_detect.metrics import (
  Outcomes,
  ScoreCalibration,
  ScoreThresholds,
  fit_calibration,
)
from ap_detect.metrics.reliability import (
  calibrate_fairly,
  cross_calibrate,
  judge_scores,
  measure_reliability,
)


class TestCrossCalibrate:
  def outcomes(self):
    rng = np.random.default_rng(0)
    scores = rng.random(400)
    return Outcomes(
      scores, rng.random(400) < scores**2, np.ones(400, int), np.arange(400) // 10, None
    )

  def test_no_image_is_judged_by_its_own_half(self):
    outcomes = self.outcomes()
    expected = cross_calibrate(outcomes)
    odd = outcomes.images % 2 == 1
    for half in (odd, ~odd):
      by_rest = fit_calibration(outcomes.scores[~half], outcomes.hits[~half])
      np.testing.assert_array_equal(expected[half], by_rest(outcomes.scores[half]))

  def test_too_few_images(self):
    outcomes = self.outcomes()
    assert cross_calibrate(outcomes._replace(images=outcomes.images * 2)) is None


class TestReliability:
  def test_by_hand(self):
    # (0.2 + 0.4) / 2 against 1/2; 0.8 and 1.0 against 1.
    found = measure_reliability(
      np.array([0.8, 0.2, 1.0, 0.4]), np.array([True, False, True, True]), num_bins=2
    )
    assert found.mean_scores.tolist() == pytest.approx([0.3, 0.9])
    assert found.precisions.tolist() == [0.5, 1.0]
    assert found.error == pytest.approx((2 * 0.2 + 2 * 0.1) / 4)

  def test_few_and_none(self):
    found = measure_reliability(np.array([0.25]), np.array([True]))
    assert (found.mean_scores.tolist(), found.error) == ([0.25], 0.75)
    found = measure_reliability(np.zeros(0), np.zeros(0, bool))
    assert found.error is None and len(found.precisions) == 0

  def test_is_next_to_nothing_where_scores_are_right(self):
    rng = np.random.default_rng(0)
    scores = rng.random(100_000)
    assert measure_reliability(scores, rng.random(100_000) < scores).error < 0.01
    assert measure_reliability(scores, rng.random(100_000) < scores**2).error > 0.1


class TestJudgeScores:
  def judge(self, *, fitted_here, calibration):
    """Of 300 detections of 30 images, and those of class b from 0.5 on shown."""
    rng = np.random.default_rng(0)
    outcomes = Outcomes(
      scores=rng.random(300),
      hits=rng.random(300) < 0.5,
      classes=rng.integers(1, 3, 300),
      images=np.arange(300) // 10,
      num_objects=np.array([100, 100]),
    )
    thresholds = ScoreThresholds(0.5, 1.0, {"a": 0.99, "b": 0.5}, {"a": 1.0, "b": 1.0})
    compared = calibrate_fairly(outcomes, calibration, fitted_here=fitted_here)
    return outcomes, judge_scores(outcomes, compared, ["a", "b"], thresholds)

  @pytest.mark.parametrize("fitted_here", [True, False])
  def test_of_all_and_of_those_shown(self, fitted_here):
    calibration = ScoreCalibration((0.01, 0.99), (0.4, 0.6))
    outcomes, found = self.judge(fitted_here=fitted_here, calibration=calibration)
    by_name = {"raw": outcomes.scores, "calibrated": calibration(outcomes.scores)}
    if fitted_here:
      by_name["calibrated"] = cross_calibrate(outcomes)
    is_shown = outcomes.scores >= np.where(outcomes.classes == 2, 0.5, 0.99)
    assert 50 < is_shown.sum() < 150
    for part, kept in (("all", outcomes.scores >= 0), ("shown", is_shown)):
      assert list(found[part]) == ["raw", "calibrated"]
      for name, values in by_name.items():
        # Ten bins, one by one.
        error = 0.0
        for low in np.arange(10) / 10:
          here = kept & (values >= low) & (values < low + 0.1)
          error += abs(values[here].sum() - outcomes.hits[here].sum())
        assert found[part][name].error == pytest.approx(error / kept.sum())
      assert found[part]["calibrated"].error < found[part]["raw"].error

  def test_no_calibration(self):
    _, found = self.judge(fitted_here=False, calibration=None)
    assert [list(by_name) for by_name in found.values()] == [["raw"], ["raw"]]
