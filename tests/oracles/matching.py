"""Matching of one image in loops, written from the docstring of match_anchors."""

from __future__ import annotations

import numpy as np
from oracles import boxes as box_oracle

VARIANCES = (0.1, 0.1, 0.2, 0.2)
# IoUs and coverages within this share of what they are compared with reach it.
TOLERANCE = 1e-5


def reaches(value, other):
  """Whether a value is at least another, or short of it by no more than rounding."""
  return value >= other * (1 - TOLERANCE)


def match_image(
  anchors, boxes, classes, ignored, positive_iou=0.5, negative_iou=0.4, force_match=True
):
  """Labels, box targets and the number of objects without an anchor.

  Args:
    anchors: [A, 4] array.
    boxes: [G, 4] array.
    classes: [G] array; 0 for padding.
    ignored: [G] bool array.
    positive_iou: IoU from which an anchor is positive.
    negative_iou: IoU below which it is background.
    force_match: whether the anchors that tie for an object's best IoU are positive
      anyway.

  Returns:
    ([A] int array, [A, 4] float64 array, int).
  """
  objects = [g for g in range(len(boxes)) if classes[g] > 0 and not ignored[g]]
  unwanted = [g for g in range(len(boxes)) if classes[g] > 0 and ignored[g]]
  iou = {g: [box_oracle.iou(boxes[g], anchor) for anchor in anchors] for g in objects}
  forced = set()
  for g in objects:
    best = max(iou[g])
    if force_match and best > 0:
      forced |= {a for a in range(len(anchors)) if reaches(iou[g][a], best)}

  labels = np.zeros(len(anchors), int)
  targets = np.zeros((len(anchors), 4))
  owned = set()
  for a, anchor in enumerate(anchors):
    largest = max((iou[g][a] for g in objects), default=0.0)
    if reaches(largest, positive_iou) or a in forced:
      owner = next(g for g in objects if reaches(iou[g][a], largest))
      labels[a] = classes[owner]
      targets[a] = box_oracle.encode(boxes[owner], anchor, VARIANCES)
      owned.add(owner)
    elif reaches(largest, negative_iou) or any(
      reaches(
        box_oracle.intersection(boxes[g], anchor) / box_oracle.area(anchor),
        negative_iou,
      )
      for g in unwanted
    ):
      labels[a] = -1
  return labels, targets, len(objects) - len(owned)
