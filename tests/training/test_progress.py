"""How a training is told of: lines in a file, a bar in a terminal."""

import re

import absl.logging
import pytest
import terminals

from ap_detect import logs
from ap_detect.training import progress

ROW = {
  "learning_rate": 0.0016449,
  "total_loss": 1.60641,
  "ap_loss": 0.99673,
  "box_loss": 0.60968,
  "num_positive_anchors": 40,
  "images_per_second": 65.61,
}


@pytest.fixture
def now(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


class TestLines:
  @pytest.fixture
  def said(self, monkeypatch):
    said = []
    monkeypatch.setattr(
      progress.logging, "info", lambda text, *parts: said.append(text % parts)
    )
    return said

  def test_every_half_minute_and_epoch(self, now, said):
    lines = progress.ProgressLines(epochs=4)
    row = {"total_loss": 0.5, "learning_rate": 0.01, "images_per_second": 20.0}
    for seconds in range(0, 50, 10):
      now[0] = seconds
      lines.row({**row, "epoch": seconds / 50})
    lines.epoch(1, {"total_loss": 0.75, "gradient_norm": 3.0}, {**row, "epoch": 1.0})
    # 0.6 epochs took 30 s: 3.4 are to go; then 1 took 40 s.
    assert said == [
      "epoch 0.60/4: total_loss 0.5000, learning rate 0.01, 20.0 images/s, "
      "about 2 min 50 s to go",
      "epoch 1/4: total_loss 0.7500, learning rate 0.01, 20.0 images/s, "
      "about 2 min 00 s to go",
    ]

  def test_hours_and_the_end(self, now, said):
    """A tenth of 10 epochs takes 700 s: 99 tenths are 69,300 s. At the end, none are."""
    lines = progress.ProgressLines(epochs=10)
    lines.row({**ROW, "epoch": 0.0})
    now[0] = 700.0
    lines.row({**ROW, "epoch": 0.1})
    lines.epoch(10, ROW, {**ROW, "epoch": 10.0})
    assert said[0].endswith(", about 19 h 15 min to go")
    assert said[1].endswith("box_loss 0.6097, learning rate 0.00164, 65.6 images/s")


def test_texts_by_hand():
  assert progress.bar_texts(ROW, 3700) == [
    "total_loss 1.6064, ap_loss 0.9967, box_loss 0.6097, learning rate 0.00164, "
    "66 images/s, 1h01m to go",
    "total_loss 1.606 ap_loss 0.997 box_loss 0.610 lr 0.00164 66 images/s 1h01m",
    "ap_loss 0.997 box_loss 0.610 lr 0.00164 66 images/s 1h01m",
    "ap_loss 0.997 box_loss 0.610 lr 0.0016 66 images/s 1h01m",
    "ap_loss 0.997 box_loss 0.610 lr 0.002 66 images/s 1h01m",
    "ap_loss 0.997 box_loss 0.610 66 images/s 1h01m",
    "ap_loss 0.997 66 images/s 1h01m",
    "ap_loss 0.997 1h01m",
    "1h01m",
  ]


def show(monkeypatch, now, columns, *, epochs=120):
  """What a terminal gets of half an epoch, a line, an epoch's end and a validation."""
  terminal = terminals.Terminal(columns)
  with open(terminal.descriptor, "w", encoding="utf-8", closefd=False) as stream:
    monkeypatch.setattr(logs.sys, "stderr", stream)
    console = logs._Console(0)
    monkeypatch.setattr(absl.logging.get_absl_logger(), "handlers", [console])
    monkeypatch.setattr(absl.logging.get_absl_logger(), "propagate", False)
    bar = progress.make_progress(epochs)
    bar.starting(11.0)
    for step in range(1, 11):
      now[0] += 35.0
      bar.advance(11.0 + step / 10)
      now[0] += 1.0
      bar.row({**ROW, "epoch": 11.0 + step / 10})
      if step == 5:
        absl.logging.info("a line")
    bar.epoch(12, ROW, {**ROW, "epoch": 12.0})
    bar.validating()
    absl.logging.warning("validation AP %.3f", 0.5)
    bar.close()
    absl.logging.info("end")
  return terminal.close()


@pytest.mark.parametrize("columns", [20, 40, 80, 81, 100, 160])
def test_bar_fits_and_lines_stand_above_it(columns, monkeypatch, now, at_info):
  said = show(monkeypatch, now, columns)
  lines = terminals.written_lines(said)
  is_logged = [bool(re.match(r"\d\d:\d\d:\d\d ", line)) for line in lines]
  bars = [line for line, logged in zip(lines, is_logged) if not logged]
  assert len(bars) > 10
  assert max(map(len, bars)) < columns
  # Nothing of the bar is left: only lines, each on its own.
  shown = [re.sub("^[0-9:]+ ", "", line) for line in terminals.shown_lines(said)]
  epoch = (
    "epoch 12/120: total_loss 1.6064, ap_loss 0.9967, box_loss 0.6097, learning rate "
    "0.00164, 65.6 images/s, about 10 h 48 min to go"
  )
  assert shown == ["a line", epoch, "WARNING: validation AP 0.500", "end", ""]


@pytest.mark.parametrize(
  ("columns", "text"),
  [
    (
      160,
      "total_loss 1.6064, ap_loss 0.9967, box_loss 0.6097, learning rate 0.00164, "
      "66 images/s, 10h51m to go",
    ),
    (80, "ap_loss 0.997 box_loss 0.610 lr 0.0016 66 images/s 10h51m"),
    (40, "10h51m"),
  ],
)
def test_bar_says_what_there_is_room_for(columns, text, monkeypatch, now):
  """Epoch 11.5 of 120; the 0.4 since the first row took 144 s, so 108.5 take 39,060 s."""
  lines = terminals.written_lines(show(monkeypatch, now, columns))
  bars = [line for line in lines if line.startswith("epoch 11.50/120 |")]
  assert any(line.rstrip().endswith(f"| {text}") for line in bars), bars


def test_no_bar_without_a_terminal():
  assert type(progress.make_progress(3)) is progress.ProgressLines
