"""Writes the tables of docs/results.md that benchmarks/results/*.json give.

  python benchmarks/render_results.py

A table stands between <!-- name --> and <!-- /name -->, its file being <name>.json, as
loss_benchmark.py --json=benchmarks/results/<name>.json writes it.
"""

from __future__ import annotations

import json
import pathlib
import re
import statistics

import provenance

RESULTS = pathlib.Path(__file__).parent / "results"
DOCUMENT = pathlib.Path(__file__).parents[1] / "docs/results.md"
_COLUMNS = (
  *("logits, positives", "scores", "loss", "ms", "focal ms", "ratio", "limit ms"),
  *("memory", "compile s", "loop's ratio"),
)


def render(text, folder=RESULTS):
  """A document with its tables as the results of a folder give them.

  Args:
    text: of the document.
    folder: pathlib.Path of the JSON files.

  Returns:
    The text with what lies between its marks replaced.

  Raises:
    ValueError: a file has no place in the document, or a place no file.
  """
  files = {path.stem: path for path in folder.glob("*.json")}
  places = re.findall(r"<!-- (\w+) -->", text)
  if sorted(places) != sorted(files):
    raise ValueError(f"tables of the document: {places}; files of results: {[*files]}")
  for name, path in files.items():
    table = loss_table(json.loads(path.read_text(encoding="utf-8")))
    pattern = rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)"
    text, found = re.subn(
      pattern,
      lambda match, table=table: f"{match[1]}{table}{match[2]}",
      text,
      flags=re.S,
    )
    if found != 1:
      raise ValueError(f"the document has no <!-- /{name} --> behind <!-- {name} -->")
  return text


def loss_table(results):
  """What loss_benchmark.py measured, as Markdown: what on, and a line a loss and case."""
  lines = [f"`{results['command']}`\n", f"{provenance.summary(results)}.\n"]
  lines += [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
  for case in cases(results):
    rows, seconds = case["rows"], case["seconds"]
    for name, row in rows.items():
      if "memory_bytes" not in row or name == "focal_loss":
        continue
      loop = seconds.get("plain loop") if name == "ap_loss" else None
      cells = (
        f"{_short(case['logits'])}, {case['positives']:,}",
        case["regime"],
        name,
        f"{1e3 * seconds[name]:.1f}",
        f"{1e3 * seconds['focal_loss']:.1f}",
        f"{seconds[name] / seconds['focal_loss']:.2f}",
        f"{1e3 * seconds['read and write']:.1f}",
        f"{row['memory_bytes'] / (4 * case['logits']):.2f}",
        f"{row['compile_seconds']:.1f}",
        f"{loop / seconds['focal_loss']:,.0f}" if loop else "",
      )
      lines.append(_line(cells))
  return "\n".join(lines)


def cases(results):
  """The rows of loss_benchmark.py, those of a case together.

  Args:
    results: contents of a JSON file.

  Returns:
    List of {"logits", "positives", "regime", "rows": {loss: row}, "seconds": {loss:
    median seconds}}.
  """
  found = {}
  for row in results["rows"]:
    key = {name: row[name] for name in ("logits", "positives", "regime")}
    case = found.setdefault(tuple(key.values()), {**key, "rows": {}, "seconds": {}})
    case["rows"][row["loss"]] = row
    case["seconds"][row["loss"]] = statistics.median(row["seconds"])
  return list(found.values())


def _line(cells):
  return f"| {' | '.join(cells)} |"


def _short(number):
  """0.66M, 2.6M, 21M."""
  return f"{number / 1e6:.2g}M"


if __name__ == "__main__":
  DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
