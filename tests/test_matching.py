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

MODES = {
  "eager": lambda function: function,
  "graph": tf.function,
  "xla": lambda function: tf.function(function, jit_compile=True),
}


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


def real_boxes(rng, num_images, num_objects, size=256):
  """Boxes of 4 px to the whole image, all sizes alike, cut to the image; float32."""
  shape = (num_images, num_objects, 2)
  side = np.exp(rng.uniform(np.log(4), np.log(size), shape))
  center = rng.uniform(0, size, shape)
  low = np.clip(center - side / 2, 0, size - 2)
  high = np.clip(center + side / 2, low + 2, size)
  return np.concatenate([low, high], -1).astype(np.float32)


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


@pytest.mark.parametrize("mode", MODES)
def test_a_small_object_takes_every_anchor_that_contains_it(mode):
  # An anchor around the object has the IoU of their areas, so all of the smallest area,
  # 32^2, tie: those with |center - anchor's center| <= (anchor's side - side) / 2, whose
  # centres, 8 i + 4, are
  #   32 x 32: y in [94.6, 116.3], 3 of them, x in [55.4, 77.7], 3;
  #   22.63 x 45.25: y in [99.3, 111.6], 2, x in [48.8, 84.3], 5;
  #   45.25 x 22.63: y in [88.0, 122.9], 4, x in [60.1, 73.0], 1.
  anchors = anchor_ops.generate_anchors((256, 256))
  box = np.array([[[100.3, 61.7, 110.6, 71.4]]], np.float32)
  targets = MODES[mode](matching.match_anchors)(
    tf.constant(anchors), tf.constant(box), tf.constant([[1]]), tf.constant([[False]])
  )
  positive = anchors[targets.labels[0].numpy() == 1]
  heights = positive[:, 2] - positive[:, 0]
  counts = [np.isclose(heights, side, atol=0.01).sum() for side in (32, 22.63, 45.25)]
  assert counts == [3 * 3, 2 * 5, 4 * 1]
  assert len(positive) == 9 + 10 + 4
  assert (positive[:, :2] <= box[0, 0, :2]).all()
  assert (positive[:, 2:] >= box[0, 0, 2:]).all()


@pytest.mark.parametrize("mode", MODES)
def test_comparisons_allow_for_a_share_of_a_hundred_thousandth(mode):
  # IoU or coverage: height of the object / 100. Half the tolerance short of what is
  # asked, an anchor has it; twice the tolerance short, it has not.
  run = MODES[mode](matching.match_anchors)

  def label(heights, ignored=False):
    boxes = [[[0, 0, height, 100] for height in heights]]
    classes = [list(range(1, len(heights) + 1))]
    return run(
      tf.constant([[0.0, 0.0, 100.0, 100.0]]),
      tf.constant(boxes, tf.float32),
      tf.constant(classes),
      tf.fill([1, len(heights)], ignored),
      force_match=False,
    ).labels.numpy()[0, 0]

  within, beyond = 1 - 0.5e-5, 1 - 2e-5
  assert [label([50 * share]) for share in (within, beyond)] == [1, IGNORED]
  assert [label([40 * share]) for share in (within, beyond)] == [IGNORED, BACKGROUND]
  assert [label([40 * share], True) for share in (within, beyond)] == [
    IGNORED,
    BACKGROUND,
  ]
  # Of two objects the first where they tie, else the one of larger IoU.
  assert [label([60 * share, 60]) for share in (within, beyond)] == [1, 2]
  assert [label([60, 60 * share]) for share in (within, beyond)] == [1, 1]


@pytest.mark.parametrize("mode", MODES)
def test_an_anchor_takes_the_first_of_objects_that_tie_up_to_rounding(mode):
  # Moved up or down by the same 3.3 px, a copy of the anchor has the same IoU with it,
  # but for rounding.
  anchors = anchor_ops.generate_anchors((128, 128), levels=(3,), aspect_ratios=(0.5,))
  inside = (anchors.min(axis=1) > 4) & (anchors.max(axis=1) < 124)
  anchors = anchors[inside]
  assert len(anchors) > 100
  moved = np.float32([3.3, 0, 3.3, 0])
  run = MODES[mode](matching.match_anchors)
  for signs in ((1, -1), (-1, 1)):
    # Every anchor by itself, as an image of one anchor and two objects.
    for anchor in anchors[::12]:
      boxes = np.stack([anchor + sign * moved for sign in signs])
      targets = run(
        tf.constant(anchor[np.newaxis]),
        tf.constant(boxes[np.newaxis]),
        tf.constant([[1, 2]]),
        tf.constant([[False, False]]),
      )
      assert targets.labels.numpy().tolist() == [[1]]
      # 3.3 px of the height 32 sqrt(0.5) or 32, over the variance 0.1
      expected = signs[0] * 3.3 / (anchor[2] - anchor[0]) / 0.1
      np.testing.assert_allclose(targets.box_targets[0, 0, 0], expected, rtol=1e-4)
      assert int(targets.num_unmatched_objects) == 1


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


