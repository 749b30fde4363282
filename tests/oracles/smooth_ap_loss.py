"""-log(AP + epsilon) with a sigmoid for the step, in float64, in loops."""

from __future__ import annotations

import math

import numpy as np
from oracles.ap_loss import split


def smooth_ap_loss(logits, labels, delta=1.0, epsilon=1e-6):
  """Eqs. 3, 5 and 6 of Chen et al. 2019, f(x) = sigmoid(2 x / delta).

  Args:
    logits: [R, K] float array; taken as float64.
    labels: [R] integer array.
    delta, epsilon: as the loss.

  Returns:
    The loss; 0 without positives.
  """
  scores = np.asarray(logits, np.float64).ravel()
  positives, negatives = split(np.asarray(logits), labels)
  if not positives:
    return 0.0

  def rank(i, others):
    return sum(1 / (1 + math.exp(-2 * (scores[j] - scores[i]) / delta)) for j in others)

  precision = 0.0
  for i in positives:
    above = 1 + rank(i, [k for k in positives if k != i])
    precision += above / (above + rank(i, negatives))
  return -math.log(precision / len(positives) + epsilon)
