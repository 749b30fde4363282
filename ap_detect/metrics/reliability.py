"""How far scores are from the precision that they stand for, before and after calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ap_detect.metrics.calibration import ScoreCalibration, fit_calibration
from ap_detect.metrics.outcomes import Outcomes
from ap_detect.metrics.score_thresholds import ScoreThresholds


class Reliability(NamedTuple):
  """Scores beside the precisions that they stand for, in bins of neighbouring scores.

  Attributes:
    mean_scores: [N] float64, ascending; one for each bin that has detections.
    precisions: [N] float64, the share of hits.
    error: the mean of their difference over all detections, in [0, 1]; None for none.
  """

  mean_scores: np.ndarray
  precisions: np.ndarray
  error: float | None


def measure_reliability(
  scores: np.ndarray, hits: np.ndarray, *, num_bins: int = 10
) -> Reliability:
  """The reliability diagram and the expected calibration error (Guo et al. 2017).

  Args:
    scores: [D] in [0, 1].
    hits: [D] bool.
    num_bins: of equal width.

  Returns:
    Reliability.

  Example: 0.75 for what is right in one of two cases
    >>> measure_reliability(np.array([0.75, 0.75]), np.array([True, False])).error
    0.25
  """
  bins = np.minimum((scores * num_bins).astype(int), num_bins - 1)
  counts = np.bincount(bins, minlength=num_bins)
  filled = counts > 0
  means, precisions = (
    np.bincount(bins, values, num_bins)[filled] / counts[filled]
    for values in (scores, hits)
  )
  error = None
  if len(scores):
    error = float(np.average(np.abs(means - precisions), weights=counts[filled]))
  return Reliability(means, precisions, error)


def cross_calibrate(outcomes: Outcomes) -> np.ndarray | None:
  """Scores by maps that were not fitted on the image that they are of.

  Args:
    outcomes: Outcomes.

  Returns:
    [D] float64: of every other image by the map that is fitted to the rest, and the
    other way round; None where either half has no detections.
  """
  is_odd = outcomes.images % 2 == 1
  calibrated = np.zeros(len(is_odd))
  for half in (is_odd, ~is_odd):
    calibration = fit_calibration(outcomes.scores[~half], outcomes.hits[~half])
    if calibration is None:
      return None
    calibrated[half] = calibration(outcomes.scores[half])
  return calibrated


def calibrate_fairly(
  outcomes: Outcomes, run_calibration: ScoreCalibration | None, *, fitted_here: bool
) -> dict[str, np.ndarray]:
  """Scores before and after calibration by maps that were not fitted to them.

  Args:
    outcomes: Outcomes of the evaluation.
    run_calibration: the run's ScoreCalibration; None for none.
    fitted_here: whether that was fitted to these detections. Each half of the images is
      then calibrated by a map that is fitted to the other.

  Returns:
    {"raw": [D], "calibrated": [D]}, the latter missing where there is no map.
  """
  if fitted_here:
    calibrated = cross_calibrate(outcomes)
  else:
    calibrated = run_calibration(outcomes.scores) if run_calibration else None
  found = {"raw": outcomes.scores, "calibrated": calibrated}
  return {name: values for name, values in found.items() if values is not None}


def judge_scores(
  outcomes: Outcomes,
  compared: dict[str, np.ndarray],
  class_names: Sequence[str],
  thresholds: ScoreThresholds,
) -> dict[str, dict[str, Reliability]]:
  """How far scores are from precision.

  Args:
    outcomes: Outcomes of the evaluation.
    compared: name -> [D] float64, scores of these detections.
    class_names: [K].
    thresholds: ScoreThresholds of the outcomes' own scores.

  Returns:
    {"all": by_name, "shown": by_name}, of all detections and of those that reach their
    class's threshold; by_name is a Reliability for each of the compared.
  """
  at_least = np.array([thresholds.per_class[name] for name in class_names])
  is_shown = outcomes.scores >= at_least[outcomes.classes - 1]
  return {
    part: {
      name: measure_reliability(values[kept], outcomes.hits[kept])
      for name, values in compared.items()
    }
    for part, kept in (("all", slice(None)), ("shown", is_shown))
  }
