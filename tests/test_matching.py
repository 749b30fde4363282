import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import boxes as box_oracle
from oracles import matching as oracle

from ap_detect import anchors as anchor_ops
from ap_detect import matching
from ap_detect.losses.labels import BACKGROUND, IGNORED

seeds = st.integers(0, 2**32 - 1)


def match(anchors, boxes, classes, ignored=None, **options):
  """Matching of one image; NumPy (labels, box targets, unmatched objects)."""
  boxes = np.reshape(np.asarray(boxes, np.float32), (1, -1, 4))
  classes = np.asarray(classes, np.int32)[np.newaxis]
  ignored = np.zeros(classes.shape, bool) if ignored is None else np.array([ignored])
  targets = matching.match_anchors(
    np.asarray(anchors, np.float32),
    tf.constant(boxes),
    tf.constant(classes),
    tf.constant(ignored),
    **options,
  )
  return (
    targets.labels[0].numpy(),
    targets.box_targets[0].numpy(),
    int(targets.num_unmatched_objects),
  )


def random_case(seed, num_images=2, num_anchors=24, num_objects=4):
  """Whole-numbered boxes up to 32, so that equal IoUs are equal in any arithmetic."""
  rng = np.random.default_rng(seed)

  def boxes(*shape):
    corner = rng.integers(0, 20, (*shape, 2))
    size = rng.integers(1, 13, (*shape, 2))
    return np.concatenate([corner, corner + size], -1).astype(np.float32)

  classes = rng.integers(0, 4, (num_images, num_objects)).astype(np.int32)
  ignored = rng.random((num_images, num_objects)) < 0.25
  return boxes(num_anchors), boxes(num_images, num_objects), classes, ignored


def test_hand_case_of_the_thresholds():
  # IoU with the object, 100 px^2: 1, 50/100 (positive from 0.5), 40/100 (background
  # below 0.4), 39/100, 0.
  anchors = [
    [0, 0, 10, 10],
    [0, 0, 10, 5],
    [0, 0, 10, 4],
    [0, 0, 10, 3.9],
    [20, 20, 30, 30],
  ]
  labels, targets, unmatched = match(anchors, [[0, 0, 10, 10]], [3])
  assert labels.tolist() == [3, 3, IGNORED, BACKGROUND, BACKGROUND]
  # The second anchor's centre is 2.5 of its 5 px left, its width half.
  expected = np.zeros((5, 4))
  expected[1] = [0, 0.5 / 0.1, 0, np.log(2) / 0.2]
  np.testing.assert_allclose(targets, expected, atol=1e-5)
  assert unmatched == 0


def test_force_match_takes_every_anchor_that_ties():
  # The object has 30 px^2, the first two anchors 100 around it: 0.3 both. 0.25 last.
  anchors = [[0, 0, 10, 10], [0, -7, 10, 3], [0, 0, 10, 12]]
  labels, _, unmatched = match(anchors, [[0, 0, 10, 3]], [2])
  assert labels.tolist() == [2, 2, BACKGROUND]
  assert unmatched == 0
  labels, targets, unmatched = match(anchors, [[0, 0, 10, 3]], [2], force_match=False)
  assert labels.tolist() == [BACKGROUND] * 3
  np.testing.assert_array_equal(targets, np.zeros((3, 4)))
  assert unmatched == 1


def test_a_forced_anchor_keeps_the_object_it_overlaps_most():
  # The only near anchor has IoU 1 with the first object and 0.3 with the second, whose
  # best it is: it stays with the first, and the second goes without.
  anchors = [[0, 0, 10, 10], [50, 50, 60, 60]]
  labels, targets, unmatched = match(
    anchors, [[0, 0, 10, 10], [0, 0, 3, 10]], classes=[1, 2]
  )
  assert labels.tolist() == [1, BACKGROUND]
  np.testing.assert_allclose(targets[0], np.zeros(4), atol=1e-6)
  assert unmatched == 1


def test_a_forced_anchor_may_belong_to_another_object_below_the_threshold():
  # Anchor: 0.3 with object 1 and 0.2 with object 2, whose best anchor it is too.
  labels, _, unmatched = match(
    [[0, 0, 10, 10]], [[0, 0, 3, 10], [8, 0, 10, 10]], classes=[1, 2]
  )
  assert labels.tolist() == [1]
  assert unmatched == 1


def test_an_object_outside_every_anchor_makes_none_positive():
  anchors = [[0, 0, 10, 10], [5, 5, 15, 15]]
  labels, targets, unmatched = match(anchors, [[90, 90, 99, 99]], [1])
  assert labels.tolist() == [BACKGROUND] * 2
  np.testing.assert_array_equal(targets, np.zeros((2, 4)))
  assert unmatched == 1


def test_anchors_on_ignored_objects_are_ignored():
  # The crowd covers 100 %, 40 %, 39 % and 0 % of the anchors; the last anchor lies on
  # the crowd as well, but is the real object's.
  anchors = [
    [0, 0, 10, 10],
    [0, 36, 10, 46],
    [0, 36.1, 10, 46.1],
    [50, 50, 60, 60],
    [20, 20, 30, 30],
  ]
  labels, _, unmatched = match(
    anchors, [[0, 0, 40, 40], [20, 20, 30, 30]], [1, 2], ignored=[True, False]
  )
  assert labels.tolist() == [IGNORED, IGNORED, BACKGROUND, BACKGROUND, 2]
  assert unmatched == 0


def test_an_ignored_object_has_no_positive_anchor():
  labels, _, unmatched = match(
    [[0, 0, 10, 10], [50, 50, 60, 60]], [[0, 0, 10, 10]], [1], ignored=[True]
  )
  assert labels.tolist() == [IGNORED, BACKGROUND]
  assert unmatched == 0


