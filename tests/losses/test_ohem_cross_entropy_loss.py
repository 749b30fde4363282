import numpy as np
import pytest
import tensorflow as tf
from oracles import ohem_cross_entropy_loss as oracle

from ap_detect import losses


def run(logits, labels, **options):
  logits = tf.convert_to_tensor(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = losses.ohem_cross_entropy_loss(logits, labels, **options)
  return loss, tape.gradient(loss, logits)


@pytest.mark.parametrize("ratio", [3.0, 0.4, 0.0, 1e6])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_against_the_oracle(ratio, jit_compile):
  random = np.random.default_rng(0)
  logits = (random.normal(size=[3, 40, 4]) * 2).astype(np.float32)
  labels = random.choice([-1, 0, 1, 4], [3, 40], p=[0.1, 0.7, 0.1, 0.1])
  labels[1] = random.integers(-1, 1, 40)  # an image without positives
  labels[2, :30] = 2  # and one with few others
  function = tf.function(run, jit_compile=jit_compile)
  loss, gradient = function(logits, labels, negatives_per_positive=ratio)
  expected, mined = oracle.ohem_cross_entropy_loss(logits.tolist(), labels, ratio)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  positives = (labels > 0).sum()
  for at in np.ndindex(3, 40):
    targets = labels[at] == np.arange(1, 5)
    slopes = 1 / (1 + np.exp(-logits[at])) - targets if at in mined else np.zeros(4)
    np.testing.assert_allclose(gradient[at], slopes / positives, rtol=1e-4, atol=1e-7)


def test_by_hand():
  # Two positives at logit 0, log 2 each; of the others 6, from the highest logit down,
  # log(1 + e^x) each. The ignored one at 9 does not count, nor does the lowest.
  others = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4])
  logits = np.concatenate([[0.0, 0.0, 9.0], others[::-1]]).astype(np.float32)
  labels = [1, 1, losses.IGNORED, *[losses.BACKGROUND] * 7]
  loss, gradient = run(logits[:, None], labels)
  expected = (2 * np.log(2) + np.log1p(np.exp(others[:6])).sum()) / 2
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert (gradient.numpy()[:, 0] != 0).tolist() == [True] * 2 + [False] * 2 + [True] * 6


def test_images_are_mined_apart():
  # The second image has the harder background anchors, but no positive one.
  logits, labels = np.float32([[[0.0], [1.0]], [[8.0], [9.0]]]), [[1, 0], [0, 0]]
  loss, gradient = run(logits, labels)
  np.testing.assert_allclose(loss, np.log(2) + np.log1p(np.e), rtol=1e-6)
  assert not gradient[1].numpy().any()
  together, _ = run(logits.reshape(4, 1), np.reshape(labels, 4))
  assert together > 17


def test_the_first_of_equals_are_mined():
  _, gradient = run(np.zeros([6, 1], np.float32), [0, 0, 1, 0, 0, 0])
  assert gradient.numpy().ravel().tolist() == [0.5, 0.5, -0.5, 0.5, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_background_anchor_that_is_not_finite_is_seen(bad):
  labels = np.zeros([2, 5], np.int32)
  labels[0, 1] = 1
  logits = np.zeros([2, 5, 1], np.float32)
  logits[0, 4] = bad
  loss, _ = run(logits, labels)
  assert not np.isfinite(loss)
  if np.isnan(bad):
    assert np.isnan(run(logits[::-1], labels)[0])  # also where nothing is mined


def test_errors():
  logits = np.zeros([2, 3], np.float32)
  for bad in (-1.0, np.inf):
    with pytest.raises(
      ValueError, match="negatives_per_positive must be finite and not"
    ):
      run(logits, [0, 1], negatives_per_positive=bad)
  with pytest.raises(ValueError, match="labels must have shape"):
    run(logits, [0, 1, 2])
