"""What the scores of a run's checkpoint mean, and which detections are shown.

Both are chosen on the validation split, each time that it is evaluated, and belong to the
weights of that moment.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from absl import logging

from ap_detect.metrics.calibration import ScoreCalibration
from ap_detect.metrics.operating_points import OperatingPoints
from ap_detect.metrics.score_thresholds import ScoreThresholds
from ap_detect.runs import folder

_VALIDATE_ANEW = (
  "an earlier version of ap_detect validated it, or it detected nothing; the training's "
  "own command, given again, validates the best checkpoint anew"
)


class Judgement(NamedTuple):
  """What a validation says of scores as the network gives them.

  Attributes:
    thresholds: ScoreThresholds of best F1.
    calibration: ScoreCalibration; None where the validation made none.
    operating_points: OperatingPoints; None where the validation noted none.
  """

  thresholds: ScoreThresholds
  calibration: ScoreCalibration | None
  operating_points: OperatingPoints | None

  def shown(self) -> ShownScores:
    """Calibrated scores, from each class's threshold of best F1 on."""
    return ShownScores(self.calibration, self.thresholds.calibrated(self.calibration))

  def to_json(self) -> dict[str, Any]:
    """The fields as they stand in a run's record."""
    return {
      "score_thresholds": self.thresholds.to_json(),
      "calibration": self.calibration and self.calibration.to_json(),
      "operating_points": self.operating_points and self.operating_points.to_json(),
    }

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> Judgement:
    """The inverse of `to_json`; other fields, and those that are missing, do not matter."""
    calibration, points = fields.get("calibration"), fields.get("operating_points")
    return cls(
      ScoreThresholds.from_json(fields["score_thresholds"]),
      ScoreCalibration.from_json(calibration) if calibration else None,
      OperatingPoints.from_json(points) if points else None,
    )


class ShownScores(NamedTuple):
  """How detections are shown or served.

  Attributes:
    calibration: ScoreCalibration that the network's scores go through; None for none.
    thresholds: ScoreThresholds of the scores that come out of it.
  """

  calibration: ScoreCalibration | None
  thresholds: ScoreThresholds


def load_judgement(model_dir: str, checkpoint: str = "") -> Judgement | None:
  """What the validation of a checkpoint says of its scores; None before any.

  Where a checkpoint was not validated, that of the best one stands in, and the log says
  so.

  Args:
    model_dir: a run's folder.
    checkpoint: path of the checkpoint that is used; "" for the best.
  """
  validation, best = load_validation(model_dir, checkpoint), folder.load_best(model_dir)
  if not validation and best:
    logging.warning(
      "%s has no score thresholds of its own; those of the best checkpoint, %s, are "
      "used, and may not suit it",
      *(checkpoint, best["checkpoint"]),
    )
  validation = validation or best
  return Judgement.from_json(validation) if validation else None


def load_validation(model_dir: str, checkpoint: str = "") -> dict[str, Any] | None:
  """What the validation of a checkpoint found, its metrics among it.

  Args:
    model_dir: a run's folder.
    checkpoint: path of the checkpoint; "" for the best.

  Returns:
    See training/validation.py; None where it was not validated.
  """
  best = folder.load_best(model_dir)
  if best and _is_best(model_dir, best, checkpoint):
    return best
  record = (folder.read_record(checkpoint) if checkpoint else None) or {}
  validation = record.get("validation")
  return validation if validation and validation["step"] == record["step"] else None


def load_shown_scores(
  model_dir: str,
  checkpoint: str = "",
  *,
  score_threshold: float | None = None,
  min_precision: float | None = None,
  min_recall: float | None = None,
  calibrate: bool = True,
) -> ShownScores:
  """How the scores of a checkpoint are shown, and from which one on.

  The threshold is each class's own, of best F1 on the validation split, or one for all
  classes: a given one, or what had a wanted precision or recall there, all classes
  together.

  Args:
    model_dir: a run's folder.
    checkpoint: path of the checkpoint that is used; "" for the best.
    score_threshold: in [0, 1], of scores as they are shown.
    min_precision: in (0, 1]; of the thresholds that had it, that of the highest recall.
    min_recall: in (0, 1]; of the thresholds that had it, that of the highest precision.
    calibrate: whether scores are shown as the precision to expect at them; where the
      run does not know that, they are the network's own, and the log says so.

  Raises:
    ValueError: several thresholds are given; none is, and the run has none yet; or no
      threshold had what is wanted.
  """
  given = {
    "score_threshold": score_threshold,
    "min_precision": min_precision,
    "min_recall": min_recall,
  }
  named = [f"--{name}" for name, value in given.items() if value is not None]
  if len(named) > 1:
    raise ValueError(f"only one of {' and '.join(named)} can be given")
  judgement = load_judgement(model_dir, checkpoint)
  if judgement is None and score_threshold is None:
    raise ValueError(
      f"{model_dir} was not validated yet, so that it has no score thresholds; train on, "
      "or give --score_threshold"
    )
  calibration = judgement.calibration if judgement and calibrate else None
  if calibrate and not calibration:
    problem = _VALIDATE_ANEW if judgement else "it was not validated yet"
    logging.warning(
      "%s has no calibration of its scores: %s. They are the network's own, and rank "
      "detections, no more",
      *(model_dir, problem),
    )
  if judgement is None or score_threshold is not None:
    names = folder.load_classes(model_dir).names
    return ShownScores(calibration, _same_for_all(names, score_threshold))
  thresholds = judgement.thresholds
  if min_precision is not None or min_recall is not None:
    if not judgement.operating_points:
      raise ValueError(
        f"{model_dir} does not know what {named[0]} takes: {_VALIDATE_ANEW}"
      )
    cut = judgement.operating_points.cut_for(
      min_precision=min_precision, min_recall=min_recall
    )
    thresholds = _same_for_all(thresholds.per_class, cut[0])
    logging.info(
      "at the score threshold %.4f, detections had a precision of %.4f and a recall of "
      "%.4f on the validation split",
      *(thresholds.calibrated(calibration).overall, *cut[1:]),
    )
  return ShownScores(calibration, thresholds.calibrated(calibration))


def _same_for_all(names, threshold):
  names = tuple(names)
  return ScoreThresholds(
    threshold, 0.0, dict.fromkeys(names, threshold), dict.fromkeys(names)
  )


def _is_best(model_dir, best, checkpoint):
  path = os.path.join(model_dir, folder.BEST_CHECKPOINTS, best["checkpoint"])
  return not checkpoint or os.path.realpath(path) == os.path.realpath(checkpoint)
