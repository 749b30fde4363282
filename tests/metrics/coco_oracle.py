"""COCO's average precision and recall, slowly, from the rules of the benchmark.

Objects and detections are lists of dicts: objects have image, class_id, box (xyxy),
area and ignored; detections image, class_id, box and score, in the order of ties.
Crowds overlap by intersection over the detection's area where `crowds` is true, else by
IoU.
"""

import numpy as np

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {
  "all": (0.0, 1e10),
  "s": (0.0, 32.0**2),
  "m": (32.0**2, 96.0**2),
  "l": (96.0**2, 1e10),
}


def box_area(box):
  return (box[2] - box[0]) * (box[3] - box[1])


def overlap(detection, item, crowds):
  a, b = detection["box"], item["box"]
  width = min(a[2], b[2]) - max(a[0], b[0])
  height = min(a[3], b[3]) - max(a[1], b[1])
  if width <= 0 or height <= 0:
    return 0.0
  shared = width * height
  if crowds and item["ignored"]:
    return shared / box_area(a)
  return shared / (box_area(a) + box_area(b) - shared)


def match_image(objects, detections, threshold, area_range, crowds):
  """Outcome of each detection, best score first: 'hit', 'false' or 'ignored'."""
  low, high = area_range
  counts = [not o["ignored"] and low <= o["area"] <= high for o in objects]
  taken = [False] * len(objects)
  outcomes = []
  for detection in sorted(detections, key=lambda d: -d["score"]):
    candidates = [
      (counts[i], overlap(detection, item, crowds), i)
      for i, item in enumerate(objects)
      if (item["ignored"] or not taken[i])
      and overlap(detection, item, crowds) >= min(threshold, 1 - 1e-10)
    ]
    if candidates:  # objects that count first, then by overlap
      counted, _, i = max(candidates)
      taken[i] = True
      outcomes.append("hit" if counted else "ignored")
    elif low <= box_area(detection["box"]) <= high:
      outcomes.append("false")
    else:
      outcomes.append("ignored")
  return outcomes


def of_class(items, image, class_id):
  return [i for i in items if i["image"] == image and i["class_id"] == class_id]


def ranked_outcomes(
  images, class_id, objects, detections, threshold, area, most, crowds
):
  """((score, outcome) of a class over all images, best first; objects that count)."""
  ranked, num_objects = [], 0
  low, high = area
  for image in images:
    here = of_class(objects, image, class_id)
    found = sorted(of_class(detections, image, class_id), key=lambda d: -d["score"])
    found = found[:most]
    outcomes = match_image(here, found, threshold, area, crowds)
    ranked += [(d["score"], outcome) for d, outcome in zip(found, outcomes)]
    num_objects += sum(not o["ignored"] and low <= o["area"] <= high for o in here)
  return sorted(ranked, key=lambda pair: -pair[0]), num_objects


def precision_and_recall(ranked, num_objects):
  """(101-point interpolated AP, recall)."""
  hits = false = 0
  points = []
  for _, outcome in ranked:
    hits += outcome == "hit"
    false += outcome == "false"
    if hits + false:
      points.append((hits / num_objects, hits / (hits + false)))
  total = 0.0
  for recall in np.linspace(0, 1, 101):
    total += max((p for r, p in points if r >= recall), default=0.0)
  return total / 101, hits / num_objects


def evaluate(images, num_classes, objects, detections, crowds):
  """The 12 figures by name and [K] (AP, AP50); None where no object counts."""

  def figures(area, most, thresholds, classes):
    pairs = []
    for k in classes:
      for threshold in thresholds:
        ranked, num_objects = ranked_outcomes(
          images, k, objects, detections, threshold, AREA_RANGES[area], most, crowds
        )
        if num_objects:
          pairs.append(precision_and_recall(ranked, num_objects))
    return np.mean(pairs, axis=0).tolist() if pairs else (None, None)

  every = range(1, num_classes + 1)
  metrics = {
    "AP50": figures("all", 100, IOU_THRESHOLDS[:1], every)[0],
    "AP75": figures("all", 100, IOU_THRESHOLDS[5:6], every)[0],
    "AR1": figures("all", 1, IOU_THRESHOLDS, every)[1],
    "AR10": figures("all", 10, IOU_THRESHOLDS, every)[1],
  }
  metrics["AP"], metrics["AR100"] = figures("all", 100, IOU_THRESHOLDS, every)
  for size in "sml":
    found = figures(size, 100, IOU_THRESHOLDS, every)
    metrics[f"AP{size}"], metrics[f"AR{size}"] = found
  per_class = [
    (
      figures("all", 100, IOU_THRESHOLDS, [k])[0],
      figures("all", 100, IOU_THRESHOLDS[:1], [k])[0],
    )
    for k in every
  ]
  return metrics, per_class


def f1_at(score, images, classes, objects, detections, crowds):
  """F1 at IoU 0.5 of the detections of at least this score, matched afresh."""
  kept = [d for d in detections if d["score"] >= score]
  hits = false = num_objects = 0
  for k in classes:
    ranked, count = ranked_outcomes(
      images, k, objects, kept, 0.5, AREA_RANGES["all"], 100, crowds
    )
    hits += sum(outcome == "hit" for _, outcome in ranked)
    false += sum(outcome == "false" for _, outcome in ranked)
    num_objects += count
  if hits == 0:
    return 0.0
  precision, recall = hits / (hits + false), hits / num_objects
  return 2 * precision * recall / (precision + recall)
