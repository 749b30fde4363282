"""What errors of the system and of TensorFlow say, each in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys

_FILE_FOR_FOLDER = "a file is where a folder should be"
_CHANGE_PERMISSIONS = "change its permissions, or give another path"
_FREE_SPACE = "free some space there, and give the same command again"

# Status of a process that ends because another worker of its run is gone; sysexits.h has
# it for a failure after which one should try again.
LOST_WORKER_STATUS = 75


class LostWorkerError(ConnectionError):
  """Another worker of this run has ended, or does not answer."""


# What to do about some of the system's errors.
_REMEDIES = {
  errno.EACCES: _CHANGE_PERMISSIONS,
  errno.EDQUOT: _FREE_SPACE,
  errno.EEXIST: _FILE_FOR_FOLDER,
  errno.EFBIG: "larger files are not allowed to this process, see ulimit -f",
  errno.EISDIR: "a folder is where a file should be",
  errno.ENOSPC: _FREE_SPACE,
  errno.ENOTDIR: _FILE_FOR_FOLDER,
  errno.EPERM: _CHANGE_PERMISSIONS,
  errno.EROFS: "give another path",
}
_NUMBERS = {os.strerror(number): number for number in errno.errorcode}

# TensorFlow's names of operations and functions, which say nothing to a user.
_NOISE = re.compile(
  r"\{\{.*?\}\} ?|\s*\[\[.*|\s*\[Op:\S+\].*|^\s*\(\d+\) (\w+: )?|"
  r"_temp/part-\S+tempstate\d+|/job:localhost/replica:0/task:0/device:"
)
# Lines before the reason, when it comes from a compiled function.
_HEADING = re.compile(
  r"\s|Graph execution error|Detected at node|Node: |<stack traces|\d+ root error"
)
_OUT_OF_MEMORY = re.compile(r"out of memory|\bOOM\b|ALLOC_FAILED", re.IGNORECASE)


def describe(error: BaseException) -> str:
  """An error as one says it to a user: the file, what is wrong, and what to do.

  Args:
    error: OSErrors and TensorFlow's errors are put into words; the message of any other
      is taken as it is.

  Example:
    >>> describe(IsADirectoryError(21, "Is a directory", "a/b.json"))
    'a/b.json: Is a directory; a folder is where a file should be'
  """
  if isinstance(error, OSError) and error.strerror:
    paths = [str(path) for path in (error.filename, error.filename2) if path]
    return _with_remedy(" -> ".join(paths), error.strerror)
  if is_tensorflow_error(error):
    path, separator, problem = first_line(error).rpartition("; ")
    if separator and problem in _NUMBERS:
      return _with_remedy(path, problem)
    return first_line(error)
  if isinstance(error, MemoryError):
    return f"not enough memory: {error}"
  return str(error)


def is_for_the_user(error: BaseException) -> bool:
  """Whether an error comes from what was given or from the system, not from our code."""
  kinds = (ValueError, OSError, MemoryError)
  return isinstance(error, kinds) or is_tensorflow_error(error)


def is_tensorflow_error(error: BaseException) -> bool:
  """Whether an error is a tf.errors.OpError; TensorFlow need not be loaded."""
  tensorflow = sys.modules.get("tensorflow")
  return tensorflow is not None and isinstance(error, tensorflow.errors.OpError)


def first_line(error: BaseException) -> str:
  """The reason in the many lines of one of TensorFlow's errors, without its own names.

  Example:
    >>> first_line(ValueError("{{node A}} no such file [Op:ReadFile]"))
    'no such file'
  """
  text = str(getattr(error, "message", None) or error)
  lines = [_NOISE.sub("", line) for line in text.splitlines()]
  found = [line.strip() for line in lines if line and not _HEADING.match(line)]
  return found[0] if found else type(error).__name__


@contextlib.contextmanager
def blaming_memory_on(field: str):
  """Has a batch that a device's memory cannot hold be a ValueError that says what to do.

  Args:
    field: of the config that says how many images a batch has.
  """
  try:
    yield
  except Exception as error:
    if not (is_tensorflow_error(error) and _OUT_OF_MEMORY.search(str(error))):
      raise
    raise ValueError(
      f"a batch does not fit into the device's memory ({first_line(error)}); give the "
      f"same command with a lower {field}"
    ) from error


@contextlib.contextmanager
def naming(path: str):
  """Within it, OSErrors that name no file, as of a full disk, name this one.

  Args:
    path: of the file that is written.
  """
  try:
    yield
  except OSError as error:
    if error.filename is None:
      error.filename = path
    raise


def _with_remedy(path, problem):
  parts = [f"{path}: {problem}" if path else problem]
  return "; ".join([*parts, *filter(None, [_REMEDIES.get(_NUMBERS.get(problem, 0))])])
