"""Class targets of an anchor: class k is 1..K, and two constants for the rest."""

from __future__ import annotations

import tensorflow as tf

IGNORED = -1
BACKGROUND = 0


def check_logits_and_labels(logits, labels):
  """Checks what can be known without running: types and static shapes.

  Args:
    logits: [..., K] floating tensor.
    labels: [...] integer tensor.

  Raises:
    ValueError: a type or a shape does not fit.
  """
  if not logits.dtype.is_floating:
    raise ValueError(f"logits must be floating, got {logits.dtype.name}")
  if not labels.dtype.is_integer:
    raise ValueError(f"labels must be integer, got {labels.dtype.name}")
  if logits.shape.rank is None or labels.shape.rank is None:
    raise ValueError("logits and labels must have a known rank")
  if logits.shape.rank < 1:
    raise ValueError("logits must have shape [..., K], got []")
  if logits.shape[-1] is None or logits.shape[-1] < 1:
    raise ValueError(
      f"logits must have a known number of classes >= 1, got shape {logits.shape}"
    )
  if not logits.shape[:-1].is_compatible_with(labels.shape):
    raise ValueError(
      f"labels must have shape {logits.shape[:-1]}, one for each anchor of the "
      f"logits {logits.shape}, got {labels.shape}"
    )
