"""VOC's figures: cases by hand, and the development kit's rules in plain loops."""

import json

import numpy as np
import pytest
from coco_cases import dataset, found, random_case, record
from oracles import voc as oracle

from ap_detect.metrics import (
  coco_results,
  evaluate_coco,
  evaluate_voc,
  format_voc_table,
)
from ap_detect.metrics.voc import area_ap, eleven_point_ap, match

BOX = [10, 20, 110, 120]  # 100 x 100 px
FAR = [200, 200, 300, 300]
OTHER = [300, 0, 390, 90]


def one_class(boxes, ignored=None, crowds=False):
  return dataset(record(1, boxes, [1] * len(boxes), ignored), crowds=crowds)


def hits_at_half(data, boxes, scores):
  return match(data, found(data, 1, boxes, scores)).hits(0.5)[0].tolist()


class TestAveragePrecision:
  """Of rankings, H a hit and F a false detection."""

  @pytest.mark.parametrize(
    ("ranking", "num_objects", "eleven_point", "area"),
    [
      ("H", 1, 1.0, 1.0),
      ("", 1, 0.0, 0.0),
      ("F", 1, 0.0, 0.0),
      ("FH", 1, 1 / 2, 1 / 2),
      # Recall 1/2: the points 0, 0.1, ... 0.5 of 11; half of the area.
      ("H", 2, 6 / 11, 1 / 2),
      # Precision 1 to recall 1/2, then 2/3.
      ("HFH", 2, (6 + 5 * 2 / 3) / 11, (1 + 2 / 3) / 2),
      # 1/2 at the second, but 2/3 at the third: the best to come counts.
      ("FHH", 2, 2 / 3, 2 / 3),
      # Recall 3/10 reaches the point 0.3, whatever 3 * 0.1 is in floats.
      ("HHH", 10, 4 / 11, 3 / 10),
      ("H" * 7, 10, 8 / 11, 7 / 10),
    ],
  )
  def test_by_hand(self, ranking, num_objects, eleven_point, area):
    hits = np.array([c == "H" for c in ranking], bool)
    assert eleven_point_ap(hits, num_objects) == pytest.approx(eleven_point, abs=1e-12)
    assert area_ap(hits, num_objects) == pytest.approx(area, abs=1e-12)


