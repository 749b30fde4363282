"""Calibration: what it must keep, that it is the best of its form, and small cases."""

import itertools
import json

import numpy as np
import pytest
from coco_cases import dataset, found, random_case, record
from hypothesis import given, settings
from hypothesis import strategies as st

from ap_detect.metrics import evaluate_coco
from ap_detect.metrics.calibration import ScoreCalibration, fit_calibration

# float32 scores of few values, of any size, and next to 0 and 1.
SCORES = st.one_of(
  st.integers(1, 9).map(lambda tenths: np.float32(tenths / 10)),
  st.floats(2.0**-126, 1 - 2.0**-24, width=32),
)
# Also next to each other.
SCORES = st.one_of(
  SCORES, SCORES.map(lambda score: np.nextafter(score, np.float32(0.5)))
)
DETECTIONS = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=60)


def arrays(detections):
  scores, hits = zip(*detections)
  return np.array(scores, np.float64), np.array(hits)


def logit(p):
  return np.log(p / (1 - p))


class TestByHand:
  """At a single score the best precision is the mean of Platt's targets."""

  @pytest.mark.parametrize(
    ("hits", "misses", "expected"),
    [
      (8, 0, 9 / 10),
      (0, 8, 1 / 10),
      (1, 0, 2 / 3),
      (0, 1, 1 / 3),
      (2, 2, (2 * 3 / 4 + 2 / 4) / 4),
    ],
  )
  @pytest.mark.parametrize("score", [1e-30, 0.2, 0.999])
  def test_one_score(self, hits, misses, expected, score):
    scores = np.full(hits + misses, score)
    calibration = fit_calibration(scores, np.arange(len(scores)) < hits)
    assert calibration(score) == pytest.approx(expected, abs=1e-9)

  def test_no_detections(self):
    assert fit_calibration(np.zeros(0), np.zeros(0, bool)) is None

  @pytest.mark.parametrize("is_hit", [True, False])
  def test_all_right_and_all_wrong(self, is_hit):
    """The least slope, 0.1, for nothing says that a higher score is better."""
    scores = np.linspace(0.2, 0.8, 50)
    found = fit_calibration(scores, np.full(50, is_hit))(scores)
    expected = 51 / 52 if is_hit else 1 / 52
    assert found == pytest.approx(np.full(50, expected), abs=0.005)
    assert np.diff(logit(found)) == pytest.approx(0.1 * np.diff(logit(scores)))

  def test_scores_that_rank_the_wrong_way(self):
    scores = np.linspace(0.2, 0.8, 50)
    found = fit_calibration(scores, scores < 0.5)(scores)
    assert found == pytest.approx(np.full(50, 0.5), abs=0.08)
    assert (np.diff(found) > 0).all()


