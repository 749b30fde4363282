"""Where all detections can be cut, and the precision and recall that are left."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ap_detect.metrics.outcomes import Outcomes
from ap_detect.metrics.score_thresholds import all_cuts


@dataclasses.dataclass(frozen=True)
class OperatingPoints:
  """Cuts of the detections of all classes together, highest threshold first.

  A point for each percent of recall: of the cuts that reach it, the one of the best
  precision. So recall rises and precision falls from point to point.

  Attributes:
    thresholds: [N] in (0, 1); detections of score >= it are kept. None where nothing is
      hit.
    precisions: [N] in (0, 1], of what is kept.
    recalls: [N] in (0, 1].
  """

  thresholds: tuple[float, ...]
  precisions: tuple[float, ...]
  recalls: tuple[float, ...]

  def cut_for(
    self, *, min_precision: float | None = None, min_recall: float | None = None
  ) -> tuple[float, float, float]:
    """The cut for a wanted precision or recall, of which one must be given.

    Args:
      min_precision: the point is the one of the highest recall that has it.
      min_recall: the point is the one of the highest precision that has it.

    Returns:
      (threshold, precision, recall).

    Raises:
      ValueError: no point has it; the message says what the highest is.
    """
    points = list(zip(self.thresholds, self.precisions, self.recalls))
    if min_precision is not None:
      wanted = [point for point in reversed(points) if point[1] >= min_precision]
      problem = f"a precision of {min_precision}", max(self.precisions, default=0.0)
    else:
      wanted = [point for point in points if point[2] >= (min_recall or 0.0)]
      problem = f"a recall of {min_recall}", max(self.recalls, default=0.0)
    if not wanted:
      raise ValueError(
        f"no score threshold gives {problem[0]} on the validation split; the highest "
        f"there is {problem[1]:.4f}"
      )
    return wanted[0]

  def to_json(self) -> dict[str, Any]:
    """The fields as a dict that json.dump takes."""
    return {name: list(values) for name, values in dataclasses.asdict(self).items()}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> OperatingPoints:
    """The inverse of `to_json`."""
    return cls(**{name: tuple(values) for name, values in fields.items()})


def find_operating_points(outcomes: Outcomes) -> OperatingPoints:
  """The operating points of some detections.

  Args:
    outcomes: Outcomes; scores in [0, 1].

  Returns:
    OperatingPoints, at most 100 of them.

  Example: hit, miss, hit, of 2 objects
    >>> points = find_operating_points(Outcomes(
    ...   scores=np.array([0.9, 0.6, 0.4]), hits=np.array([True, False, True]),
    ...   classes=np.ones(3, int), images=np.zeros(3, int), num_objects=np.array([2])))
    >>> points.thresholds, points.recalls
    ((0.75, 0.3996), (0.5, 1.0))
  """
  cuts = all_cuts(outcomes.scores, outcomes.hits)
  num_objects = max(int(np.sum(outcomes.num_objects)), 1)
  precisions, recalls = cuts.num_hits / cuts.num_kept, cuts.num_hits / num_objects
  chosen: set[int] = set()
  for percent in range(1, 101):
    reaching = np.flatnonzero(100 * cuts.num_hits >= percent * num_objects)
    if len(reaching):
      # The last of equal ones, whose recall is the highest.
      best = np.flatnonzero(precisions[reaching] == precisions[reaching].max())[-1]
      chosen.add(int(reaching[best]))
  kept = sorted(chosen)
  return OperatingPoints(
    *(tuple(values[kept].tolist()) for values in (cuts.thresholds, precisions, recalls))
  )
