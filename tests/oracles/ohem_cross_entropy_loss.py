"""Cross-entropy with SSD's hard negative mining in float64, in loops."""

from __future__ import annotations

import math


def ohem_cross_entropy_loss(logits, labels, negatives_per_positive=3.0):
  """Liu et al. 2016, section 2.2, with a sigmoid for every class.

  Args:
    logits: [B, A, K] array.
    labels: [B, A] integer array; -1 ignored, 0 background, 1..K the class.
    negatives_per_positive: background anchors for each positive one.

  Returns:
    (loss, set of the (image, anchor) that count).
  """
  mined, losses = set(), {}
  for image, image_labels in enumerate(labels):
    for anchor, label in enumerate(image_labels):
      losses[image, anchor] = sum(
        math.log1p(math.exp(-x if label == k + 1 else x))
        for k, x in enumerate(logits[image][anchor])
      )
    positives = [a for a, label in enumerate(image_labels) if label > 0]
    background = [a for a, label in enumerate(image_labels) if label == 0]
    background.sort(key=lambda a: -losses[image, a])
    chosen = background[: math.floor(negatives_per_positive * len(positives))]
    mined |= {(image, anchor) for anchor in positives + chosen}
  positives = sum(label > 0 for image_labels in labels for label in image_labels)
  return sum(losses[at] for at in mined) / max(positives, 1), mined