class TestKeepsTheRanking:
  @settings(max_examples=60, deadline=None)
  @given(DETECTIONS, st.lists(SCORES, max_size=30))
  def test_neighbours_among_float32_numbers_stay_apart(self, detections, others):
    scores, hits = arrays(detections)
    calibration = fit_calibration(scores, hits)
    ends = [2.0**-149, 2.0**-126, 0.5, 1 - 2.0**-23]
    lower = np.array([*ends, *scores, *others], np.float32)
    lower = np.append(lower, np.float32(calibration.scores[1:-1]))
    lower = lower[lower < 1 - 2.0**-24]
    precisions = calibration(lower)
    above = calibration(np.nextafter(lower, np.float32(1)))
    assert (precisions < above).all()
    assert (precisions.astype(np.float32) <= above.astype(np.float32)).all()
    assert (np.concatenate([precisions, above]) > 0).all()
    assert (above < 1).all()

  def test_where_precision_is_next_to_1(self):
    """Of very many hits: (n + 1) / (n + 2) would leave too few numbers up to 1."""
    calibration = fit_calibration(np.full(10**6, 0.5), np.ones(10**6, bool))
    assert logit(calibration(0.5)) == pytest.approx(12)
    assert calibration(1 - 2.0**-24) > calibration(1 - 2.0**-23)

  def test_ends(self):
    calibration = fit_calibration(
      np.array([0.0, 0.5, 1.0]), np.array([False, True, True])
    )
    at = calibration(np.array([0.0, 2.0**-149, 0.5, 1 - 2.0**-24, 1.0]))
    assert (np.diff(at) > 0).all()
    assert 0 < at[0] < at[-1] < 1

  @pytest.mark.parametrize("crowds", [True, False])
  @pytest.mark.parametrize("seed", range(5))
  def test_every_metric_stays(self, seed, crowds):
    data, results, *_ = random_case(seed, crowds)
    raw = evaluate_coco(data, results)
    calibration = fit_calibration(raw.outcomes.scores, raw.outcomes.hits)
    for dtype in (np.float64, np.float32):
      scores = calibration([r["score"] for r in results]).astype(dtype).tolist()
      again = evaluate_coco(
        data, [{**r, "score": score} for r, score in zip(results, scores)]
      )
      assert again.metrics == pytest.approx(raw.metrics, abs=1e-12)

  def test_as_served(self):
    """50,000 detections whose scores lie as close as a network's, three ways to bunch."""
    rng = np.random.default_rng(0)
    for spread, shift in ((1.0, -4.0), (0.05, 0.0), (3.0, 5.0)):
      logits = rng.normal(shift, spread, 50_000)
      scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
      hits = rng.random(50_000) < 1 / (1 + np.exp(3 - 2 * (logits - shift) / spread))
      distinct = np.unique(scores)
      calibrated = fit_calibration(scores, hits)(distinct)
      assert (np.diff(calibrated) > 0).all()
      served = calibrated.astype(np.float32)
      assert (np.diff(served) >= 0).all()
      # Rounding ties some neighbours, and moves the average precision by next to nothing.
      raw, cut = (
        average_precision(values[np.searchsorted(distinct, scores)], hits)
        for values in (distinct, served)
      )
      assert cut == pytest.approx(raw, abs=1e-4)


def average_precision(scores, hits):
  """With equal scores in the order of their places, as a stable sort has them."""
  hits = hits[np.argsort(-scores, kind="stable")]
  return np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits])


class TestIsTheBest:
  """Against the objective as it is written down, by loops, at other maps of the form."""

  @settings(max_examples=25, deadline=None)
  @given(DETECTIONS, st.integers(0, 2**32 - 1))
  def test_no_other_map_is_better(self, detections, seed):
    scores, hits = arrays(detections)
    calibration = fit_calibration(scores, hits)
    knots = [s for s in calibration.scores if scores.min() <= s * (1 + 1e-9)]
    knots = [s for s in knots if s <= scores.max() * (1 + 1e-9)]
    x, best = logit(np.array(knots)), logit(calibration(knots))
    value = objective(x, best, scores, hits)
    rng = np.random.default_rng(seed)
    tried = 0
    for scale, _ in itertools.product((1.0, 0.1, 0.01, 0.001), range(40)):
      other = best + scale * rng.normal(size=len(best)) * (rng.random(len(best)) < 0.5)
      # Up to the least slope that is allowed.
      for i in range(1, len(x)):
        other[i] = max(other[i], other[i - 1] + 0.1 * (x[i] - x[i - 1]))
      if np.abs(other - 0.1 * x).max() < 12:
        tried += 1
        assert objective(x, other, scores, hits) >= value - 1e-6
    assert tried > 0

  def test_known_precisions_are_found(self):
    """Levelling off at 0.8, as where one object in five has no label."""
    rng = np.random.default_rng(1)
    logits = rng.normal(-2, 1.5, 40_000)
    scores = 1 / (1 + np.exp(-logits))
    true = 0.8 / (1 + np.exp(-3 * (logits + 1)))
    found = fit_calibration(scores, rng.random(40_000) < true)(scores)
    assert np.abs(found - true).mean() < 0.01
    assert np.abs(found - true).max() < 0.08
    # Nothing of this depends on the scores' shift and scale.
    moved = 1 / (1 + np.exp(-(logits * 0.2 + 3)))
    assert (
      np.abs(fit_calibration(moved, rng.random(40_000) < true)(moved) - true).mean()
      < 0.01
    )


