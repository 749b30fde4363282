"""AP-loss's own value while it is minimised in three ways, for the paper's Figure 5b.

Each function has the value 1 - AP of the ranking by scores, with the step itself, and the
gradient of another loss. Runs name them as classification losses, "figure_5b.<function>".
"""

from __future__ import annotations

import tensorflow as tf

from ap_detect import losses

# As good as the step itself: far less than the distance of two scores.
_DELTA = 1e-4


def error_driven_update(logits, labels, *, jit_compile=True):
  """AP-loss's own update (Chen et al. 2019, eq. 13)."""
  return _measured(losses.ap_loss, logits, labels, jit_compile)


def approximate_gradient(logits, labels, *, jit_compile=True):
  """The gradient of -log(AP + epsilon) with a sigmoid for the step."""
  return _measured(losses.smooth_ap_loss, logits, labels, jit_compile)


def structured_hinge(logits, labels, *, jit_compile=True):
  """The subgradient of the structured hinge loss, a convex bound on AP-loss."""
  return _measured(losses.structured_hinge_ap_loss, logits, labels, jit_compile)


def _measured(loss, logits, labels, jit_compile):
  """A scalar with the value of 1 - AP and the gradient of a loss."""
  value = losses.ap_loss(
    tf.stop_gradient(logits),
    labels,
    delta=_DELTA,
    interpolated=False,
    jit_compile=jit_compile,
  )
  minimised = loss(logits, labels, jit_compile=jit_compile)
  return value + minimised - tf.stop_gradient(minimised)
