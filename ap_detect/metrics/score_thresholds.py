"""The score threshold at which F1 is best, overall and for each class.

Scores of a detector trained by ranking are not probabilities: AP-loss fixes them only
up to a common shift, and their scale follows delta. So whatever is shown or served is
cut at a threshold chosen on validation data, and evaluation itself next to nowhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.cocoeval import COCOeval

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
  coco_eval: COCOeval, class_names: Sequence[str]
) -> ScoreThresholds:
  """Thresholds of best F1 = 2PR / (P + R), by COCO's matches at IoU 0.5.

  Area range 'all' and the best maxDets[-1] (100) detections of an image and class, as
  in AP50. Ignored objects and the detections on them count neither for nor against.
  Greedy matching takes the detections by score, so that a cut leaves the matches above
  it as they are, and one pass over the sorted scores sees every threshold. Of
  thresholds of equal F1 the highest is taken, and it is put midway between the lowest
  score kept and the next score below, so that float noise changes nothing.

  Args:
    coco_eval: after its evaluate(); scores in [0, 1].
    class_names: [K] names of the categories, in the order of coco_eval.params.catIds.

  Returns:
    The thresholds, and the F1 that each one reaches on these detections.

  Raises:
    ValueError: as many names as categories are needed, or 0.5 is not among the IoU
      thresholds of coco_eval.
  """
  num_categories = len(coco_eval.params.catIds)
  if len(class_names) != num_categories:
    raise ValueError(f"need {num_categories} class names, got {len(class_names)}")
  by_class = [_outcomes(coco_eval, k) for k in range(num_categories)]
  scores, hits, num_objects = zip(*by_class)
  cut = _best_cut(np.concatenate(scores), np.concatenate(hits), sum(num_objects))
  overall, overall_f1 = cut or (UNINFORMED_THRESHOLD, 0.0)
  per_class: dict[str, float] = {}
  per_class_f1: dict[str, float | None] = {}
  for name, outcomes in zip(class_names, by_class):
    has_objects = outcomes[2] > 0
    cut = _best_cut(*outcomes)
    per_class[name] = cut[0] if cut else overall
    per_class_f1[name] = (cut[1] if cut else 0.0) if has_objects else None
  return ScoreThresholds(overall, overall_f1, per_class, per_class_f1)


def _outcomes(coco_eval: COCOeval, k: int) -> tuple[np.ndarray, np.ndarray, int]:
  """One class's detections that count, as (scores [D], hits [D] bool, objects)."""
  params = coco_eval.params
  at_half = np.flatnonzero(np.isclose(params.iouThrs, 0.5))
  if at_half.size == 0:
    raise ValueError(f"IoU thresholds must have 0.5, got {params.iouThrs}")
  num_images = len(params.imgIds)
  start = (k * len(params.areaRng) + params.areaRngLbl.index("all")) * num_images
  scores, hits, num_objects = [np.zeros(0)], [np.zeros(0, bool)], 0
  for entry in coco_eval.evalImgs[start : start + num_images]:
    if entry is None:
      continue
    counted = ~np.asarray(entry["dtIgnore"], bool)[at_half[0]]
    scores.append(np.asarray(entry["dtScores"], np.float64)[counted])
    hits.append(np.asarray(entry["dtMatches"])[at_half[0]][counted] > 0)
    num_objects += int(np.sum(np.asarray(entry["gtIgnore"]) == 0))
  return np.concatenate(scores), np.concatenate(hits), num_objects


def _best_cut(
  scores: np.ndarray, hits: np.ndarray, num_objects: int
) -> tuple[float, float] | None:
  """(threshold, F1) of the best cut; None where no detection is a hit.

  With T of n kept detections hits: P = T / n, R = T / objects, F1 = 2T / (n + objects).
  """
  if not hits.any():
    return None
  order = np.argsort(-scores, kind="stable")
  scores, hits = scores[order], hits[order]
  f1 = 2 * np.cumsum(hits) / (np.arange(1, len(hits) + 1) + num_objects)
  ends_tie = np.append(scores[1:] < scores[:-1], True)
  last = int(np.argmax(np.where(ends_tie, f1, -1)))
  if last + 1 < len(scores):
    threshold = (scores[last] + scores[last + 1]) / 2
  else:
    threshold = scores[last] * (1 - LOWEST_SCORE_MARGIN)
  return float(np.clip(threshold, _EPSILON, 1 - _EPSILON)), float(f1[last])
