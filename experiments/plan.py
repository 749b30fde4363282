"""What an experiment is: a table of runs as data, and which of them are due."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from ap_detect import config as config_lib
from ap_detect import config_files
from ap_detect.runs import files

RESULTS = pathlib.Path(__file__).parent / "results"
# In an experiment's folder of results: comparisons of rows, see bootstrap.py.
PAIRS = "pairs"


class Evaluation(NamedTuple):
  """What a run is evaluated on when it is trained.

  Attributes:
    name: of its figures.
    split: of the dataset.
    data: fields of the config's `data` that differ in it.
  """

  name: str
  split: str
  data: dict[str, Any] = {}  # noqa: RUF012  never changed


class Dataset(NamedTuple):
  """What runs are trained on.

  Attributes:
    config: name of the config file.
    places: config field -> flag that gives it, for what lies somewhere on the machine.
    overrides: config fields that all runs have.
    evaluations: what a run is evaluated on, unless its experiment says otherwise.
  """

  config: str
  places: dict[str, str]
  overrides: dict[str, Any]
  evaluations: tuple[Evaluation, ...]


class Row(NamedTuple):
  """A row of a table: runs that differ in the seed alone.

  Attributes:
    name: also of its files.
    overrides: config field -> value.
    tuned_as: name of the row in the experiment's `tuning` whose best point it takes.
  """

  name: str
  overrides: dict[str, Any]
  tuned_as: str = ""


class Stage(NamedTuple):
  """A field whose best value is looked for, the others being as they are.

  Attributes:
    label: short name of the field.
    field: of the config.
    values: to try; the first one is where stages before it stand.
  """

  label: str
  field: str
  values: tuple[float, ...]


class Experiment(NamedTuple):
  """A table of runs.

  Attributes:
    name: of its folder and page.
    question: what it asks; sentences.
    dataset: name of a Dataset in the catalog.
    rows: of the table.
    seeds: of every row.
    minutes: about how long a run takes on 2 CPU cores that do nothing else.
    overrides: config fields that all rows have.
    evaluations: in place of the dataset's; () for those.
    tuning: name of the experiment that chooses the rows' points; "" for none.
    stages: makes it a tuning itself: every row tries the values of one field after the
      other, and goes on with the best by AP of evaluation "val".
    pairs: names of two rows whose difference is bootstrapped over images.
    curve: what its picture shows, "AP" of the validations or "classification_loss".
  """

  name: str
  question: str
  dataset: str
  rows: tuple[Row, ...]
  seeds: tuple[int, ...]
  minutes: float
  overrides: dict[str, Any] = {}  # noqa: RUF012  never changed
  evaluations: tuple[Evaluation, ...] = ()
  tuning: str = ""
  stages: tuple[Stage, ...] = ()
  pairs: tuple[tuple[str, str], ...] = ()
  curve: str = "AP"


class Run(NamedTuple):
  """One training.

  Attributes:
    experiment: name of it.
    name: within the experiment.
    row: name of its row.
    seed: random seed.
    overrides: config field -> value, all of them but the seed.
  """

  experiment: str
  name: str
  row: str
  seed: int
  overrides: dict[str, Any]


class Catalog:
  """All experiments, and their results.

  Args:
    experiments: Experiments.
    datasets: name -> Dataset.
    folder: of the results, a folder for every experiment and a JSON file for every run.
  """

  def __init__(self, experiments, datasets, folder=RESULTS):
    self.experiments = {experiment.name: experiment for experiment in experiments}
    self.datasets = datasets
    self.folder = pathlib.Path(folder)

  def path(self, run: Run) -> pathlib.Path:
    """Of the JSON file of a run."""
    return self.folder / run.experiment / f"{run.name}.json"

  def result(self, run: Run) -> dict[str, Any] | None:
    """What a run's JSON file holds; None where there is none.

    Raises:
      ValueError: it is of a run with other settings.
    """
    path = self.path(run)
    if not path.exists():
      return None
    found = files.read_json(str(path))
    if (found["overrides"], found["seed"]) != (_as_json(run.overrides), run.seed):
      raise ValueError(
        f"{path} is of other settings than {run.experiment} has now: it has "
        f"{found['overrides']}, needed are {_as_json(run.overrides)}; remove it, and the "
        "run's folder, to run it anew"
      )
    return found

  def pair_path(self, experiment: Experiment, pair: tuple[str, str]) -> pathlib.Path:
    """Of the JSON file of a comparison of two rows."""
    return self.folder / experiment.name / PAIRS / f"{'-against-'.join(pair)}.json"

  def evaluations(self, experiment: Experiment) -> tuple[Evaluation, ...]:
    """What its runs are evaluated on."""
    return experiment.evaluations or self.datasets[experiment.dataset].evaluations

  def runs(self, experiment: Experiment) -> list[Run]:
    """The runs of an experiment that are known by now, done or not, in their order.

    Of a tuning these are the stages up to the first that is not done; rows that a tuning
    has no best point for yet are left out.
    """
    found = []
    for row in experiment.rows:
      if experiment.stages:
        found += self._tuned(experiment, row)[0]
        continue
      point = self.best_point(experiment, row)
      if point is not None:
        for seed in experiment.seeds:
          name = f"{row.name}-seed{seed}"
          settings = {**self._overrides(experiment, row), **point}
          found.append(Run(experiment.name, name, row.name, seed, settings))
    return found

  def due(self, experiment: Experiment) -> list[Run]:
    """The runs that can be done now and are not."""
    return [run for run in self.runs(experiment) if self.result(run) is None]

  def best_point(self, experiment: Experiment, row: Row) -> dict[str, Any] | None:
    """Overrides that a row takes from its tuning; None where that is not done."""
    if not experiment.tuning or not row.tuned_as:
      return {}
    tuning = self.experiments[experiment.tuning]
    (tuned,) = (one for one in tuning.rows if one.name == row.tuned_as)
    return self.best_of(tuning, tuned)

  def best_of(self, tuning: Experiment, row: Row) -> dict[str, Any] | None:
    """The best point of a row of a tuning; None where that is not done."""
    return self._tuned(tuning, row)[1]

  def num_runs(self, experiment: Experiment) -> int:
    """How many runs it has in all."""
    tries = sum(len(stage.values) for stage in experiment.stages)
    per_row = tries - len(experiment.stages) + 1 if tries else 1
    return len(experiment.rows) * len(experiment.seeds) * per_row

  def find(self, experiment: str, name: str) -> Run:
    """A run by its names.

    Raises:
      ValueError: there is none, or it is not known yet.
    """
    if experiment not in self.experiments:
      raise ValueError(
        f"there is no experiment {experiment!r}; there are {', '.join(self.experiments)}"
      )
    runs = self.runs(self.experiments[experiment])
    for run in runs:
      if run.name == name:
        return run
    raise ValueError(
      f"{experiment} has no run {name!r} by now; it has "
      f"{', '.join(run.name for run in runs) or 'none'}"
    )

  def config(self, run: Run, places: dict[str, str]) -> config_lib.Config:
    """The config of a run.

    Args:
      run: Run.
      places: flag -> path, of those that the dataset needs.
    """
    dataset = self.datasets[self.experiments[run.experiment].dataset]
    values = _load(dataset.config).to_dict()
    of_places = {field: places[flag] for field, flag in dataset.places.items()}
    settings = {**run.overrides, **of_places, "train.seed": run.seed}
    for name, value in settings.items():
      section, field = name.split(".")
      values[section][field] = value
    return config_lib.resolve(values)

  def missing_places(self, experiment: Experiment, places: dict[str, str]) -> list[str]:
    """Flags that its dataset needs and that were not given."""
    flags = self.datasets[experiment.dataset].places.values()
    return [flag for flag in flags if not places.get(flag)]

  def _overrides(self, experiment, row):
    of_dataset = self.datasets[experiment.dataset].overrides
    return {**of_dataset, **experiment.overrides, **row.overrides}

  def _tuned(self, experiment, row):
    """(runs of a row of a tuning up to the stage that is not done, best point or None)."""
    (seed,) = experiment.seeds
    point = {stage.field: stage.values[0] for stage in experiment.stages}
    found: dict[str, Run] = {}
    for stage in experiment.stages:
      figures = {}
      for value in stage.values:
        tried = {**point, stage.field: value}
        label = "_".join(f"{s.label}{tried[s.field]:g}" for s in experiment.stages)
        settings = {**self._overrides(experiment, row), **tried}
        run = Run(experiment.name, f"{row.name}-{label}", row.name, seed, settings)
        found[run.name] = run
        result = self.result(run)
        figures[value] = result and result["metrics"]["val"]["AP"]
      if None in figures.values():
        return [*found.values()], None
      point[stage.field] = max(figures, key=figures.__getitem__)
    return [*found.values()], point


def model_dir(runs_dir: str, run: Run) -> str:
  """The folder of a run; its log lies beside it."""
  return os.path.join(runs_dir, run.experiment, run.name)


def without_places(config, dataset: Dataset) -> dict[str, Any]:
  """A config as JSON has it, with "<flag>" for what lies somewhere on the machine."""
  values = _as_json(dataclasses.asdict(config))
  for name, flag in dataset.places.items():
    section, field = name.split(".")
    values[section][field] = f"<{flag}>"
  return values


def all_places(datasets) -> Iterator[str]:
  """The flags of all datasets, each once."""
  yield from sorted({flag for one in datasets.values() for flag in one.places.values()})


def _load(config_name):
  path = config_files.find(config_name)
  spec = importlib.util.spec_from_file_location(f"config_{config_name}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def _as_json(value):
  """As it is when it was written as JSON and read again."""
  if isinstance(value, dict):
    return {name: _as_json(one) for name, one in value.items()}
  if isinstance(value, (list, tuple)):
    return [_as_json(one) for one in value]
  return value
