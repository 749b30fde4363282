"""The processes that train one run together, workers, as TF_CONFIG lists them.

TF_CONFIG is TensorFlow's environment variable for this, which schedulers set:
{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from ap_detect import errors

_VARIABLE = "TF_CONFIG"
_JOBS = ("chief", "worker")
_ADDRESS = re.compile(r"[^\s:/]+:\d+|\[[0-9a-fA-F:]+\]:\d+")
# Of a worker, in TensorFlow's errors.
_TASK = re.compile(r"/job:(\w+)/(?:replica:\d+/)?task:(\d+)")
# What TensorFlow raises where a worker has died, restarted or does not answer.
_LOST = ("UnavailableError", "AbortedError", "DeadlineExceededError", "CancelledError")


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The workers of a run.

  Attributes:
    addresses: (job, "host:port") of each, the chief first: the one that writes.
    index: which of them this process is.
  """

  addresses: tuple[tuple[str, str], ...]
  index: int

  @property
  def count(self) -> int:
    """How many workers there are."""
    return len(self.addresses)

  @property
  def is_chief(self) -> bool:
    """Whether this process is the one that writes."""
    return self.index == 0

  @contextlib.contextmanager
  def on_chief(self, *contexts: contextlib.AbstractContextManager) -> Iterator[None]:
    """Contexts that the chief enters, and the others do not."""
    with contextlib.ExitStack() as stack:
      for context in contexts if self.is_chief else ():
        stack.enter_context(context)
      yield

  @contextlib.contextmanager
  def naming_lost(self) -> Iterator[None]:
    """Within it, TensorFlow's error on a worker that is gone says so.

    Raises:
      errors.LostWorkerError: another worker has ended, or does not answer.
    """
    try:
      yield
    except Exception as error:
      is_lost = errors.is_tensorflow_error(error) and type(error).__name__ in _LOST
      if self.count == 1 or not is_lost:
        raise
      raise errors.LostWorkerError(
        f"{self._find_lost(str(error))}; this worker ends too. Its own output says why. "
        "The same commands, given again to all workers, continue from the last checkpoint"
      ) from error

  def _find_lost(self, text):
    """Who is gone, as far as TensorFlow's error tells."""
    for job, task in _TASK.findall(text):
      tasks = [i for i, (name, _) in enumerate(self.addresses) if name == job]
      index = tasks[int(task)] if int(task) < len(tasks) else self.index
      if index != self.index:
        return (
          f"worker {index} of {self.count}, {self.addresses[index][1]}, has ended or "
          "does not answer"
        )
    return f"another of the {self.count} workers has ended, or does not answer"


ALONE = Cluster((("worker", "localhost:0"),), 0)


def from_environment() -> Cluster:
  """The workers that TF_CONFIG lists; ALONE where it is not set, or lists one.

  Raises:
    ValueError: it is not as TensorFlow defines it, or lists other than workers.
  """
  text = os.environ.get(_VARIABLE, "").strip()
  try:
    values = json.loads(text or "{}")
  except ValueError as error:
    raise ValueError(f"{_VARIABLE} is not valid JSON ({error}): {text}") from error
  try:
    return _parse(values)
  except ValueError as error:
    raise ValueError(
      f"{_VARIABLE} {error}. It must be like "
      '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", '
      f'"index": 0}}}}, with another index on each worker; it is {text}'
    ) from error


def _parse(values: Any) -> Cluster:
  if not isinstance(values, dict):
    raise ValueError("must be a mapping")
  jobs, task = values.get("cluster", {}), values.get("task", {})
  if not isinstance(jobs, dict) or not isinstance(task, dict):
    raise ValueError("must have mappings as 'cluster' and 'task'")
  others = [job for job in jobs if job not in _JOBS]
  if others:
    raise ValueError(f"may list 'chief' and 'worker' only, has {', '.join(others)}")
  for job, addresses in jobs.items():
    if not isinstance(addresses, list) or not all(map(_is_address, addresses)):
      raise ValueError(f'must have a list of "host:port" as {job!r}, has {addresses!r}')
  if len(jobs.get("chief", ())) > 1:
    raise ValueError(f"may have one 'chief', has {jobs['chief']}")
  addresses = [(job, address) for job in _JOBS for address in jobs.get(job, ())]
  if len(addresses) < 2:
    return ALONE
  if len(set(addresses)) < len(addresses):
    raise ValueError("has an address twice")
  job, index = task.get("type"), str(task.get("index"))
  if job not in jobs or not index.isdecimal() or int(index) >= len(jobs[job]):
    raise ValueError(
      f"has a 'task' that is none of its cluster's: type {job!r}, index {index}"
    )
  return Cluster(tuple(addresses), addresses.index((job, jobs[job][int(index)])))


def _is_address(value):
  return isinstance(value, str) and bool(_ADDRESS.fullmatch(value))
