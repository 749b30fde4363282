"""Which scores and thresholds a checkpoint's detections are shown with."""

import os
import shutil

import pytest

from ap_detect.metrics import OperatingPoints, ScoreCalibration
from ap_detect.metrics.score_thresholds import ScoreThresholds
from ap_detect.runs import files, folder, scores

CALIBRATION = ScoreCalibration((0.1, 0.2, 0.4), (0.2, 0.5, 0.75))
THRESHOLDS = ScoreThresholds(0.2, 0.8, {"a": 0.2, "b": 0.4}, {"a": 0.8, "b": 0.7})
POINTS = OperatingPoints((0.4, 0.2), (0.9, 0.6), (0.3, 0.5))
JUDGEMENT = scores.Judgement(THRESHOLDS, CALIBRATION, POINTS)


@pytest.fixture
def said(hear):
  return hear("warning")


def change_best(model_dir, **values):
  path = os.path.join(model_dir, "best.json")
  files.write_json(path, {**files.read_json(path), **values})


class TestLoadJudgement:
  @pytest.fixture
  def model_dir(self, trained_run, tmp_path):
    """A run whose best checkpoint has thresholds that no other has."""
    model_dir = str(tmp_path / "run")
    shutil.copytree(trained_run, model_dir)
    best = files.read_json(os.path.join(model_dir, "best.json"))
    change_best(
      model_dir, score_thresholds={**best["score_thresholds"], "overall": 0.123}
    )
    return model_dir

  def overall(self, *arguments):
    return scores.load_judgement(*arguments).thresholds.overall

  def test_of_the_best(self, model_dir, said):
    assert self.overall(model_dir) == 0.123
    path = folder.find_checkpoint(model_dir)
    assert self.overall(model_dir, path) == 0.123
    assert self.overall(model_dir, os.path.relpath(path)) == 0.123
    assert said == []

  def test_of_a_validated_checkpoint_its_own(self, model_dir, said):
    found = []
    for path in folder.checkpoint_paths(model_dir):
      validation = folder.read_record(path)["validation"]
      found.append(scores.load_judgement(model_dir, path))
      assert found[-1].to_json().items() <= validation.items()
    assert len({judgement.thresholds.overall for judgement in found}) == 2
    assert len({judgement.calibration for judgement in found}) == 2
    assert said == []
    # With no best one too, as when best/ was removed.
    os.remove(os.path.join(model_dir, "best.json"))
    assert scores.load_judgement(model_dir, path) == found[-1]

  def test_of_another_checkpoint_the_best_s_which_is_said(
    self, model_dir, said, monkeypatch
  ):
    path = folder.checkpoint_paths(model_dir)[0]
    record = folder.read_record(path)
    # Of an earlier step than the checkpoint; before the first validation; none at all.
    earlier = {**record, "step": record["step"] + 1}
    for found in (earlier, {**record, "validation": None}, None):
      monkeypatch.setattr(folder, "read_record", lambda _, found=found: found)
      assert self.overall(model_dir, path) == 0.123
      assert f"{path} has no score thresholds of its own" in said[-1]
      assert "those of the best checkpoint, epoch-" in said[-1]
    assert len(said) == 3

  def test_not_validated_yet(self, tmp_path):
    assert scores.load_judgement(str(tmp_path)) is None

  def test_what_a_training_noted(self, trained_run):
    """Fitted to what the best checkpoint found on the validation split."""
    judgement = scores.load_judgement(trained_run)
    assert len(judgement.calibration.scores) > 2
    assert scores.Judgement.from_json(judgement.to_json()) == judgement


