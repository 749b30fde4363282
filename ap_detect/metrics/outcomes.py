"""Which detections are right, by COCO's matches at IoU 0.5."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval


class Outcomes(NamedTuple):
  """The detections that count, class by class.

  Attributes:
    scores: [D] float64.
    hits: [D] bool, whether each one hits an object that no better one has hit.
    classes: [D] integer, 1..K.
    images: [D] integer, in the order of pycocotools' image ids.
    num_objects: [K] integer, those that count: crowd and difficult ones do not.
  """

  scores: np.ndarray
  hits: np.ndarray
  classes: np.ndarray
  images: np.ndarray
  num_objects: np.ndarray


def coco_outcomes(coco_eval: COCOeval) -> Outcomes:
  """The outcomes of area range 'all' and the best maxDets[-1] (100), as in AP50.

  Detections on ignored objects count neither for nor against and are left out.

  Args:
    coco_eval: after its evaluate().

  Returns:
    Outcomes; class k is the k-th of coco_eval.params.catIds.

  Raises:
    ValueError: 0.5 is not among the IoU thresholds of coco_eval.
  """
  params = coco_eval.params
  at_half = np.flatnonzero(np.isclose(params.iouThrs, 0.5))
  if at_half.size == 0:
    raise ValueError(f"IoU thresholds must have 0.5, got {params.iouThrs}")
  num_categories, num_images = len(params.catIds), len(params.imgIds)
  num_objects = np.zeros(num_categories, np.int64)
  parts = [(np.zeros(0), np.zeros(0, bool), *np.zeros((2, 0), np.int64))]
  for k in range(num_categories):
    start = (k * len(params.areaRng) + params.areaRngLbl.index("all")) * num_images
    for image, entry in enumerate(coco_eval.evalImgs[start : start + num_images]):
      if entry is None:
        continue
      counted = ~np.asarray(entry["dtIgnore"], bool)[at_half[0]]
      scores = np.asarray(entry["dtScores"], np.float64)[counted]
      hits = np.asarray(entry["dtMatches"])[at_half[0]][counted] > 0
      places = (np.full(len(scores), value) for value in (k + 1, image))
      parts.append((scores, hits, *places))
      num_objects[k] += np.sum(np.asarray(entry["gtIgnore"]) == 0)
  scores, hits, classes, images = map(np.concatenate, zip(*parts))
  return Outcomes(scores, hits, classes, images, num_objects)
