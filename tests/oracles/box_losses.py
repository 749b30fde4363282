"""Box losses in float64, one anchor at a time."""

from __future__ import annotations

from oracles import boxes as box_oracle


def smooth_l1(outputs, targets, is_positive, beta=1.0):
  """Mean over the four offsets of the positive anchors; 0 where there are none."""

  def of_offset(x):
    return x * x / (2 * beta) if abs(x) < beta else abs(x) - beta / 2

  return _mean_of_offsets(outputs, targets, is_positive, of_offset)


def l1(outputs, targets, is_positive):
  """Mean over the four offsets of the positive anchors; 0 where there are none."""
  return _mean_of_offsets(outputs, targets, is_positive, abs)


def _mean_of_offsets(outputs, targets, is_positive, of_offset):
  total, positives = 0.0, 0
  for output, target, positive in zip(outputs, targets, is_positive):
    if positive:
      positives += 1
      total += sum(of_offset(float(a) - float(b)) for a, b in zip(output, target)) / 4
  return total / max(positives, 1)


def giou(boxes, targets, is_positive):
  """Mean of 1 - GIoU, Rezatofighi et al. 2019, Algorithm 1, of the positive anchors."""
  total, positives = 0.0, 0
  for box, target, positive in zip(boxes, targets, is_positive):
    if positive:
      positives += 1
      total += 1 - _giou_of([float(x) for x in box], [float(x) for x in target])
  return total / max(positives, 1)


def _giou_of(a, b):
  hull = box_oracle.area(
    [min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])]
  )
  union = box_oracle.area(a) + box_oracle.area(b) - box_oracle.intersection(a, b)
  return box_oracle.iou(a, b) - (hull - union) / hull
