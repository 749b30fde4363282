"""A lock on a run's folder that dies with the process that holds it."""

from __future__ import annotations

import contextlib
import fcntl
import os

NAME = ".lock"

# TensorFlow takes these for patterns when it looks for a checkpoint.
_PATTERN_CHARACTERS = "*?[]\\"

_held: set[str] = set()


@contextlib.contextmanager
def lock(model_dir: str):
  """Keeps other processes from training in a folder.

  The folder is made if missing, and removed again if nothing was written into it. The
  system frees the lock of a process that ended, however it ended. Within one process a
  folder can be locked again by whoever is called with the lock held.

  Args:
    model_dir: the run's folder.

  Raises:
    ValueError: another process trains there, or TensorFlow could not find a checkpoint
      under such a name.
  """
  folder = os.path.realpath(model_dir)
  if folder in _held:
    yield
    return
  # The name as it was given, which is the one that TensorFlow gets.
  check_name(model_dir)
  is_new = not os.path.isdir(folder)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, NAME)
  with _open_locked(path, model_dir):
    _held.add(folder)
    try:
      yield
    finally:
      _held.remove(folder)
      if is_new and os.listdir(folder) == [NAME]:
        os.remove(path)
        os.rmdir(folder)


def check_name(path: str) -> None:
  """Raises ValueError for a path that TensorFlow cannot restore checkpoints from."""
  odd = sorted(set(_PATTERN_CHARACTERS).intersection(path))
  if odd:
    raise ValueError(
      f"{path} must be renamed: TensorFlow cannot restore checkpoints from a path with "
      f"any of {_PATTERN_CHARACTERS}, and this one has {' '.join(odd)}"
    )


def _open_locked(path, model_dir):
  """The open lock file, locked and with this process's number in it."""
  while True:
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  closed by the caller
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or "unknown"
      file.close()
      raise ValueError(
        f"process {holder} is training in {model_dir}; wait for it, stop it, or use "
        "another --model_dir"
      ) from None
    if os.path.exists(path) and os.path.samestat(
      os.fstat(file.fileno()), os.stat(path)
    ):
      break
    file.close()  # the holder before removed the file in between
  file.truncate(0)
  file.write(f"{os.getpid()}\n")
  file.flush()
  return file
