"""Faults of a dataset, grouped by kind, for thousands are often one mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# What differs between faults of a kind, and what stands for it. A quoted name comes
# first, for it may look like the others.
_DETAILS = (
  (re.compile(r"'[^']*'|\"[^\"]*\""), "'...'"),
  (re.compile(r"[^\s,;:()\[\]]*[/\\][^\s,;:()\[\]]*"), "FILE"),
  (re.compile(r"[\w-]+\.(?:[a-zA-Z]{3,4})\b"), "FILE"),
  (re.compile(r"(?<![A-Za-z])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"), "N"),
)
_WHERE = re.compile(r"^(?:FILE(?: \S+)*?: )+")


class FaultKind(NamedTuple):
  """Faults that say the same but for names, numbers and files.

  Attributes:
    kind: what they say.
    faults: the faults themselves, as they came.
  """

  kind: str
  faults: tuple[str, ...]


def group(faults: Iterable[str]) -> list[FaultKind]:
  """Groups faults by kind, the most frequent kind first.

  Example:
    >>> group(["a.xml: object 2 has no name", "b/c.xml: object 1 has no name"])[0].kind
    'object N has no name'
  """
  groups: dict[str, list[str]] = {}
  for fault in faults:
    groups.setdefault(_kind_of(fault), []).append(fault)
  found = [FaultKind(kind, tuple(members)) for kind, members in groups.items()]
  return sorted(found, key=lambda item: -len(item.faults))


def describe(kinds: Iterable[FaultKind], *, examples: int = 3) -> str:
  """A paragraph for each kind: its number, what it says, and the first examples."""
  paragraphs = []
  for kind, faults in kinds:
    lines = [f"{len(faults)} x {kind}", *faults[:examples]]
    if len(faults) > examples:
      lines.append(f"... and {len(faults) - examples} more")
    paragraphs.append("\n  ".join(lines))
  return "\n".join(paragraphs)


def _kind_of(fault):
  kind = fault.splitlines()[0] if fault else fault
  for pattern, stands_for in _DETAILS:
    kind = pattern.sub(stands_for, kind)
  return _WHERE.sub("", kind)
