"""The calibration as a graph, against ScoreCalibration."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.metrics import fit_calibration
from ap_detect.serving import calibrated_scores


def case(seed):
  rng = np.random.default_rng(seed)
  scores = rng.beta(0.3, 1.5, 3000).astype(np.float32)
  return scores, fit_calibration(scores, rng.random(3000) < scores**1.5)


@pytest.mark.parametrize("seed", range(3))
def test_is_what_numpy_computes(seed):
  scores, calibration = case(seed)
  ends = [0.0, 2.0**-126, 1 - 2.0**-24, 1.0]
  scores = np.concatenate([scores, calibration.scores[1:-1], ends]).astype(np.float32)
  calibrate = tf.function(
    lambda values: calibrated_scores.calibrate(values, calibration)
  )
  found = calibrate(tf.constant(scores.reshape(2, -1))).numpy().ravel()
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, calibration(scores), rtol=2e-7)


def test_no_two_scores_change_places():
  scores, calibration = case(0)
  above = np.nextafter(scores, np.float32(1))
  found = calibrated_scores.calibrate(np.stack([scores, above]), calibration).numpy()
  assert (found[0] <= found[1]).all()
  ranked = found[0][np.argsort(scores)]
  assert (np.diff(ranked) >= 0).all()
  # Rounding ties next to none of those that were apart.
  assert len(np.unique(ranked)) > 0.99 * len(np.unique(scores))


@pytest.mark.parametrize("seed", range(3))
def test_in_float32(seed):
  scores, calibration = case(seed)
  scores = np.concatenate([scores, np.float32([0.0, 1 - 2.0**-24, 1.0])])
  found = calibrated_scores.calibrate(scores, calibration, dtype=tf.float32)
  np.testing.assert_allclose(found, calibration(scores), atol=1e-6)


def test_empty():
  _, calibration = case(0)
  assert calibrated_scores.calibrate(tf.zeros([0, 100]), calibration).shape == (0, 100)
