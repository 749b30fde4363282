"""COCO's figures: cases by hand, and the oracle on random ones."""

import copy
import json

import numpy as np
import pytest
from coco_cases import dataset, found, random_case, record
from coco_oracle import evaluate

from ap_detect.metrics import (
  METRIC_NAMES,
  ScoreCalibration,
  coco_results,
  evaluate_coco,
  format_table,
)

BOX = [10, 20, 110, 120]  # 100 x 100 px: large
FAR = [200, 200, 300, 300]


def ap(data, results):
  return evaluate_coco(data, results).metrics["AP"]


class TestCocoResults:
  def test_plain_types_and_full_precision(self):
    scores = np.array([0.1], np.float32)
    boxes = np.array([[1.5, 2, 4, 6]], np.float32)
    results = coco_results(
      np.int64(7), boxes, scores, np.array([2]), np.array([10, 30])
    )
    assert results == [
      {
        "image_id": 7,
        "category_id": 30,
        "bbox": [2.0, 1.5, 4.0, 2.5],
        "score": float(np.float32(0.1)),
      }
    ]
    assert json.loads(json.dumps(results)) == results

  def test_string_id_and_no_detections(self):
    none = np.zeros((0, 4))
    assert coco_results("2007_000001", none, np.zeros(0), np.zeros(0, int), [1]) == []
    (result,) = coco_results(np.str_("dog"), [BOX], [0.5], [1], [1])
    assert type(result["image_id"]) is str

  @pytest.mark.parametrize("classes", [[0], [3]])
  def test_class_outside(self, classes):
    with pytest.raises(ValueError, match=r"1\.\.2"):
      coco_results(1, [BOX], [0.5], classes, [5, 6])

  def test_shapes_must_fit(self):
    with pytest.raises(ValueError, match=r"\(1, 4\), \(2,\), \(1,\)"):
      coco_results(1, [BOX], [0.5, 0.6], [1], [5])


