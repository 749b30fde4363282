"""Precision-recall curves and the confusion of classes, by hand and by plain loops."""

import numpy as np
import pytest
from coco_cases import dataset, found, random_case, record
from oracles import confusion as confusion_oracle
from oracles import voc as voc_oracle

from ap_detect.metrics import (
  ScoreThresholds,
  confusion,
  evaluate_voc,
  precision_recall,
)

BOX = [10, 20, 110, 120]  # 100 x 100 px
FAR = [200, 200, 300, 300]
OTHER = [300, 0, 390, 90]


def thresholds(*per_class):
  names = "abcdefgh"[: len(per_class)]
  return ScoreThresholds(
    0.5, 0.0, dict(zip(names, per_class)), dict.fromkeys(names, 0.0)
  )


class TestPrecisionRecall:
  def test_by_hand(self):
    # Hit, false, one on a difficult object, hit; two objects of three classes.
    data = dataset(
      record(1, [BOX, FAR, [0, 200, 50, 300]], [1, 1, 1], [False, False, True]),
      num_classes=2,
      crowds=False,
    )
    boxes = [BOX, OTHER, [0, 200, 50, 300], FAR]
    curves = precision_recall(data, found(data, 1, boxes, [0.9, 0.8, 0.7, 0.6]))
    assert list(curves) == ["a"]
    np.testing.assert_allclose(curves["a"].recall, [1 / 2, 1 / 2, 1])
    np.testing.assert_allclose(curves["a"].precision, [1, 1 / 2, 2 / 3])
    assert curves["a"].average_precision == pytest.approx(5 / 6)

  def test_threshold_is_used(self):
    # IoU 0.8.
    data = dataset(record(1, [[0, 0, 100, 100]], [1]))
    results = found(data, 1, [[0, 0, 80, 100]], [0.9])
    assert precision_recall(data, results, 0.8)["a"].precision.tolist() == [1]
    assert precision_recall(data, results, 0.81)["a"].precision.tolist() == [0]

  def test_no_detections(self):
    curve = precision_recall(dataset(record(1, [BOX], [1])), [])["a"]
    assert curve.recall.tolist() == curve.precision.tolist() == []
    assert curve.average_precision == 0

  @pytest.mark.parametrize("seed", range(5))
  def test_oracle(self, seed):
    data, results, _, objects, detections = random_case(seed, crowds=False)
    for item in (*objects, *detections):
      item["box"] = voc_oracle.kit_box(item["box"])
    curves = precision_recall(data, results, 0.6)
    evaluation = evaluate_voc(data, results)
    for k, name in enumerate("abc", 1):
      outcomes, count = voc_oracle.judge(
        [o for o in objects if o["class_id"] == k],
        [d for d in detections if d["class_id"] == k],
        0.6,
      )
      counted = [outcome for outcome in outcomes if outcome != "neither"]
      points = np.array(voc_oracle.curve(counted, count), float)
      np.testing.assert_allclose(curves[name].recall, points[:, 0], atol=1e-12)
      np.testing.assert_allclose(curves[name].precision, points[:, 1], atol=1e-12)
      at_half = precision_recall(data, results)[name].average_precision
      assert at_half == evaluation.per_class[name]["area"]["AP50"]

  def test_nothing_to_evaluate(self):
    with pytest.raises(ValueError, match="nothing to evaluate"):
      precision_recall(dataset(record(1)), [])


