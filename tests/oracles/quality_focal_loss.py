"""Quality focal loss in float64, in loops, from its definition in Li et al. 2020."""

from __future__ import annotations

import math


def quality_focal_loss(logits, labels, qualities, beta):
  """The sum over anchors and classes, divided by the number of positive anchors.

  Args:
    logits: [R, K] array.
    labels: [R] integer array; -1 ignored, 0 background, 1..K the class.
    qualities: [R] array in [0, 1].
    beta: the exponent.

  Returns:
    The loss.
  """
  total = 0.0
  for row, label in enumerate(labels):
    if label == -1:
      continue
    for k, logit in enumerate(logits[row]):
      y = float(qualities[row]) if label == k + 1 else 0.0
      p = 1 / (1 + math.exp(-logit))
      log_p = -math.log1p(math.exp(-logit))
      log_rest = -math.log1p(math.exp(logit))
      total -= abs(y - p) ** beta * ((1 - y) * log_rest + y * log_p)
  return total / max(sum(label > 0 for label in labels), 1)
