"""Rank & Sort loss in float64, in loops, written from the paper's formulas."""

from __future__ import annotations

import numpy as np
from oracles.ap_loss import split, step


def rank_and_sort_loss(logits, labels, qualities, delta=0.5, weights=None):
  """Oksuz et al. 2021, with f in place of H, also for i itself.

  Args:
    logits: [R, K] float array; taken as float64.
    labels: [R] integer array.
    qualities: [R] float array.
    delta: half-width of the step.
    weights: [R] float array, of the positives; None for equal ones.

  Returns:
    (loss, gradient [R, K] float64).
  """
  scores = np.asarray(logits, np.float64).ravel()
  positives, negatives = split(np.asarray(logits), labels)
  classes = np.shape(logits)[1]
  quality = {i: float(qualities[i // classes]) for i in positives}
  weight = {
    i: 1.0 if weights is None else float(weights[i // classes]) for i in positives
  }
  gradient = np.zeros(scores.size)
  loss = 0.0
  for i in positives:
    f = {j: step(scores[j] - scores[i], delta) for j in [*positives, *negatives]}
    false_positives = sum(f[j] for j in negatives)
    rank_in_positives = sum(f[j] for j in positives)
    ranking = false_positives / (rank_in_positives + false_positives)
    current = sum(f[j] * (1 - quality[j]) for j in positives) / rank_in_positives
    better = [j for j in positives if quality[j] >= quality[i]]
    target = sum(f[j] * (1 - quality[j]) for j in better) / sum(f[j] for j in better)
    sorting = current - target
    loss += weight[i] * (ranking + sorting)
    gradient[i] -= weight[i] * (ranking + sorting)
    for j in negatives:
      if false_positives > 0:
        gradient[j] += weight[i] * ranking * f[j] / false_positives
    worse = [j for j in positives if quality[j] < quality[i]]
    missorted = sum(f[j] for j in worse)
    for j in worse:
      if missorted > 0:
        gradient[j] += weight[i] * sorting * f[j] / missorted
  total = sum(weight.values()) or 1.0
  return loss / total, (gradient / total).reshape(np.shape(logits))
