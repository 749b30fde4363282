"""What a training shows, and what it leaves in its folder, over restarts."""

import csv
import os
import re
import shlex
import subprocess
import sys

import pytest
import terminals
from training import commands

from ap_detect import charts
from ap_detect.training import trainer, validation


def test_log_and_chart_over_restarts(
  make_config, make_strategy, drawing, at_info, tmp_path, monkeypatch
):
  """1 epoch of 3 steps; then a second one, then nothing, then a start that is refused."""
  drawn, model_dir = [], str(tmp_path / "run")
  draw = charts.training_picture
  monkeypatch.setattr(
    charts, "training_picture", lambda *parts: drawn.append(parts) or draw(*parts)
  )
  # The other pictures take longer than the training.
  monkeypatch.setattr(validation.evaluation_files, "draw_charts", lambda *_: {})
  monkeypatch.setattr(validation, "NUM_TENSORBOARD_IMAGES", 0)

  def train(**changes):
    changes = {f"train.{name}": value for name, value in changes.items()}
    config = make_config({"train.log_every_steps": 1, **changes})
    with drawing():
      trainer.train(config, model_dir, strategy=make_strategy())

  train(epochs=1)
  first = (tmp_path / "run/training.png").read_bytes()
  train(epochs=2)
  second = (tmp_path / "run/training.png").read_bytes()
  train(epochs=2)
  with pytest.raises(ValueError, match="another config"):
    train(epochs=2, optimizer="sgd")

  assert first != second
  thirds = [pytest.approx(step / 3) for step in range(1, 7)]
  for (losses, rate, metrics), epochs in zip(drawn, (1, 2)):
    with open(f"{model_dir}/metrics.csv", newline="") as file:
      rows = list(csv.DictReader(file))[: 3 * epochs]
    assert list(losses) == ["total_loss", "focal_loss", "box_loss"]
    for name, (at, values) in losses.items():
      assert at == thirds[: 3 * epochs]
      assert values == [float(row[name]) for row in rows]
    assert rate[1] == [float(row["learning_rate"]) for row in rows]
    assert list(metrics) == ["AP", "AP50", "AP75"]
    assert all(at == list(range(1, epochs + 1)) for at, _ in metrics.values())
  assert len(drawn) == 2

  said = (tmp_path / "run/train.log").read_text()
  assert all(re.match(r"[-\d]{10} [:\d]{8} ", line) for line in said.splitlines())
  expected = [
    *("train: 12 images, ", "epoch 1/1: total_loss ", "epoch 1/1: validation AP "),
    "training is finished, at step 3, epoch 1.00 of 1; best validation AP ",
    *("train: 12 images, ", "continuing at step 3, ", "epoch 2/2: validation AP "),
    "training is finished, at step 6, epoch 2.00 of 2; best validation AP ",
    *("train: 12 images, ", "this run is finished: 2.00 of 2 epochs are done"),
  ]
  place = 0
  for text in expected:
    place = said.find(text, place) + len(text)
    assert place >= len(text), f"{text} is not there, or not in order:\n{said}"
  assert "another config" not in said  # that start changed nothing


OUR_LINE = re.compile(r"\d\d:\d\d:\d\d [^ ]")
COMMAND = [
  *(sys.executable, "train.py", *commands.SMALL),
  "--config.train.classification_loss=ap_loss",  # which XLA compiles
]
PREDICT = "  ap_detect predict "


def train(model_dir, *options, **kwargs):
  """subprocess.CompletedProcess of the small training."""
  return subprocess.run(
    [*COMMAND, f"--model_dir={model_dir}", *options],
    cwd=commands.REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
    **kwargs,
  )


@pytest.mark.slow
def test_redirected(tmp_path):
  """Only our lines, no bar; the folder; the next commands; and everything else."""
  model_dir = tmp_path / "run"
  done = train(model_dir)
  assert done.returncode == 0, done.stderr
  lines = done.stderr.splitlines()
  assert all(map(OUR_LINE.match, lines)), done.stderr
  assert "\r" not in done.stderr and "\033" not in done.stderr
  assert "WARNING" not in done.stderr
  assert any("training is finished, at step 18, " in line for line in lines)
  kept = (model_dir / "train.log").read_text().splitlines()
  # The start of a line is the date; the evaluation at the end is kept too.
  assert [line[11:] for line in kept] == lines
  assert (model_dir / "training.png").read_bytes().startswith(b"\x89PNG")

  [predict] = [line for line in done.stdout.splitlines() if line.startswith(PREDICT)]
  predicted = subprocess.run(
    [sys.executable, "-m", *shlex.split(predict), "--score_threshold=0"],
    cwd=commands.REPOSITORY,
    capture_output=True,
    text=True,
    check=False,
  )
  assert predicted.returncode == 0, predicted.stderr
  assert predicted.stdout.startswith("8 images written to ")
  assert all(map(OUR_LINE.match, predicted.stderr.splitlines())), predicted.stderr

  again = train(model_dir, "--verbosity=1")
  assert "] this run is finished: 3.00 of 3 epochs are done" in again.stderr
  assert " mirrored_strategy.py:" in again.stderr
  assert not any(map(OUR_LINE.match, again.stderr.splitlines()))
  log = (model_dir / "train.log").read_text()
  assert log.count("this run is finished: ") == 1
  assert "mirrored_strategy" not in log and "MirroredStrategy" not in log


@pytest.mark.slow
def test_error_that_ends_it_is_kept(tmp_path):
  done = train(tmp_path / "run", "--config.train.learning_rate=1e38")
  assert done.returncode == 1
  *_, last = (tmp_path / "run/train.log").read_text().split("ERROR: ")
  assert "training stopped, and the last checkpoint is from before it" in last


@pytest.mark.slow
def test_in_a_terminal(tmp_path):
  status, said = terminals.run(
    [*COMMAND, f"--model_dir={tmp_path}/run"],
    cwd=commands.REPOSITORY,
    env={**os.environ, "TERM": "xterm"},
  )
  assert status == 0, said
  bars = [line for line in terminals.written_lines(said) if not OUR_LINE.match(line)]
  assert all(re.match(r"epoch \d\.\d\d/3 \|", bar) for bar in bars), said
  assert max(map(len, bars)) < 80
  assert any("| building the graph" in bar for bar in bars)
  assert any("| validating" in bar for bar in bars)
  assert any(
    re.search(
      r"\| ap_loss [\d.]+ box_loss [\d.]+ lr [\de.-]+ \d+ images/s \d+:\d\d", bar
    )
    for bar in bars
  ), bars
  shown = terminals.shown_lines(said)
  assert all(OUR_LINE.match(line) for line in shown if line), shown
  assert sum(": validation AP" in line for line in shown) == 3
