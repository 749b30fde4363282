"""Pages of results: what the JSON files say, and docs/results/ as they give it."""

import json
import pathlib
import re

import catalog
import numpy as np
import plan
import pytest
import render

from ap_detect import provenance

ROOT = pathlib.Path(__file__).parents[2]
FIGURES = ("AP", "AP50", "AP75", "pooled_AP", "pooled_AP50", "pooled_AP75")

STAGE = plan.Stage("rate", "train.learning_rate", (0.1, 0.2))
TUNING = plan.Experiment(
  name="tuning",
  question="Which rate?",
  dataset="shapes",
  rows=(plan.Row("one", {}),),
  seeds=(0,),
  minutes=1,
  stages=(STAGE,),
)
COMPARISON = plan.Experiment(
  name="comparison",
  question="Which loss?",
  dataset="shapes",
  rows=(plan.Row("one", {}, tuned_as="one"), plan.Row("two", {"train.epochs": 2})),
  seeds=(0, 1, 2),
  minutes=1,
  tuning="tuning",
  pairs=(("one", "two"),),
)


@pytest.fixture
def experiments(tmp_path):
  return plan.Catalog([TUNING, COMPARISON], catalog.DATASETS, tmp_path)


def write(experiments, run, ap):
  """A run whose figures are ap, ap + 0.01, ..."""
  figures = {name: ap + place / 100 for place, name in enumerate(FIGURES)}
  what = {"split": "val", "images": 9, "objects": 30}
  result = {
    **provenance.describe("shared"),
    "run": run.name,
    "row": run.row,
    "seed": run.seed,
    "base_config": "shapes",
    "overrides": run.overrides,
    "seconds": 1800.0,
    "metrics": {"val": {**what, **figures}},
    "validations": [{"images": 100, "AP": ap / 2}, {"images": 200, "AP": ap}],
  }
  experiments.path(run).parent.mkdir(exist_ok=True)
  experiments.path(run).write_text(json.dumps(result))


@pytest.fixture
def filled(experiments):
  for run, ap in zip(experiments.due(TUNING), (0.3, 0.35)):
    write(experiments, run, ap)
  aps = (0.4, 0.5, 0.6, 0.3, 0.3, 0.33)
  for run, ap in zip(experiments.due(COMPARISON), aps):
    write(experiments, run, ap)
  return experiments


def test_no_results_no_page(experiments):
  assert render.pages(experiments) == {}


def test_means_and_standard_deviations(filled):
  pages = render.pages(filled)
  page = pages["comparison.md"]
  # Of 40, 50, 60: mean 50, standard deviation 10; of 30, 30, 33: 31 and sqrt(3).
  assert "| one | 50.0 ± 10.0 | 51.0 ± 10.0 | 52.0 ± 10.0 | 53.0 ± 10.0 |" in page
  assert "| two | 31.0 ± 1.7 | 32.0 ± 1.7 |" in page
  assert "split val, 9 images, 30 objects" in page and "runs are done" not in page
  assert "3.0 hours of training; shared" in page
  assert "| one | 0.2 |" in page  # the tuned point
  assert "| **one** | **0.2** | **35.0** |" in pages["tuning.md"]
  assert "| one | 0.1 | 30.0 |" in pages["tuning.md"]
  assert pages["comparison.png"].shape[-1] == 3
  assert "[comparison](comparison.md): Which loss?" in pages["README.md"]


def test_runs_that_are_not_done_are_said(filled):
  for seed in (1, 2):
    filled.path(filled.find("comparison", f"two-seed{seed}")).unlink()
  page = render.pages(filled)["comparison.md"]
  assert "**4 of 6 runs are done.**" in page
  assert re.search(r"\| two \| 30.0 \|.*\| 1 \|", page)


def test_a_comparison_of_rows(filled):
  one = {"difference": 0.19, "low": 0.1, "high": 0.25, "share_above_0": 0.995}
  of_val = {name: one for name in FIGURES}
  path = filled.pair_path(COMPARISON, ("one", "two"))
  path.parent.mkdir()
  found = {"seeds": [0, 1, 2], "resamples": 1000, "differences": {"val": of_val}}
  path.write_text(json.dumps(found))
  page = render.pages(filled)["comparison.md"]
  assert "one minus two, means over seeds 0, 1, 2, with 1,000 draws" in page
  assert "| val | pooled AP75 | +19.0 | +10.0 to +25.0 | 99.5% |" in page


def test_runs_that_diverged_are_said(filled):
  for seed in (0, 1, 2):
    path = filled.path(filled.find("comparison", f"two-seed{seed}"))
    result = {**json.loads(path.read_text()), "validations": []}
    path.write_text(json.dumps({**result, "diverged": "total_loss is nan"}))
    pages = render.pages(filled)
    assert f"two-seed{seed}**; their figures are of the last" in pages["comparison.md"]
    assert "comparison.png" in pages  # of the other row
  assert "**Diverged: two-seed0, two-seed1, two-seed2**" in pages["comparison.md"]


def test_results_of_other_settings_are_refused(filled):
  path = filled.path(filled.find("comparison", "two-seed0"))
  result = json.loads(path.read_text())
  result["overrides"]["train.epochs"] = 9
  path.write_text(json.dumps(result))
  with pytest.raises(ValueError, match=r"two-seed0.json is of other settings"):
    render.pages(filled)


def test_docs_are_those_of_the_results():
  pages = render.pages(plan.Catalog(catalog.EXPERIMENTS, catalog.DATASETS))
  folder = ROOT / "docs/results"
  hint = "run: python experiments/render.py"
  assert {path.name for path in folder.glob("*")} == set(pages), hint
  for name, page in pages.items():
    if isinstance(page, str):
      assert (folder / name).read_text(encoding="utf-8") == page, hint
    else:
      assert np.ptp(page) == 255


def test_results_name_no_machine():
  for path in (ROOT / "experiments/results").rglob("*.json"):
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert not re.search(r'[=" ]/\w', text), path
    commits = [found["commit"], *(one["commit"] for one in found.get("starts", ()))]
    assert all(commit and "dirty" not in commit for commit in commits), path
