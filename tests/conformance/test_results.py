"""The figures of the documentation are those of benchmarks/results/."""

import json
import pathlib
import re
import shutil

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def renderer(load_script):
  return load_script("benchmarks/render_results.py")


def test_tables_are_those_of_the_results(renderer):
  text = renderer.DOCUMENT.read_text(encoding="utf-8")
  hint = "run: python benchmarks/render_results.py"
  assert renderer.render(text) == text, hint
  assert "loss_cpu" in re.findall(r"<!-- (\w+) -->", text)


def test_readme_has_their_ratios(renderer):
  results = json.loads((renderer.RESULTS / "loss_cpu.json").read_text())
  ratios, loops = [], []
  for case in renderer.cases(results):
    if case["logits"] > 20e6 and case["positives"] == 1000:
      seconds = case["seconds"]
      ratios.append(seconds["ap_loss"] / seconds["focal_loss"])
      loops.append(seconds["plain loop"] / seconds["focal_loss"])
  assert len(ratios) == 4
  readme = " ".join((_ROOT / "README.md").read_text(encoding="utf-8").split())
  stated = re.search(r"takes ([\d.]+) to ([\d.]+) times as long as focal loss", readme)
  assert stated.groups() == (f"{min(ratios):.1f}", f"{max(ratios):.1f}")
  stated = re.search(r"takes ([\d,]+) to ([\d,]+) times as long as it", readme)
  assert stated.groups() == tuple(
    f"{round(x, -2):,.0f}" for x in (min(loops), max(loops))
  )


def test_results_name_no_machine():
  for path in (_ROOT / "benchmarks/results").glob("*.json"):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert not re.search(r"[/~]", found["command"].replace("benchmarks/", ""))
    assert found["commit"] and "dirty" not in found["commit"]
    assert found["versions"]["tensorflow"] and found["machine"]["processor"]


def test_a_changed_figure_shows(renderer, tmp_path):
  results = json.loads((renderer.RESULTS / "loss_cpu.json").read_text())
  text = renderer.DOCUMENT.read_text(encoding="utf-8")
  row = next(row for row in results["rows"] if row["loss"] == "ap_loss")
  row["seconds"] = [2 * seconds for seconds in row["seconds"]]
  shutil.copytree(renderer.RESULTS, tmp_path, dirs_exist_ok=True)
  (tmp_path / "loss_cpu.json").write_text(json.dumps(results))
  before, after = text.splitlines(), renderer.render(text, tmp_path).splitlines()
  changed = [line for line, other in zip(before, after) if line != other]
  assert len(before) == len(after) and len(changed) == 1 and "ap_loss" in changed[0]
  (tmp_path / "loss_gpu.json").write_text(json.dumps(results))
  with pytest.raises(ValueError, match="loss_gpu"):
    renderer.render(text, tmp_path)
