"""Thresholds of best F1: cases by hand, and all thresholds tried one by one."""

import json

import numpy as np
import pytest
from coco_cases import dataset, found, random_case, record
from coco_oracle import f1_at

from ap_detect.metrics import ScoreThresholds, evaluate_coco

BOX = [10, 20, 110, 120]
FAR = [200, 200, 300, 300]
OTHER = [300, 0, 390, 90]


def thresholds(data, results):
  return evaluate_coco(data, results).score_thresholds


class TestByHand:
  def test_midway_between_kept_and_left_out(self):
    # Hit, false: F1 is 1 after the first, 2/3 after both.
    data = dataset(record(1, [BOX], [1]))
    best = thresholds(data, found(data, 1, [BOX, FAR], [0.9, 0.6]))
    assert best.overall == pytest.approx(0.75)
    assert best.overall_f1 == 1
    assert best.per_class == {"a": best.overall}

  def test_just_below_the_lowest_where_all_are_kept(self):
    data = dataset(record(1, [BOX, FAR], [1, 1]))
    best = thresholds(data, found(data, 1, [BOX, FAR], [0.9, 0.6]))
    assert 0.599 < best.overall < 0.6

  def test_tied_scores_are_kept_or_left_out_together(self):
    # 0.9 hit; 0.6 hit and false: F1 2/3, then 2*2/(3+2) = 4/5.
    data = dataset(record(1, [BOX, FAR], [1, 1]))
    best = thresholds(data, found(data, 1, [BOX, FAR, OTHER], [0.9, 0.6, 0.6]))
    assert best.overall_f1 == pytest.approx(0.8)
    assert best.overall < 0.6

  def test_of_equal_f1_the_highest(self):
    # Objects 2; hit, false, false, hit: F1 2/3, 1/2, 2/5, 2/3.
    data = dataset(record(1, [BOX, FAR], [1, 1]))
    boxes = [BOX, OTHER, OTHER, FAR]
    best = thresholds(data, found(data, 1, boxes, [0.9, 0.8, 0.7, 0.6]))
    assert best.overall == pytest.approx(0.85)

  def test_ignored_detections_change_nothing(self):
    data = dataset(record(1, [BOX, FAR], [1, 1], [True, False]), crowds=False)
    best = thresholds(data, found(data, 1, [BOX, BOX, FAR], [0.95, 0.9, 0.5]))
    assert best.overall_f1 == 1

  def test_class_without_hits_takes_the_overall(self):
    data = dataset(record(1, [BOX, FAR], [1, 2]), num_classes=3)
    results = found(data, 1, [BOX, OTHER, OTHER], [0.8, 0.3, 0.2], [1, 2, 3])
    best = thresholds(data, results)
    assert best.overall == pytest.approx(0.55)
    assert best.per_class == {"a": 0.8 * 0.999, "b": best.overall, "c": best.overall}
    assert best.per_class_f1 == {"a": 1, "b": 0, "c": None}

  @pytest.mark.parametrize("score", [0.0, 1e-30, 1.0])
  def test_stays_inside_zero_and_one(self, score):
    data = dataset(record(1, [BOX], [1]))
    assert 0 < thresholds(data, found(data, 1, [BOX], [score])).overall < 1


@pytest.mark.parametrize("crowds", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_no_other_threshold_is_better(seed, crowds):
  data, results, images, objects, detections = random_case(seed, crowds)
  best = thresholds(data, results)
  every_score = [0.0, *np.unique([d["score"] for d in detections])]
  for classes, threshold, f1 in [
    ((1, 2, 3), best.overall, best.overall_f1),
    *(((k,), best.per_class[n], best.per_class_f1[n]) for k, n in enumerate("abc", 1)),
  ]:
    tried = [
      f1_at(score, images, classes, objects, detections, crowds)
      for score in (threshold, *every_score)
    ]
    assert tried[0] == pytest.approx(f1 or 0, abs=1e-12)
    assert max(tried) == pytest.approx(f1 or 0, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_calibrated_thresholds_cut_calibrated_scores_alike(seed):
  data, results, *_ = random_case(seed)
  evaluation = evaluate_coco(data, results)
  raw, calibration = evaluation.score_thresholds, evaluation.calibration
  scores = np.unique([result["score"] for result in results])
  shown = calibration(scores).astype(np.float32)
  calibrated = raw.calibrated(calibration)
  assert calibrated.per_class_f1 == raw.per_class_f1
  assert raw.calibrated(None) == raw
  pairs = [(raw.overall, calibrated.overall)]
  pairs += [(raw.per_class[name], calibrated.per_class[name]) for name in "abc"]
  for before, after in pairs:
    assert before != after
    np.testing.assert_array_equal(scores >= before, shown >= after)


class TestJson:
  def test_round_trip(self):
    data, results, *_ = random_case(3)
    best = thresholds(data, results)
    text = json.dumps(best.to_json(), allow_nan=False)
    assert ScoreThresholds.from_json(json.loads(text)) == best

  def test_missing_field(self):
    with pytest.raises(ValueError, match="per_class_f1"):
      ScoreThresholds.from_json({"overall": 0.5})

  def test_threshold_outside(self):
    fields = ScoreThresholds(0.5, 1.0, {"a": 0.5}, {"a": 1.0}).to_json()
    with pytest.raises(ValueError, match=r"\(0, 1\), got 1\.5"):
      ScoreThresholds.from_json({**fields, "per_class": {"a": 1.5}})
