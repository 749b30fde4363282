"""Pseudo-terminals, for tests of what is shown in one."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading


class Terminal:
  """A pseudo-terminal of some columns, and what was written to it."""

  def __init__(self, columns):
    self._master, self.descriptor = pty.openpty()
    size = struct.pack("HHHH", 24, columns, 0, 0)
    fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, size)
    self._said = b""
    # While it is written to, for it holds little.
    self._reader = threading.Thread(target=self._read)
    self._reader.start()

  def _read(self):
    with contextlib.suppress(OSError):  # of the last writer's end
      while part := os.read(self._master, 65536):
        self._said += part

  def close(self):
    """What was written, as text; the writers' descriptors must be closed by now."""
    os.close(self.descriptor)
    self._reader.join()
    os.close(self._master)
    return self._said.decode()


def run(arguments, *, columns=80, **kwargs):
  """(exit status, all that a process writes to a terminal that is its stderr)."""
  terminal = Terminal(columns)
  process = subprocess.run(
    arguments, stderr=terminal.descriptor, stdout=subprocess.PIPE, check=False, **kwargs
  )
  return process.returncode, terminal.close()


def written_lines(said):
  """Each text between carriage returns and line ends, without colors and movements."""
  plain = re.sub(r"\033\[[0-9;]*[A-Za-z]", "", said)
  return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def shown_lines(said):
  """What stands on the screen's lines in the end: the last that was written to each."""
  shown = []
  for line in re.sub(r"\033\[[0-9;]*m", "", said).replace("\r\n", "\n").split("\n"):
    screen = ""
    for part in line.split("\r"):
      screen = part + screen[len(part) :]
    shown.append(screen.rstrip())
  return shown
