import numpy as np
import pytest
import tensorflow as tf
from oracles import detections as oracle

from ap_detect.models import detections
from ap_detect.models.retinanet import Outputs

LEVEL_SIZES = (40, 16, 4)
OPTIONS = {
  "level_sizes": LEVEL_SIZES,
  "score_threshold": 0.2,
  "candidates_per_level": 30,
  "nms_iou": 0.5,
  "max_detections": 20,
}


def random_case(seed, num_classes=3, num_images=2, num_anchors=60):
  """Logits, box outputs and anchors with many overlaps, some outside the picture."""
  rng = np.random.default_rng(seed)
  corner = rng.uniform(-40, 90, (num_anchors, 2))
  anchors = np.concatenate([corner, corner + rng.uniform(10, 60, (num_anchors, 2))], -1)
  logits = rng.normal(0, 2, (num_images, num_anchors, num_classes))
  offsets = rng.normal(0, 2, (num_images, num_anchors, 4))
  return (value.astype(np.float32) for value in (logits, offsets, anchors))


def detect(logits, offsets, anchors, content_size, **options):
  found = detections.detect(
    Outputs(tf.constant(logits), tf.constant(offsets)),
    tf.constant(anchors),
    content_size=tf.constant(content_size, tf.float32),
    **{**OPTIONS, **options},
  )
  return detections.Detections(*(value.numpy() for value in found))


def test_an_image_alone_has_the_same_detections():
  logits, offsets, anchors = random_case(0)
  together = detect(logits, offsets, anchors, [[100, 80], [60, 120]])
  alone = detect(logits[:1], offsets[:1], anchors, [[100, 80]])
  for found, expected in zip(alone, together):
    np.testing.assert_array_equal(found, expected[:1])


def detect_boxes(boxes, logits, **options):
  """Detections on one image of 100 x 100 where the network leaves anchors as given."""
  boxes, logits = np.array(boxes, np.float32), np.array([logits], np.float32)
  options = {"level_sizes": (len(boxes),), "score_threshold": 0.01, **options}
  offsets = np.zeros((1, len(boxes), 4), np.float32)
  return detect(logits, offsets, boxes, [[100, 100]], **options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"nms_iou": 0.3, "score_threshold": 0.0},
    {"candidates_per_level": 5},
    {"max_detections": 4},
    {"candidates_per_level": 1000, "max_detections": 300, "score_threshold": 0.05},
  ],
)
def test_detections_equal_the_oracle(seed, options):
  logits, offsets, anchors = random_case(seed)
  content_size = [[100, 80], [60, 120]]
  found = detect(logits, offsets, anchors, content_size, **options)
  options = {**OPTIONS, **options}
  for image in range(2):
    expected = oracle.detect_image(
      logits[image].tolist(),
      offsets[image].tolist(),
      anchors.tolist(),
      content_size=content_size[image],
      **options,
    )
    count = len(expected)
    assert found.num_detections[image] == count
    scores, classes, boxes = zip(*expected)
    np.testing.assert_allclose(found.scores[image, :count], scores, atol=1e-5)
    np.testing.assert_array_equal(found.classes[image, :count], classes)
    np.testing.assert_allclose(found.boxes[image, :count], boxes, atol=1e-3)
    # The rest is padding; what is there is sorted.
    assert found.scores.shape == (2, options["max_detections"])
    assert not found.scores[image, count:].any()
    assert not found.classes[image, count:].any()
    assert not found.boxes[image, count:].any()
    assert (np.diff(found.scores[image]) <= 0).all()