class TestLoadShownScores:
  @pytest.fixture
  def model_dir(self, tmp_path):
    """Enough of a run of the classes a and b."""
    classes = {"names": ["a", "b"], "category_ids": [1, 2]}
    files.write_json(str(tmp_path / "classes.json"), classes)
    self.write_best(tmp_path, JUDGEMENT.to_json())
    return str(tmp_path)

  def write_best(self, model_dir, judgement):
    best = {"checkpoint": "epoch-1", "metrics": {}, **judgement}
    files.write_json(os.path.join(model_dir, "best.json"), best)

  def test_thresholds_are_calibrated_too(self, model_dir, said):
    shown = scores.load_shown_scores(model_dir)
    assert shown == JUDGEMENT.shown()
    assert shown.calibration == CALIBRATION
    assert shown.thresholds.per_class == pytest.approx({"a": 0.5, "b": 0.75})
    assert said == []

  def test_turned_off(self, model_dir, said):
    shown = scores.load_shown_scores(model_dir, calibrate=False)
    assert shown == scores.ShownScores(None, THRESHOLDS)
    assert said == []

  def test_a_given_threshold_is_of_shown_scores(self, model_dir):
    for calibrate in (True, False):
      shown = scores.load_shown_scores(
        model_dir, score_threshold=0.3, calibrate=calibrate
      )
      assert shown.thresholds.per_class == {"a": 0.3, "b": 0.3}
      assert (shown.calibration is not None) == calibrate

  @pytest.mark.parametrize(
    ("wanted", "raw", "calibrated"),
    [
      ({"min_precision": 0.7}, 0.4, 0.75),
      ({"min_precision": 0.6}, 0.2, 0.5),
      ({"min_recall": 0.2}, 0.4, 0.75),
      ({"min_recall": 0.4}, 0.2, 0.5),
    ],
  )
  def test_wanted_precision_or_recall(self, model_dir, wanted, raw, calibrated, hear):
    told = hear("info")
    shown = scores.load_shown_scores(model_dir, **wanted)
    assert shown.thresholds.per_class == pytest.approx(
      {"a": calibrated, "b": calibrated}
    )
    shown = scores.load_shown_scores(model_dir, calibrate=False, **wanted)
    assert shown.thresholds.per_class == {"a": raw, "b": raw}
    place = POINTS.thresholds.index(raw)
    had = (POINTS.precisions[place], POINTS.recalls[place])
    assert told[0].startswith(f"at the score threshold {calibrated:.4f}, ")
    assert "a precision of {:.4f} and a recall of {:.4f} on".format(*had) in told[0]

  def test_out_of_reach(self, model_dir):
    with pytest.raises(ValueError, match=r"a precision of 0\.95 .* there is 0\.9000"):
      scores.load_shown_scores(model_dir, min_precision=0.95)
    with pytest.raises(ValueError, match=r"a recall of 0\.6 .* there is 0\.5000"):
      scores.load_shown_scores(model_dir, min_recall=0.6)

  def test_only_one_threshold(self, model_dir):
    with pytest.raises(ValueError, match="one of --score_threshold and --min_recall"):
      scores.load_shown_scores(model_dir, score_threshold=0.3, min_recall=0.5)

  @pytest.mark.parametrize(
    ("judgement", "problem"),
    [
      # As an earlier version wrote it.
      ({"score_thresholds": THRESHOLDS.to_json()}, "what --min_precision takes: an e"),
      (
        scores.Judgement(THRESHOLDS, None, OperatingPoints((), (), ())).to_json(),
        r"the highest there is 0\.0000",
      ),
    ],
  )
  def test_no_calibration_is_said(self, model_dir, judgement, problem, said):
    self.write_best(model_dir, judgement)
    assert scores.load_shown_scores(model_dir) == scores.ShownScores(None, THRESHOLDS)
    (line,) = said
    assert "has no calibration of its scores: an earlier version" in line
    assert "the training's own command, given again, validates" in line
    scores.load_shown_scores(model_dir, calibrate=False)
    assert len(said) == 1
    with pytest.raises(ValueError, match=problem):
      scores.load_shown_scores(model_dir, min_precision=0.1)

  def test_not_validated_yet(self, model_dir, said):
    os.remove(os.path.join(model_dir, "best.json"))
    for wanted in ({}, {"min_precision": 0.5}):
      with pytest.raises(ValueError, match=r"not validated yet.*--score_threshold"):
        scores.load_shown_scores(model_dir, **wanted)
    shown = scores.load_shown_scores(model_dir, score_threshold=0.25)
    assert shown.calibration is None
    assert shown.thresholds.per_class == {"a": 0.25, "b": 0.25}
    assert "calibration of its scores: it was not validated yet" in said[0]