def test_matching_equals_the_oracle_on_real_valued_boxes():
  anchors = anchor_ops.generate_anchors((128, 128))
  rng = np.random.default_rng(2)
  boxes = real_boxes(rng, 75, 4, size=128)
  classes = rng.integers(1, 6, (75, 4)).astype(np.int32)
  ignored = rng.random((75, 4)) < 0.15
  targets = matching.match_anchors(
    anchors, tf.constant(boxes), tf.constant(classes), tf.constant(ignored)
  )
  unmatched = 0
  for image in range(75):
    labels, box_targets, alone = oracle.match_image(
      anchors.tolist(), boxes[image].tolist(), classes[image], ignored[image]
    )
    np.testing.assert_array_equal(targets.labels[image], labels)
    np.testing.assert_allclose(targets.box_targets[image], box_targets, atol=1e-3)
    unmatched += alone
  assert int(targets.num_unmatched_objects) == unmatched


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


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 5), (8, 20), (2, 40), (16, 10)])
@pytest.mark.parametrize(
  "setting", [{}, {"base_scale": 2.0, "octave_scales": (1, 2 ** (1 / 3), 2 ** (2 / 3))}]
)
def test_compiled_matching_assigns_what_uncompiled_matching_does(setting, shape):
  # Anchors of a grid tie for a real-valued box but for rounding, which is the
  # compiler's. About 5,000 objects in all.
  anchors = tf.constant(anchor_ops.generate_anchors((256, 256), **setting))
  rng = np.random.default_rng(shape)
  run = {mode: wrap(matching.match_anchors) for mode, wrap in MODES.items()}
  num_positives = 0
  for _ in range(min(60, 480 // (shape[0] * shape[1]))):
    arguments = (
      anchors,
      tf.constant(real_boxes(rng, *shape)),
      tf.constant(rng.integers(0, 5, shape), tf.int32),
      tf.constant(rng.random(shape) < 0.1),
    )
    eager = run["eager"](*arguments)
    num_positives += (eager.labels.numpy() > 0).sum()
    for mode in ("graph", "xla"):
      found = run[mode](*arguments)
      np.testing.assert_array_equal(found.labels, eager.labels, mode)
      np.testing.assert_allclose(
        found.box_targets, eager.box_targets, atol=1e-4, err_msg=mode
      )
      assert int(found.num_unmatched_objects) == int(eager.num_unmatched_objects), mode
  assert num_positives > 100


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


class TestChunks:
  """More objects than are compared with all anchors at once."""

  def case(self, num_objects, num_last):
    """Arguments of match_anchors: 2 images, of which one has few objects."""
    rng = np.random.default_rng(num_objects)
    anchors = anchor_ops.generate_anchors((128, 128))
    classes = rng.integers(0, 5, (2, num_objects))
    classes[0, 3:] = 0
    classes[:, num_last:] = 0
    return (
      tf.constant(anchors),
      tf.constant(real_boxes(rng, 2, num_objects, size=128)),
      tf.constant(classes, tf.int32),
      tf.constant(rng.random((2, num_objects)) < 0.2),
    )

  @pytest.mark.parametrize("mode", MODES)
  @pytest.mark.parametrize(
    ("num_objects", "num_last"), [(15, 15), (16, 16), (33, 33), (80, 20), (80, 0)]
  )
  def test_give_what_all_at_once_gives(self, mode, num_objects, num_last, monkeypatch):
    arguments = self.case(num_objects, num_last)
    monkeypatch.setattr(matching, "_MOST_AT_ONCE", 1000)
    expected = MODES[mode](matching.match_anchors)(*arguments)
    monkeypatch.setattr(matching, "_MOST_AT_ONCE", 0)
    found = MODES[mode](lambda *values: matching.match_anchors(*values))(*arguments)
    for name, values in found._asdict().items():
      wanted = getattr(expected, name)
      # To the bit, but for XLA, which compiles two programs.
      if mode == "xla" and name == "box_targets":
        np.testing.assert_allclose(values, wanted, atol=1e-4)
      else:
        np.testing.assert_array_equal(values, wanted, name)
    assert (np.count_nonzero(expected.labels > 0) > 10) == (num_last != 0)

  def test_hold_no_tensor_of_all_objects_and_anchors(self):
    anchors, *objects = self.case(700, 700)
    graph = tf.function(
      lambda *values: matching.match_anchors(anchors, *values), autograph=False
    ).get_concrete_function(*objects)
    bodies = [function.graph for function in graph.graph._functions.values()]
    sizes = [
      output.shape.num_elements()
      for part in (graph.graph, *bodies)
      for operation in part.get_operations()
      for output in operation.outputs
      if operation.type != "Placeholder"
    ]
    assert max(sizes) == 2 * matching._CHUNK * len(anchors)
