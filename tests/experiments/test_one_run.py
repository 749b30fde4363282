"""Reduced versions of the experiments: trained, evaluated, written, compared."""

import json
import os

import catalog
import one_run
import pytest

from ap_detect.data import shapes

EXPERIMENTS = {one.name: one for one in catalog.EXPERIMENTS}
# Of each experiment on data that needs no folder, rows that differ in kind.
ROWS = {
  "table1": ("images_per_ranking-4",),
  "ranking_size": ("images_per_ranking-32",),
  "figure_5b": ("approximate_gradient-rate0.002", "structured_hinge-rate0.002"),
  "smooth_steps": ("logistic",),
  "delta_weight_decay": ("delta-0.25-decay-0",),
  "imbalance": ("ohem_cross_entropy-192px",),
}


def only(experiment, *names, seeds=(0,)):
  rows = [row for row in experiment.rows if row.name in names]
  assert len(rows) == len(names)
  return experiment._replace(rows=tuple(rows), seeds=seeds, pairs=())


def perform(experiments, tmp_path):
  """All runs that are due, and what their files hold."""
  found = []
  for experiment in experiments.experiments.values():
    while due := experiments.due(experiment):
      one_run.perform(experiments, due[0], places={}, runs_dir=str(tmp_path / "runs"))
      found.append(experiments.result(due[0]))
  return found


def test_a_run_is_trained_evaluated_and_written(make_small, tmp_path):
  experiments = make_small(only(EXPERIMENTS["table1"], "not_interpolated", seeds=(3,)))
  (result,) = perform(experiments, tmp_path)
  text = experiments.path(experiments.runs(*experiments.experiments.values())[0])
  assert str(tmp_path) not in text.read_text()
  assert result["seed"] == 3 and result["row"] == "not_interpolated"
  options = result["config"]["train"]["loss_options"]
  assert (options["interpolated"], options["delta"]) == (False, 1.0)  # its default
  assert result["diverged"] == ""
  assert result["machine"]["cores"] == os.cpu_count() and "commit" in result
  assert [one["images"] for one in result["validations"]] == [16, 32]
  assert result["training"][-1]["images"] == 32
  assert result["training"][0]["classification_loss"] > 0
  assert result["metrics"]["test"]["images"] == 6
  found = result["metrics"]["val"]
  assert 0 <= found["pooled_AP50"] <= 1
  best = max(one["AP"] for one in result["validations"])
  assert found["AP"] == pytest.approx(best, abs=1e-5)
  assert result["seconds"] > 0 and len(result["starts"]) == 1


@pytest.mark.slow
def test_tuning_comparison_and_bootstrap(make_small, tmp_path):
  names = ("ap-smooth_l1", "focal-smooth_l1")
  tuning = only(EXPERIMENTS["tuning_shapes"], names[0])
  stages = [stage._replace(values=stage.values[:2]) for stage in tuning.stages[:1]]
  comparison = only(EXPERIMENTS["comparison_shapes"], *names)._replace(pairs=(names,))
  tuned, other = comparison.rows
  comparison = comparison._replace(rows=(tuned, other._replace(tuned_as="")))
  experiments = make_small(tuning._replace(stages=tuple(stages)), comparison)
  results = perform(experiments, tmp_path)
  assert len(results) == 2 + 2
  path = experiments.pair_path(experiments.experiments["comparison_shapes"], names)
  compared = json.loads(path.read_text())
  for place in ("val", "test"):
    one, other = (result["metrics"][place]["AP"] for result in results[-2:])
    found = compared["differences"][place]["AP"]
    assert found["difference"] == pytest.approx(one - other, abs=1e-5)
    assert found["low"] <= found["high"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_reduced(name, make_small, tmp_path):
  for result in perform(make_small(only(EXPERIMENTS[name], *ROWS[name])), tmp_path):
    assert result["metrics"]["val"]["AP"] is not None
    assert result["training"][-1]["classification_loss"] > 0


@pytest.mark.slow
def test_a_run_that_diverges_is_done(make_small, tmp_path):
  experiment = only(EXPERIMENTS["delta_weight_decay"], "delta-1-decay-0")
  row = experiment.rows[0]
  wild = {"train.learning_rate": 1e30, "train.warmup_start_factor": 1.0}
  row = row._replace(overrides={**row.overrides, **wild})
  (result,) = perform(make_small(experiment._replace(rows=(row,))), tmp_path)
  assert "is nan at step" in result["diverged"]
  assert result["metrics"]["val"]["AP"] < 0.1
  assert len(result["starts"]) == 1


@pytest.mark.slow
def test_on_files(make_small, tmp_path):
  """A folder as BCCD's or another: places are given, and not written."""
  root = str(tmp_path / "folder")
  for split, number in (("train", 16), ("val", 4), ("test", 4)):
    shapes.write_shapes(shapes.make_shapes(split, num_images=number), root, split)
  experiment = only(EXPERIMENTS["comparison_bccd"], "ap")
  row = experiment.rows[0]._replace(tuned_as="")
  experiments = make_small(experiment._replace(rows=(row,)))
  (run,) = experiments.due(experiments.experiments["comparison_bccd"])
  places = {"bccd_dir": root, "weights": ""}
  one_run.perform(experiments, run, places=places, runs_dir=str(tmp_path / "runs"))
  text = experiments.path(run).read_text()
  assert str(tmp_path) not in text and '"root": "<bccd_dir>"' in text
  assert experiments.result(run)["metrics"]["test"]["images"] == 4


def test_every_experiment_without_a_folder_is_among_them():
  like_these = {"tuning_shapes", "comparison_shapes", "comparison_shapes_7"}
  tested = {*ROWS, *like_these}
  assert tested == {one.name for one in catalog.EXPERIMENTS if one.dataset == "shapes"}
