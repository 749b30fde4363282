"""What every runtime must find, whichever the format."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.data import shapes
from ap_detect.models import retinanet
from ap_detect.training import evaluation


def assert_finds_what_evaluation_finds(opened_again, records, found):
  """Scores are the same; boxes and classes too, but where almost equal scores swap."""
  for image, expected in zip(opened_again.detect(records), found):
    np.testing.assert_allclose(image.scores, expected.scores, atol=1e-5)
    is_same = image.classes[:, np.newaxis] == expected.classes
    distances = np.abs(image.boxes[:, np.newaxis] - expected.boxes).max(axis=2)
    is_same &= (distances < 1e-2) & (
      np.abs(image.scores[:, np.newaxis] - expected.scores) < 1e-5
    )
    assert np.any(is_same, axis=0).mean() >= 0.98


def with_strings(detector):
  """A Detector whose network makes text of its logits, which no other runtime can."""

  def network(images, training):
    logits, boxes = detector.network(images, training=training)
    lengths = tf.strings.length(tf.strings.as_string(logits))
    return retinanet.Outputs(logits + tf.cast(lengths, tf.float32), boxes)

  network.variables = detector.network.variables
  return detector._replace(network=network)


def assert_same_ap(opened_again, restored_run, tolerance):
  """On 20 images; tolerance in AP and AP50."""
  dataset = shapes.make_shapes("val", num_images=20, image_size_px=(128, 128), seed=1)
  evaluator = evaluation.Evaluator(
    restored_run.network, restored_run.config, restored_run.strategy
  )
  before, after = (
    evaluation.judge(dataset, found)[0].metrics
    for found in (
      evaluator.detect(dataset.records),
      opened_again.detect(dataset.records),
    )
  )
  assert before["AP50"] > 0
  for name in ("AP", "AP50"):
    assert after[name] == pytest.approx(before[name], abs=tolerance)