@pytest.mark.parametrize("num_objects", [0, 1, 3])
def test_no_objects_at_all(num_objects):
  labels, targets, unmatched = match(
    [[0, 0, 10, 10], [5, 5, 8, 8]], np.zeros((num_objects, 4)), [0] * num_objects
  )
  assert labels.tolist() == [BACKGROUND] * 2
  np.testing.assert_array_equal(targets, np.zeros((2, 4)))
  assert unmatched == 0


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"force_match": False},
    {"positive_iou": 0.75, "negative_iou": 0.25},
    {"positive_iou": 0.4},
  ],
)
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_matching_equals_the_oracle(options, seed):
  anchors, boxes, classes, ignored = random_case(seed)
  targets = matching.match_anchors(
    anchors,
    tf.constant(boxes),
    tf.constant(classes),
    tf.constant(ignored),
    **options,
  )
  unmatched = 0
  for image in range(len(boxes)):
    labels, box_targets, alone = oracle.match_image(
      anchors.tolist(), boxes[image].tolist(), classes[image], ignored[image], **options
    )
    np.testing.assert_array_equal(targets.labels[image], labels)
    np.testing.assert_allclose(targets.box_targets[image], box_targets, atol=1e-4)
    unmatched += alone
  assert int(targets.num_unmatched_objects) == unmatched


def test_matching_equals_the_oracle_on_real_anchors():
  anchors = anchor_ops.generate_anchors((128, 128))
  rng = np.random.default_rng(1)
  corner = rng.uniform(-5, 110, (5, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(3, 90, (5, 2))], -1)
  boxes = boxes.astype(np.float32)
  classes, ignored = np.array([1, 2, 3, 1, 0]), np.array([0, 0, 0, 1, 0], bool)
  labels, targets, unmatched = match(anchors, boxes, classes, ignored)
  expected = oracle.match_image(anchors.tolist(), boxes.tolist(), classes, ignored)
  assert np.unique(labels).tolist() == [IGNORED, BACKGROUND, 1, 2, 3]
  np.testing.assert_array_equal(labels, expected[0])
  np.testing.assert_allclose(targets, expected[1], atol=1e-3)
  assert unmatched == expected[2]


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_padding_has_no_influence(seed):
  anchors, boxes, classes, ignored = random_case(seed, num_images=1)
  plain = match(anchors, boxes[0], classes[0], ignored[0])
  # Whatever the rows hold: the class 0 alone says that they are padding.
  rubbish = random_case(seed + 1, num_images=1)
  padded = match(
    anchors,
    np.concatenate([rubbish[1][0], boxes[0], np.zeros((3, 4))]),
    np.concatenate([0 * rubbish[2][0], classes[0], np.zeros(3, np.int32)]),
    np.concatenate([np.ones(4, bool), ignored[0], np.zeros(3, bool)]),
  )
  for a, b in zip(plain, padded):
    np.testing.assert_array_equal(a, b)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_the_order_of_objects_matters_at_ties_only(seed):
  anchors, boxes, classes, ignored = random_case(seed, num_images=1)
  order = np.random.default_rng(seed).permutation(4)
  labels, targets, _ = match(anchors, boxes[0], classes[0], ignored[0])
  again, targets_again, _ = match(
    anchors, boxes[0][order], classes[0][order], ignored[0][order]
  )
  objects = boxes[0][(classes[0] > 0) & ~ignored[0]].tolist()
  for index, anchor in enumerate(anchors.tolist()):
    ious = sorted((box_oracle.iou(box, anchor) for box in objects), reverse=True)
    if len(ious) > 1 and ious[0] == ious[1]:
      assert (labels[index] > 0) == (again[index] > 0)
      continue
    assert labels[index] == again[index]
    np.testing.assert_array_equal(targets[index], targets_again[index])


def test_images_of_a_batch_do_not_touch_each_other():
  anchors, boxes, classes, ignored = random_case(3, num_images=3)
  together = matching.match_anchors(
    anchors, tf.constant(boxes), tf.constant(classes), tf.constant(ignored)
  )
  for image in range(3):
    labels, targets, _ = match(anchors, boxes[image], classes[image], ignored[image])
    np.testing.assert_array_equal(together.labels[image], labels)
    np.testing.assert_array_equal(together.box_targets[image], targets)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_eager_equals_graph_and_xla(jit_compile):
  anchors, boxes, classes, ignored = random_case(5, num_images=3, num_anchors=60)
  arguments = (tf.constant(boxes), tf.constant(classes), tf.constant(ignored))
  eager = matching.match_anchors(anchors, *arguments)
  compiled = tf.function(
    lambda *values: matching.match_anchors(anchors, *values), jit_compile=jit_compile
  )(*arguments)
  assert (eager.labels.numpy() > 0).any()
  np.testing.assert_array_equal(compiled.labels, eager.labels)
  np.testing.assert_allclose(compiled.box_targets, eager.box_targets, atol=1e-5)
  assert int(compiled.num_unmatched_objects) == int(eager.num_unmatched_objects)


def test_dynamic_numbers_of_images_and_objects():
  anchors, boxes, classes, ignored = random_case(7)
  graph = tf.function(
    lambda *values: matching.match_anchors(anchors, *values),
    input_signature=[
      tf.TensorSpec([None, None, 4], tf.float32),
      tf.TensorSpec([None, None], tf.int32),
      tf.TensorSpec([None, None], tf.bool),
    ],
  )
  labels = graph(boxes, classes, ignored).labels
  expected = matching.match_anchors(
    anchors, tf.constant(boxes), tf.constant(classes), tf.constant(ignored)
  )
  np.testing.assert_array_equal(labels, expected.labels)
  assert (graph(boxes[:, :0], classes[:, :0], ignored[:, :0]).labels == 0).numpy().all()
