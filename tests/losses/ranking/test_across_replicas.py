"""Two replicas that rank together are as one that has all: against the oracle, and it."""

import functools
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from ap_detect import losses
from tests.oracles import ap_loss as oracle

IMAGES, ANCHORS, CLASSES = 2, 40, 3
FORMS = ["cpu", "gpu"]


class Case:
  """What two replicas have together: [2 * IMAGES, ...] each."""

  def __init__(self, anchors=ANCHORS, seed=0):
    random = np.random.default_rng(seed)
    shape = [2 * IMAGES, anchors]
    self.logits = np.round(random.normal(size=[*shape, CLASSES]) * 8) / 8
    self.logits = self.logits.astype(np.float32)
    self.labels = random.integers(-1, CLASSES + 1, shape).astype(np.int32)
    self.labels[random.random(shape) < 0.5] = losses.BACKGROUND
    self.weights = random.integers(0, 4, shape).astype(np.float32)


@pytest.fixture(scope="module")
def two(make_strategy):
  """Function of a loss, of Case and options to what each replica gets of it."""
  strategy = make_strategy(2)

  @functools.lru_cache(None)  # tracing takes most of these tests' time
  def make_step(loss, extra, options):
    def in_replica(logits, labels, *values):
      named = dict(zip(extra, values), ranking_scope="global", jit_compile=False)
      with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(logits, labels, **{**named, **dict(options)})
      return value, tape.gradient(value, logits)

    return tf.function(
      lambda *arguments: strategy.run(in_replica, args=arguments), autograph=False
    )

  def of_replica(array):
    return strategy.experimental_distribute_values_from_function(
      lambda context: tf.constant(np.split(array, 2)[context.replica_id_in_sync_group])
    )

  def run(loss, case, extra=(), **options):
    step = make_step(loss, tuple(extra), tuple(options.items()))
    arrays = [case.logits, case.labels, *(np.float32(case.weights) for _ in extra)]
    values, gradients = step(*map(of_replica, arrays))
    return tuple(
      np.stack([part.numpy() for part in strategy.experimental_local_results(parts)])
      for parts in (values, gradients)
    )

  return run


def one(loss, case, extra=(), **options):
  """(value, gradient) of all of it in one replica."""
  logits = tf.constant(case.logits)
  with tf.GradientTape() as tape:
    tape.watch(logits)
    named = {name: np.float32(case.weights) for name in extra}
    value = loss(logits, case.labels, jit_compile=False, **named, **options)
  return value.numpy(), tape.gradient(value, logits).numpy()


def assert_same(found, expected):
  """The mean over replicas is what one replica gets of everything."""
  values, gradients = found
  np.testing.assert_allclose(values.mean(), expected[0], rtol=1e-6)
  mean = np.concatenate(gradients) / 2
  np.testing.assert_allclose(mean, expected[1], atol=1e-6 * np.abs(expected[1]).max())


@pytest.mark.parametrize("form", FORMS)
def test_the_oracle(two, form):
  case = Case()
  values, gradients = two(losses.ap_loss, case, form=form)
  rows = case.logits.reshape(-1, CLASSES), case.labels.reshape(-1)
  loss, gradient = oracle.ap_loss(*rows)
  np.testing.assert_allclose(values, [loss, loss], rtol=1e-6)
  np.testing.assert_allclose(
    np.concatenate(gradients).reshape(-1, CLASSES) / 2, gradient, atol=1e-7
  )


@pytest.mark.parametrize(
  ("name", "form", "extra", "options"),
  [
    (
      "ap_loss",
      "gpu",
      ["weights"],
      {"interpolated": False, "class_weights": (1, 0, 2)},
    ),
    ("auc_loss", "cpu", [], {"delta": 0.25}),
    ("rank_and_sort_loss", "cpu", ["qualities"], {}),
  ],
)
def test_every_loss(two, name, form, extra, options):
  case, loss = Case(), losses.CLASSIFICATION_LOSSES[name]
  if extra == ["qualities"]:
    case.weights /= 4
  found = two(loss, case, extra, form=form, **options)
  assert_same(found, one(loss, case, extra, form=form, **options))


def test_integers_add_up_to_the_same_bits(two):
  case = Case()
  _, gradients = two(losses.ap_loss, case, form="gpu")
  _, expected = one(losses.ap_loss, case, form="gpu")
  np.testing.assert_array_equal(np.concatenate(gradients) / 2, expected)


def test_compiled(two):
  case = Case()
  assert_same(two(losses.ap_loss, case, jit_compile=True), one(losses.ap_loss, case))


