"""metrics.calibration.ScoreCalibration as a graph."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def calibrate(scores, calibration, *, dtype=tf.float64):
  """The precision to expect at each score.

  Computed in float64, neighbouring float32 scores stay apart; rounded to float32, none
  changes places.

  Args:
    scores: [...] float32 in [0, 1].
    calibration: ScoreCalibration.
    dtype: that it is computed in. float32 is for runtimes without float64; precisions
      are then off by up to 1e-6, and scores that are close may change places by that.

  Returns:
    [...] float32 in (0, 1); not 0 for a score of 0, as padding has it.
  """
  at, values = (
    (np.log(points) - np.log1p(-points)).astype(dtype.as_numpy_dtype)
    for points in map(np.array, (calibration.scores, calibration.precisions))
  )
  scores = tf.cast(scores, dtype)
  scores = tf.clip_by_value(scores, calibration.scores[0], calibration.scores[-1])
  # Not log1p(-scores), which no other runtime has.
  logits = tf.math.log(scores) - tf.math.log(1.0 - scores)
  # [..., N - 1] how far each segment of the broken line is passed.
  passed = tf.clip_by_value(logits[..., tf.newaxis] - at[:-1], 0.0, np.diff(at))
  slopes = np.diff(values) / np.diff(at)
  calibrated = values[0] + tf.reduce_sum(passed * slopes, axis=-1)
  return tf.cast(tf.sigmoid(calibrated), tf.float32)
