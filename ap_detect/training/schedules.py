"""Learning-rate schedules."""

from __future__ import annotations

import math

import tensorflow as tf


class WarmupSchedule(tf.keras.optimizers.schedules.LearningRateSchedule):
  """Linear warm-up, then a constant, stepwise or cosine rate.

  Args:
    learning_rate: rate after warm-up.
    kind: "constant", "step" or "cosine".
    total_steps: where the cosine reaches 0.
    decay_steps: steps at which "step" multiplies the rate by decay_factor.
    decay_factor: see decay_steps.
    warmup_steps: during these the rate is also multiplied by a factor that grows
      linearly from warmup_start_factor to 1.
    warmup_start_factor: see warmup_steps.
  """

  def __init__(
    self,
    learning_rate,
    *,
    kind="constant",
    total_steps=0,
    decay_steps=(),
    decay_factor=0.1,
    warmup_steps=0,
    warmup_start_factor=1 / 3,
  ):
    if kind not in ("constant", "step", "cosine"):
      raise ValueError(f"kind must be 'constant', 'step' or 'cosine', got {kind!r}")
    if kind == "cosine" and total_steps <= 0:
      raise ValueError(f"cosine requires total_steps > 0, got {total_steps}")
    self._options = {
      "learning_rate": learning_rate,
      "kind": kind,
      "total_steps": total_steps,
      "decay_steps": tuple(decay_steps),
      "decay_factor": decay_factor,
      "warmup_steps": warmup_steps,
      "warmup_start_factor": warmup_start_factor,
    }

  def __call__(self, step):
    """Rate of step `step` (from 0); [] float32."""
    step = tf.cast(step, tf.float32)
    return self._options["learning_rate"] * self._decay(step) * self._warmup(step)

  def get_config(self):
    return dict(self._options)

  def _decay(self, step):
    options = self._options
    if options["kind"] == "step":
      passed = [tf.cast(step >= at, tf.float32) for at in options["decay_steps"]]
      return options["decay_factor"] ** tf.add_n([tf.zeros([]), *passed])
    if options["kind"] == "cosine":
      progress = tf.minimum(step / options["total_steps"], 1.0)
      return 0.5 * (1 + tf.cos(math.pi * progress))
    return tf.ones([])

  def _warmup(self, step):
    if not self._options["warmup_steps"]:
      return tf.ones([])
    progress = tf.minimum(step / self._options["warmup_steps"], 1.0)
    start = self._options["warmup_start_factor"]
    return start + (1 - start) * progress
