"""Post-processing of one image in loops, in float64."""

from __future__ import annotations

import math

from oracles import boxes as box_oracle

VARIANCES = (0.1, 0.1, 0.2, 0.2)


def detect_image(
  class_logits,
  box_outputs,
  anchors,
  *,
  level_sizes,
  content_size,
  score_threshold,
  candidates_per_level,
  nms_iou,
  max_detections,
):
  """Detections of one image, best first.

  Args:
    class_logits: [A, K] array.
    box_outputs: [A, 4] array.
    anchors: [A, 4] array.
    level_sizes: anchors of each level.
    content_size: (height, width) that boxes are clipped to.
    score_threshold: scores must be above it.
    candidates_per_level: best pairs of each level that go on.
    nms_iou: IoU above which the worse box of the same class goes.
    max_detections: how many stay.

  Returns:
    list of (score, class 1..K, box).
  """
  candidates = []
  start = 0
  for size in level_sizes:
    pairs = [
      (class_logits[a][k], a, k)
      for a in range(start, start + size)
      for k in range(len(class_logits[a]))
    ]
    pairs.sort(key=lambda pair: -pair[0])
    candidates += pairs[:candidates_per_level]
    start += size

  found = []
  for logit, a, k in sorted(candidates, key=lambda pair: -pair[0]):
    score = 1 / (1 + math.exp(-logit))
    box = box_oracle.decode(box_outputs[a], anchors[a], VARIANCES)
    box = box_oracle.clip(box, *content_size)
    if score <= score_threshold or box_oracle.area(box) <= 0:
      continue
    if all(
      other_class != k + 1 or box_oracle.iou(other_box, box) <= nms_iou
      for _, other_class, other_box in found
    ):
      found.append((score, k + 1, box))
  return found[:max_detections]
