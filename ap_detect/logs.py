"""Log lines: how they look, which of them are shown, and where a run keeps them.

Lines are logged by `absl.logging`. The scripts and commands call `set_up`; used as a
library, the package changes nothing in the logging of the program around it, but for
the file in a run's folder.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import re
import subprocess
import sys
import traceback
from typing import IO

import absl.logging
from absl.logging import converter
from tqdm import tqdm

from ap_detect import errors

NAME = "train.log"

# What __init__.py sets. Any other value comes from someone who wants TensorFlow's lines.
_TENSORFLOW_LEVEL, _QUIET = "TF_CPP_MIN_LOG_LEVEL", "3"
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_LIBRARIES = re.compile(r"[\\/](site|dist)-packages[\\/]")
_RED, _YELLOW, _PLAIN = "\033[1;31m", "\033[33m", "\033[0m"

_kept: dict[str, _RunLog] = {}
_is_set_up = False


def set_up(verbosity: int = 0) -> None:
  """Has this process log to stderr, a line as "time message"; may be called again.

  Args:
    verbosity: as absl's flag has it. 0: information, warnings and errors of ours, and
      warnings and errors of libraries. 1: also debugging lines of ours and information
      of libraries, each line with its date, level, thread and place. 2: everything.
  """
  global _is_set_up
  _is_set_up = True
  if verbosity > 0 and os.environ.get(_TENSORFLOW_LEVEL) == _QUIET:
    os.environ[_TENSORFLOW_LEVEL] = "0"
  root = logging.getLogger()
  for handler in list(root.handlers):
    if isinstance(handler, _Console) or handler is absl.logging.get_absl_handler():
      root.removeHandler(handler)
  root.addHandler(_Console(verbosity))
  level = converter.absl_to_standard(verbosity)
  root.setLevel(level if verbosity <= 1 else logging.DEBUG - (verbosity - 1))
  absl.logging.get_absl_logger().setLevel(logging.NOTSET)
  logging.captureWarnings(True)


class _Console(logging.StreamHandler):
  """Lines on stderr, above a progress bar if there is one."""

  def __init__(self, verbosity):
    super().__init__(sys.stderr)
    self.setFormatter(_Full() if verbosity > 0 else _Brief(is_colored=True))
    self.addFilter(_Ours(verbosity))

  def emit(self, record):
    with tqdm.external_write_mode(file=self.stream):
      super().emit(record)


class _Ours(logging.Filter):
  """Drops what libraries say below the level of warnings."""

  def __init__(self, verbosity=0):
    super().__init__()
    levels = (logging.WARNING, logging.INFO)
    self._level = levels[max(verbosity, 0)] if verbosity <= 1 else 0

  def filter(self, record):
    path = record.pathname
    is_library = _LIBRARIES.search(path) and not path.startswith(_PACKAGE)
    return record.levelno >= self._level or not is_library


class _Brief(logging.Formatter):
  """ "time message", with the level of warnings and errors."""

  def __init__(self, is_colored=False, date_format="%H:%M:%S"):
    super().__init__("%(asctime)s %(message)s", date_format)
    self._is_colored = is_colored

  def formatMessage(self, record):
    record.message = record.message.rstrip("\n")  # Python's warnings have one
    if record.levelno >= logging.WARNING:
      text = f"{record.levelname}: {record.message}"
      record.message = color(text, record.levelno) if self._is_colored else text
    return super().formatMessage(record)


class _Full(logging.Formatter):
  """All that is known of a line."""

  def __init__(self):
    super().__init__(
      "%(asctime)s.%(msecs)03d %(levelname)s %(threadName)s %(filename)s:%(lineno)d] "
      "%(message)s",
      "%Y-%m-%d %H:%M:%S",
    )


def is_terminal(stream) -> bool:
  """Whether a stream is a terminal that understands more than lines of text."""
  return bool(stream and stream.isatty()) and os.environ.get("TERM") != "dumb"


def color(text: str, level: int = logging.ERROR) -> str:
  """Text for stderr: in a terminal in its level's color, unless NO_COLOR forbids that."""
  if not is_terminal(sys.stderr) or os.environ.get("NO_COLOR"):
    return text
  return f"{_RED if level >= logging.ERROR else _YELLOW}{text}{_PLAIN}"


