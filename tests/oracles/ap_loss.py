"""AP-loss and AUC-loss in float64, in loops, written from the paper's formulas."""

from __future__ import annotations

import numpy as np


def step(x, delta):
  """The piecewise step f, eq. 14."""
  if x < -delta:
    return 0.0
  if x > delta:
    return 1.0
  return x / (2 * delta) + 0.5


def split(logits, labels):
  """Scores and flat positions of the positives and of the negatives.

  Args:
    logits: [R, K] float array.
    labels: [R] integer array; -1 ignored, 0 background, 1..K the class.

  Returns:
    (positions of the positives, positions of the negatives), lists into logits.flat.
  """
  positives, negatives = [], []
  rows, classes = logits.shape
  for row in range(rows):
    for k in range(classes):
      if labels[row] == -1:
        continue
      is_positive = labels[row] == k + 1
      (positives if is_positive else negatives).append(row * classes + k)
  return positives, negatives


def primary_terms(scores, i, positives, negatives, delta):
  """L_ij of positive i for every negative j, eq. 3 with eq. 14."""
  rank = 1.0
  for k in positives:
    if k != i:
      rank += step(scores[k] - scores[i], delta)
  steps = np.array([step(scores[j] - scores[i], delta) for j in negatives])
  rank += steps.sum()
  return steps / rank


def ap_loss(logits, labels, delta=1.0, interpolated=True, weights=None):
  """Algorithm 1.

  Args:
    logits: [R, K] float array; taken as float64.
    labels: [R] integer array.
    delta: half-width of the step.
    interpolated: whether to use interpolated precision.
    weights: [R, K] float array, of the positives; None for equal ones.

  Returns:
    (loss, gradient [R, K] float64).
  """
  scores = np.asarray(logits, np.float64).ravel()
  weights = np.ones(scores.size) if weights is None else np.asarray(weights).ravel()
  positives, negatives = split(np.asarray(logits), labels)
  gradient = np.zeros(scores.size)
  max_precision = 0.0
  loss = total = 0.0
  for i in sorted(positives, key=lambda i: scores[i]):
    terms = primary_terms(scores, i, positives, negatives, delta)
    precision = 1.0 - terms.sum()
    if not interpolated or precision >= max_precision:
      max_precision = precision
    else:
      terms = terms * (1 - max_precision) / (1 - precision)
    loss += weights[i] * (1.0 - max_precision)
    total += weights[i]
    gradient[i] = -weights[i] * terms.sum()
    for term, j in zip(terms, negatives):
      gradient[j] += weights[i] * term
  total = total or 1.0
  return loss / total, (gradient / total).reshape(np.shape(logits))


def auc_loss(logits, labels, delta=1.0):
  """AUC-loss, eq. 7 with eq. 14, and its error-driven update; as `ap_loss`."""
  scores = np.asarray(logits, np.float64).ravel()
  positives, negatives = split(np.asarray(logits), labels)
  gradient = np.zeros(scores.size)
  loss = 0.0
  for i in positives:
    for j in negatives:
      term = step(scores[j] - scores[i], delta) / len(negatives) / len(positives)
      loss += term
      gradient[i] -= term
      gradient[j] += term
  return loss, gradient.reshape(np.shape(logits))


def ap_loss_of_large(logits, labels, delta=1.0, interpolated=True):
  """As `ap_loss` for inputs whose pairs are too many, in float64 by prefix sums.

  The sums over a positive's window come from the sorted scores, relative to the mean.
  """
  scores = np.asarray(logits, np.float64)
  is_positive = labels[:, None] == np.arange(1, scores.shape[1] + 1)
  is_negative = ~is_positive & (labels != -1)[:, None]
  positives = np.sort(scores[is_positive])
  negatives = np.sort(scores[is_negative])
  above = _sums_of_steps(negatives, positives, delta)
  ranks = 0.5 + _sums_of_steps(positives, positives, delta)
  errors = above / (ranks + above)
  if interpolated:
    errors = np.minimum.accumulate(errors)
  weights = np.divide(errors, above, out=np.zeros_like(above), where=above > 0)
  share = 1.0 / len(positives)
  gradient = np.zeros_like(scores)
  order = np.argsort(scores[is_positive], kind="stable")
  own = np.empty_like(errors)
  own[order] = -errors * share
  gradient[is_positive] = own
  knots = np.concatenate([positives - delta, positives + delta])
  rises = np.concatenate([weights, -weights]) * share / (2 * delta)
  order = np.argsort(knots, kind="stable")
  knots, rises = knots[order], rises[order]
  slopes = np.cumsum(rises)
  heights = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(knots))])
  interval = np.searchsorted(knots, scores[is_negative], side="right") - 1
  line = heights[interval] + slopes[interval] * (scores[is_negative] - knots[interval])
  gradient[is_negative] = np.where(interval < 0, 0.0, line)
  return errors.mean(), gradient


def _sums_of_steps(scores, positives, delta):
  """sum_j f(s_j - s_i) for every positive; scores are sorted."""
  center = scores.mean() if scores.size else 0.0
  total = np.concatenate([[0.0], np.cumsum(scores - center)])
  begin = np.searchsorted(scores, positives - delta)
  end = np.searchsorted(scores, positives + delta)
  inside = total[end] - total[begin] - (end - begin) * (positives - center)
  return len(scores) - end + inside / (2 * delta) + (end - begin) / 2


def error_driven_update(output, desired):
  """Gradient for the scores behind an output, -(desired - output); eqs. 8 and 9."""
  return np.asarray(output, np.float64) - np.asarray(desired, np.float64)
