"""Which detections are right at every IoU threshold of COCO's, and what follows.

That is average precision once more, as pycocotools has it, of the images counted as often
as wanted (for a bootstrap over images), and over one list of all classes' detections.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pycocotools.cocoeval import COCOeval

_RECALLS = np.linspace(0, 1, 101)


class Matches(NamedTuple):
  """The detections of a dataset, class by class, at T IoU thresholds.

  Attributes:
    thresholds: [T] float64.
    scores: [D] float64.
    hits: [T, D] bool, whether each one hits an object that counts and that no better one
      has hit.
    counted: [T, D] bool; False for detections on ignored objects.
    classes: [D] integer, 1..K.
    images: [D] integer, in the order of pycocotools' image ids.
    num_objects: [K, I] integer, those that count in each of the I images.
  """

  thresholds: np.ndarray
  scores: np.ndarray
  hits: np.ndarray
  counted: np.ndarray
  classes: np.ndarray
  images: np.ndarray
  num_objects: np.ndarray


def coco_matches(coco_eval: COCOeval) -> Matches:
  """The matches of area range 'all' and the best maxDets[-1] (100), as in AP.

  Args:
    coco_eval: after its evaluate().

  Returns:
    Matches; class k is the k-th of coco_eval.params.catIds.
  """
  params = coco_eval.params
  num_classes, num_images = len(params.catIds), len(params.imgIds)
  none = np.zeros((len(params.iouThrs), 0), bool)
  parts = [(np.zeros(0), none, none, *np.zeros((2, 0), np.int64))]
  num_objects = np.zeros((num_classes, num_images), np.int64)
  for k in range(num_classes):
    start = (k * len(params.areaRng) + params.areaRngLbl.index("all")) * num_images
    for image, entry in enumerate(coco_eval.evalImgs[start : start + num_images]):
      if entry is None:
        continue
      scores = np.asarray(entry["dtScores"], np.float64)
      shape = (len(params.iouThrs), len(scores))
      counted = ~np.asarray(entry["dtIgnore"], bool).reshape(shape)
      matched = np.asarray(entry["dtMatches"]).reshape(shape) > 0
      places = (np.full(len(scores), value) for value in (k + 1, image))
      parts.append((scores, matched & counted, counted, *places))
      num_objects[k, image] = np.sum(np.asarray(entry["gtIgnore"]) == 0)
  scores, hits, counted, classes, images = (
    np.concatenate(part, axis=-1) for part in zip(*parts)
  )
  return Matches(
    np.asarray(params.iouThrs), scores, hits, counted, classes, images, num_objects
  )


class Ranking(NamedTuple):
  """Detections in one list, best score first; of equal scores in the order of Matches.

  Attributes:
    hits: [T, D] bool.
    misses: [T, D] bool; neither for detections on ignored objects.
    images: [D] integer.
    num_objects: [I] integer.
  """

  hits: np.ndarray
  misses: np.ndarray
  images: np.ndarray
  num_objects: np.ndarray

  def average_precision(self, image_counts=None):
    """COCO's average precision: precision interpolated at 101 recalls.

    Args:
      image_counts: [I] number of times each image counts; None for once.

    Returns:
      [T] float64 in [0, 1], one for each IoU threshold; NaN where there is no object.
    """
    if image_counts is None:
      image_counts = np.ones(len(self.num_objects), np.int64)
    num_objects = int(self.num_objects @ image_counts)
    if not num_objects:
      return np.full(len(self.hits), np.nan)
    if not len(self.images):
      return np.zeros(len(self.hits))
    counts = np.asarray(image_counts, np.float64)[self.images]
    hits = np.cumsum(self.hits * counts, axis=1)
    misses = np.cumsum(self.misses * counts, axis=1)
    precisions = hits / (hits + misses + np.spacing(1))
    # The best precision at this recall or a higher one; 0 at recalls not reached.
    precisions = np.maximum.accumulate(precisions[:, ::-1], axis=1)[:, ::-1]
    precisions = np.pad(precisions, [(0, 0), (0, 1)])
    return np.array(
      [
        precision[np.searchsorted(recall, _RECALLS)].mean()
        for recall, precision in zip(hits / num_objects, precisions)
      ]
    )


def rank_by_class(matches: Matches) -> list[Ranking]:
  """[K] rankings, whose average precisions COCO's mean is of."""
  return [
    _rank(matches, matches.classes == k, matches.num_objects[k - 1])
    for k in range(1, len(matches.num_objects) + 1)
  ]


def rank_all(matches: Matches) -> Ranking:
  """All classes' detections in one list, where a hit still has to be of its class.

  Its average precision is what AP-loss ranks by ("AP-pool", Dave et al. 2021).
  """
  everything = np.ones(len(matches.scores), bool)
  return _rank(matches, everything, matches.num_objects.sum(0))


def _rank(matches, chosen, num_objects):
  places = np.flatnonzero(chosen)
  places = places[np.argsort(-matches.scores[places], kind="stable")]
  hits, counted = matches.hits[:, places], matches.counted[:, places]
  return Ranking(hits, counted & ~hits, matches.images[places], num_objects)
