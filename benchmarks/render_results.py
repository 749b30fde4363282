"""Writes the tables of docs/results.md that benchmarks/results/*.json give.

  python benchmarks/render_results.py

A table stands between <!-- name --> and <!-- /name -->, its file being <name>.json, as
loss_benchmark.py or serving_benchmark.py writes it: --json=benchmarks/results/<name>.json.
"""

from __future__ import annotations

import json
import operator
import pathlib
import re
import statistics

from ap_detect import provenance

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
    table = _describe(json.loads(path.read_text(encoding="utf-8")))
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


def _describe(results):
  """The contents of a JSON file as Markdown: the command, what on, and its tables."""
  command = results["command"]
  tables = {"loss": loss_table, "serving": serving_tables}
  table = tables[re.search(r"(\w+)_benchmark.py", command)[1]]
  return f"`{command}`\n\n{provenance.summary(results)}.\n\n{table(results)}"


def loss_table(results):
  """What loss_benchmark.py measured, as Markdown: a line a loss and case."""
  lines = _head(_COLUMNS)
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


def serving_tables(results):
  """What serving_benchmark.py measured, as Markdown.

  Args:
    results: contents of a JSON file.

  Returns:
    The seconds of a request and its parts, requests a second, and first requests.
  """
  parts = [f"{results['network']}; files of {results['mean_file_bytes'] / 1e3:.0f} kB."]
  if results["latencies"]:
    parts.append("\n".join(_latency_lines(results["latencies"])))
  if results["throughputs"]:
    parts.append("\n".join(_throughput_lines(results["throughputs"])))
  if results["first_requests"]:
    parts.append(_first_requests(results["first_requests"]))
  return "\n\n".join(parts)


def _latency_lines(latencies):
  """A line of each whole request and each part, in ms an image and to the first line."""
  columns = ["request or part"]
  for latency in latencies:
    columns += [f"batch {latency['batch_size']}: ms an image", "to the first line"]
  lines = _head(columns)
  for name in latencies[0]["seconds"]:
    cells = [name]
    for latency in latencies:
      seconds = latency["seconds"]
      median = statistics.median(seconds[name])
      first = next(iter(seconds.values()))
      cells += [
        f"{1e3 * median / latency['batch_size']:.1f}",
        f"{median_ratio(seconds[name], first):.3f}",
      ]
    lines.append(_line(cells))
  seconds = [latency["seconds"] for latency in latencies]
  shares = [
    f"{median_ratio(one['post-processing'], one['network']):.1%}" for one in seconds
  ]
  return [*lines, "", f"Post-processing is {' and '.join(shares)} of the network."]


def _throughput_lines(throughputs):
  """A line of each runtime, batched or not, in images a second."""
  found = {}
  for row in throughputs:
    key = f"{row['runtime']}, {'batched' if row['batched'] else 'one by one'}"
    rate = row["requests"] / statistics.median(row["seconds"])
    found.setdefault(key, {})[row["clients"]] = f"{rate:.2f}"
  columns = ["images/s, by number of clients", *map(str, next(iter(found.values())))]
  return [*_head(columns), *(_line([key, *found[key].values()]) for key in found)]


def _first_requests(loads):
  cold, first, later = (
    1e3 * statistics.median(values)
    for values in (
      [load["cold"] for load in loads],
      [load["first"] for load in loads],
      [statistics.median(load["later"]) for load in loads],
    )
  )
  return (
    f"The first request after the warm-up takes {first:.0f} ms, later ones {later:.0f} "
    f"ms, {first / later:.2f} times as long; the first of all, without warm-up, takes "
    f"{cold:.0f} ms (medians of {len(loads)} loads)."
  )


def median_ratio(seconds, others):
  """The median of the ratios of two lines' seconds, round by round."""
  return statistics.median(map(operator.truediv, seconds, others))


def _head(columns):
  return [_line(columns), _line(["---"] * len(columns))]


def _line(cells):
  return f"| {' | '.join(cells)} |"


def _short(number):
  """0.66M, 2.6M, 21M."""
  return f"{number / 1e6:.2g}M"


if __name__ == "__main__":
  DOCUMENT.write_text(render(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
