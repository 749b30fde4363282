"""Trains one run of an experiment, evaluates it, and writes its JSON file.

  python experiments/one_run.py --experiment=table1 --run=default-seed0

What experiments/train.py starts for every run. Given again, it goes on where it was
stopped.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import os
import statistics
import sys
import time

import numpy as np
import plan
import settings
from absl import flags, logging

from ap_detect import command_line, provenance
from ap_detect import config as config_lib
from ap_detect.runs import files, folder, lock

EXPERIMENT = flags.DEFINE_string("experiment", None, "Its name.", required=True)
RUN = flags.DEFINE_string("run", None, "The run's name in it.", required=True)
settings.use()

# Status where another process trains the run.
IN_USE = 75

# In a run's folder: when it was trained, and the matches of an evaluation.
_STARTS = "starts.json"
# Points of the curves of training losses.
_BINS = 40


def main(_):
  experiments = settings.make_catalog()
  run = experiments.find(EXPERIMENT.value, RUN.value)
  if experiments.result(run) is not None:
    logging.info("%s of %s is done", run.name, run.experiment)
    return
  model_dir = plan.model_dir(settings.RUNS_DIR.value, run)
  lock.check_name(model_dir)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(lock.lock(model_dir))
    except ValueError as error:
      logging.info("%s", error)
      sys.exit(IN_USE)
    command_line.load_tensorflow()
    perform(
      experiments,
      run,
      places=settings.places(),
      runs_dir=settings.RUNS_DIR.value,
      note=settings.NOTE.value,
    )


def perform(experiments, run, *, places, runs_dir, note=""):
  """Trains a run, evaluates it and writes its JSON file, and what it completes.

  A run that diverges is evaluated at its last checkpoint before that, and is done too: a
  tuning goes on without it.

  Args:
    experiments: plan.Catalog.
    run: plan.Run.
    places: flag -> path of the data.
    runs_dir: folder of the runs.
    note: what else to say in the file.
  """
  config = experiments.config(run, places)
  model_dir = plan.model_dir(runs_dir, run)
  diverged = _train(config, model_dir)
  result = {**_describe(experiments, run, model_dir, note), "diverged": diverged}
  _write(experiments.path(run), result)
  experiment = experiments.experiments[run.experiment]
  for pair in experiment.pairs:
    if run.row in pair:
      _compare(experiments, experiment, pair, runs_dir, note)


def _write(path, result):
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(str(path), result, indent=1)
  logging.info("wrote %s", path)


def _train(config, model_dir):
  """Trains to the end, and notes how long it took and by which code.

  Returns:
    What became infinite or NaN, if anything did; "" for nothing.
  """
  from ap_detect.training import state, trainer

  begun, diverged = time.monotonic(), ""
  try:
    trainer.train(config, model_dir)
  except state.NonFiniteError as error:
    logging.warning("%s", error)
    diverged = str(error).partition(", images")[0]
  finally:
    if os.path.isdir(model_dir):
      start = {
        "commit": provenance.describe()["commit"],
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - begun, 1),
      }
      files.write_json(
        os.path.join(model_dir, _STARTS), [*_read_list(model_dir, _STARTS), start]
      )
  return diverged


def _read_list(model_dir, name):
  """What a JSON file of a run holds, [] where it is not there yet."""
  path = os.path.join(model_dir, name)
  return files.read_json(path) if os.path.exists(path) else []


def _describe(experiments, run, model_dir, note):
  """What the JSON file of a run holds."""
  experiment = experiments.experiments[run.experiment]
  dataset = experiments.datasets[experiment.dataset]
  history = _read_list(model_dir, folder.HISTORY)
  rows = _read_rows(model_dir)
  images_per_step = int(rows[-1]["images"]) / int(rows[-1]["step"]) if rows else 0
  starts = _read_list(model_dir, _STARTS)
  # The first step, which builds the graph, has none.
  speeds = [float(row["images_per_second"]) for row in rows if row["images_per_second"]]
  return {
    **provenance.describe(note),
    "experiment": run.experiment,
    "run": run.name,
    "row": run.row,
    "seed": run.seed,
    "base_config": dataset.config,
    "overrides": run.overrides,
    "config": plan.without_places(folder.load_config(model_dir), dataset),
    "starts": starts,
    "seconds": round(sum(start["seconds"] for start in starts), 1),
    "images_per_second": statistics.median(speeds) if speeds else None,
    "metrics": {
      one.name: _rounded(_evaluate(model_dir, one))
      for one in experiments.evaluations(experiment)
    },
    "validations": [
      {"images": round(entry["step"] * images_per_step), **_rounded(entry)}
      for entry in history
    ],
    "training": _rounded(_losses(rows)),
  }


def _rounded(value):
  """Floats to 6 digits, wherever in it."""
  if isinstance(value, dict):
    return {name: _rounded(one) for name, one in value.items()}
  if isinstance(value, list):
    return [_rounded(one) for one in value]
  return float(f"{value:.6g}") if isinstance(value, float) else value


def _evaluate(model_dir, evaluation):
  """Figures of a split; what they are of is kept for comparisons."""
  import bootstrap

  from ap_detect.runs import data as data_lib
  from ap_detect.runs import model as model_lib
  from ap_detect.training import evaluation as evaluation_lib

  restored = model_lib.restore(model_dir)
  values = dataclasses.asdict(restored.config)
  values["data"].update(evaluation.data)
  config = config_lib.resolve(values)
  dataset = data_lib.open_split(config, evaluation.split, restored.classes.names)
  evaluator = evaluation_lib.Evaluator(restored.network, config, restored.strategy)
  found, _, _ = evaluator.evaluate(dataset)
  files.write_arrays(_matches_path(model_dir, evaluation.name), found.matches._asdict())
  return {
    "split": evaluation.split,
    "images": found.num_images,
    "objects": sum(found.num_objects.values()),
    "checkpoint": os.path.basename(restored.checkpoint),
    **found.metrics,
    **bootstrap.figures(found.matches),
    "per_class": found.per_class,
  }


def _compare(experiments, experiment, pair, runs_dir, note):
  """Writes a comparison of two rows, once all of their runs are evaluated here."""
  import bootstrap

  runs = experiments.runs(experiment)
  of_rows = [[run for run in runs if run.row == row] for row in pair]
  if any(len(row) < len(experiment.seeds) for row in of_rows):
    return
  if any(experiments.result(run) is None for row in of_rows for run in row):
    return
  differences = {}
  for one in experiments.evaluations(experiment):
    paths = [
      [_matches_path(plan.model_dir(runs_dir, run), one.name) for run in of_seed]
      for of_seed in zip(*of_rows)
    ]
    absent = [path for of_seed in paths for path in of_seed if not os.path.exists(path)]
    if absent:
      logging.warning(
        "%s are not compared: there is no %s", " and ".join(pair), absent[0]
      )
      return
    differences[one.name] = bootstrap.compare(
      [tuple(map(_read_matches, of_seed)) for of_seed in paths]
    )
  result = {
    **provenance.describe(note),
    "experiment": experiment.name,
    "rows": pair,
    "seeds": experiment.seeds,
    "resamples": bootstrap.RESAMPLES,
    "differences": _rounded(differences),
  }
  _write(experiments.pair_path(experiment, pair), result)


def _read_matches(path):
  from ap_detect.metrics.matches import Matches

  with np.load(path) as arrays:
    return Matches(**arrays)


def _matches_path(model_dir, name):
  return os.path.join(model_dir, f"matches_{name}.npz")


def _read_rows(model_dir):
  path = os.path.join(model_dir, folder.METRICS)
  with open(path, encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


def _losses(rows):
  """Means of the losses over stretches of the training, with the images at their ends."""
  if not rows:
    return []
  names = [name for name in rows[0] if name.endswith("_loss")]
  own = [name for name in names if name not in ("total_loss", "box_loss")]
  parts = np.array_split(np.arange(len(rows)), min(_BINS, len(rows)))
  return [
    {
      "images": int(rows[part[-1]]["images"]),
      **{
        "classification_loss" if name in own else name: float(
          np.mean([float(rows[place][name]) for place in part])
        )
        for name in names
      },
    }
    for part in parts
  ]


if __name__ == "__main__":
  with contextlib.suppress(KeyboardInterrupt):
    command_line.run(main)
