"""AP-loss with other smooth steps than the piecewise linear one, for experiments.

They compare every positive with every entry, O(|P| (|P| + |N|)) time and memory, which is
for small networks. Runs name them as classification losses, "step_losses.<function>".
"""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import BACKGROUND, IGNORED
from ap_detect.losses.ranking import scans

_ROOT_OF_PI = 3.141592653589793**0.5

# Of differences of scores in units of delta; slope 1/2 at 0.
STEPS = {
  "linear": lambda x: tf.clip_by_value(x / 2 + 0.5, 0.0, 1.0),
  "logistic": lambda x: tf.sigmoid(2 * x),
  "normal": lambda x: (1 + tf.math.erf(x * (_ROOT_OF_PI / 2))) / 2,
  "cubic": lambda x: _cubic(tf.clip_by_value(x / 3 + 0.5, 0.0, 1.0)),
}


def _cubic(x):
  return x * x * (3 - 2 * x)


def ap_loss_with_step(logits, labels, *, step="linear", delta=1.0):
  """AP-loss (Chen et al. 2019, eqs. 3, 5, 13), interpolated, with a step by name.

  All steps have the piecewise step's slope at 0, 1 / (2 delta).

  Args:
    logits: [..., K] float.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    step: "linear" (eq. 14), "logistic" (sigmoid), "normal" (its distribution function) or
      "cubic" (the polynomial that is flat at both ends).
    delta: half-width of the linear step, in logit units.

  Returns:
    [] float32, whose gradient is the error-driven update. 0 where there is no positive.

  Raises:
    ValueError: unknown step.

  Example:
    >>> logits = tf.constant([[2.0], [0.0], [90.0]])
    >>> float(ap_loss_with_step(logits, tf.constant([1, 0, 0]), step="cubic"))
    0.5
  """
  if step not in STEPS:
    raise ValueError(f"step must be one of {', '.join(STEPS)}, got {step!r}")
  labels = tf.convert_to_tensor(labels)
  own = tf.one_hot(labels - BACKGROUND - 1, logits.shape[-1], True, False)
  is_negative = (labels != IGNORED)[..., tf.newaxis] & ~own

  @tf.custom_gradient
  def with_update(logits):
    positives = tf.boolean_mask(logits, own)
    negatives = tf.boolean_mask(logits, is_negative)
    value, of_positives, of_negatives = _update(
      positives, negatives, STEPS[step], delta
    )
    update = tf.zeros_like(logits)
    for mask, of_mask in ((own, of_positives), (is_negative, of_negatives)):
      update = tf.tensor_scatter_nd_update(update, tf.where(mask), of_mask)
    return value, lambda upstream: upstream * update

  return with_update(tf.cast(logits, tf.float32))


def _update(positives, negatives, step, delta):
  """(loss [], update [P], update [N]) of scores [P] and [N]."""
  order = tf.argsort(positives)
  ascending = tf.gather(positives, order)

  def compare(scores):  # f(s_j - s_i), [P, len(scores)]
    return step((scores - ascending[:, tf.newaxis]) / delta)

  above = compare(negatives)
  b = tf.reduce_sum(above, 1)
  a = 0.5 + tf.reduce_sum(compare(ascending), 1)  # its own term is 1, not f(0)
  errors = scans.minimum_up_to(b / (a + b))
  count = tf.maximum(tf.cast(tf.size(positives), tf.float32), 1.0)
  weights = tf.where(b > 0, errors / tf.where(b > 0, b, 1.0), 0.0)
  of_negatives = tf.linalg.matvec(above, weights, transpose_a=True) / count
  of_positives = tf.gather(-errors / count, tf.argsort(order))
  return tf.reduce_sum(errors) / count, of_positives, of_negatives