class TestMatch:
  def test_second_detection_of_an_object_is_false(self):
    data = one_class([BOX, FAR])
    assert hits_at_half(data, [BOX, BOX, FAR], [0.9, 0.8, 0.7]) == [True, False, True]

  def test_best_score_takes_the_object_not_the_best_overlap(self):
    # IoU 0.8 and 1.
    assert hits_at_half(one_class([BOX]), [[10, 20, 110, 100], BOX], [0.9, 0.8]) == [
      True,
      False,
    ]

  def test_taken_object_is_not_left_for_another(self):
    # The second detection overlaps the upper object by 1, the lower by 0.9 / 1.1: it
    # goes to the upper one, which is taken. COCO would give it the lower one.
    upper, lower = [0, 0, 100, 100], [10, 0, 110, 100]
    data = one_class([upper, lower])
    assert hits_at_half(data, [upper, upper], [0.9, 0.8]) == [True, False]
    results = found(data, 1, [upper, upper], [0.9, 0.8])
    assert evaluate_coco(data, results).metrics["AP50"] == pytest.approx(1)

  def test_difficult_object_takes_a_detection(self):
    # The detection lies on the difficult object; with IoU 0.9 it would also be a hit of
    # the other. It counts neither for nor against.
    boxes = [[0, 0, 100, 90], [0, 0, 100, 100]]
    data = one_class(boxes, [False, True])
    assert hits_at_half(data, boxes[1:], [0.5]) == []
    evaluation = evaluate_voc(data, found(data, 1, boxes[1:], [0.5]))
    assert evaluation.area["AP50"] == 0
    assert evaluation.num_objects == {"a": 1}

  def test_the_place_of_an_invalid_object_is_ignored_in_every_class(self):
    boxes = [[0, 0, 50, 50], [100, 100, 150, 150], [200, 200, 250, 250]]
    item = record(1, boxes, [0, 1, 2], [True, False, False])
    data = dataset(item, num_classes=2, crowds=False)
    guesses, classes = [boxes[0], boxes[0], boxes[1], boxes[2]], [1, 2, 1, 2]
    results = found(data, 1, guesses, [0.9, 0.8, 0.7, 0.6], classes)
    evaluation = evaluate_voc(data, results)
    assert evaluation.area["AP"] == evaluation.eleven_point["AP"] == pytest.approx(1)

  def test_difficult_object_takes_any_number(self):
    data = one_class([BOX, FAR], [True, False])
    assert hits_at_half(data, [BOX, BOX, FAR], [0.9, 0.8, 0.7]) == [True]

  def test_overlap_of_exactly_the_threshold_is_a_hit(self):
    # Heights of 50, 55, ... of 100 px: IoU 0.50, 0.55, ... Each is a hit at thresholds
    # up to its own.
    for i, percent in enumerate(range(50, 100, 5)):
      data = one_class([[0, 0, 100, 100]])
      results = found(data, 1, [[0, 0, percent, 100]], [0.5])
      matches = match(data, results)
      hits = [matches.hits(p / 100)[0].tolist() for p in range(50, 100, 5)]
      assert hits == [[True]] * (i + 1) + [[False]] * (9 - i)
      assert evaluate_voc(data, results).area["AP"] == pytest.approx((i + 1) / 10)

  def test_just_below_the_threshold_is_false(self):
    data = one_class([[0, 0, 1000, 100]])
    assert hits_at_half(data, [[0, 0, 499, 100]], [0.5]) == [False]

  def test_equal_scores_stand_in_the_order_of_the_results(self):
    data = one_class([BOX])
    assert hits_at_half(data, [FAR, BOX], [0.5, 0.5]) == [False, True]
    assert hits_at_half(data, [BOX, FAR], [0.5, 0.5]) == [True, False]

  def test_equal_overlaps_go_to_the_first_object(self):
    same = [BOX, BOX]
    assert hits_at_half(one_class(same, [True, False]), [BOX], [0.5]) == []
    assert hits_at_half(one_class(same, [False, True]), [BOX], [0.5]) == [True]

  def test_objects_of_other_classes_and_images_take_none(self):
    data = dataset(record(1, [BOX], [2]), record(2, [BOX], [1]), num_classes=2)
    matches = match(data, found(data, 1, [BOX], [0.9], [1]))
    assert [h.tolist() for h in matches.hits(0.5)] == [[False], []]

  def test_all_detections_count(self):
    # 150 false ones, then the hit; COCO would leave it out.
    data = one_class([BOX])
    boxes = [OTHER] * 150 + [BOX]
    assert hits_at_half(data, boxes, [0.9] * 150 + [0.1]) == [False] * 150 + [True]

  def test_detections_in_a_crowd(self):
    # A part of the crowd, twice; a duplicate outside; a duplicate in the crowd.
    crowd, part = [0, 0, 200, 200], [0, 0, 50, 50]
    data = one_class([crowd, FAR, part], [True, False, False], crowds=True)
    boxes = [[100, 100, 150, 150], part, part, FAR, FAR]
    assert hits_at_half(data, boxes, [0.9, 0.8, 0.7, 0.6, 0.5]) == [True, True, False]

  @pytest.mark.parametrize("iou", [0.0, -1, 1.01, np.nan])
  def test_threshold_outside(self, iou):
    with pytest.raises(ValueError, match=r"iou must lie in \(0, 1\]"):
      match(one_class([BOX]), []).hits(iou)