@pytest.mark.parametrize("num_pairs", [1, 7, 40, 119, 120, 500])
@pytest.mark.parametrize("num_values", [1, 3, 1000])
def test_best_pairs_are_those_of_a_sort_of_all(num_pairs, num_values):
  """Ties too: 40 anchors of 3 classes with few different logits."""
  rng = np.random.default_rng(num_values)
  logits = rng.integers(0, num_values, [5, 40, 3]).astype(np.float32)
  found = detections._best_pairs(tf.constant(logits), 40, num_pairs)
  expected = np.argsort(-logits.reshape(5, -1), axis=1, kind="stable")[:, :num_pairs]
  np.testing.assert_array_equal(found[1], expected // 3)
  np.testing.assert_array_equal(found[2], expected % 3 + 1)
  np.testing.assert_array_equal(
    found[0], np.take_along_axis(logits.reshape(5, -1), expected, axis=1)
  )


def test_hand_case_of_suppression():
  # Box 2 has IoU 90 / 110 with box 1, of higher score, and goes; box 3 has 50 / 150
  # with both and stays.
  found = detect_boxes(
    [[0, 0, 10, 10], [0, 1, 10, 11], [0, 5, 10, 15]], [[2.0], [1.0], [0.0]]
  )
  assert found.num_detections.tolist() == [2]
  np.testing.assert_allclose(found.scores[0, :2], [0.880797, 0.5], rtol=1e-5)
  assert found.boxes[0, :2].tolist() == [[0, 0, 10, 10], [0, 5, 10, 15]]


def test_an_overlap_of_exactly_the_threshold_stays():
  boxes = [[0, 0, 10, 10], [0, 0, 5, 10]]
  assert detect_boxes(boxes, [[2.0], [1.0]]).num_detections[0] == 2
  assert detect_boxes(boxes, [[2.0], [1.0]], nms_iou=0.49).num_detections[0] == 1


def test_scores_must_exceed_the_threshold():
  # sigmoid(0) = 0.5 exactly
  boxes = [[0, 0, 10, 10], [50, 50, 60, 60]]
  found = detect_boxes(boxes, [[0.0], [0.001]], score_threshold=0.5)
  assert found.boxes[0, : found.num_detections[0]].tolist() == [boxes[1]]


@pytest.mark.parametrize("max_detections", [2, 20])
def test_thresholds_of_classes_come_before_the_cut(max_detections):
  """What is left of the oracle's uncut detections, whatever their number."""
  logits, offsets, anchors = random_case(5)
  thresholds = np.array([[0.9, 0.5, 0.99], [0.3, 0.95, 0.4]], np.float32)
  found = detect(
    *(logits, offsets, anchors, [[100, 80], [60, 120]]),
    class_thresholds=tf.constant(thresholds),
    max_detections=max_detections,
  )
  for image, content_size in enumerate([(100, 80), (60, 120)]):
    everything = oracle.detect_image(
      *(logits[image].tolist(), offsets[image].tolist(), anchors.tolist()),
      content_size=content_size,
      **{**OPTIONS, "max_detections": 1000},
    )
    expected = [
      entry for entry in everything if entry[0] >= thresholds[image, entry[1] - 1]
    ]
    assert 2 < len(expected) < len(everything)
    expected = expected[:max_detections]
    assert found.num_detections[image] == len(expected)
    scores, classes, boxes = zip(*expected)
    np.testing.assert_allclose(found.scores[image, : len(expected)], scores, atol=1e-5)
    np.testing.assert_array_equal(found.classes[image, : len(expected)], classes)
    np.testing.assert_allclose(found.boxes[image, : len(expected)], boxes, atol=1e-3)


def test_scores_must_reach_the_threshold_of_the_class():
  boxes = [[0, 0, 10, 10], [50, 50, 60, 60]]
  found = detect_boxes(boxes, [[0.0], [-0.001]], class_thresholds=tf.constant([[0.5]]))
  assert found.boxes[0, : found.num_detections[0]].tolist() == [boxes[0]]


def test_classes_never_suppress_each_other():
  # One box, K classes: every class keeps it, however large its number.
  num_classes = 80
  logits = np.linspace(3, -3, num_classes)
  found = detect_boxes(
    [[0, 0, 90, 90]], [logits], **{"max_detections": 100, "candidates_per_level": 100}
  )
  assert found.num_detections.tolist() == [num_classes]
  assert found.classes[0, :num_classes].tolist() == list(range(1, num_classes + 1))


@pytest.mark.parametrize("class_number", [1, 9, 10, 37, 80])
def test_the_number_of_the_class_makes_no_difference(class_number):
  # 64 pairs of boxes of 8 px all over a picture as large as they come; a shift by d
  # gives IoU (8 - d) / (8 + d). Half of the pairs lie just above 0.5, half just below.
  rng = np.random.default_rng(0)
  y, x = np.mgrid[0:8, 0:8].reshape(2, -1) * 103.0 + rng.uniform(0, 80, (2, 64))
  iou = np.where(np.arange(64) % 2 == 0, 0.5005, 0.4995)
  shift = 8 * (1 - iou) / (1 + iou)
  first = np.stack([y, x, y + 8, x + 8], -1)
  second = first + np.stack([0 * shift, shift] * 2, -1)
  anchors = np.concatenate([first, second]).astype(np.float32)
  logits = np.full((1, 128, 80), -20, np.float32)
  logits[0, :64, class_number - 1] = np.linspace(3, 2, 64)
  logits[0, 64:, class_number - 1] = np.linspace(1, 0, 64)
  found = detect(
    logits,
    np.zeros((1, 128, 4), np.float32),
    anchors,
    [[833, 833]],
    level_sizes=(128,),
    candidates_per_level=128,
    max_detections=128,
  )
  stays = np.concatenate([np.ones(64, bool), iou < 0.5])
  assert found.num_detections.tolist() == [96]
  np.testing.assert_allclose(found.boxes[0, :96], anchors[stays], atol=1e-3)
  assert (found.classes[0, :96] == class_number).all()


def test_a_box_outside_the_picture_vanishes():
  boxes = [[-30, 0, -10, 20], [0, 120, 20, 140], [90, 90, 130, 130], [0, 100, 9, 109]]
  found = detect_boxes(boxes, [[3.0], [2.0], [1.0], [0.0]], score_threshold=0.0)
  assert found.num_detections.tolist() == [1]
  assert found.boxes[0, 0].tolist() == [90, 90, 100, 100]


def test_no_candidate_gives_padding_only():
  found = detect_boxes([[0, 0, 10, 10]], [[-9.0]])
  assert found.num_detections.tolist() == [0]
  assert not found.boxes.any() and not found.scores.any() and not found.classes.any()


def test_boxes_that_are_no_numbers_harm_nothing_else():
  logits, offsets, anchors = random_case(0)
  content_size = [[100, 80], [60, 120]]
  expected = detect(
    logits[:, 1:],
    offsets[:, 1:],
    anchors[1:],
    content_size,
    level_sizes=(39, 16, 4),
    candidates_per_level=1000,
  )
  for rubbish in (np.nan, np.inf, -np.inf):
    offsets[:, 0] = rubbish
    found = detect(logits, offsets, anchors, content_size, candidates_per_level=1000)
    for a, b in zip(found, expected):
      np.testing.assert_array_equal(a, b)


def test_eager_equals_graph():
  logits, offsets, anchors = random_case(2)
  graph = tf.function(
    lambda a, b: detections.detect(
      Outputs(a, b), anchors, content_size=tf.constant([[100.0, 80.0]] * 2), **OPTIONS
    )
  )
  eager = detect(logits, offsets, anchors, [[100, 80]] * 2)
  for a, b in zip(graph(logits, offsets), eager):
    np.testing.assert_allclose(a, b, atol=1e-3)