class TestByHand:
  def test_perfect(self):
    data = dataset(record(1, [BOX, FAR], [1, 1]), record(2, [BOX], [1]))
    results = found(data, 1, [BOX, FAR], [0.9, 0.8]) + found(data, 2, [BOX], [0.7])
    metrics = evaluate_coco(data, results).metrics
    for name in ("AP", "AP50", "AP75", "APl", "AR10", "AR100", "ARl"):
      assert metrics[name] == pytest.approx(1, abs=1e-12), name
    # One detection an image: 2 of 3 objects.
    assert metrics["AR1"] == pytest.approx(2 / 3)

  def test_no_object_of_a_size_is_none(self):
    data = dataset(record(1, [BOX], [1]))
    metrics = evaluate_coco(data, found(data, 1, [BOX], [0.5])).metrics
    assert [n for n in METRIC_NAMES if metrics[n] is None] == [
      "APs",
      "APm",
      "ARs",
      "ARm",
    ]

  def test_false_positive_above_the_hit(self):
    # Precision 1/2 at every recall.
    data = dataset(record(1, [BOX], [1]))
    results = found(data, 1, [BOX, FAR], [0.5, 0.9])
    assert ap(data, results) == pytest.approx(0.5)

  def test_false_positive_in_an_image_without_objects(self):
    data = dataset(record(1, [BOX], [1]), record(2))
    results = found(data, 1, [BOX], [0.5]) + found(data, 2, [FAR], [0.9])
    assert ap(data, results) == pytest.approx(0.5)

  def test_image_without_detections_counts_as_missed(self):
    # Recall reaches 1/2: the points 0, 0.01, ... 0.5 of 101.
    data = dataset(record(1, [BOX], [1]), record(2, [BOX], [1]))
    assert ap(data, found(data, 1, [BOX], [0.5])) == pytest.approx(51 / 101)

  def test_second_detection_of_an_object_is_false(self):
    # Hit, false, hit: precision 1 up to recall 1/2, then 2/3.
    data = dataset(record(1, [BOX, FAR], [1, 1]))
    results = found(data, 1, [BOX, BOX, FAR], [0.9, 0.8, 0.7])
    assert ap(data, results) == pytest.approx((51 + 50 * 2 / 3) / 101)

  def test_iou_thresholds(self):
    # IoU 100 * 72 / (100 * 100) = 0.72: a hit at 0.50, 0.55, 0.60, 0.65 and 0.70.
    data = dataset(record(1, [[0, 0, 100, 100]], [1]))
    metrics = evaluate_coco(data, found(data, 1, [[0, 0, 100, 72]], [0.5])).metrics
    assert metrics["AP"] == pytest.approx(0.5)
    assert metrics["AP50"] == pytest.approx(1)
    assert metrics["AP75"] == 0

  def test_area_is_the_annotations_own(self):
    # The box of 100 x 100 px is large, its mask of 900 px^2 is small.
    data = dataset(record(1, [BOX], [1], areas=[900]))
    metrics = evaluate_coco(data, found(data, 1, [BOX], [0.5])).metrics
    assert metrics["APs"] == pytest.approx(1)
    assert metrics["APl"] is None

  @pytest.mark.parametrize("crowds", [True, False])
  def test_the_best_hundred_of_an_image_count(self, crowds):
    data = dataset(record(1, [BOX, FAR], [1, 1]), crowds=crowds)
    # 19 false ones between the two hits; the hit in place 101 of the list is the best.
    boxes = [[0, 0, 5, 5]] * 19 + [FAR] + [[0, 0, 5, 5]] * 80 + [BOX]
    scores = [0.8] * 19 + [0.5] + [0.4] * 80 + [0.9]
    metrics = evaluate_coco(data, found(data, 1, boxes, scores)).metrics
    assert metrics["AR1"] == metrics["AR10"] == pytest.approx(0.5)
    assert metrics["AR100"] == pytest.approx(1)
    scores[19] = 0.3  # place 101
    metrics = evaluate_coco(data, found(data, 1, boxes, scores)).metrics
    assert metrics["AR100"] == pytest.approx(0.5)

  def test_no_detections_at_all(self):
    data = dataset(record(1, [BOX], [1]), num_classes=2)
    evaluation = evaluate_coco(data, [])
    assert evaluation.metrics["AP"] == 0
    assert evaluation.per_class == {
      "a": {"AP": 0, "AP50": 0},
      "b": {"AP": None, "AP50": None},
    }
    assert evaluation.score_thresholds.overall == 0.5
    assert evaluation.score_thresholds.per_class_f1 == {"a": 0, "b": None}

  def test_per_class_and_detections_of_a_class_without_objects(self):
    data = dataset(record(1, [BOX, FAR], [1, 2]), num_classes=3)
    results = found(data, 1, [BOX, BOX, FAR, FAR], [0.9, 0.8, 0.7, 0.6], [1, 2, 2, 3])
    evaluation = evaluate_coco(data, results)
    assert evaluation.per_class["a"]["AP"] == pytest.approx(1)
    assert evaluation.per_class["b"]["AP"] == pytest.approx(0.5)
    assert evaluation.per_class["c"]["AP"] is None
    assert evaluation.metrics["AP"] == pytest.approx(0.75)
    assert evaluation.num_objects == {"a": 1, "b": 1, "c": 0}
    assert evaluation.num_images == 1