class TestEvaluate:
  def test_perfect(self):
    data = dataset(record(1, [BOX, FAR], [1, 2]), record(2), num_classes=2)
    results = found(data, 1, [BOX, FAR], [0.5, 0.9], [1, 2])
    evaluation = evaluate_voc(data, results)
    perfect = {"AP": 1, "AP50": 1, "AP75": 1}
    assert evaluation.area == evaluation.eleven_point == pytest.approx(perfect)
    assert evaluation.num_images == 2

  def test_figures_by_hand(self):
    # IoU 0.8: a hit at 7 of 10 thresholds, with one of two objects found.
    data = one_class([[0, 0, 100, 100], FAR])
    evaluation = evaluate_voc(data, found(data, 1, [[0, 0, 100, 80]], [0.5]))
    assert evaluation.area == pytest.approx({"AP": 0.35, "AP50": 0.5, "AP75": 0.5})
    half = 6 / 11
    assert evaluation.eleven_point == pytest.approx(
      {"AP": 0.7 * half, "AP50": half, "AP75": half}
    )

  def test_class_without_objects_is_none_and_out_of_the_mean(self):
    data = dataset(
      record(1, [BOX, FAR], [1, 3], [False, True]), num_classes=3, crowds=False
    )
    results = found(data, 1, [BOX, FAR, OTHER], [0.9, 0.8, 0.7], [1, 2, 3])
    evaluation = evaluate_voc(data, results)
    nothing = {"AP": None, "AP50": None, "AP75": None}
    for name in "bc":
      assert evaluation.per_class[name] == {"eleven_point": nothing, "area": nothing}
    assert evaluation.per_class["a"]["area"]["AP"] == 1
    assert evaluation.area["AP"] == 1
    assert evaluation.num_objects == {"a": 1, "b": 0, "c": 0}

  def test_no_detections(self):
    evaluation = evaluate_voc(one_class([BOX]), [])
    nothing = {"AP": 0, "AP50": 0, "AP75": 0}
    assert evaluation.area == evaluation.eleven_point == nothing

  @pytest.mark.parametrize(
    ("data", "results", "message"),
    [
      (one_class([BOX], [True]), [], "nothing to evaluate"),
      (one_class([BOX]), coco_results(9, [BOX], [0.5], [1], [3]), "image_id .* 9"),
      (one_class([BOX]), coco_results(1, [BOX], [0.5], [1], [4]), "category_id .* 4"),
      (one_class([BOX]), coco_results(1, [BOX], [np.nan], [1], [3]), "1 detections"),
    ],
  )
  def test_errors(self, data, results, message):
    with pytest.raises(ValueError, match=message):
      evaluate_voc(data, results)


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_oracle(seed, crowds):
  data, results, _, objects, detections = random_case(seed, crowds, num_classes=2)
  for item in (*objects, *detections):
    item["box"] = oracle.kit_box(item["box"])
  evaluation = evaluate_voc(data, results)
  by_rule = {"eleven_point": [], "area": []}
  for k, name in enumerate("ab", 1):
    expected = oracle.figures(
      [o for o in objects if o["class_id"] == k],
      [d for d in detections if d["class_id"] == k],
      crowds,
    )
    for rule, values in expected.items():
      by_rule[rule].append(values)
      assert evaluation.per_class[name][rule] == pytest.approx(
        {"AP": np.mean(values), "AP50": values[0], "AP75": values[5]}, abs=1e-9
      )
  for rule, values in by_rule.items():
    means = np.mean(values, axis=0)
    assert getattr(evaluation, rule) == pytest.approx(
      {"AP": means.mean(), "AP50": means[0], "AP75": means[5]}, abs=1e-9
    )


def test_oracle_cases_are_not_trivial():
  """They have hits, duplicates, false detections, and ones that count neither way."""
  seen = set()
  for seed in range(12):
    *_, objects, detections = random_case(seed, False, num_classes=2)
    for item in (*objects, *detections):
      item["box"] = oracle.kit_box(item["box"])
    outcomes, _ = oracle.judge(
      [o for o in objects if o["class_id"] == 1],
      [d for d in detections if d["class_id"] == 1],
      0.5,
    )
    seen |= set(outcomes)
  assert seen == {"hit", "false", "neither"}


class TestReports:
  def evaluation(self):
    data = dataset(record(1, [BOX, FAR], [1, 2]), num_classes=3, crowds=False)
    return evaluate_voc(data, found(data, 1, [BOX, FAR], [0.9, 0.6], [1, 1]))

  def test_json(self):
    evaluation = self.evaluation()
    fields = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert fields["area"] == {"AP": 0.5, "AP50": 0.5, "AP75": 0.5}
    assert fields["per_class"]["c"]["area"]["AP"] is None
    assert list(fields["per_class"]) == ["a", "b", "c"]
    assert type(evaluation)(**fields) == evaluation

  def test_table(self):
    lines = format_voc_table(self.evaluation()).splitlines()
    assert " ".join(lines[0].split()) == "VOC 2007, 11 points VOC 2010, area"
    figures = ["AP", "AP50", "AP75"]
    assert [line.split() for line in lines[1:]] == [
      ["id", "class", "objects", *figures, *figures],
      ["1", "a", "1", *["1.000"] * 6],
      ["2", "b", "1", *["0.000"] * 6],
      ["3", "c", "0", *["-"] * 6],
      ["mean", "2", *["0.500"] * 6],
    ]
    assert len({len(line) for line in lines[1:]}) == 1
