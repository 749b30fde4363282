"""Thresholds for a wanted precision or recall: by hand, and against all cuts there are."""

import json

import numpy as np
import pytest
from coco_cases import random_case
from coco_oracle import AREA_RANGES, ranked_outcomes
from hypothesis import given
from hypothesis import strategies as st

from ap_detect.metrics import evaluate_coco
from ap_detect.metrics.operating_points import OperatingPoints, find_operating_points
from ap_detect.metrics.outcomes import Outcomes


def outcomes(scores, hits, num_objects):
  zeros = np.zeros(len(scores), int)
  return Outcomes(
    np.array(scores, float),
    np.array(hits, bool),
    zeros + 1,
    zeros,
    np.array([num_objects]),
  )


class TestByHand:
  """Hit, miss, hit, miss, miss, hit, of 4 objects: recalls 1/4, 1/2, 3/4."""

  points = find_operating_points(
    outcomes([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 0, 1, 0, 0, 1], 4)
  )

  def test_points(self):
    assert self.points.recalls == (0.25, 0.5, 0.75)
    assert self.points.precisions == (1, pytest.approx(2 / 3), 0.5)
    assert self.points.thresholds[:2] == (pytest.approx(0.85), pytest.approx(0.65))
    assert 0.39 < self.points.thresholds[2] < 0.4

  @pytest.mark.parametrize(
    ("wanted", "recall"),
    [
      ({"min_precision": 1.0}, 0.25),
      ({"min_precision": 0.9}, 0.25),
      ({"min_precision": 0.6}, 0.5),
      ({"min_precision": 0.5}, 0.75),
      ({"min_precision": 0.1}, 0.75),
      ({"min_recall": 0.1}, 0.25),
      ({"min_recall": 0.25}, 0.25),
      ({"min_recall": 0.26}, 0.5),
      ({"min_recall": 0.75}, 0.75),
    ],
  )
  def test_cut_for(self, wanted, recall):
    found = self.points.cut_for(**wanted)
    assert found[2] == recall
    place = self.points.recalls.index(recall)
    assert found[:2] == (self.points.thresholds[place], self.points.precisions[place])

  def test_out_of_reach(self):
    with pytest.raises(
      ValueError, match=r"gives a recall of 0\.8 .*highest there is 0\.75"
    ):
      self.points.cut_for(min_recall=0.8)
    worse = find_operating_points(outcomes([0.9, 0.8], [0, 1], 1))
    with pytest.raises(
      ValueError, match=r"gives a precision of 0\.9 .*highest there is 0\.5"
    ):
      worse.cut_for(min_precision=0.9)

  @pytest.mark.parametrize("scores", [[], [0.5, 0.4]])
  def test_no_hits(self, scores):
    points = find_operating_points(outcomes(scores, [0] * len(scores), 3))
    assert points == OperatingPoints((), (), ())
    with pytest.raises(ValueError, match=r"highest there is 0\.0"):
      points.cut_for(min_precision=0.1)

  def test_equal_scores_stay_together(self):
    points = find_operating_points(outcomes([0.9, 0.9, 0.5], [1, 0, 1], 2))
    assert points.precisions == (pytest.approx(2 / 3),)

  def test_json(self):
    text = json.dumps(self.points.to_json(), allow_nan=False)
    assert OperatingPoints.from_json(json.loads(text)) == self.points


@given(
  st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=80),
  st.integers(0, 20),
  st.floats(0.01, 1),
)
def test_no_cut_is_better(detections, missed, wanted):
  """Of all cuts tried one by one, by a recall of 1 % at the most."""
  scores = np.array([score / 31 for score, _ in detections])
  hits = np.array([hit for _, hit in detections])
  num_objects = max(sum(hits) + missed, 1)
  points = find_operating_points(outcomes(scores, hits, num_objects))
  tried = [
    (sum(hits[scores >= t]) / sum(scores >= t), sum(hits[scores >= t]) / num_objects)
    for t in scores
  ]
  for threshold, precision, recall in zip(
    points.thresholds, points.precisions, points.recalls
  ):
    kept = scores >= threshold
    assert precision == pytest.approx(sum(hits[kept]) / sum(kept))
    assert recall == pytest.approx(sum(hits[kept]) / num_objects)
  good = [recall for precision, recall in tried if precision >= wanted and recall > 0]
  if good:
    _, precision, recall = points.cut_for(min_precision=wanted)
    assert precision >= wanted and recall > max(good) - 0.01
  good = [precision for precision, recall in tried if recall >= wanted]
  if good:
    _, precision, recall = points.cut_for(min_recall=wanted)
    # The point of the next percent may be the one.
    later = [p for p, r in tried if 100 * r >= np.ceil(100 * wanted - 1e-9)]
    assert recall >= wanted and precision >= max(later, default=0) - 1e-12


def test_oracle_of_coco_s_matches():
  data, results, images, objects, detections = random_case(4)
  points = evaluate_coco(data, results).operating_points
  assert len(points.thresholds) > 3
  for threshold, precision, recall in zip(
    points.thresholds, points.precisions, points.recalls
  ):
    kept = [d for d in detections if d["score"] >= threshold]
    hits = false = num_objects = 0
    for k in (1, 2, 3):
      ranked, count = ranked_outcomes(
        images, k, objects, kept, 0.5, AREA_RANGES["all"], 100, True
      )
      hits += sum(outcome == "hit" for _, outcome in ranked)
      false += sum(outcome == "false" for _, outcome in ranked)
      num_objects += count
    assert precision == pytest.approx(hits / (hits + false))
    assert recall == pytest.approx(hits / num_objects)