class TestIgnored:
  # A quarter of the large box: IoU 1/4, and wholly inside.
  LARGE = (0, 0, 200, 200)
  QUARTER = (0, 0, 100, 100)

  def data(self, crowds):
    ignored = [True, False]
    return dataset(record(1, [self.LARGE, FAR], [1, 1], ignored), crowds=crowds)

  @pytest.mark.parametrize("crowds", [True, False])
  def test_several_detections_on_one_ignored_object(self, crowds):
    data = self.data(crowds)
    boxes = [self.LARGE, self.LARGE, self.LARGE, FAR]
    assert ap(data, found(data, 1, boxes, [0.9, 0.8, 0.7, 0.6])) == pytest.approx(1)

  @pytest.mark.parametrize("crowds", [True, False])
  def test_ignored_object_is_not_missed(self, crowds):
    data = self.data(crowds)
    assert ap(data, found(data, 1, [FAR], [0.6])) == pytest.approx(1)

  @pytest.mark.parametrize("crowds", [True, False])
  def test_the_place_of_an_invalid_object_is_ignored_in_every_class(self, crowds):
    boxes, classes = [self.LARGE, FAR, BOX], [0, 1, 2]
    item = record(1, boxes, classes, [True, False, False])
    data = dataset(item, num_classes=3, crowds=crowds)
    boxes, classes = [self.LARGE, self.LARGE, self.LARGE, FAR, BOX], [1, 2, 3, 1, 2]
    scores = [0.9, 0.8, 0.7, 0.6, 0.5]
    evaluation = evaluate_coco(data, found(data, 1, boxes, scores, classes))
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert evaluation.num_objects == {"a": 1, "b": 1, "c": 0}

  def test_part_of_a_crowd_is_no_false_positive(self):
    data = self.data(crowds=True)
    results = found(data, 1, [self.QUARTER, FAR], [0.9, 0.6])
    assert ap(data, results) == pytest.approx(1)

  def test_part_of_a_difficult_object_is_a_false_positive(self):
    data = self.data(crowds=False)
    results = found(data, 1, [self.QUARTER, FAR], [0.9, 0.6])
    assert ap(data, results) == pytest.approx(0.5)

  def test_object_that_counts_is_preferred(self):
    # Both overlap the detection; the difficult one is exactly on it.
    boxes = [[0, 0, 100, 100], [0, 0, 100, 90]]
    data = dataset(record(1, boxes, [1, 1], [True, False]), crowds=False)
    assert evaluate_coco(data, found(data, 1, boxes[:1], [0.5])).metrics["AP50"] == (
      pytest.approx(1)
    )


class TestIds:
  def test_strings(self):
    data = dataset(record("2008_000002", [BOX], [1]), record("000012", [FAR], [1]))
    results = found(data, "2008_000002", [BOX], [0.9])
    results += found(data, "000012", [FAR, BOX], [0.8, 0.95])
    # False, hit, hit: best precision 2/3 everywhere.
    assert ap(data, results) == pytest.approx(2 / 3)

  def test_large_and_numpy_integers(self):
    data = dataset(record(np.int64(2**40), [BOX], [1]))
    assert ap(data, found(data, np.int64(2**40), [BOX], [0.9])) == pytest.approx(1)

  def test_results_stay_as_they_are(self):
    data = dataset(record(1, [BOX], [1]))
    results = found(data, 1, [BOX], [0.5])
    before = copy.deepcopy(results)
    evaluate_coco(data, results)
    assert results == before

  def test_prints_nothing(self, capsys):
    data = dataset(record(1, [BOX], [1]))
    evaluate_coco(data, found(data, 1, [BOX], [0.5]))
    assert capsys.readouterr().out == ""


