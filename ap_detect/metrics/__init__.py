"""What a detector is worth: COCO's figures, and the score threshold to show it at."""

from ap_detect.metrics.coco import (
  METRIC_NAMES,
  CocoEvaluation,
  coco_results,
  evaluate_coco,
  format_table,
)
from ap_detect.metrics.score_thresholds import ScoreThresholds, best_f1_thresholds

__all__ = [
  "METRIC_NAMES",
  "CocoEvaluation",
  "ScoreThresholds",
  "best_f1_thresholds",
  "coco_results",
  "evaluate_coco",
  "format_table",
]