@pytest.mark.parametrize("form", ["cpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_replicas_with_very_different_numbers_of_positives(two, form):
  """One alone would take the smallest tables, the other larger ones; they do not wait."""
  case = Case(anchors=1200)
  case.labels[:IMAGES] = 1
  case.labels[IMAGES:] = losses.BACKGROUND
  case.labels[-1, -1] = 2
  found = two(losses.ap_loss, case, form=form)
  assert_same(found, one(losses.ap_loss, case, form=form))


@pytest.mark.parametrize("label", [losses.BACKGROUND, losses.IGNORED])
def test_a_replica_without_positives_and_none_at_all(two, label):
  case = Case()
  case.labels[:IMAGES] = label
  found = two(losses.ap_loss, case, form="cpu")
  assert_same(found, one(losses.ap_loss, case))
  assert label == losses.IGNORED or np.abs(found[1][0]).max() > 0
  case.labels[:] = label
  values, gradients = two(losses.ap_loss, case, form="cpu")
  assert not values.any() and not gradients.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", [0, 1])  # of the anchor's own class, and of another
def test_what_is_not_finite_in_one_is_seen_in_both(two, column, form):
  case = Case()
  case.labels[0, 0], case.logits[0, 0, column] = 1, np.nan
  values, gradients = two(losses.ap_loss, case, form=form)
  assert np.isnan(values).all()
  is_ranked = case.labels != losses.IGNORED
  np.testing.assert_array_equal(np.isnan(np.concatenate(gradients)).all(2), is_ranked)


def test_a_label_out_of_range(two):
  case = Case()
  case.labels[0, 0] = CLASSES + 1
  values, _ = two(losses.ap_loss, case, form="cpu")
  assert np.isnan(values).all()


class TestImagesPerRanking:
  @pytest.mark.parametrize("images", [1, 2 * IMAGES])
  def test_counts_images_of_all_replicas(self, two, images):
    case = Case()
    found = two(losses.ap_loss, case, images_per_ranking=images)
    assert_same(found, one(losses.ap_loss, case, images_per_ranking=images))

  def test_neither_divides_nor_is_a_multiple(self, two):
    required = re.escape("multiple of it that divides the 4 of all 2 replicas, got 3")
    with pytest.raises(ValueError, match=required):
      two(losses.ap_loss, Case(), images_per_ranking=3)


def test_one_replica_ranks_alone():
  case = Case()
  expected = one(losses.ap_loss, case)
  found = one(losses.ap_loss, case, ranking_scope="global")
  assert found[0] == expected[0]
  np.testing.assert_array_equal(found[1], expected[1])


def test_unknown_scope():
  with pytest.raises(ValueError, match="ranking_scope must be 'replica' or 'global'"):
    losses.ap_loss(tf.zeros([1, 1]), [1], ranking_scope="all")


def test_outside_of_replicas(make_strategy):
  with make_strategy(2).scope(), pytest.raises(ValueError, match="in a replica"):
    losses.ap_loss(tf.zeros([1, 1]), [1], ranking_scope="global")


# Eight replicas; what the strategy is asked to exchange is counted.
EIGHT = """
import sys

import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)
from ap_detect import losses

anchors, images_per_ranking = int(sys.argv[1]), int(sys.argv[2])
is_large = anchors > 100_000
sent = {}


class Counting(tf.distribute.ReductionToOneDevice):
  def _count(self, name, values):
    def add(size, width):
      sent[name] = sent.get(name, 0) + int(size) * int(width)
      return np.int32(0)

    for value in values:
      done = tf.numpy_function(add, [tf.size(value), value.dtype.size], tf.int32)
      assert done is not None

  def reduce_implementation(self, reduce_op, per_replica_value, destinations, options):
    self._count("reduced", [per_replica_value.values[0]])
    return super().reduce_implementation(
      reduce_op, per_replica_value, destinations, options
    )

  def _gather_implementation(self, per_replica_value, destinations, axis, options):
    self._count("gathered", per_replica_value.values)
    return super()._gather_implementation(per_replica_value, destinations, axis, options)


strategy = tf.distribute.MirroredStrategy(
  [f"CPU:{i}" for i in range(8)], cross_device_ops=Counting()
)
random = np.random.default_rng(0)
logits = random.normal(size=[8, anchors, 80]).astype(np.float32)
labels = np.where(random.random([8, anchors]) < 0.0005, 3, 0)
positives = int((labels > 0).sum())


def values(array):
  return strategy.experimental_distribute_values_from_function(
    lambda context: tf.constant(array[context.replica_id_in_sync_group][np.newaxis])
  )


@tf.function(autograph=False)
def step(logits, labels):
  def in_replica(logits, labels):
    with tf.GradientTape() as tape:
      tape.watch(logits)
      loss = losses.ap_loss(
        logits,
        labels,
        ranking_scope="global",
        images_per_ranking=images_per_ranking or None,
        jit_compile=is_large,
      )
    return loss, tape.gradient(loss, logits)

  return strategy.run(in_replica, args=(logits, labels))


loss, gradients = step(values(logits), values(labels))
if not is_large:
  losses_found = [x.numpy() for x in strategy.experimental_local_results(loss)]
  gradients = strategy.experimental_local_results(gradients)
  expected, gradient = losses.ap_loss_and_gradient(
    tf.constant(logits),
    labels,
    images_per_ranking=images_per_ranking or None,
    jit_compile=False,
  )
  assert abs(np.mean(losses_found) - expected.numpy()) < 1e-6
  gradient = gradient.numpy()
  for own, part in zip(gradient, gradients):
    np.testing.assert_allclose(part.numpy()[0] / 8, own, atol=1e-6 * abs(gradient).max())
print(positives, sent["reduced"], sent["gathered"])
"""


def bytes_sent(anchors, images_per_ranking=0):
  """Positives, and bytes that a replica sends with eight, in rings."""
  done = subprocess.run(
    [sys.executable, "-c", EIGHT, str(anchors), str(images_per_ranking)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  positives, reduced, gathered = map(int, done.stdout.split())
  return positives, 7 / 8 * (2 * reduced + gathered)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("anchors", "images_per_ranking"), [(3000, 0), (3000, 4), (262_144, 0)]
)
def test_bytes_that_a_replica_sends(anchors, images_per_ranking):
  """64 for every positive and interval; up to 21 million logits each."""
  positives, sent = bytes_sent(anchors, images_per_ranking)
  print(f"{positives} positives, {sent:.0f} bytes")
  assert positives > 0.0004 * 8 * anchors
  intervals = 2 * positives + 1
  # How many there are of everything is sent as well, whatever there is.
  assert 8 * positives < sent - 7 / 4 * 3 * 8 * 8 < 64 * (positives + intervals)
