"""AP-loss against the float64 loops of the oracle, hand cases and properties."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st
from oracles import ap_loss as oracle

from ap_detect import losses
from ap_detect.losses.ranking import engine, tables

# Every case holds for both forms of the engine.
pytestmark = pytest.mark.usefixtures("form")

# One shape for most cases, so that XLA compiles once; rows beyond a case are ignored.
ROWS, CLASSES = 24, 3


def padded(logits, labels):
  logits, labels = np.asarray(logits, np.float32), np.asarray(labels, np.int32)
  rows, classes = logits.shape
  result = np.zeros([ROWS, CLASSES], np.float32)
  result[:rows, :classes] = logits
  # A class that a case lacks counts as far below everything.
  result[:rows, classes:] = -np.float32(3e38)
  targets = np.full([ROWS], losses.IGNORED, np.int32)
  targets[:rows] = labels
  return result, targets


def run(logits, labels, **options):
  value, gradient = losses.ap_loss_and_gradient(
    tf.constant(logits), tf.constant(labels, tf.int32), **options
  )
  return value.numpy(), gradient.numpy()


def taped(logits, labels, weight=1.0, **options):
  logits = tf.constant(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = weight * losses.ap_loss(logits, tf.constant(labels, tf.int32), **options)
  return loss.numpy(), tape.gradient(loss, logits).numpy()


def tolerance(logits, delta):
  """What the rounding of float32 differences forces on top of 1e-6."""
  largest = min(np.abs(logits).max(initial=0.0), 1e3)
  return min(1e-6 + 2.0**-22 * largest / delta, 1e-3)


def assert_as_oracle(logits, labels, delta, interpolated, **options):
  expected = oracle.ap_loss(logits, labels, delta, interpolated)
  value, gradient = run(
    logits, labels, delta=delta, interpolated=interpolated, **options
  )
  assert_close(value, gradient, expected, tolerance(logits, delta))


def assert_close(value, gradient, expected, error):
  assert value.dtype == np.float32 and value.shape == ()
  assert abs(value - expected[0]) <= error
  largest = np.abs(expected[1]).max(initial=0.0)
  assert np.abs(gradient - expected[1]).max(initial=0.0) <= error * largest


@st.composite
def cases(draw):
  seed = draw(st.integers(0, 2**32 - 1))
  random = np.random.default_rng(seed)
  rows = draw(st.integers(1, ROWS))
  scale = 10.0 ** draw(st.floats(-3, 3))
  logits = random.normal(size=[rows, CLASSES])
  if draw(st.booleans()):  # ties
    logits = np.round(logits * draw(st.sampled_from([1, 3])))
  logits = (logits * scale).astype(np.float32)
  share = draw(st.sampled_from([0.1, 0.5, 1.0]))
  labels = random.integers(1, CLASSES + 1, rows)
  labels[random.random(rows) >= share] = losses.BACKGROUND
  labels[random.random(rows) < 0.2] = losses.IGNORED
  full_logits = np.zeros([ROWS, CLASSES], np.float32)
  full_labels = np.full([ROWS], losses.IGNORED, np.int32)
  full_logits[:rows], full_labels[:rows] = logits, labels
  return full_logits, full_labels


deltas = st.floats(-3, 1).map(lambda power: 10.0**power)


class TestOracle:
  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(cases(), deltas, st.booleans())
  def test_value_and_gradient(self, case, delta, interpolated):
    assert_as_oracle(*case, delta, interpolated)

  @pytest.mark.parametrize("interpolated", [True, False])
  def test_weights(self, interpolated):
    random = np.random.default_rng(9)
    logits = random.normal(size=[ROWS, CLASSES]).astype(np.float32)
    labels = random.integers(-1, CLASSES + 1, ROWS)
    weights = random.random(ROWS).astype(np.float32)
    class_weights = np.float32([0.5, 3.0, 1.0])
    expected = oracle.ap_loss(
      logits, labels, 1.0, interpolated, weights[:, None] * class_weights
    )
    options = {"weights": weights, "class_weights": class_weights}
    found = run(logits, labels, interpolated=interpolated, **options)
    assert_close(*found, expected, 1e-6)

  @pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (40, 2)])
  def test_shapes_op_by_op(self, shape):
    random = np.random.default_rng(sum(shape))
    logits = random.normal(size=shape).astype(np.float32)
    labels = random.integers(-1, shape[1] + 1, shape[0])
    assert_as_oracle(logits, labels, 0.5, True, jit_compile=False)

  @pytest.mark.parametrize("rows_in_chunk", [1, 7, 23, 24])
  def test_chunks_that_do_not_divide_the_rows(self, rows_in_chunk, monkeypatch):
    monkeypatch.setattr(tables, "_CHUNK", rows_in_chunk * CLASSES)
    random = np.random.default_rng(rows_in_chunk)
    logits = random.normal(size=[ROWS, CLASSES]).astype(np.float32)
    labels = random.integers(-1, CLASSES + 1, ROWS)
    assert_as_oracle(logits, labels, 0.5, True, jit_compile=False)

  @pytest.mark.parametrize("positives", [3, 4, 5, 9, 20])
  def test_every_capacity(self, positives, monkeypatch):
    monkeypatch.setattr(engine, "_CAPACITIES", (4, 8))
    random = np.random.default_rng(positives)
    logits = random.normal(size=[ROWS, CLASSES]).astype(np.float32)
    labels = np.zeros([ROWS], np.int32)
    labels[:positives] = random.integers(1, CLASSES + 1, positives)
    assert_as_oracle(logits, labels, 0.5, True, jit_compile=False)

  @pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-3])
  def test_crowded_knots(self, spread):
    # All knots in a few cells of the grid, with one positive far away.
    random = np.random.default_rng(0)
    logits = random.normal(size=[ROWS, CLASSES]).astype(np.float32)
    labels = np.ones([ROWS], np.int32)
    logits[:, 0] = 1 + spread * random.normal(size=ROWS)
    logits[0, 0] = 500.0
    logits[:, 1] = logits[:, 0] - 1.0  # negatives at the very knots
    assert_as_oracle(logits, labels, 1.0, True)

  @pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2])
  def test_many_equal_negatives_just_inside_a_window(self, gap):
    # The rounding of a knot, times the number of negatives, must not show.
    logits = np.zeros([2001, 1], np.float32)
    logits[0] = np.float32(1.0) - np.float32(gap)
    labels = np.zeros([2001], np.int32)
    labels[0] = 1
    assert_as_oracle(logits, labels, 1.0, True)

  @pytest.mark.parametrize("positives", [1000, 3000])
  def test_large_by_sorting(self, positives):
    random = np.random.default_rng(1)
    logits = random.normal(-6, 1, [4000, 20]).astype(np.float32)
    labels = np.zeros([4000], np.int32)
    labels[:positives] = random.integers(1, 21, positives)
    logits[np.arange(positives), labels[:positives] - 1] = random.normal(
      0, 2, positives
    )
    expected = oracle.ap_loss_of_large(logits, labels)
    assert_close(*run(logits, labels), expected, tolerance(logits, 1.0))

  def test_oracles_agree(self):
    random = np.random.default_rng(2)
    logits = random.normal(size=[30, 3])
    labels = random.integers(-1, 4, 30)
    for interpolated in (True, False):
      slow = oracle.ap_loss(logits, labels, 0.5, interpolated)
      fast = oracle.ap_loss_of_large(logits, labels, 0.5, interpolated)
      np.testing.assert_allclose(fast[0], slow[0], atol=1e-14)
      np.testing.assert_allclose(fast[1], slow[1], atol=1e-14)


class TestByHand:
  def test_figure_1b_of_the_paper(self):
    # Positives 0.81 (2nd of 16) and 0.05 (12th): AP = (1/2 + 2/12) / 2 = 1/3.
    scores = (
      "0.12 0.13 0.09 0.15 0.05 0.86 0.07 0.04 0.02 0.81 0.14 0.03 0.08 0.01 0.06"
    )
    scores = np.array([float(x) for x in (scores + " 0.10").split()], np.float32)
    labels = np.isin(scores, np.float32([0.81, 0.05])).astype(np.int32)
    value, gradient = run(scores[:, None], labels, delta=1e-5, jit_compile=False)
    assert value == pytest.approx(1 - 1 / 3, abs=1e-6)
    # Shares of the loss: 1/2 and 10/12, over 2 positives.
    assert gradient[9, 0] == pytest.approx(-0.5 / 2, abs=1e-6)
    assert gradient[4, 0] == pytest.approx(-10 / 12 / 2, abs=1e-6)

  def test_window(self):
    # f(0.5) = 0.75 at delta 1, so L = 0.75 / (1 + 0.75) = 3/7.
    value, gradient = run(*padded([[0.0], [0.5]], [1, 0]))
    assert value == pytest.approx(3 / 7, abs=1e-7)
    np.testing.assert_allclose(gradient[:2, 0], [-3 / 7, 3 / 7], rtol=1e-6)

  def test_interpolation(self):
    # delta -> 0. Positives at 0 and 2, negatives at 3, 3 and -1: the upper one has
    # rank 3 (precision 1/3), the lower one rank 4 with 2 positives (1/2), which the
    # upper one takes over: loss 1/2 and L = 1/2 for both, shared by two negatives.
    logits, labels = padded([[0.0], [2.0], [3.0], [3.0], [-1.0]], [1, 1, 0, 0, 0])
    value, gradient = run(logits, labels, delta=1e-3)
    assert value == pytest.approx(0.5, abs=1e-7)
    np.testing.assert_allclose(
      gradient[:5, 0], [-0.25, -0.25, 0.25, 0.25, 0], atol=1e-7
    )
    value, gradient = run(logits, labels, delta=1e-3, interpolated=False)
    assert value == pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-7)
    np.testing.assert_allclose(gradient[:2, 0], [-1 / 4, -1 / 3], rtol=1e-6)


class TestProperties:
  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(cases(), deltas)
  def test_sums_signs_and_order(self, case, delta):
    logits, labels = case
    value, gradient = run(logits, labels, delta=delta)
    plain, _ = run(logits, labels, delta=delta, interpolated=False)
    assert 0 <= value <= plain + 1e-7 <= 1 + 1e-6
    assert abs(gradient.sum(dtype=np.float64)) <= 1e-6
    own = labels[:, None] == np.arange(1, CLASSES + 1)
    assert np.all(gradient[own] <= 0)
    assert np.all(gradient[~own] >= 0)
    assert np.all(gradient[labels == losses.IGNORED] == 0)
    # Interpolated precision never falls with the score, so neither does -gradient.
    ascending = gradient[own][np.argsort(logits[own], kind="stable")]
    assert np.all(np.diff(ascending) >= 0)
    # A higher negative is never pushed down less.
    negative = ~own & (labels != losses.IGNORED)[:, None]
    ascending = gradient[negative][np.argsort(logits[negative], kind="stable")]
    assert np.all(np.diff(ascending) >= -1e-7 * np.abs(gradient).max())

  @pytest.mark.parametrize("delta", [0.25, 1.0, 4.0])
  def test_perfect_by_delta_is_exactly_zero(self, delta):
    logits, labels = padded([[2 * delta], [1 * delta], [0.0], [-7.0]], [1, 1, 0, 0])
    value, gradient = run(logits, labels, delta=delta)
    assert value == 0 and not gradient.any()
    logits[1, 0] -= 0.01 * delta
    assert run(logits, labels, delta=delta)[0] > 0

  def test_proposition_1_linear_scorer_reaches_zero_loss(self):
    random = np.random.default_rng(0)
    points = random.normal(size=[60, 2]).astype(np.float32)
    margin = points @ np.float32([1.0, -0.5])
    points, margin = points[np.abs(margin) > 0.1], margin[np.abs(margin) > 0.1]
    labels = tf.constant((margin > 0).astype(np.int32))
    weights = tf.Variable([[0.0], [0.0]])
    # The proposition is about the step H. The wide step f approaches zero loss in ever
    # smaller updates once all violations lie inside its window.
    for _ in range(500):
      with tf.GradientTape() as tape:
        loss = losses.ap_loss(tf.constant(points) @ weights, labels, delta=1e-4)
      if loss == 0:
        break
      weights.assign_sub(tape.gradient(loss, weights))
    assert loss == 0

  def test_observation_1_softmax_gives_cross_entropy(self):
    scores = tf.constant([[0.3, -1.0, 2.0]])
    with tf.GradientTape() as tape:
      tape.watch(scores)
      loss = tf.nn.sparse_softmax_cross_entropy_with_logits([1], scores)
    update = oracle.error_driven_update(tf.nn.softmax(scores)[0].numpy(), [0, 1, 0])
    np.testing.assert_allclose(update, tape.gradient(loss, scores)[0], atol=1e-6)

  def test_observation_1_loss_augmented_step_gives_hinge(self):
    # L_ij = H(x_ij + 1): the AUC-loss of positives lowered by 1, without its 1/(P N).
    random = np.random.default_rng(3)
    scores = random.normal(size=[20, 1]).astype(np.float32)
    labels = (np.arange(20) < 6).astype(np.int32)
    with tf.GradientTape() as tape:
      variable = tf.Variable(scores[:, 0])
      difference = variable[:6, None] - variable[None, 6:]
      loss = tf.reduce_sum(tf.maximum(0.0, 1.0 - difference))
    expected = tape.gradient(loss, variable).numpy()
    _, update = losses.auc_loss_and_gradient(
      scores - labels[:, None], labels, delta=1e-5, jit_compile=False
    )
    np.testing.assert_allclose(update[:, 0] * 6 * 14, expected, atol=1e-4)


class TestEdges:
  def test_no_negatives(self):
    logits = np.float32([[1.0], [2.0]])
    value, gradient = run(logits, [1, 1], jit_compile=False)
    assert value == 0 and not gradient.any()

  def test_all_scores_equal(self):
    logits = np.full([ROWS, CLASSES], 0.7, np.float32)
    labels = np.arange(ROWS) % (CLASSES + 1)
    assert_as_oracle(logits, labels, 1.0, True)

  @pytest.mark.parametrize("outlier", [1e30, -1e30])
  @pytest.mark.parametrize("is_positive", [True, False])
  def test_outlier_leaves_the_others_exact(self, outlier, is_positive):
    random = np.random.default_rng(4)
    logits = random.normal(size=[ROWS, CLASSES]).astype(np.float32)
    labels = random.integers(0, CLASSES + 1, ROWS)
    labels[0] = 1
    logits[0, 0 if is_positive else 1] = outlier
    expected = oracle.ap_loss(logits, labels)
    assert_close(*run(logits, labels), expected, 1e-6)

  @pytest.mark.parametrize("outlier", [1e30, -1e30])
  def test_equal_outliers(self, outlier):
    # Where delta is nothing beside the scores, ties still count one half.
    logits, labels = padded(np.zeros([5, CLASSES]), [1, 1, 0, 0, 2])
    logits[:4] = outlier
    assert_close(*run(logits, labels), oracle.ap_loss(logits, labels), 1e-6)

  @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
  @pytest.mark.parametrize("column", [0, 1])  # a positive, a negative
  @pytest.mark.parametrize("jit_compile", [True, False])
  def test_not_finite_is_nan(self, bad, column, jit_compile):
    logits, labels = padded(np.zeros([4, CLASSES]), [1, 0, 2, -1])
    logits[0, column] = bad
    value, gradient = taped(logits, labels, jit_compile=jit_compile)
    assert np.isnan(value)
    assert np.isnan(gradient[:3]).all()
    assert not gradient[3:].any()

  @pytest.mark.parametrize("label", [-2, CLASSES + 1])
  def test_label_out_of_range(self, label):
    logits, labels = padded([[1.0], [2.0]], [label, 0])
    with pytest.raises(ValueError, match=r"labels must lie in \[-1, 3\]"):
      losses.ap_loss(logits, labels)
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels must lie in"):
      losses.ap_loss(logits, tf.constant(labels))
    traced = tf.function(losses.ap_loss)
    assert np.isnan(traced(tf.constant(logits), tf.constant(labels)))

  @pytest.mark.parametrize("delta", [0.0, -1.0, np.nan, np.inf])
  def test_delta(self, delta):
    with pytest.raises(ValueError, match="delta must be positive"):
      losses.ap_loss(np.zeros([2, 1], np.float32), [0, 1], delta=delta)

  @pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
      (np.zeros([2, 3], np.float32), [0, 1, 2], "labels must have shape"),
      (np.zeros([2, 3], np.float32), [[0, 1]], "labels must have shape"),
      (np.zeros([], np.float32), [], "logits must have shape"),
      (np.zeros([2, 3], np.int32), [0, 1], "logits must be floating"),
      (np.zeros([2, 3], np.float32), [0.0, 1.0], "labels must be integer"),
    ],
  )
  def test_shapes_and_types(self, logits, labels, message):
    with pytest.raises(ValueError, match=message):
      losses.ap_loss(logits, np.asarray(labels, np.array(labels or 0).dtype))


class TestUse:
  def case(self):
    random = np.random.default_rng(6)
    logits = random.normal(size=[ROWS, CLASSES]).astype(np.float32)
    return logits, random.integers(-1, CLASSES + 1, ROWS)

  def test_no_gradient_unless_asked_for(self, monkeypatch, form):
    if form == "gpu":
      pytest.skip("the form for GPUs computes it with the value")

    def fail(*arguments):
      raise AssertionError("a gradient was computed")

    monkeypatch.setattr(engine.OnCPU, "gradient", fail)
    logits, labels = self.case()
    assert losses.ap_loss(logits, labels, jit_compile=False) > 0
    tf.function(lambda x: losses.ap_loss(x, labels, jit_compile=False))(logits)
    with pytest.raises(AssertionError, match="was computed"):
      taped(logits, labels, jit_compile=False)


class TestGroups:
  @pytest.mark.parametrize(
    ("images", "jit_compile"), [(1, False), (2, False), (4, False), (2, True)]
  )
  def test_mean_of_groups(self, images, jit_compile):
    random = np.random.default_rng(7)
    logits = random.normal(size=[4, 6, CLASSES]).astype(np.float32)
    labels = random.integers(-1, CLASSES + 1, [4, 6])
    labels[0] = losses.BACKGROUND  # a group without positives counts 0
    groups = 4 // images
    value, gradient = taped(
      logits, labels, images_per_ranking=images, jit_compile=jit_compile
    )
    parts = [
      oracle.ap_loss(x.reshape(-1, CLASSES), y.ravel())
      for x, y in zip(np.split(logits, groups), np.split(labels, groups))
    ]
    assert value == pytest.approx(np.mean([part[0] for part in parts]), abs=1e-6)
    expected = np.concatenate([part[1] for part in parts]) / groups
    np.testing.assert_allclose(gradient.reshape(-1, CLASSES), expected, atol=1e-6)

  def test_does_not_divide(self):
    with pytest.raises(ValueError, match="images_per_ranking must divide"):
      losses.ap_loss(
        np.zeros([4, 6, 3], np.float32), np.zeros([4, 6], int), images_per_ranking=3
      )


@pytest.mark.slow
@pytest.mark.parametrize("interpolated", [True, False])
@pytest.mark.parametrize("delta", [1e-3, 0.25, 1.0, 10.0])
@pytest.mark.parametrize("regime", ["early", "late", "spread", "clustered", "ties"])
def test_a_million_logits_by_sorting(regime, delta, interpolated):
  random = np.random.default_rng(3)
  shape, positives = [50_000, 20], 5000
  labels = np.zeros(shape[0], np.int32)
  labels[:positives] = random.integers(1, 21, positives)
  labels[-1000:] = losses.IGNORED
  own = np.arange(positives), labels[:positives] - 1
  logits = {
    "early": 0.05 * random.random(shape),
    "late": random.normal(-6, 1, shape),
    "spread": random.uniform(-3, 3, shape),
    "clustered": random.uniform(-3, 3, shape),
    "ties": np.round(random.normal(0, 2, shape)),
  }[regime].astype(np.float32)
  if regime == "late":
    logits[own] = random.normal(0, 2, positives)
  if regime == "clustered":
    logits[own] = 1e-3 * random.random(positives)
  expected = oracle.ap_loss_of_large(logits, labels, delta, interpolated)
  value, gradient = run(logits, labels, delta=delta, interpolated=interpolated)
  assert_close(value, gradient, expected, tolerance(logits, delta))


@pytest.mark.slow
class TestLarge:
  ROWS, CLASSES = 261_888, 80

  def test_equal_scores_count_exactly(self):
    # 2^24 is passed by far: b = (R K - 1) / 2, a = 1.
    labels = np.zeros([self.ROWS], np.int32)
    labels[5] = 80
    value, gradient = run(np.full([self.ROWS, self.CLASSES], 0.3, np.float32), labels)
    negatives = self.ROWS * self.CLASSES - 1
    weight = 1 / (1 + negatives / 2)
    assert value == np.float32(weight * negatives / 2)
    np.testing.assert_allclose(gradient[5, 79], -value, rtol=1e-7)
    np.testing.assert_allclose(gradient[0, 0], weight / 2, rtol=1e-6)

  @pytest.mark.parametrize("positives", [1000, 10_000, 40_000])
  @pytest.mark.parametrize("late", [True, False])
  def test_as_float64(self, positives, late):
    random = np.random.default_rng(8)
    shape = [self.ROWS, self.CLASSES]
    logits = random.random(shape, np.float32) * np.float32(0.05)
    if late:
      logits = random.standard_normal(shape, np.float32) - 6
    labels = np.zeros([self.ROWS], np.int32)
    chosen = random.permutation(self.ROWS)[:positives]
    labels[chosen] = random.integers(1, self.CLASSES + 1, positives)
    if late:
      logits[chosen, labels[chosen] - 1] = random.normal(0, 2, positives)
    expected = oracle.ap_loss_of_large(logits, labels)
    assert_close(*run(logits, labels), expected, 1e-6)
