import numpy as np
import pytest
import tensorflow as tf
from oracles import box_losses as oracle

from ap_detect import boxes as box_ops
from ap_detect import losses

BOX_LOSSES = [losses.smooth_l1, losses.l1, losses.giou]


def random_boxes(rng, number):
  """Boxes that overlap in part, contain each other, touch, or are far from each other."""
  low = rng.integers(0, 12, [number, 2])
  return np.concatenate([low, low + rng.integers(1, 12, [number, 2])], 1)


def run(loss, predicted, targets, is_positive, **options):
  """(value, gradient by what is predicted)."""
  predicted = tf.convert_to_tensor(predicted)
  with tf.GradientTape() as tape:
    tape.watch(predicted)
    value = loss(predicted, targets, is_positive, **options)
  return value, tape.gradient(value, predicted)


@pytest.mark.parametrize("jit_compile", [True, False])
@pytest.mark.parametrize(
  ("name", "options"),
  [("smooth_l1", {"beta": 0.11}), ("smooth_l1", {"beta": 1.0}), ("l1", {})],
)
def test_losses_of_offsets_against_loops(name, options, jit_compile):
  random = np.random.default_rng(0)
  outputs, targets = random.normal(size=[2, 30, 4]).astype(np.float32)
  is_positive = random.random(30) < 0.3
  function = tf.function(getattr(losses, name), jit_compile=jit_compile)
  loss = function(outputs, targets, is_positive, **options)
  assert loss.dtype == tf.float32
  expected = getattr(oracle, name)(outputs, targets, is_positive, **options)
  assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_giou_against_loops(jit_compile):
  rng = np.random.default_rng(1)
  boxes, targets = random_boxes(rng, 200), random_boxes(rng, 200)
  is_positive = rng.random(200) < 0.7
  function = tf.function(losses.giou, jit_compile=jit_compile)
  loss = function(boxes.astype(np.float32), targets.astype(np.float32), is_positive)
  expected = oracle.giou(boxes, targets, is_positive)
  assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_giou_against_tensorflow_addons():
  addons = pytest.importorskip("tensorflow_addons")
  rng = np.random.default_rng(2)
  boxes, targets = random_boxes(rng, 100), random_boxes(rng, 100)
  boxes = boxes + rng.uniform(-0.3, 0.3, boxes.shape)  # no ties of sides
  boxes, targets = tf.constant(boxes, tf.float32), tf.constant(targets, tf.float32)
  value, gradient = run(losses.giou, boxes, targets, tf.ones([100], tf.bool))
  expected, slope = run(
    lambda boxes, targets, _: tf.reduce_mean(addons.losses.giou_loss(targets, boxes)),
    *(boxes, targets, None),
  )
  assert float(value) == pytest.approx(float(expected), rel=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-7)


def test_giou_gradient_is_the_derivative():
  rng = np.random.default_rng(3)
  boxes, targets = random_boxes(rng, 12), random_boxes(rng, 12)
  boxes = (boxes + rng.uniform(-0.3, 0.3, boxes.shape)).astype(np.float32)
  is_positive = np.arange(12) != 5
  _, gradient = run(losses.giou, boxes, targets.astype(np.float32), is_positive)
  assert np.abs(gradient).max(1).min() == 0 < np.sort(np.abs(gradient).max(1))[1]
  for at in np.ndindex(12, 4):
    step = np.zeros([12, 4])
    step[at] = 1e-5
    above, below = (
      oracle.giou(boxes + sign * step, targets, is_positive) for sign in (1, -1)
    )
    expected = (above - below) / 2e-5
    assert gradient.numpy()[at] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
  ("box", "target", "expected"),
  [
    ([0, 0, 2, 2], [0, 0, 2, 2], 0.0),
    ([0, 0, 2, 2], [0, 1, 2, 3], 2 / 3),  # IoU 1/3, hull of 6 is full
    ([0, 0, 1, 1], [1, 1, 2, 2], 1.5),  # IoU 0, half of the hull is empty
    ([0, 0, 2, 2], [0, 0, 1, 1], 0.75),  # IoU 1/4, within each other
    ([1, 0, 1, 2], [0, 0, 2, 2], 1.0),  # without area, in a target of 4
    ([1, 1, 1, 1], [1, 1, 1, 1], 2.0),  # nothing at all: IoU and hull are 0
  ],
)
def test_giou_by_hand(box, target, expected):
  box, target = (tf.constant([numbers], tf.float32) for numbers in (box, target))
  value, gradient = run(losses.giou, box, target, tf.constant([True]))
  assert float(value) == pytest.approx(expected, rel=1e-6, abs=1e-6)
  assert np.isfinite(gradient).all()


