"""Writes the pages of docs/results/ that the JSON files of results/ give.

  python experiments/render.py

Every experiment that has results has a page, <name>.md, with a table and a picture of
them; README.md lists the pages. Nothing but the JSON files is needed.
"""

from __future__ import annotations

import json
import pathlib
import statistics

import render_theory
import settings

from ap_detect import charts, command_line, provenance
from ap_detect.runs import files

settings.use("results_dir")
OUTPUT_DIR = command_line.define_path(
  "output_dir",
  str(pathlib.Path(__file__).resolve().parents[1] / "docs/results"),
  "Folder of the pages.",
)

_FIGURES = ("AP", "AP50", "AP75", "pooled_AP", "pooled_AP50", "pooled_AP75")
_COLUMNS = ("AP", "AP50", "AP75", "pooled AP", "pooled AP50", "pooled AP75")


def main(_):
  output_dir = pathlib.Path(OUTPUT_DIR.value)
  output_dir.mkdir(parents=True, exist_ok=True)
  for name, content in pages(settings.make_catalog()).items():
    path = str(output_dir / name)
    if isinstance(content, str):
      files.write_text(path, content)
    else:
      files.write_png(path, content)


def pages(experiments):
  """All files of docs/results/.

  Args:
    experiments: plan.Catalog.

  Returns:
    Name -> text of a page, or picture [H, W, 3] uint8.
  """
  found, lines = {}, ["# Experiments", ""]
  for experiment in experiments.experiments.values():
    of_rows = _results(experiments, experiment)
    if of_rows:
      found.update(_page(experiments, experiment, of_rows))
      lines.append(
        f"- [{experiment.name}]({experiment.name}.md): {experiment.question}"
      )
  theory = render_theory.pages(experiments.folder / render_theory.FOLDER)
  found.update(theory)
  if theory:
    lines.append(f"- [theory](theory.md): {render_theory.QUESTION}")
  lines += [
    "",
    "Written by `python experiments/render.py` from `experiments/results/`.",
  ]
  return {"README.md": "\n".join(lines) + "\n", **found} if found else {}


def _results(experiments, experiment):
  """Row name -> contents of its JSON files, in the order of the rows."""
  of_rows = {}
  for run in experiments.runs(experiment):
    result = experiments.result(run)
    if result is not None:
      of_rows.setdefault(run.row, []).append(result)
  return of_rows


def _page(experiments, experiment, of_rows):
  results = [result for of_row in of_rows.values() for result in of_row]
  number = experiments.num_runs(experiment)
  needed = experiments.datasets[experiment.dataset].places.values()
  command = ["python experiments/train.py", f"--experiments={experiment.name}"]
  command += [f"--{flag}=..." for flag in needed]
  parts = [
    f"# {experiment.name}",
    experiment.question,
    f"`{' '.join(command)}`, config `{results[0]['base_config']}`; {_summary(results)}",
  ]
  if len(results) < number:
    parts.append(f"**{len(results)} of {number} runs are done.**")
  diverged = [one["run"] for one in results if one.get("diverged")]
  if diverged:
    parts.append(
      f"**Diverged: {', '.join(diverged)}**; their figures are of the last checkpoint "
      "before that, and their curves are left out."
    )
  if experiment.stages:
    parts.append(_tuning_table(experiments, experiment, of_rows))
    return {f"{experiment.name}.md": "\n\n".join(parts) + "\n"}
  if experiment.tuning:
    parts.append(_points_table(experiments, experiment, of_rows))
  for name in results[0]["metrics"]:
    parts.append(_metrics_table(name, of_rows, experiment))
  parts += _pairs(experiments, experiment)
  title, picture = _picture(experiment, of_rows)
  pictures = {}
  if picture is not None:
    pictures[f"{experiment.name}.png"] = picture
    parts.append(f"![{title}]({experiment.name}.png)")
  return {f"{experiment.name}.md": "\n\n".join(parts) + "\n", **pictures}


def _picture(experiment, of_rows):
  """(its title, the curves of all rows or None where no run has one)."""
  title, y_label = {
    "AP": ("AP on the validation split over images seen", "AP"),
    "classification_loss": ("1 - AP of the boxes trained on", "1 - AP"),
  }[experiment.curve]
  series = {}
  for row, of_row in of_rows.items():
    whole = [result for result in of_row if not result.get("diverged")]
    if whole:
      series[row] = _curve(whole, experiment.curve)
  if not series:
    return title, None
  return title, charts.series_picture(
    series, f"{title}, mean and standard deviation over seeds", "images seen", y_label
  )


