"""SIGTERM and Ctrl-C while training: after the step that runs, not in the midst of it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time

_REPEATED_SECONDS = 1.0


class StopSignals:
  """Notes SIGTERM and SIGINT where they would do harm, and raises them elsewhere.

  SIGTERM ends the process with status 143 and SIGINT raises KeyboardInterrupt, as
  elsewhere. Within `deferred()` the first of them is only noted, and `raise_received`
  raises it; a second one raises at once, unless it comes with the first, as from a
  program that signals a process and its group. Outside of the main thread signals are
  left as they are, and so is a SIGINT that the process was started to ignore.
  """

  def __init__(self):
    self._is_deferred = False
    self._received = None
    self._received_at = 0.0
    self._previous = {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
          self._previous[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  @contextlib.contextmanager
  def deferred(self):
    """Within this block, and blocks around it, signals are noted."""
    before, self._is_deferred = self._is_deferred, True
    try:
      yield
    finally:
      self._is_deferred = before

  @property
  def received(self) -> str:
    """Name of the signal that was noted; "" for none."""
    return signal.Signals(self._received).name if self._received else ""

  def note(self, name: str) -> None:
    """Notes a signal that another worker has received, unless one is noted already."""
    if name and not self._received:
      self._received, self._received_at = signal.Signals[name], time.monotonic()

  def raise_received(self):
    """Raises what the signal that was noted stands for."""
    if self._received:
      self._raise(self._received)

  def _handle(self, number, _frame):
    is_first = self._received is None
    if is_first:
      self._received, self._received_at = number, time.monotonic()
    if not self._is_deferred or not (is_first or self._is_repeated()):
      self._raise(number)

  def _is_repeated(self):
    return time.monotonic() - self._received_at < _REPEATED_SECONDS

  def _raise(self, number):
    if number == signal.SIGINT:
      raise KeyboardInterrupt
    sys.exit(128 + number)