class _RunLog(logging.Handler):
  """Lines as "date time message", which wait for `begin` before they are written."""

  def __init__(self, path):
    super().__init__()
    self._path = path
    self._waiting: list[str] = []
    self._file: IO[str] | None = None
    self._is_broken = False
    self.setFormatter(_Brief(date_format="%Y-%m-%d %H:%M:%S"))
    self.addFilter(_Ours())

  def begin(self):
    """Writes what has been logged, and from now on what will be."""
    if self._file is None:
      self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
      waiting, self._waiting = self._waiting, []
      self._write("".join(waiting))

  def emit(self, record):
    line = self.format(record) + "\n"
    if self._file is None:
      self._waiting.append(line)
    else:
      self._write(line)

  def end(self, error):
    """Writes what ended the run."""
    if isinstance(error, KeyboardInterrupt):
      text = "WARNING: ended by Ctrl-C"
    elif isinstance(error, SystemExit):
      text = f"WARNING: ended with status {error.code}"
    elif errors.is_for_the_user(error):
      text = f"ERROR: {errors.describe(error)}"
    else:
      lines = traceback.format_exception(type(error), error, error.__traceback__)
      text = "ERROR: " + "".join(lines).rstrip()
    self._write(f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")

  def close(self):
    if self._file is not None:
      with contextlib.suppress(OSError):
        self._file.close()
    super().close()

  def _write(self, text):
    if self._file is None or self._is_broken:
      return
    try:
      self._file.write(text)
      self._file.flush()
    except OSError as error:
      # Of a full disk: what matters to the run fails by itself.
      self._is_broken = True
      absl.logging.warning("%s is not written any more: %s", self._path, error)


@contextlib.contextmanager
def kept(model_dir: str):
  """Keeps what is logged in this block in a run's train.log, and the error that ends it.

  Nothing is written before `begin`, so that a start that is refused leaves no trace.
  Within one process whoever is called in such a block can ask for the same again.

  Args:
    model_dir: the run's folder.
  """
  folder = os.path.realpath(model_dir)
  if folder in _kept:
    yield
    return
  log = _kept[folder] = _RunLog(os.path.join(folder, NAME))
  logging.getLogger().addHandler(log)
  try:
    yield
  except BaseException as error:
    log.end(error)
    raise
  finally:
    logging.getLogger().removeHandler(log)
    log.close()
    del _kept[folder]


def begin(model_dir: str) -> None:
  """Has the train.log of `kept` written: there is a run now, and it goes on."""
  _kept[os.path.realpath(model_dir)].begin()


def load_tensorflow() -> None:
  """Imports TensorFlow without the lines that it writes past its own setting.

  Newer ones write, while they load and whatever TF_CPP_MIN_LOG_LEVEL is, that oneDNN is
  on and that there is no CUDA.
  """
  if "tensorflow" not in sys.modules:
    with _without_chatter():
      import tensorflow  # noqa: F401


def start_xla() -> None:
  """Compiles something small, for TensorFlow says once that it compiled something.

  TensorFlow 2.15 does so whatever TF_CPP_MIN_LOG_LEVEL is. Devices must be configured
  before. Does nothing where `set_up` was not called.
  """
  if not _is_set_up or os.environ.get(_TENSORFLOW_LEVEL) != _QUIET:
    return
  import tensorflow as tf

  # Where XLA is broken, what needs it says so.
  with contextlib.suppress(tf.errors.OpError), _without_chatter(), tf.device("CPU:0"):
    tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.constant(1))


# Reads what was written to descriptor 2 and shows it again, but for lines of C++ code
# where the last line says that all went well. In a process of its own: if this one is
# aborted, by a processor that TensorFlow is not built for, its last words are shown.
_CHATTER = (
  rb"[IWE]\d{4} \d\d:\d\d:\d\d|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] |"
  rb"WARNING: All log messages before absl::InitializeLog|"
  rb"To enable the following instructions:"
)
_END = b"\0all went well\n"
_FILTER = f"""
import re, sys
said = sys.stdin.buffer.read()
if said.endswith({_END!r}):
  said = said[:-{len(_END)}]
  lines = said.splitlines(keepends=True)
  said = b"".join(line for line in lines if not re.match({_CHATTER!r}, line))
sys.stderr.buffer.write(said)
"""


@contextlib.contextmanager
def _without_chatter():
  """Shows of what this block writes to descriptor 2 only what is no chatter.

  Shows everything if the block raises, or if the process ends in it.
  """
  if os.environ.get(_TENSORFLOW_LEVEL) != _QUIET or sys.stderr is None:
    yield
    return
  sys.stderr.flush()
  reader, writer = os.pipe()
  # A session of its own: Ctrl-C is for this process alone.
  process = subprocess.Popen(
    [sys.executable, "-I", "-S", "-c", _FILTER], stdin=reader, start_new_session=True
  )
  os.close(reader)
  descriptor = os.dup(2)
  os.dup2(writer, 2)
  end = b""
  try:
    yield
    end = _END
  finally:
    sys.stderr.flush()
    os.dup2(descriptor, 2)
    os.close(descriptor)
    with contextlib.suppress(BrokenPipeError):
      os.write(writer, end)
    os.close(writer)
    process.wait()