def objective(x, values, scores, hits):
  n, m = sum(hits), sum(~hits)
  total = 0.0
  for score, hit in zip(scores, hits):
    target = (n + 1) / (n + 2) if hit else 1 / (m + 2)
    p = 1 / (1 + np.exp(-np.interp(logit(score), x, values)))
    total -= target * np.log(p) + (1 - target) * np.log1p(-p)
  weights = [1 / max(n, 1) if hit else 1 / max(m, 1) for hit in hits]
  mean = sum(w * logit(s) for w, s in zip(weights, scores)) / sum(weights)
  variance = sum(w * (logit(s) - mean) ** 2 for w, s in zip(weights, scores))
  slopes = [(b - a) / (d - c) for a, b, c, d in zip(values, values[1:], x, x[1:])]
  for before, after in zip(slopes, slopes[1:]):
    total += 0.3 * (after - before) ** 2 * variance / sum(weights) / 2
  return total


class TestOfAnEvaluation:
  BOX, FAR = [10, 20, 110, 120], [200, 200, 300, 300]

  def test_class_without_detections_and_an_ignored_one(self):
    """Two hits and a miss count; that on an ignored object does not."""
    data = dataset(
      record(1, [self.BOX, self.FAR], [1, 1], [False, True]),
      record(2, [self.BOX, self.FAR], [2, 3]),
      num_classes=3,
    )
    results = found(data, 1, [self.BOX, self.FAR, [0, 0, 9, 9]], [0.9, 0.8, 0.2])
    results += found(data, 2, [self.BOX], [0.7], [2])
    evaluation = evaluate_coco(data, results)
    outcomes = evaluation.outcomes
    assert outcomes.scores.tolist() == [0.9, 0.2, 0.7]
    assert outcomes.hits.tolist() == [True, False, True]
    assert outcomes.classes.tolist() == [1, 1, 2]
    assert outcomes.images.tolist() == [0, 0, 1]
    assert outcomes.num_objects.tolist() == [1, 1, 1]
    expected = fit_calibration(np.array([0.9, 0.2, 0.7]), np.array([True, False, True]))
    assert evaluation.calibration == expected

  def test_nothing_detected(self):
    data = dataset(record(1, [self.BOX], [1]))
    assert evaluate_coco(data, []).calibration is None


class TestJson:
  def test_round_trip(self):
    calibration = fit_calibration(
      np.array([0.2, 0.5, 0.7]), np.array([False, True, True])
    )
    text = json.dumps(calibration.to_json(), allow_nan=False)
    assert ScoreCalibration.from_json(json.loads(text)) == calibration

  @pytest.mark.parametrize(
    "fields",
    [
      {"scores": [0.1, 0.2]},
      {"scores": [0.1, 0.2], "precisions": [0.1, 0.2], "more": 1},
      {"scores": [0.1, 0.2], "precisions": [0.1]},
      {"scores": [0.1, 0.1], "precisions": [0.1, 0.2]},
      {"scores": [0.1, 0.2], "precisions": [0.2, 0.1]},
      {"scores": [0.0, 0.2], "precisions": [0.1, 0.2]},
      {"scores": [0.1, 0.2], "precisions": [0.1, 1.0]},
      {"scores": [0.1], "precisions": [0.1]},
    ],
  )
  def test_what_is_none(self, fields):
    with pytest.raises(ValueError, match="a calibration needs"):
      ScoreCalibration.from_json(fields)
