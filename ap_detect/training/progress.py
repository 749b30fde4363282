"""How a training goes on, as log lines and, in a terminal, as a bar."""

from __future__ import annotations

import os
import sys
import time

from absl import logging
from tqdm import tqdm

from ap_detect import logs

SECONDS_BETWEEN_LINES = 30.0
# A terminal shows no change that comes sooner after the one before.
_SECONDS_BETWEEN_REFRESHES = 0.2
_SMALLEST_BAR = 3


def make_progress(epochs: int) -> ProgressLines:
  """A ProgressBar in a terminal, ProgressLines elsewhere."""
  return (ProgressBar if logs.is_terminal(sys.stderr) else ProgressLines)(epochs)


class ProgressLines:
  """A log line every half minute and at the end of each epoch.

  Args:
    epochs: of the whole training.
  """

  def __init__(self, epochs):
    self._epochs = epochs
    self._started = self._last = time.monotonic()
    self._first = None

  def starting(self, epochs_done: float) -> None:
    """Tells that the first step begins, which takes long."""

  def advance(self, epochs_done: float) -> None:
    """Tells of a step whose numbers are not known yet."""

  def row(self, row) -> None:
    """Tells of a row of metrics.csv, if it is time."""
    self._start(row)
    if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
      self._last = time.monotonic()
      self._write(f"epoch {row['epoch']:.2f}/{self._epochs}", row, row)

  def epoch(self, epoch, means, row) -> None:
    """Tells of an epoch: its mean losses, and its last row."""
    self._last = time.monotonic()
    self._write(f"epoch {epoch}/{self._epochs}", means, row)

  def validating(self) -> None:
    """Tells that no step comes before a validation is done."""

  def close(self) -> None:
    """Tells that no step comes any more."""

  def _start(self, row):
    if self._first is None:
      self._first, self._started = row["epoch"], time.monotonic()

  def _seconds_to_go(self, row):
    """None where that is unknown, or the end is reached."""
    done, missing = row["epoch"] - self._first, self._epochs - row["epoch"]
    if done <= 0 or missing <= 0:
      return None
    return missing * (time.monotonic() - self._started) / done

  def _write(self, place, losses, row):
    parts = [f"{name} {value:.4f}" for name, value in _losses(losses).items()]
    parts.append(f"learning rate {row['learning_rate']:.3g}")
    if row["images_per_second"] is not None:
      parts.append(f"{row['images_per_second']:.1f} images/s")
    if (seconds := self._seconds_to_go(row)) is not None:
      parts.append(f"about {_duration(seconds)} to go")
    logging.info("%s: %s", place, ", ".join(parts))


class ProgressBar(ProgressLines):
  """A bar in the last line of a terminal, below what is logged; a line an epoch."""

  def __init__(self, epochs):
    super().__init__(epochs)
    self._texts = [""]
    self._refreshed = time.monotonic()
    self._text_width = 0
    self._bar = tqdm(
      total=epochs,
      file=sys.stderr,
      leave=False,
      bar_format="{bar}",
    )

  def advance(self, epochs_done):
    self._bar.n = min(epochs_done, self._epochs)
    self._show()

  def row(self, row):
    self._start(row)
    self._texts = bar_texts(row, self._seconds_to_go(row))
    self._show()

  def epoch(self, epoch, means, row):
    self._write_bar(*self._texts)
    super().epoch(epoch, means, row)

  def starting(self, epochs_done):
    self._bar.n = min(epochs_done, self._epochs)
    self._write_bar("building the graph")

  def validating(self):
    self._write_bar("validating")

  def close(self):
    self._bar.close()

  def _show(self):
    if time.monotonic() - self._refreshed >= _SECONDS_BETWEEN_REFRESHES:
      self._write_bar(*self._texts)

  def _write_bar(self, *texts):
    """Writes the first of the texts that fits, or the last one."""
    self._refreshed = time.monotonic()
    self._bar.ncols = _columns(sys.stderr)
    place = f"epoch {self._bar.n:.2f}/{self._epochs} "
    room = self._bar.ncols - len(place) - _SMALLEST_BAR - len("|| ")
    text = next((text for text in texts if len(text) <= room), texts[-1])
    # The bar keeps its length, unless there is more to say than before.
    self._text_width = max(min(self._text_width, room), len(text))
    self._bar.bar_format = f"{place}|{{bar}}| {text:{self._text_width}}"
    self._bar.refresh()


def bar_texts(row, seconds_to_go) -> list[str]:
  """What a bar says, for terminals of less and less columns.

  Args:
    row: dict, a row of metrics.csv.
    seconds_to_go: number, or None.
  """
  losses, rate, speed = _losses(row), row["learning_rate"], row["images_per_second"]
  parts = {name: f"{name} {value:.3f}" for name, value in losses.items()}
  speeds = [] if speed is None else [f"{speed:.{0 if speed >= 10 else 1}f} images/s"]
  to_go = [] if seconds_to_go is None else [_clock_time(seconds_to_go)]
  end = [*speeds, *to_go]
  # The total is the sum of the others, and the first to go.
  terms = [text for name, text in parts.items() if name != "total_loss"]
  choices = [
    [
      *(f"{name} {value:.4f}" for name, value in losses.items()),
      *(f"learning rate {rate:.3g}", *speeds, *(f"{text} to go" for text in to_go)),
    ],
    [*parts.values(), f"lr {rate:.3g}", *end],
    [*terms, f"lr {rate:.3g}", *end],
    [*terms, f"lr {rate:.2g}", *end],
    [*terms, f"lr {rate:.1g}", *end],
    [*terms, *end],
    [*terms[:1], *end],
    [*terms[:1], *to_go],
    to_go,
  ]
  return [", ".join(choices[0]), *(" ".join(choice) for choice in choices[1:])]


def _losses(numbers):
  return {name: value for name, value in numbers.items() if name.endswith("_loss")}


def _columns(stream):
  """One less than the terminal has: some wrap a line that fills the last one."""
  try:
    return (os.get_terminal_size(stream.fileno()).columns or 80) - 1
  except (OSError, ValueError):
    return 79


def _duration(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  if minutes < 60:
    return f"{minutes} min {seconds:02d} s"
  return "{} h {:02d} min".format(*divmod(minutes, 60))


def _clock_time(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}h{minutes:02d}m" if hours else f"{minutes}:{seconds:02d}"
