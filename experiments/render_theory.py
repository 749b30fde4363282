"""The page docs/results/theory.md, of the JSON files of theory.py."""

from __future__ import annotations

import json
import statistics

from ap_detect import charts, provenance

FOLDER = "theory"
QUESTION = (
  "Proposition 1 of the paper, its converse for gradient descent, and data that are not "
  "separable, on linear models, with bounds."
)


_DRAWN_DELTA = 1.0


def pages(folder):
  """theory.md and its pictures; {} where a result is missing.

  Args:
    folder: pathlib.Path of the JSON files.

  Returns:
    Name -> text, or picture [H, W, 3] uint8.
  """
  parts = {"proposition_1": _proposition, "converse": _converse}
  parts["non_separable"] = _non_separable
  if not all((folder / f"{name}.json").exists() for name in parts):
    return {}
  results = {
    name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    for name in parts
  }
  text = [
    "# Theory",
    QUESTION,
    f"`python experiments/theory.py`, which has the proofs; "
    f"{provenance.summary(results['converse'])}.",
  ]
  pictures = {}
  for name, part in parts.items():
    section, picture = part(results[name])
    text += section
    if picture is not None:
      pictures[f"theory_{name}.png"] = picture
      text.append(f"![{name}](theory_{name}.png)")
  return {"theory.md": "\n\n".join(text) + "\n", **pictures}


def _proposition(result):
  lines = _head(
    *("dimensions", "margin", "delta", "steps to AP 1", "bound", "reached loss 0"),
    *("summed loss", "bound", "sum / bound"),
  )
  for row in result["rows"]:
    runs = row["runs"]
    steps = [run["steps_to_ap_1"] for run in runs]
    reached = [run for run in runs if run["steps_to_loss_0"] is not None]
    largest = max(runs, key=lambda run: run["sum"] / run["bound_of_sum"])
    lines.append(
      _line(
        row["dimensions"],
        row["margin"],
        f"{row['delta']:g}",
        "not always"
        if None in steps
        else f"{statistics.median(steps):.0f}, at most {max(steps)}",
        f"{min(run['bound_of_steps'] for run in runs):,.0f}",
        f"{len(reached)} of {len(runs)}",
        f"{largest['sum']:.3g}",
        f"{largest['bound_of_sum']:,.0f}",
        f"{largest['sum'] / largest['bound_of_sum']:.2g}",
      )
    )
  return [
    "## Proposition 1: separable data",
    f"{result['seeds']} data sets a line, of 10 positives and 90 negatives that a unit "
    "vector separates by the margin; learning rate 1, from w = 0. Steps: median and most; "
    "the least of their bounds. Summed loss: of the data set that comes nearest to its "
    f"bound. A run ends at loss 0, 200 steps after AP 1, or after "
    f"{result['most_steps']:,} steps.",
    "\n".join(lines),
  ], None


def _converse(result):
  lines = _head("method", "rate", "delta", "AP at the end", "steps to AP 1")
  series = {}
  for row in result["rows"]:
    name = row["method"].replace("_", " ")
    first = row["steps_to_ap_1"]
    lines.append(
      _line(
        name,
        f"{row['rate']:g}",
        f"{row['delta']:g}",
        f"{row['ap']:.3f}",
        f"not in {result['steps']:,}" if first is None else f"{first:,}",
      )
    )
    if row["delta"] == _DRAWN_DELTA:
      steps, values = zip(*row["curve"])
      places = [step + 1 for step in steps]
      series[f"{name}, rate {row['rate']:g}"] = (places, values, [0.0] * len(steps))
  picture = charts.series_picture(
    series,
    f"AP on separable data, from w = 0, delta {_DRAWN_DELTA:g}",
    "step + 1",
    "AP",
    log_x=True,
  )
  return [
    "## The converse: gradient descent on the smoothed AP",
    f"Data that a linear model separates by a margin of {result['margin']:.3f}: 20 easy "
    "positives, 4 hard ones and 200 negatives (`theory.trap`). Gradient descent minimises "
    "-log(AP) with a sigmoid for the step.",
    "\n".join(lines),
  ], picture


def _non_separable(result):
  lines = _head(
    *("positives among the negatives", "seed", "mean AP-loss", "bound"),
    *("AP of averaged weights", "AP of u"),
  )
  series = {}
  for row in result["rows"]:
    figures = ("mean_loss", "bound", "ap_of_averaged_weights", "ap_of_u")
    cells = (f"{row[name]:.3f}" for name in figures)
    lines.append(_line(f"{row['mislabelled']} of 20", row["seed"], *cells))
  for number in dict.fromkeys(row["mislabelled"] for row in result["rows"]):
    curves = [row["curve"] for row in result["rows"] if row["mislabelled"] == number]
    steps = [step for step, *_ in curves[0]]
    for place, name in ((1, "mean loss"), (2, "bound")):
      values = [[point[place] for point in at_once] for at_once in zip(*curves)]
      series[f"{name}, {number} of 20"] = (
        steps,
        [statistics.fmean(one) for one in values],
        [statistics.stdev(one) for one in values],
      )
  picture = charts.series_picture(
    series,
    "AP-loss on average over the steps, and its bound, by positives among negatives",
    "steps",
    "AP-loss",
    log_scale=True,
    log_x=True,
  )
  return [
    "## Data that no linear model separates",
    "20 positives and 200 negatives in 5 dimensions that u would separate by a margin of 4, "
    f"but for the positives that lie among the negatives; delta {result['delta']:g}, "
    f"learning rate 1, {result['steps']:,} steps. The bound is the least over gamma.",
    "\n".join(lines),
  ], picture


def _head(*columns):
  return [_line(*columns), _line(*["---"] * len(columns))]


def _line(*cells):
  return f"| {' | '.join(map(str, cells))} |"
