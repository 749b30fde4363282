"""Tables of runs: what is due, what waits, what a tuning chooses, and the catalog's own."""

import dataclasses
import json
import re

import catalog
import plan
import pytest

from ap_detect import config as config_lib
from ap_detect.training import classification_losses

PLACES = dict.fromkeys(plan.all_places(catalog.DATASETS), "/somewhere")

STAGES = (
  plan.Stage("rate", "train.learning_rate", (1e-3, 1e-2)),
  plan.Stage("weight", "train.box_loss_weight", (1.0, 2.0, 4.0)),
)
TUNING = plan.Experiment(
  name="tuning",
  question="",
  dataset="shapes",
  rows=(plan.Row("ap", {}), plan.Row("auc", {"train.classification_loss": "auc_loss"})),
  seeds=(7,),
  minutes=1,
  stages=STAGES,
)
COMPARISON = plan.Experiment(
  name="comparison",
  question="",
  dataset="shapes",
  rows=(plan.Row("ap", {}, tuned_as="ap"), plan.Row("auc", {}, tuned_as="auc")),
  seeds=(0, 1),
  minutes=1,
  overrides={"train.epochs": 5},
  tuning="tuning",
)


@pytest.fixture
def experiments(tmp_path):
  return plan.Catalog([TUNING, COMPARISON], catalog.DATASETS, tmp_path)


def write(experiments, run, ap=0.5):
  path = experiments.path(run)
  path.parent.mkdir(exist_ok=True)
  metrics = {"val": {"AP": ap}}
  result = {"overrides": run.overrides, "seed": run.seed, "metrics": metrics}
  path.write_text(json.dumps(result))


def names(runs):
  return [run.name for run in runs]


def test_a_tuning_tries_a_field_from_the_best_of_the_one_before(experiments):
  assert experiments.num_runs(TUNING) == 2 * (2 + 2)
  due = experiments.due(TUNING)
  assert names(due) == [
    *("ap-rate0.001_weight1", "ap-rate0.01_weight1"),
    *("auc-rate0.001_weight1", "auc-rate0.01_weight1"),
  ]
  write(experiments, due[0], 0.3)
  write(experiments, due[1], 0.4)
  second = experiments.due(TUNING)
  assert names(second)[:2] == ["ap-rate0.01_weight2", "ap-rate0.01_weight4"]
  assert names(second)[2:] == names(due)[2:]
  assert experiments.best_point(COMPARISON, COMPARISON.rows[0]) is None
  write(experiments, second[0], 0.39)
  write(experiments, second[1], 0.41)
  assert experiments.best_point(COMPARISON, COMPARISON.rows[0]) == {
    "train.learning_rate": 1e-2,
    "train.box_loss_weight": 4.0,
  }
  assert len(experiments.runs(TUNING)) == 4 + 2


def test_a_row_waits_for_its_tuning(experiments):
  assert experiments.runs(COMPARISON) == []
  while due := [run for run in experiments.due(TUNING) if run.row == "auc"]:
    write(experiments, due[0])  # all the same: the first value stays
  runs = experiments.runs(COMPARISON)
  assert names(runs) == ["auc-seed0", "auc-seed1"]
  config = experiments.config(runs[1], {})
  assert config.train.seed == 1 and config.train.epochs == 5
  assert config.train.learning_rate == 1e-3 and config.train.box_loss_weight == 1.0
  assert config.model.backbone == "csp_darknet_nano"  # of the config file


def test_done_is_what_has_a_file_of_these_settings(experiments):
  first, second, *_ = experiments.due(TUNING)
  write(experiments, first)
  assert first not in experiments.due(TUNING) and second in experiments.due(TUNING)
  write(experiments, first._replace(overrides={"train.epochs": 9}))
  with pytest.raises(ValueError, match=rf"{first.name}.json is of other settings"):
    experiments.due(TUNING)


def test_unknown_names(experiments):
  with pytest.raises(ValueError, match="no experiment 'x'; there are tuning, compar"):
    experiments.find("x", "ap")
  with pytest.raises(
    ValueError, match="comparison has no run 'ap-seed0' by now; it has no"
  ):
    experiments.find("comparison", "ap-seed0")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """All runs, as if all tunings had chosen their first values."""
  everything = plan.Catalog(
    catalog.EXPERIMENTS, catalog.DATASETS, tmp_path_factory.mktemp("results")
  )
  found = []
  for experiment in everything.experiments.values():
    while experiment.stages and (due := everything.due(experiment)):
      write(everything, due[0])
    found += [(everything, run) for run in everything.runs(experiment)]
  return found


class TestCatalog:
  def test_every_run_has_a_valid_config_and_a_loss_with_its_options(self, runs):
    checked = set()
    for everything, run in runs:
      config = everything.config(run, PLACES)
      loss = json.dumps([config.train.classification_loss, config.train.loss_options])
      if loss not in checked:
        classification_losses.find(config.train)
        checked.add(loss)
      written = plan.without_places(config, dataset_of(everything, run))
      assert "/somewhere" not in json.dumps(written)
      assert config_lib.resolve(written).train == config.train
    assert len(checked) > 10

  def test_names_are_unique_and_name_files(self, runs):
    found = [(run.experiment, run.name) for _, run in runs]
    assert len(found) == len(set(found))
    assert all(re.fullmatch(r"[\w.-]+", part) for names in found for part in names)

  def test_nothing_differs_but_what_a_row_says(self, runs):
    """Rows of an experiment have the same seeds, and settings that differ."""
    by_row = {}
    for everything, run in runs:
      settings = dataclasses.asdict(everything.config(run, PLACES))
      settings["train"].pop("seed")
      key = (run.experiment, run.row)
      if not everything.experiments[run.experiment].stages:
        by_row.setdefault(key, {})[run.seed] = json.dumps(settings)
    for (experiment, row), of_seeds in by_row.items():
      assert len(set(of_seeds.values())) == 1, (experiment, row)
      assert sorted(of_seeds) == [0, 1, 2]
    settings = [(key[0], next(iter(one.values()))) for key, one in by_row.items()]
    assert len(settings) == len(set(settings))

  def test_pairs_are_rows(self):
    for experiment in catalog.EXPERIMENTS:
      rows = {row.name for row in experiment.rows}
      assert {name for pair in experiment.pairs for name in pair} <= rows


def dataset_of(everything, run):
  return everything.datasets[everything.experiments[run.experiment].dataset]