class TestErrors:
  def test_no_objects(self):
    with pytest.raises(ValueError, match="nothing to evaluate: the 2 images"):
      evaluate_coco(dataset(record(1), record(2)), [])

  def test_only_ignored_objects(self):
    with pytest.raises(ValueError, match="nothing to evaluate"):
      evaluate_coco(dataset(record(1, [BOX], [1], [True])), [])

  def test_repeated_image_id(self):
    data = dataset(record(4, [BOX], [1]), record(4, [BOX], [1]))
    with pytest.raises(ValueError, match=r"image ids must be distinct.*\[4\]"):
      evaluate_coco(data, [])

  def test_unknown_image(self):
    data = dataset(record(1, [BOX], [1]))
    with pytest.raises(ValueError, match=r"image_id that the dataset lacks.*'1'"):
      evaluate_coco(data, found(data, "1", [BOX], [0.5]))

  def test_unknown_category(self):
    data = dataset(record(1, [BOX], [1]))
    with pytest.raises(ValueError, match=r"category_id that the dataset lacks.* 4"):
      evaluate_coco(data, coco_results(1, [BOX], [0.5], [1], [4]))

  @pytest.mark.parametrize("box", [[0, 0, np.nan, 5], [0, 0, np.inf, 5], [9, 9, 5, 12]])
  def test_bad_box(self, box):
    data = dataset(record(1, [BOX], [1]))
    with pytest.raises(ValueError, match="1 detections have a box"):
      evaluate_coco(data, found(data, 1, [BOX, box], [0.5, 0.4]))

  @pytest.mark.parametrize("score", [np.nan, np.inf, -0.1, 1.5])
  def test_bad_score(self, score):
    data = dataset(record(1, [BOX], [1]))
    with pytest.raises(ValueError, match=r"score outside \[0, 1\]"):
      evaluate_coco(data, found(data, 1, [BOX], [score]))


@pytest.mark.parametrize("crowds", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_oracle(seed, crowds):
  data, results, images, objects, detections = random_case(seed, crowds)
  evaluation = evaluate_coco(data, results)
  metrics, per_class = evaluate(images, 3, objects, detections, crowds)
  assert set(metrics) == set(METRIC_NAMES)
  for name in METRIC_NAMES:
    assert evaluation.metrics[name] == pytest.approx(metrics[name], abs=1e-9), name
  for name, (ap_all, ap_50) in zip("abc", per_class):
    figures = evaluation.per_class[name]
    assert figures["AP"] == pytest.approx(ap_all, abs=1e-9), name
    assert figures["AP50"] == pytest.approx(ap_50, abs=1e-9), name


def test_oracle_cases_are_not_trivial():
  """The random cases have small, medium and large objects found and missed."""
  data, results, *_ = random_case(0)
  metrics = evaluate_coco(data, results).metrics
  assert all(metrics[name] is not None for name in METRIC_NAMES)
  assert 0.01 < metrics["AP"] < 0.9


class TestReports:
  def evaluation(self):
    data = dataset(record(1, [BOX, FAR], [1, 2]), num_classes=3)
    return evaluate_coco(data, found(data, 1, [BOX, FAR], [0.9, 0.6], [1, 1]))

  def test_json(self):
    fields = json.loads(json.dumps(self.evaluation().to_json(), allow_nan=False))
    assert list(fields)[:12] == list(METRIC_NAMES)
    assert fields["AP"] == pytest.approx(0.5)
    assert fields["APs"] is None
    assert fields["per_class"]["b"] == {"AP": 0, "AP50": 0}
    assert fields["per_class"]["c"] == {"AP": None, "AP50": None}
    assert fields["score_thresholds"]["overall"] == pytest.approx(0.75)

  def test_table(self):
    lines = format_table(self.evaluation()).splitlines()
    start = " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = "
    assert lines[0] == start + "0.500"
    assert lines[3].endswith("area= small | maxDets=100 ] =     -")
    assert lines[6].startswith(
      " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all"
    )
    assert "maxDets=  1 ]" in lines[6]
    assert [line.split() for line in lines[13:]] == [
      ["id", "class", "objects", "AP", "AP50", "best", "F1", "at", "score"],
      ["1", "a", "1", "1.000", "1.000", "1.000", "0.7500"],
      ["2", "b", "1", "0.000", "0.000", "0.000", "0.7500"],
      ["3", "c", "0", "-", "-", "-", "0.7500"],
      ["all", "2", "0.500", "0.500", "0.667", "0.7500"],
    ]

  def test_table_of_calibrated_scores(self):
    evaluation = self.evaluation()
    lines = format_table(evaluation, ScoreCalibration((0.5, 0.75), (0.1, 0.25)))
    assert [line.split()[-1] for line in lines.splitlines()[14:]] == ["0.2500"] * 4
    assert evaluation.score_thresholds.overall == pytest.approx(0.75)
