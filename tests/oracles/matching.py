"""Matching of one image in loops, written from the description of the release."""

from __future__ import annotations

import numpy as np
from oracles import boxes as box_oracle

VARIANCES = (0.1, 0.1, 0.2, 0.2)


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
    force_match: whether an object's best anchors are positive anyway.

  Returns:
    ([A] int array, [A, 4] float64 array, int).
  """
  objects = [g for g in range(len(boxes)) if classes[g] > 0 and not ignored[g]]
  unwanted = [g for g in range(len(boxes)) if classes[g] > 0 and ignored[g]]
  iou = {
    (g, a): box_oracle.iou(boxes[g], anchors[a])
    for g in objects
    for a in range(len(anchors))
  }
  forced = set()
  for g in objects:
    best = max(iou[g, a] for a in range(len(anchors)))
    if force_match and best > 0:
      forced |= {a for a in range(len(anchors)) if iou[g, a] == best}

  labels = np.zeros(len(anchors), int)
  targets = np.zeros((len(anchors), 4))
  owned = set()
  for a, anchor in enumerate(anchors):
    largest, owner = 0.0, None
    for g in objects:
      if iou[g, a] > largest:
        largest, owner = iou[g, a], g
    if largest >= positive_iou or a in forced:
      labels[a] = classes[owner]
      targets[a] = box_oracle.encode(boxes[owner], anchor, VARIANCES)
      owned.add(owner)
    elif largest >= negative_iou or any(
      box_oracle.intersection(boxes[g], anchor) / box_oracle.area(anchor)
      >= negative_iou
      for g in unwanted
    ):
      labels[a] = -1
  return labels, targets, len(objects) - len(owned)
