"""What every classification loss holds to; a new one in CLASSIFICATION_LOSSES joins."""

import functools
import inspect

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as framework_config

from ap_detect import losses

ROWS, CLASSES = 24, 3
PARAMETERS = {
  name: inspect.signature(loss).parameters
  for name, loss in losses.CLASSIFICATION_LOSSES.items()
}
FORMS = {
  name: ["cpu", "gpu"] if "form" in parameters else [None]
  for name, parameters in PARAMETERS.items()
}
CASES = [(name, form) for name, forms in FORMS.items() for form in forms]
RANKING = [(name, form) for name, form in CASES if form]
# Those in which the images of a batch do not count together.
PER_IMAGE = ["ohem_cross_entropy_loss"]
of_all = pytest.mark.parametrize(("name", "form"), CASES)
of_ranking = pytest.mark.parametrize(("name", "form"), RANKING)


class Case:
  """Logits, labels and what else losses take, of one mini-batch."""

  def __init__(self, seed=0):
    random = np.random.default_rng(seed)
    self.logits = np.round(random.normal(size=[ROWS, CLASSES]) * 8) / 8
    self.logits = self.logits.astype(np.float32)
    self.labels = random.integers(-1, CLASSES + 1, ROWS).astype(np.int32)
    self.qualities = np.round(random.random(ROWS) * 64).astype(np.float32) / 64


def call(name, form, logits, labels, qualities, **options):
  """The loss, with the arguments that it takes."""
  if form:
    options["form"] = form
  if "jit_compile" in PARAMETERS[name]:
    options.setdefault("jit_compile", False)
  if "qualities" in PARAMETERS[name]:
    options["qualities"] = qualities
  return losses.CLASSIFICATION_LOSSES[name](logits, labels, **options)


