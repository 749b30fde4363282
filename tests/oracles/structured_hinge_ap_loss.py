"""The structured hinge loss of AP, over all rankings and by Yue et al.'s algorithm."""

from __future__ import annotations

import itertools

import numpy as np
from oracles.ap_loss import split


def over_all_rankings(logits, labels):
  """The maximum over every order of all entries, from its definition.

  Args:
    logits: [R, K] float array; taken as float64.
    labels: [R] integer array.

  Returns:
    max over rankings of 1 - AP + sum of (R_ij - 1) (s_i - s_j) / (|P| |N|).
  """
  scores = np.asarray(logits, np.float64).ravel()
  positives, negatives = split(np.asarray(logits), labels)
  pairs = len(positives) * len(negatives)
  best = 0.0
  for order in itertools.permutations([*positives, *negatives]):
    rank = {entry: place for place, entry in enumerate(order, 1)}
    precision = sum(
      sum(rank[k] <= rank[i] for k in positives) / rank[i] for i in positives
    ) / len(positives)
    score = sum(
      -2 * (scores[i] - scores[j]) / pairs
      for i in positives
      for j in negatives
      if rank[i] > rank[j]
    )
    best = max(best, 1 - precision + score)
  return best


def by_placing_negatives(logits, labels):
  """Each negative in its own best place: Yue et al. 2007, Algorithm 2.

  Args:
    logits, labels: as `over_all_rankings`.

  Returns:
    (loss, gradient [R, K]); where scores tie, the mean over their orders.
  """
  scores = np.asarray(logits, np.float64).ravel()
  positives, negatives = (
    sorted(entries, key=lambda i: -scores[i])
    for entries in split(np.asarray(logits), labels)
  )
  p = np.arange(1, len(positives) + 1)
  s = scores[positives]
  gradient = np.zeros(scores.size)
  number = len(negatives)
  for n, j in enumerate(negatives, 1):
    # What a negative changes where it lies above the positives from p on.
    gains = (p / (p + n - 1) - p / (p + n) + 2 / number * (scores[j] - s)) / len(p)
    values = np.append(np.cumsum(gains[::-1])[::-1], 0.0)
    place = len(p) - np.argmax(values[::-1])  # the lowest of the best
    gradient[j] = 2 / number / len(p) * (len(p) - place)
    for i in positives[place:]:
      gradient[i] -= 2 / number / len(p)
  above = np.rint(-gradient[positives] * number * len(p) / 2)
  loss = (1 - p / (p + above)).mean() + gradient @ scores
  for entries in (positives, negatives):
    for score in set(scores[entries]):
      tied = [i for i in entries if scores[i] == score]
      gradient[tied] = gradient[tied].mean()
  return loss, gradient.reshape(np.shape(logits))