class TestConfusion:
  def test_by_hand(self):
    # An a found as a, an a found as b, a b missed, and a b found where nothing is.
    data = dataset(record(1, [BOX, FAR, OTHER], [1, 1, 2]), num_classes=2)
    boxes = [BOX, FAR, [0, 300, 50, 350]]
    results = found(data, 1, boxes, [0.9, 0.8, 0.7], [1, 2, 2])
    matrix = confusion(data, results, thresholds(0.5, 0.5))
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert matrix.dtype == np.int64

  def test_each_class_has_its_threshold(self):
    data = dataset(record(1, [BOX, FAR], [1, 2]), num_classes=2)
    results = found(data, 1, [BOX, FAR], [0.5, 0.5], [1, 2])
    matrix = confusion(data, results, thresholds(0.5, 0.51))  # 0.5 reaches 0.5
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]

  def test_best_score_takes_the_object_whatever_its_class(self):
    data = dataset(record(1, [BOX], [1]), num_classes=2)
    results = found(data, 1, [BOX, BOX], [0.8, 0.9], [1, 2])
    matrix = confusion(data, results, thresholds(0.5, 0.5))
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]

  def test_taken_object_leaves_the_next_one(self):
    upper, lower = [0, 0, 100, 100], [10, 0, 110, 100]
    data = dataset(record(1, [upper, lower], [1, 2]), num_classes=2)
    results = found(data, 1, [upper, upper], [0.9, 0.8], [1, 2])
    matrix = confusion(data, results, thresholds(0.5, 0.5))
    assert matrix.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]

  def test_overlap_of_exactly_the_threshold(self):
    data = dataset(record(1, [[0, 0, 100, 100]], [1]))
    results = found(data, 1, [[0, 0, 60, 100]], [0.9])
    assert confusion(data, results, thresholds(0.5), 0.6).tolist() == [[1, 0], [0, 0]]
    assert confusion(data, results, thresholds(0.5), 0.61).tolist() == [[0, 1], [1, 0]]

  @pytest.mark.parametrize("crowds", [False, True])
  def test_ignored_objects_are_nowhere(self, crowds):
    data = dataset(record(1, [BOX, FAR], [1, 1], [True, False]), crowds=crowds)
    results = found(data, 1, [BOX, BOX], [0.9, 0.8])
    assert confusion(data, results, thresholds(0.5)).tolist() == [[0, 1], [0, 0]]

  def test_object_that_counts_comes_before_an_ignored_one(self):
    boxes = [[0, 0, 100, 100], [0, 0, 100, 90]]
    data = dataset(record(1, boxes, [1, 1], [True, False]), crowds=False)
    results = found(data, 1, boxes[:1], [0.9])
    assert confusion(data, results, thresholds(0.5)).tolist() == [[1, 0], [0, 0]]

  @pytest.mark.parametrize("crowds", [False, True])
  def test_part_of_a_crowd(self, crowds):
    # A quarter of the ignored object: wholly inside, IoU 1/4.
    data = dataset(
      record(1, [[0, 0, 200, 200], FAR], [1, 1], [True, False]), crowds=crowds
    )
    results = found(data, 1, [[0, 0, 100, 100]], [0.9])
    background = 0 if crowds else 1
    assert confusion(data, results, thresholds(0.5)).tolist() == [
      [0, 1],
      [background, 0],
    ]

  def test_image_without_objects_and_no_detections(self):
    data = dataset(record(1, [BOX], [1]), record(2))
    assert confusion(data, [], thresholds(0.5)).tolist() == [[0, 1], [0, 0]]
    results = found(data, 2, [BOX], [0.9])
    assert confusion(data, results, thresholds(0.5)).tolist() == [[0, 1], [1, 0]]

  def test_iou_outside(self):
    data = dataset(record(1, [BOX], [1]))
    with pytest.raises(ValueError, match=r"iou must lie in \(0, 1\], got 50"):
      confusion(data, [], thresholds(0.5), 50)

  @pytest.mark.parametrize("crowds", [False, True])
  @pytest.mark.parametrize("seed", range(8))
  def test_oracle(self, seed, crowds):
    data, results, _, objects, detections = random_case(seed, crowds)
    rng = np.random.default_rng(seed)
    for result, detection in zip(results, detections):
      if rng.random() < 0.4:  # found as another class
        detection["class_id"] = int(rng.integers(1, 4))
        result["category_id"] = data.category_ids[detection["class_id"] - 1]
    at_least = thresholds(0.3, 0.5, 0.6)
    matrix = confusion(data, results, at_least, 0.5)
    by_class = dict(enumerate(at_least.per_class.values(), 1))
    expected = confusion_oracle.confusion(3, objects, detections, by_class, 0.5, crowds)
    np.testing.assert_array_equal(matrix, expected)
    counted = [o["class_id"] for o in objects if not o["ignored"]]
    assert matrix[:3].sum(1).tolist() == [counted.count(k) for k in (1, 2, 3)]
    off_diagonal = matrix[:3, :3].sum() - np.trace(matrix[:3, :3])
    assert off_diagonal and np.trace(matrix[:3, :3]) and matrix[3].any()
