"""VOC's average precision, slowly, from the development kit's rules.

Objects are dicts of image, box and ignored (difficult), detections of image, box and
score, all of one class. Boxes are the kit's: (xmin, ymin, xmax, ymax), the first and
last columns and rows of pixels, counted from 1.
"""

from fractions import Fraction


def kit_box(box):
  """The kit's box of a continuous one, (xmin, ymin, xmax, ymax)."""
  return (box[0] + 1, box[1] + 1, box[2], box[3])


def intersection(a, b):
  width = min(a[2], b[2]) - max(a[0], b[0]) + 1
  height = min(a[3], b[3]) - max(a[1], b[1]) + 1
  return width * height if width > 0 and height > 0 else 0


def area(box):
  return (box[2] - box[0] + 1) * (box[3] - box[1] + 1)


def overlap(a, b):
  shared = intersection(a, b)
  return shared / (area(a) + area(b) - shared)


def in_crowd(detection, objects, threshold):
  return any(
    intersection(detection["box"], o["box"]) / area(detection["box"]) >= threshold
    for o in objects
    if o["image"] == detection["image"] and o["ignored"]
  )


def judge(objects, detections, threshold, crowds=False):
  """(outcomes 'hit', 'false' or 'neither', best score first; objects that count)."""
  taken = [False] * len(objects)
  outcomes = []
  for detection in sorted(detections, key=lambda d: -d["score"]):
    most, nearest = -1.0, None
    for i, item in enumerate(objects):
      if item["image"] != detection["image"] or (crowds and item["ignored"]):
        continue
      here = overlap(detection["box"], item["box"])
      if here > most:
        most, nearest = here, i
    if most >= threshold and objects[nearest]["ignored"]:
      outcome = "neither"
    elif most >= threshold and not taken[nearest]:
      taken[nearest] = True
      outcome = "hit"
    elif crowds and in_crowd(detection, objects, threshold):
      outcome = "neither"
    else:
      outcome = "false"
    outcomes.append(outcome)
  return outcomes, sum(not item["ignored"] for item in objects)


def curve(outcomes, num_objects):
  """[(recall, precision)], exact."""
  hits = false = 0
  points = []
  for outcome in outcomes:
    hits += outcome == "hit"
    false += outcome == "false"
    if hits + false:
      points.append((Fraction(hits, num_objects), Fraction(hits, hits + false)))
  return points


def eleven_point(points):
  total = Fraction(0)
  for i in range(11):
    total += max((p for r, p in points if r >= Fraction(i, 10)), default=Fraction(0))
  return float(total / 11)


def area_under(points):
  recalls = [Fraction(0), *(r for r, _ in points), Fraction(1)]
  precisions = [Fraction(0), *(p for _, p in points), Fraction(0)]
  for i in range(len(precisions) - 2, -1, -1):
    precisions[i] = max(precisions[i], precisions[i + 1])
  total = Fraction(0)
  for i in range(1, len(recalls)):
    if recalls[i] != recalls[i - 1]:
      total += (recalls[i] - recalls[i - 1]) * precisions[i]
  return float(total)


def figures(objects, detections, crowds=False):
  """{"eleven_point": [10], "area": [10]} at IoU 0.5, 0.55, ...; None without objects."""
  found = {"eleven_point": [], "area": []}
  for percent in range(50, 100, 5):
    outcomes, count = judge(objects, detections, percent / 100, crowds)
    if not count:
      return None
    points = curve(outcomes, count)
    found["eleven_point"].append(eleven_point(points))
    found["area"].append(area_under(points))
  return found
