"""What a detector is worth: COCO's and VOC's figures, curves, scores and thresholds."""

from ap_detect.metrics.calibration import (
  ScoreCalibration,
  fit_calibration,
)
from ap_detect.metrics.coco import (
  METRIC_NAMES,
  CocoEvaluation,
  coco_results,
  evaluate_coco,
  format_table,
)
from ap_detect.metrics.curves import PrecisionRecall, confusion, precision_recall
from ap_detect.metrics.matches import Matches, rank_all, rank_by_class
from ap_detect.metrics.operating_points import OperatingPoints
from ap_detect.metrics.outcomes import Outcomes
from ap_detect.metrics.reliability import measure_reliability
from ap_detect.metrics.score_thresholds import ScoreThresholds, best_f1_thresholds
from ap_detect.metrics.submissions import write_comp4
from ap_detect.metrics.voc import VocEvaluation, evaluate_voc, format_voc_table

__all__ = [
  "METRIC_NAMES",
  "CocoEvaluation",
  "Matches",
  "OperatingPoints",
  "Outcomes",
  "PrecisionRecall",
  "ScoreCalibration",
  "ScoreThresholds",
  "VocEvaluation",
  "best_f1_thresholds",
  "coco_results",
  "confusion",
  "evaluate_coco",
  "evaluate_voc",
  "fit_calibration",
  "format_table",
  "format_voc_table",
  "measure_reliability",
  "precision_recall",
  "rank_all",
  "rank_by_class",
  "write_comp4",
]
