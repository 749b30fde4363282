"""metrics.calibration.ScoreCalibration as a graph."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def calibrate(scores, calibration):
  """The precision to expect at each score.

  Computed in float64, in which neighbouring float32 scores stay apart; rounded to
  float32, none changes places.

  Args:
    scores: [...] float32 in [0, 1].
    calibration: ScoreCalibration.

  Returns:
    [...] float32 in (0, 1); not 0 for a score of 0, as padding has it.
  """
  at, values = (
    np.log(points) - np.log1p(-points)
    for points in map(np.array, (calibration.scores, calibration.precisions))
  )
  scores = tf.cast(scores, tf.float64)
  scores = tf.clip_by_value(scores, calibration.scores[0], calibration.scores[-1])
  logits = tf.math.log(scores) - tf.math.log1p(-scores)
  # [..., N - 1] how far each segment of the broken line is passed.
  passed = tf.clip_by_value(logits[..., tf.newaxis] - at[:-1], 0.0, np.diff(at))
  slopes = np.diff(values) / np.diff(at)
  calibrated = values[0] + tf.reduce_sum(passed * slopes, axis=-1)
  return tf.cast(tf.sigmoid(calibrated), tf.float32)
