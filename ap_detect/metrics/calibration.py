"""From a detector's scores to the precision to expect at them.

AP-loss ranks: its scores are fixed only up to a common shift, and say nothing by
themselves. One strictly increasing map for all classes leaves every ranking, and with it
every AP, as it is. Its form is a broken line between the logits of score and precision.
A penalty on its bends makes it a straight one, Platt's (1999), where there are few
detections; with many it follows precisions that level off below 1, which a straight line
cannot. benchmarks/calibration_benchmark.py compares both with beta calibration (Kull et
al. 2017) and isotonic regression, whose flat steps would tie scores.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# Half a step beyond the float32 numbers that are next to 0 and to 1.
_LOWEST, _HIGHEST = 2.0**-150, 1 - 2.0**-25

# Knots of the broken line between the lowest and the highest score that it is fitted to,
# and how far apart they are at least, in standard deviations of the logits.
_NUM_KNOTS = 10
_KNOT_DISTANCE = 0.05

# The least slope, also beyond these scores. With the bound it keeps neighbours among the
# float32 numbers apart in float64: p = 1 / (1 + exp(-t)) differs by p (1 - p) times
# 0.1 times 6e-8, their least distance in logits, and 1 - p is 1e-6 at the least.
_LEAST_SLOPE = 0.1
_BOUND = 12.0

# Weight of the squared bends, changes of slope per standard deviation of the logits,
# beside the negative log likelihood of all detections.
_BEND_WEIGHT = 0.3


@dataclasses.dataclass(frozen=True)
class ScoreCalibration:
  """A strictly increasing map from a detector's scores to expected precisions.

  Linear between the logits, log(p / (1 - p)), of its points. Strict in float64 for all
  float32 scores inside (0, 1); rounded to float32, the order stays, and scores that are
  almost equal may become equal.

  Attributes:
    scores: [N] ascending, in (0, 1). Those outside of them are taken to the nearest.
    precisions: [N] ascending, in (0, 1), at these scores.

  Example:
    >>> calibration = ScoreCalibration((0.1, 0.3, 0.9), (0.2, 0.5, 0.8))
    >>> calibration(np.array([0.1, 0.3, 0.9])).round(9).tolist()
    [0.2, 0.5, 0.8]
  """

  scores: tuple[float, ...]
  precisions: tuple[float, ...]

  def __call__(self, scores: np.ndarray | float) -> np.ndarray:
    """Expected precisions, float64 of the shape of scores, which lie in [0, 1]."""
    inside = np.clip(np.asarray(scores, np.float64), self.scores[0], self.scores[-1])
    knots, values = _logits(self.scores), _logits(self.precisions)
    return _probabilities(np.interp(_logits(inside), knots, values))

  def to_json(self) -> dict[str, Any]:
    """The fields as a dict that json.dump takes."""
    return {"scores": list(self.scores), "precisions": list(self.precisions)}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> ScoreCalibration:
    """The inverse of `to_json`.

    Raises:
      ValueError: a field is missing or unknown, or its numbers are not as many as the
        other's, ascending, and in (0, 1).
    """
    if sorted(fields) != ["precisions", "scores"]:
      raise ValueError(
        f"a calibration needs the fields scores and precisions, got {list(fields)}"
      )
    found = cls(tuple(fields["scores"]), tuple(fields["precisions"]))
    for values in (found.scores, found.precisions):
      apart = np.diff([0.0, *values, 1.0])
      if len(values) < 2 or len(values) != len(found.scores) or not (apart > 0).all():
        raise ValueError(
          "a calibration needs two lists of as many ascending numbers in (0, 1), at "
          f"least 2, got {fields}"
        )
    return found


def fit_calibration(scores: np.ndarray, hits: np.ndarray) -> ScoreCalibration | None:
  """The map under which detections are likeliest to have hit and missed as they have.

  Of maximum likelihood, less the penalty on bends, for Platt's targets: of n hits each
  counts as (n + 1) / (n + 2) of one, and of m misses each as 1 / (m + 2), so that no
  precision is taken for 0 or 1.

  Args:
    scores: [D] in [0, 1], of detections of all classes.
    hits: [D] bool.

  Returns:
    ScoreCalibration; None where D is 0.
  """
  if not len(scores):
    return None
  logits = _logits(np.clip(np.asarray(scores, np.float64), _LOWEST, _HIGHEST))
  hits = np.asarray(hits, bool)
  num_hits, num_misses = int(np.sum(hits)), int(np.sum(~hits))
  targets = np.where(hits, (num_hits + 1) / (num_hits + 2), 1 / (num_misses + 2))
  # Hits and misses have the same weight here: most misses are where nothing happens.
  weights = np.where(hits, 1 / max(num_hits, 1), 1 / max(num_misses, 1))
  mean = np.average(logits, weights=weights)
  deviation = np.sqrt(np.average((logits - mean) ** 2, weights=weights))
  knots = _place_knots(logits, weights, _KNOT_DISTANCE * deviation)
  lengths = np.diff(knots)
  # [D, segments] how much of each segment lies below each detection.
  below = np.clip((logits[:, np.newaxis] - knots[:-1]) / lengths, 0, 1)
  bends = np.diff(np.diag(deviation / lengths), axis=0)
  start, rises = _maximize_likelihood(
    below, targets, _LEAST_SLOPE * logits, _BEND_WEIGHT * bends.T @ bends
  )
  above_least = np.clip(start + np.cumsum([0.0, *rises]), -_BOUND, _BOUND)
  points = np.union1d(knots, _logits(np.array([_LOWEST, _HIGHEST])))
  values = _LEAST_SLOPE * points + np.interp(points, knots, above_least)
  return ScoreCalibration(
    tuple(_probabilities(points).tolist()), tuple(_probabilities(values).tolist())
  )


def _place_knots(
  logits: np.ndarray, weights: np.ndarray, distance: float
) -> np.ndarray:
  """[N] ascending: the lowest, the highest, and between them equal shares of weight.

  Less those that are nearer to others than the distance.
  """
  order = np.argsort(logits, kind="stable")
  shares = np.cumsum(weights[order]) / np.sum(weights)
  places = np.searchsorted(shares, np.linspace(0, 1, _NUM_KNOTS)[1:-1])
  places = np.minimum(places, len(order) - 1)
  lowest, highest = logits[order[[0, -1]]]
  kept = [lowest]
  for knot in logits[order[places]]:
    if min(knot - kept[-1], highest - knot) >= distance > 0:
      kept.append(knot)
  return np.unique([*kept, highest])


def _maximize_likelihood(
  features: np.ndarray, targets: np.ndarray, offsets: np.ndarray, penalty: np.ndarray
) -> tuple[float, np.ndarray]:
  """Logistic regression with coefficients >= 0, by projected Newton steps.

  Bertsekas' (1982): coefficients that the gradient holds at 0 stay out of the step, and
  the step is shortened until the loss, which is convex, falls.

  Args:
    features: [D, S].
    targets: [D] in (0, 1).
    offsets: [D] logits that are given.
    penalty: [S, S], of coefficients @ penalty @ coefficients / 2.

  Returns:
    (intercept, [S] coefficients).
  """
  features = np.column_stack([np.ones(len(targets)), features])
  penalty = np.pad(penalty, (1, 0))
  least = np.append(-np.inf, np.zeros(features.shape[1] - 1))

  def loss(weights):
    logits = features @ weights + offsets
    likelihood = np.sum(np.logaddexp(0, logits) - targets * logits)
    return likelihood + weights @ penalty @ weights / 2

  weights = np.zeros(len(least))
  weights[0] = _logits(np.mean(targets)) - np.mean(offsets)
  for _ in range(100):
    predicted = _probabilities(features @ weights + offsets)
    gradient = features.T @ (predicted - targets) + penalty @ weights
    curvature = predicted * (1 - predicted)
    hessian = (features * curvature[:, np.newaxis]).T @ features + penalty
    free = (weights > least) | (gradient < 0)
    step = np.zeros(len(least))
    step[free] = np.linalg.lstsq(
      hessian[np.ix_(free, free)], gradient[free], rcond=None
    )[0]
    length, before = 1.0, loss(weights)
    while length > 1e-9:
      trial = np.maximum(weights - length * step, least)
      if loss(trial) <= before - 1e-4 * gradient @ (weights - trial):
        break
      length /= 2
    if np.abs(trial - weights).max() < 1e-9:
      break
    weights = trial
  return weights[0], weights[1:]


def _logits(probabilities) -> np.ndarray:
  return np.log(probabilities) - np.log1p(-np.asarray(probabilities))


def _probabilities(logits: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0, -logits))