def _summary(results):
  """What all the runs were measured on, and how long they took."""
  machines = dict.fromkeys(provenance.machine_summary(one) for one in results)
  commits = dict.fromkeys(one["commit"] for one in results)
  notes = dict.fromkeys(one["note"] for one in results if one["note"])
  hours = sum(one["seconds"] for one in results) / 3600
  return "; ".join(
    [
      *machines,
      f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}",
      f"{hours:.1f} hours of training",
      *notes,
    ]
  )


def _tuning_table(experiments, experiment, of_rows):
  """A line for each point that was tried; the best of each row in bold."""
  lines = _head(("row", *(stage.label for stage in experiment.stages), *_COLUMNS))
  for row in experiment.rows:
    best = experiments.best_of(experiment, row)
    for result in of_rows.get(row.name, ()):
      point = {
        stage.field: result["overrides"][stage.field] for stage in experiment.stages
      }
      metrics = result["metrics"]["val"]
      cells = [row.name, *(f"{value:g}" for value in point.values())]
      cells += [f"{100 * metrics[figure]:.1f}" for figure in _FIGURES]
      if point == best:
        cells = [f"**{cell}**" for cell in cells]
      lines.append(_line(cells))
  return "\n".join(lines)


def _points_table(experiments, experiment, of_rows):
  """Where each row was trained."""
  stages = experiments.experiments[experiment.tuning].stages
  lines = _head(("row", *(stage.field for stage in stages)))
  tuned = [row.name for row in experiment.rows if row.tuned_as and row.name in of_rows]
  for row in tuned:
    overrides = of_rows[row][0]["overrides"]
    lines.append(_line((row, *(f"{overrides[stage.field]:g}" for stage in stages))))
  return (
    f"Points chosen by [{experiment.tuning}]({experiment.tuning}.md):\n\n"
    + "\n".join(lines)
  )


def _metrics_table(name, of_rows, experiment):
  """A line for each row: means and standard deviations over its seeds."""
  columns = ["row", *_COLUMNS]
  shows_loss = experiment.curve == "classification_loss"
  if shows_loss:
    columns.append("1 - AP at the end of training")
  lines = _head((*columns, "seeds"))
  for row, of_row in of_rows.items():
    metrics = [result["metrics"][name] for result in of_row]
    cells = [_spread([100 * one[figure] for one in metrics]) for figure in _FIGURES]
    if shows_loss:
      ends = [one["training"][-1] for one in of_row if not one.get("diverged")]
      last = [end["classification_loss"] for end in ends]
      cells.append(_spread(last, digits=3) if last else "diverged")
    lines.append(_line((row, *cells, len(of_row))))
  first = next(iter(of_rows.values()))[0]["metrics"][name]
  return (
    f"Evaluation {name}: split {first['split']}, {first['images']} images, "
    f"{first['objects']} objects.\n\n" + "\n".join(lines)
  )


def _pairs(experiments, experiment):
  """Tables of the differences of rows, over images."""
  parts = []
  for pair in experiment.pairs:
    path = experiments.pair_path(experiment, pair)
    if not path.exists():
      continue
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = _head(("evaluation", "figure", "difference", "95 % of draws", "above 0"))
    for name, differences in found["differences"].items():
      for figure, column in zip(_FIGURES, _COLUMNS):
        one = differences[figure]
        low, high = (f"{100 * one[end]:+.1f}" for end in ("low", "high"))
        cells = (name, column, f"{100 * one['difference']:+.1f}", f"{low} to {high}")
        lines.append(_line((*cells, f"{one['share_above_0']:.1%}")))
    parts.append(
      f"{pair[0]} minus {pair[1]}, means over seeds {_listed(found['seeds'])}, with "
      f"{found['resamples']:,} draws of the images with replacement, the same for all "
      "runs:\n\n" + "\n".join(lines)
    )
  return parts


def _curve(of_row, curve):
  """(images, means, standard deviations) of a row's runs."""
  if curve == "AP":
    entries = [result["validations"] for result in of_row]
  else:
    entries = [result["training"] for result in of_row]
  places, means, deviations = [], [], []
  for at_once in zip(*entries):
    values = [entry[curve] for entry in at_once]
    places.append(at_once[0]["images"])
    means.append(statistics.fmean(values))
    deviations.append(statistics.stdev(values) if len(values) > 1 else 0.0)
  return places, means, deviations


def _spread(values, digits=1):
  """Mean and, of several, sample standard deviation."""
  mean = f"{statistics.fmean(values):.{digits}f}"
  if len(values) < 2:
    return mean
  return f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _listed(values):
  return ", ".join(map(str, values))


def _head(columns):
  return [_line(columns), _line(["---"] * len(columns))]


def _line(cells):
  return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
  command_line.run(main)
