"""Which class objects are found as, slowly.

Objects are dicts of image, class_id, box (continuous xyxy) and ignored, detections of
image, class_id, box and score.
"""

import numpy as np


def overlap(detection, item, crowds):
  a, b = detection["box"], item["box"]
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  if width <= 0 or height <= 0:
    return 0.0
  shared = width * height
  of_detection = (a[2] - a[0]) * (a[3] - a[1])
  if crowds and item["ignored"]:
    return shared / of_detection
  return shared / (of_detection + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def confusion(num_classes, objects, detections, at_least, iou, crowds):
  """[K + 1, K + 1]; at_least is class_id -> score."""
  matrix = np.zeros((num_classes + 1, num_classes + 1), int)
  taken = set()
  kept = [d for d in detections if d["score"] >= at_least[d["class_id"]]]
  for detection in sorted(kept, key=lambda d: -d["score"]):
    column = detection["class_id"] - 1
    near = [
      (overlap(detection, item, crowds), -i)
      for i, item in enumerate(objects)
      if item["image"] == detection["image"] and overlap(detection, item, crowds) >= iou
    ]
    free = [
      (most, i) for most, i in near if not objects[-i]["ignored"] and -i not in taken
    ]
    if free:
      i = -max(free)[1]
      taken.add(i)
      matrix[objects[i]["class_id"] - 1, column] += 1
    elif not any(objects[-i]["ignored"] for _, i in near):
      matrix[num_classes, column] += 1
  for i, item in enumerate(objects):
    if not item["ignored"] and i not in taken:
      matrix[item["class_id"] - 1, num_classes] += 1
  return matrix