def value_and_gradient(name, form, logits, labels, qualities, factor=1.0, **options):
  logits = tf.convert_to_tensor(logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    loss = call(name, form, logits, labels, qualities, **options)
    value = factor * loss
  return value, tape.gradient(value, logits)


def run(name, form, case, **options):
  value, gradient = value_and_gradient(
    name, form, case.logits, case.labels, case.qualities, **options
  )
  return value.numpy(), gradient.numpy()


def assert_equal(found, expected, tolerance=1e-6):
  np.testing.assert_allclose(found[0], expected[0], atol=tolerance)
  np.testing.assert_allclose(found[1], expected[1], atol=tolerance)


@of_all
def test_there_is_something_to_learn(name, form):
  value, gradient = run(name, form, Case())
  assert value > 0 and np.abs(gradient).max() > 1e-3
  assert value.dtype == np.float32 and value.shape == ()


@of_all
def test_permutation(name, form):
  case = Case()
  value, gradient = run(name, form, case)
  order = np.random.default_rng(1).permutation(ROWS)
  for field in ("logits", "labels", "qualities"):
    setattr(case, field, getattr(case, field)[order])
  assert_equal(run(name, form, case), (value, gradient[order]))


@of_all
def test_upstream_gradient(name, form):
  value, gradient = run(name, form, Case())
  assert_equal(run(name, form, Case(), factor=-3.0), (-3 * value, -3 * gradient), 1e-5)


@of_all
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_ignored_anchors_have_no_influence(name, form, bad):
  case = Case()
  is_ignored = case.labels == losses.IGNORED
  assert is_ignored.any()
  expected = run(name, form, case)
  case.logits[is_ignored], case.qualities[is_ignored] = bad, np.nan
  value, gradient = run(name, form, case)
  assert value == expected[0]
  np.testing.assert_array_equal(gradient, expected[1])
  assert not gradient[is_ignored].any()


@of_all
@pytest.mark.parametrize("column", [0, 1])  # of the anchor's own class, and of another
def test_what_is_not_finite_is_seen(name, form, column):
  case = Case()
  case.labels[0], case.logits[0, column] = 1, np.nan
  value, gradient = run(name, form, case)
  assert np.isnan(value)
  assert np.isnan(gradient).any()


@of_all
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_half_precision(name, form, dtype):
  case = Case()
  case.logits = tf.cast(case.logits, dtype)
  value, gradient = value_and_gradient(
    name, form, case.logits, case.labels, case.qualities
  )
  assert value.dtype == tf.float32 and gradient.dtype == dtype
  case.logits = tf.cast(case.logits, tf.float32)
  expected = run(name, form, case)
  assert value == expected[0]
  np.testing.assert_array_equal(gradient, tf.cast(expected[1], dtype))


@of_all
@pytest.mark.parametrize("label", [losses.BACKGROUND, losses.IGNORED])
def test_without_positives(name, form, label):
  case = Case()
  case.labels[:] = label
  value, gradient = run(name, form, case)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  if form or label == losses.IGNORED:
    assert value == 0 and not gradient.any()


@of_all
@pytest.mark.parametrize(
  ("shape", "jit_compile"), [((0, 3), False), ((0, 3), True), ((2, 0, 3), True)]
)
def test_empty(name, form, shape, jit_compile):
  function = tf.function(
    lambda *arguments: value_and_gradient(name, form, *arguments),
    autograph=False,
    jit_compile=jit_compile,
  )
  anchors = shape[:-1]
  value, gradient = function(
    tf.zeros(shape), tf.zeros(anchors, tf.int32), tf.zeros(anchors)
  )
  assert value == 0 and gradient.shape == shape


@of_all
def test_leading_dimensions(name, form):
  case = Case()
  value, gradient = run(name, form, case)
  shape = (1, 6, 4) if name in PER_IMAGE else (2, 3, 4)
  case.logits = case.logits.reshape(*shape, CLASSES)
  case.labels, case.qualities = (
    x.reshape(shape) for x in (case.labels, case.qualities)
  )
  assert_equal(run(name, form, case), (value, gradient.reshape(*shape, CLASSES)))


@of_all
def test_eager_graph_and_xla_agree(name, form):
  case = Case()
  expected = run(name, form, case)

  def step(*arguments):
    return value_and_gradient(name, form, *arguments)

  arguments = [tf.constant(x) for x in (case.logits, case.labels, case.qualities)]
  dynamic = [
    tf.TensorSpec([None, CLASSES]),
    tf.TensorSpec([None], tf.int32),
    tf.TensorSpec([None]),
  ]
  functions = [
    tf.function(step, autograph=False),
    tf.function(step, autograph=False, jit_compile=True),
  ]
  if (name, form) == ("ap_loss", "cpu") or not form:  # takes seconds to trace
    functions.append(tf.function(step, autograph=False, input_signature=dynamic))
  for function in functions:
    assert_equal(function(*arguments), expected, 1e-7 if form else 1e-6)


@of_all
@pytest.mark.parametrize("deterministic", [False, True])
def test_same_bits_twice(name, form, deterministic):
  if deterministic:
    framework_config.enable_op_determinism()
  try:
    runs = [run(name, form, Case()) for _ in range(2)]
  finally:
    framework_config.disable_op_determinism()
  for first, second in zip(*runs):
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("name", [name for name in FORMS if FORMS[name] != [None]])
def test_both_forms_agree(name):
  for seed in range(3):
    assert_equal(run(name, "cpu", Case(seed)), run(name, "gpu", Case(seed)), 1e-7)


@of_ranking
def test_shift(name, form):
  case = Case()
  expected = run(name, form, case)
  case.logits += 4.0
  assert_equal(run(name, form, case), expected)


@of_ranking
def test_updates_sum_to_zero(name, form):
  _, gradient = run(name, form, Case())
  assert abs(gradient.sum(dtype=np.float64)) < 1e-6


@functools.lru_cache
def of_weights(name, form):
  """A function of weights alone, traced once; anchor 2 is positive."""
  case = Case()
  case.labels[2] = 1

  def traced(weights):
    return value_and_gradient(
      name, form, case.logits, case.labels, case.qualities, weights=weights
    )

  return tf.function(traced, autograph=False)


class TestWeights:
  @of_ranking
  def test_of_1_are_none(self, name, form):
    expected = run(name, form, Case())
    for options in ({"weights": np.ones(ROWS)}, {"class_weights": (1.0,) * CLASSES}):
      assert_equal(run(name, form, Case(), **options), expected, 1e-7)

  @of_ranking
  def test_a_common_factor_changes_nothing(self, name, form):
    # So does KerasHub weigh its anchors: by 1 / positives, background too.
    weights = np.full([ROWS], 1 / 7, np.float32)
    expected = run(name, form, Case())
    assert_equal(run(name, form, Case(), weights=weights), expected)

  @of_ranking
  def test_of_0_ignore(self, name, form):
    case, weights = Case(), np.ones(ROWS, np.float32)
    case.labels[:4] = [1, 0, 2, 0]
    weights[:4] = 0.0
    found = run(name, form, case, weights=weights)
    case.labels[:4] = losses.IGNORED
    assert_equal(found, run(name, form, case), 1e-7)

  @of_ranking
  def test_of_background_do_not_matter(self, name, form):
    case, weights = Case(), np.ones(ROWS, np.float32)
    expected = run(name, form, case)
    weights[case.labels == losses.BACKGROUND] = 17.0
    assert_equal(run(name, form, case, weights=weights), expected, 1e-7)

  @of_ranking
  def test_of_classes_are_those_of_their_positives(self, name, form):
    case, class_weights = Case(), np.float32([0.5, 2.0, 1.0])
    own = class_weights[np.clip(case.labels - 1, 0, None)]
    weights = np.where(case.labels > 0, own, 1.0)
    expected = run(name, form, case, weights=weights)
    found = run(name, form, case, class_weights=class_weights)
    assert_equal(found, expected, 1e-7)

  @of_ranking
  def test_class_weight_0_leaves_the_ranks(self, name, form):
    # L = sum w_i e_i / sum w_i: with all classes but one at 0, that class's errors.
    case = Case()
    total, parts = run(name, form, case)[0], 0.0
    for k in range(CLASSES):
      class_weights = np.eye(CLASSES, dtype=np.float32)[k]
      share = (case.labels == k + 1).sum() / (case.labels > 0).sum()
      parts += share * run(name, form, case, class_weights=class_weights)[0]
    assert total == pytest.approx(parts, abs=1e-6)

  @of_ranking
  @pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
  def test_bad(self, name, form, bad):
    weights = np.ones(ROWS, np.float32)
    weights[2] = bad
    with pytest.raises(ValueError, match="weights must be finite and not negative"):
      run(name, form, Case(), weights=weights)
    with pytest.raises(tf.errors.InvalidArgumentError, match="class_weights must"):
      run(name, form, Case(), class_weights=tf.constant([1.0, 1.0, bad]))
    value, gradient = of_weights(name, form)(tf.constant(weights))
    assert np.isnan(value) and np.isnan(gradient).any()

  @of_ranking
  def test_shapes(self, name, form):
    with pytest.raises(ValueError, match=r"weights must have shape \(24,\)"):
      run(name, form, Case(), weights=np.ones(3))
    with pytest.raises(ValueError, match=r"class_weights must have shape \(3,\)"):
      run(name, form, Case(), class_weights=np.ones(2))


@of_ranking
def test_an_unknown_form_or_option_is_refused(name, form):
  with pytest.raises(ValueError, match="form must be one of"):
    run(name, "tpu", Case())
  with pytest.raises(TypeError, match="gamma"):
    run(name, form, Case(), gamma=2.0)


@of_all
@pytest.mark.parametrize("label", [CLASSES + 1, losses.IGNORED - 1])
def test_labels_that_there_are_none_of(name, form, label):
  case = Case()
  labels = case.labels.copy()
  labels[5] = label
  with pytest.raises(ValueError, match=r"labels must lie in \[-1, 3\]"):
    call(name, form, case.logits, labels, case.qualities)
  with pytest.raises(tf.errors.InvalidArgumentError, match="labels must lie in"):
    call(name, form, case.logits, tf.constant(labels), case.qualities)

  @tf.function
  def traced(labels):
    return value_and_gradient(name, form, case.logits, labels, case.qualities)

  value, gradient = traced(tf.constant(labels))
  assert np.isnan(value)
  assert np.isnan(gradient.numpy()[(labels != losses.IGNORED)]).any()