def test_l1_by_hand():
  outputs = tf.constant([[0.5, 0.0, 0.0, -3.0], [9.0, 9.0, 9.0, 9.0]])
  value, gradient = run(losses.l1, outputs, tf.zeros([2, 4]), [True, False])
  assert value == 0.875  # (0.5 + 3) / 4
  np.testing.assert_array_equal(gradient, [[0.25, 0, 0, -0.25], [0, 0, 0, 0]])


def test_smooth_l1_by_hand():
  # Offsets 0.5 and 3 off at beta 1: (0.5^2 / 2 + 2.5) / 4, for the one positive.
  outputs = tf.constant([[[0.5, 0.0, 0.0, 3.0], [9.0, 9.0, 9.0, 9.0]]])
  value, gradient = run(losses.smooth_l1, outputs, tf.zeros([1, 2, 4]), [[True, False]])
  assert value == 0.65625
  # x / beta inside, the sign outside, over 4 offsets.
  np.testing.assert_allclose(gradient[0], [[0.125, 0, 0, 0.25], [0, 0, 0, 0]])


@pytest.mark.parametrize("loss", BOX_LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_rows_that_are_not_positive_have_no_influence(loss, bad):
  predicted = np.array([[0.5, 0.0, 2.0, 3.0], [bad] * 4], np.float32)
  targets = np.array([[0.0, 0.0, 2.0, 2.0], [bad] * 4], np.float32)
  value, gradient = run(loss, predicted, targets, [True, False])
  expected, slopes = run(loss, predicted[:1], targets[:1], [True])
  assert value == expected > 0
  np.testing.assert_array_equal(gradient, [slopes[0], [0, 0, 0, 0]])


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_no_positives(loss):
  zeros = tf.zeros([3, 4])
  value, gradient = run(loss, zeros + 1, zeros, tf.zeros([3], tf.bool))
  assert value == 0
  np.testing.assert_array_equal(gradient, zeros)


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_normalizer_stands_in_for_the_number_of_positives(loss):
  predicted = tf.constant([[0.5, 0.0, 2.0, 3.0], [0.0, 1.0, 2.0, 2.0]])
  targets = tf.constant([[0.0, 0.0, 2.0, 2.0]] * 2)
  mean = loss(predicted, targets, [True, True])
  found = loss(predicted, targets, [True, True], normalizer=tf.constant(8.0))
  assert float(found) == pytest.approx(float(mean) * 2 / 8, rel=1e-6)


@pytest.mark.parametrize("far", [1e4, 1e20, -1e20, 1e30, -1e30])
@pytest.mark.parametrize("place", range(4))
def test_giou_of_far_off_outputs_stays_finite(far, place):
  """Decoded from offsets that have run away; the hull's area is beyond float32."""
  offsets = np.zeros([2, 4], np.float32)
  offsets[0, place] = far
  anchors = tf.constant([[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 40.0, 40.0]])

  def loss(offsets, targets, is_positive):
    return losses.giou(box_ops.decode(offsets, anchors), targets, is_positive)

  targets = tf.constant([[4.0, 4.0, 30.0, 30.0]] * 2)
  value, gradient = run(loss, offsets, targets, [True, True])
  assert 0 < value <= 2
  assert np.isfinite(gradient).all() and np.any(gradient[1] != 0)


@pytest.mark.parametrize("loss", BOX_LOSSES)
def test_half_precision_gradient_has_the_type_of_what_is_predicted(loss):
  predicted = tf.constant([[0.5, 0.0, 2.0, 3.0]], tf.bfloat16)
  value, gradient = run(loss, predicted, [[0.0, 0.0, 2.0, 2.0]], [True])
  assert value.dtype == tf.float32 and gradient.dtype == tf.bfloat16


def test_errors():
  zeros = tf.zeros([3, 4])
  positive = tf.ones([3], tf.bool)
  with pytest.raises(ValueError, match="beta must be positive"):
    losses.smooth_l1(zeros, zeros, positive, beta=0)
  with pytest.raises(ValueError, match="box_targets must have"):
    losses.smooth_l1(zeros, tf.zeros([2, 4]), positive)
  with pytest.raises(ValueError, match="box_outputs must have"):
    losses.l1(zeros[:, :3], zeros, positive)
  with pytest.raises(ValueError, match=r"target_boxes must have .* \(3, 4\), got"):
    losses.giou(zeros, tf.zeros([2, 4]), positive)
  for loss in BOX_LOSSES:
    with pytest.raises(ValueError, match="is_positive must be bool"):
      loss(zeros, zeros, tf.ones([3]))
