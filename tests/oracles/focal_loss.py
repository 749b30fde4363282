"""Focal loss in float64, in loops, from eq. 5 of Lin et al. 2017."""

from __future__ import annotations

import math

import numpy as np


def focal_loss(logits, labels, alpha, gamma):
  """The sum over anchors and classes, divided by the number of positive anchors.

  Args:
    logits: [R, K] array.
    labels: [R] integer array; -1 ignored, 0 background, 1..K the class.

  Returns:
    (loss, gradient [R, K]); the gradient by the chain rule on p_t.
  """
  loss, gradient = 0.0, np.zeros(np.shape(logits))
  positives = max(sum(label > 0 for label in labels), 1)
  for row, label in enumerate(labels):
    if label == -1:
      continue
    for k in range(len(logits[row])):
      is_own = label == k + 1
      sign = 1.0 if is_own else -1.0
      weight = alpha if is_own else 1.0 - alpha
      odds = math.exp(-abs(logits[row][k]))
      small, large = odds / (1 + odds), 1 / (1 + odds)
      right = large if sign * logits[row][k] >= 0 else small
      wrong = small if sign * logits[row][k] >= 0 else large
      log = math.log1p(odds) + max(-sign * logits[row][k], 0.0)  # -log(p_t)
      loss += weight * wrong**gamma * log / positives
      # dL/dp_t = -weight (wrong^gamma / right + gamma wrong^(gamma - 1) log), and
      # dp_t/dlogit = sign right wrong.
      slope = wrong ** (gamma + 1) + gamma * wrong**gamma * right * log
      gradient[row][k] = -sign * weight * slope / positives
  return loss, gradient
