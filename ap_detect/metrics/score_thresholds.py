"""The score threshold at which F1 is best, overall and for each class.

Scores of a detector trained by ranking are not probabilities: AP-loss fixes them only
up to a common shift, and their scale follows delta. So whatever is shown or served is
cut at a threshold chosen on validation data, and evaluation itself next to nowhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ap_detect.metrics.calibration import ScoreCalibration
from ap_detect.metrics.outcomes import Outcomes

# What no validation data can tell: nothing was detected, or nothing was hit.
UNINFORMED_THRESHOLD = 0.5

# The threshold lies below the lowest score by this share of it where every detection is
# to be kept, so that float noise in the score loses none.
LOWEST_SCORE_MARGIN = 1e-3

# Thresholds stay inside (0, 1) even where scores have saturated.
_EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class ScoreThresholds:
  """Thresholds t, each in (0, 1): detections of score >= t are kept.

  Attributes:
    overall: one threshold for all classes; 0.5 where no detection hits an object.
    overall_f1: F1 of all classes' detections pooled, at `overall`; in [0, 1].
    per_class: class name -> threshold; `overall` where no detection of the class hits.
    per_class_f1: class name -> best F1; 0 where no detection of the class hits, None
      where the class has no objects.
  """

  overall: float
  overall_f1: float
  per_class: dict[str, float]
  per_class_f1: dict[str, float | None]

  def calibrated(self, calibration: ScoreCalibration | None) -> ScoreThresholds:
    """The thresholds that cut calibrated scores alike; these ones where it is None."""
    if calibration is None:
      return self
    return dataclasses.replace(
      self,
      overall=float(calibration(self.overall)),
      per_class={name: float(calibration(t)) for name, t in self.per_class.items()},
    )

  def to_json(self) -> dict[str, Any]:
    """The fields as a dict that json.dump takes.

    Example:
      >>> thresholds = ScoreThresholds(0.5, 0.8, {"dog": 0.4}, {"dog": 0.9})
      >>> ScoreThresholds.from_json(thresholds.to_json()) == thresholds
      True
    """
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> ScoreThresholds:
    """The inverse of `to_json`.

    Args:
      fields: what `to_json` returned, after any number of trips through a JSON file.

    Raises:
      ValueError: a field is missing or unknown, or a threshold is not in (0, 1).
    """
    names = [field.name for field in dataclasses.fields(cls)]
    if sorted(fields) != sorted(names):
      raise ValueError(f"score thresholds need the fields {names}, got {list(fields)}")
    for threshold in [fields["overall"], *fields["per_class"].values()]:
      if not 0 < threshold < 1:
        raise ValueError(f"score thresholds must lie in (0, 1), got {threshold}")
    return cls(**fields)


def best_f1_thresholds(
  outcomes: Outcomes, class_names: Sequence[str]
) -> ScoreThresholds:
  """Thresholds of best F1 = 2PR / (P + R); of those of equal F1 the highest.

  Args:
    outcomes: Outcomes of K classes; scores in [0, 1].
    class_names: [K].

  Returns:
    The thresholds, and the F1 that each one reaches on these detections.

  Raises:
    ValueError: there are not as many names as classes.
  """
  num_classes = len(outcomes.num_objects)
  if len(class_names) != num_classes:
    raise ValueError(f"need {num_classes} class names, got {len(class_names)}")
  scores, hits = outcomes.scores, outcomes.hits
  cut = _best_cut(scores, hits, outcomes.num_objects.sum())
  overall, overall_f1 = cut or (UNINFORMED_THRESHOLD, 0.0)
  per_class: dict[str, float] = {}
  per_class_f1: dict[str, float | None] = {}
  for k, (name, num_objects) in enumerate(zip(class_names, outcomes.num_objects), 1):
    of_class = outcomes.classes == k
    cut = _best_cut(scores[of_class], hits[of_class], num_objects)
    per_class[name] = cut[0] if cut else overall
    per_class_f1[name] = (cut[1] if cut else 0.0) if num_objects > 0 else None
  return ScoreThresholds(overall, overall_f1, per_class, per_class_f1)


class Cuts(NamedTuple):
  """Every way to cut detections by score, highest threshold first; all arrays are [N].

  Attributes:
    thresholds: float64 in (0, 1), each midway between two neighbouring scores, so that
      float noise changes nothing.
    num_kept: detections of at least this score.
    num_hits: the hits among them.
  """

  thresholds: np.ndarray
  num_kept: np.ndarray
  num_hits: np.ndarray


def all_cuts(scores: np.ndarray, hits: np.ndarray) -> Cuts:
  """The cuts of some detections; equal scores are kept or left out together.

  Greedy matching takes the detections by score, so that a cut leaves the matches above
  it as they are, and one pass over the sorted scores sees every threshold.

  Args:
    scores: [D] in [0, 1].
    hits: [D] bool.

  Returns:
    Cuts, one for each distinct score.
  """
  order = np.argsort(-scores, kind="stable")
  scores, hits = scores[order], hits[order]
  last_kept = np.flatnonzero(np.append(scores[1:] < scores[:-1], len(scores) > 0))
  below = np.append(scores, scores[-1:] * (1 - 2 * LOWEST_SCORE_MARGIN))[last_kept + 1]
  return Cuts(
    np.clip((scores[last_kept] + below) / 2, _EPSILON, 1 - _EPSILON),
    last_kept + 1,
    np.cumsum(hits)[last_kept],
  )


def _best_cut(
  scores: np.ndarray, hits: np.ndarray, num_objects: int
) -> tuple[float, float] | None:
  """(threshold, F1) of the best cut; None where no detection is a hit.

  With T of n kept detections hits: P = T / n, R = T / objects, F1 = 2T / (n + objects).
  """
  if not hits.any():
    return None
  cuts = all_cuts(scores, hits)
  f1 = 2 * cuts.num_hits / (cuts.num_kept + num_objects)
  best = int(np.argmax(f1))
  return float(cuts.thresholds[best]), float(f1[best])
