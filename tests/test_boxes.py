import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import boxes as oracle

from ap_detect import boxes, images

seeds = st.integers(0, 2**32 - 1)


def random_boxes(rng, *shape, low=-50.0, high=150.0, smallest=0.5):
  """Boxes of positive size, float32."""
  corner = rng.uniform(low, high, (*shape, 2))
  size = rng.uniform(smallest, 100.0, (*shape, 2))
  return np.concatenate([corner, corner + size], -1).astype(np.float32)


def pairwise(function, a, b):
  return np.array([[function(p, q) for q in b.tolist()] for p in a.tolist()])


def test_hand_case_of_overlap():
  # [0, 4]^2 and [2, 6]^2 share [2, 4]^2: 4 of 16 + 16 - 4 = 28.
  a, b = tf.constant([[0.0, 0.0, 4.0, 4.0]]), tf.constant([[2.0, 2.0, 6.0, 6.0]])
  assert boxes.intersection(a, b).numpy().tolist() == [[4.0]]
  np.testing.assert_allclose(boxes.iou(a, b), [[1 / 7]], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_overlaps_equal_the_oracle(seed):
  rng = np.random.default_rng(seed)
  a, b = random_boxes(rng, 5), random_boxes(rng, 7)
  expected = pairwise(oracle.iou, a, b)
  np.testing.assert_allclose(boxes.iou(a, b), expected, atol=1e-5)
  np.testing.assert_allclose(
    boxes.intersection(a, b), pairwise(oracle.intersection, a, b), rtol=1e-4, atol=1e-2
  )
  np.testing.assert_allclose(
    boxes.area(a), [oracle.area(box) for box in a.tolist()], rtol=1e-5
  )
  # Symmetric; 1 with itself; unchanged when both boxes are moved and scaled alike.
  np.testing.assert_allclose(boxes.iou(b, a), expected.T, atol=1e-5)
  np.testing.assert_allclose(np.diag(boxes.iou(a, a)), np.ones(5), atol=1e-6)
  np.testing.assert_allclose(boxes.iou(2 * a + 8, 2 * b + 8), expected, atol=1e-4)


def test_leading_dimensions_broadcast():
  rng = np.random.default_rng(0)
  objects, anchors = random_boxes(rng, 2, 3), random_boxes(rng, 5)
  result = boxes.iou(objects, anchors).numpy()
  assert result.shape == (2, 3, 5)
  for image in range(2):
    expected = pairwise(oracle.iou, objects[image], anchors)
    np.testing.assert_allclose(result[image], expected, atol=1e-5)


@pytest.mark.parametrize(
  "box",
  [
    [1.0, 1.0, 1.0, 5.0],  # a line
    [1.0, 1.0, 1.0, 1.0],  # a point
    [4.0, 1.0, 1.0, 5.0],  # upside down
    [4.0, 5.0, 1.0, 1.0],  # both ways: the sides' product would be positive
  ],
)
def test_degenerate_boxes_have_no_area_and_no_overlap(box):
  degenerate = tf.constant([box])
  proper = tf.constant([[0.0, 0.0, 8.0, 8.0]])
  assert boxes.area(degenerate).numpy().tolist() == [0.0]
  assert boxes.iou(degenerate, proper).numpy().tolist() == [[0.0]]
  assert boxes.iou(degenerate, degenerate).numpy().tolist() == [[0.0]]


def test_touching_boxes_do_not_overlap():
  a, b = tf.constant([[0.0, 0.0, 4.0, 4.0]]), tf.constant([[0.0, 4.0, 4.0, 8.0]])
  assert boxes.iou(a, b).numpy().tolist() == [[0.0]]


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_clip_equals_the_oracle(seed):
  rng = np.random.default_rng(seed)
  a = random_boxes(rng, 6)
  clipped = boxes.clip(a, 80.0, 60.0)
  expected = [oracle.clip(box, 80.0, 60.0) for box in a.tolist()]
  np.testing.assert_array_equal(clipped, expected)
  np.testing.assert_array_equal(boxes.clip(clipped, 80.0, 60.0), clipped)


def test_clip_takes_a_size_for_each_image():
  a = tf.constant([[[-1.0, -1.0, 9.0, 9.0]]] * 2)
  sizes = tf.constant([[4.0, 5.0], [6.0, 7.0]])
  clipped = boxes.clip(a, sizes[:, :1], sizes[:, 1:])
  assert clipped.numpy().tolist() == [[[0, 0, 4, 5]], [[0, 0, 6, 7]]]


def test_hand_case_of_encoding():
  # Centre (10, 30) from (5, 10): 5 of 10 down, 20 of 20 right; heights equal, width
  # doubled. Divided by (0.1, 0.1, 0.2, 0.2).
  anchor = tf.constant([0.0, 0.0, 10.0, 20.0])
  box = tf.constant([5.0, 10.0, 15.0, 50.0])
  expected = [5.0, 10.0, 0.0, math.log(2) / 0.2]
  np.testing.assert_allclose(boxes.encode(box, anchor), expected, rtol=1e-6)
  unscaled = boxes.encode(box, anchor, variances=(1.0, 1.0, 1.0, 1.0))
  np.testing.assert_allclose(unscaled, [0.5, 1.0, 0.0, math.log(2)], rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_encoding_equals_the_oracle_and_decoding_undoes_it(seed):
  rng = np.random.default_rng(seed)
  a, anchors = random_boxes(rng, 4, 6, smallest=4), random_boxes(rng, 6, smallest=4)
  offsets = boxes.encode(a, anchors)
  expected = [
    [
      oracle.encode(box, anchor, boxes.BOX_VARIANCES)
      for box, anchor in zip(image, anchors.tolist())
    ]
    for image in a.tolist()
  ]
  np.testing.assert_allclose(offsets, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(boxes.decode(offsets, anchors), a, atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_decoding_equals_the_oracle(seed):
  rng = np.random.default_rng(seed)
  anchors = random_boxes(rng, 8, smallest=4)
  offsets = rng.normal(0, 10, (8, 4)).astype(np.float32)
  expected = [
    oracle.decode(o, a, boxes.BOX_VARIANCES)
    for o, a in zip(offsets.tolist(), anchors.tolist())
  ]
  np.testing.assert_allclose(
    boxes.decode(offsets, anchors), expected, rtol=1e-4, atol=0.05
  )


@pytest.mark.parametrize("offset", [1e3, 1e30, math.inf])
def test_decoded_sizes_are_bounded(offset):
  # 16 px * 1000 / 16 = 1000 px, about the anchor's centre (8, 8).
  anchor = tf.constant([0.0, 0.0, 16.0, 16.0])
  large = boxes.decode(tf.constant([0.0, 0.0, offset, offset]), anchor)
  np.testing.assert_allclose(large, [-492, -492, 508, 508], rtol=1e-5)
  small = boxes.decode(tf.constant([0.0, 0.0, -offset, -offset]), anchor)
  np.testing.assert_allclose(small, [8, 8, 8, 8], atol=1e-3)


def test_extreme_objects_encode_to_finite_offsets():
  anchor = tf.constant([0.0, 0.0, 724.0, 724.0])
  tiny = boxes.encode(tf.constant([0.0, 0.0, 1e-4, 1e-4]), anchor)
  huge = boxes.encode(tf.constant([0.0, 0.0, 1e7, 1e7]), anchor)
  np.testing.assert_allclose(tiny[2:], [math.log(1e-4 / 724) / 0.2] * 2, rtol=1e-5)
  np.testing.assert_allclose(huge[2:], [math.log(1e7 / 724) / 0.2] * 2, rtol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_boxes_are_where_the_turned_image_has_them(orientation):
  image = np.zeros((7, 11, 1), np.uint8)
  image[1:3, 4:9] = 1
  turned = images.turn(image, orientation).numpy()[..., 0]
  places = np.argwhere(turned)
  expected = [*places.min(axis=0), *(places.max(axis=0) + 1)]
  box = np.float32([[1, 4, 3, 9]])
  np.testing.assert_array_equal(boxes.turn(box, orientation, 7, 11), [expected])
