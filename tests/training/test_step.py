"""The training step: what is decayed, clipped, averaged and counted."""

import numpy as np
import pytest
import tensorflow as tf
from oracles import box_losses as box_loss_oracle
from oracles import boxes as box_oracle

from ap_detect import boxes as box_ops
from ap_detect import losses, matching
from ap_detect.runs import model as model_lib
from ap_detect.training import optimizers, trainer
from ap_detect.training import step as step_lib

NUM_CLASSES = 3


def make_step(config, strategy, make_network, optimizer=""):
  """(network, TrainingStep) of a config; `optimizer` is another one than the config's."""
  with strategy.scope():
    tf.keras.utils.set_random_seed(0)
    network = make_network()
    feed = step_lib.Feed()
    made = optimizers.make_optimizer(
      optimizer or config.train.optimizer,
      feed.learning_rate,
      momentum=config.train.momentum,
    )
    optimizers.create_state(made, network.trainable_variables)
    return network, trainer.make_step(config, network, made, feed, strategy)


def make_batch(seed, num_images=2, side=128):
  """Noise with an object that anchors reach, one that none does, and padding."""
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, side - 48, [num_images, 3, 2])
  size = rng.uniform(20, 40, [num_images, 3, 2])
  boxes = np.concatenate([corner, corner + size], axis=-1).astype(np.float32)
  boxes[:, 1] = [-500, -500, -400, -400]
  classes = rng.integers(1, NUM_CLASSES + 1, [num_images, 3]).astype(np.int32)
  classes[:, 2] = 0
  return {
    "image": rng.uniform(0, 255, [num_images, side, side, 3]).astype(np.float32),
    "boxes": boxes,
    "classes": classes,
    "ignored": np.zeros([num_images, 3], bool),
  }


def one_step(step, strategy, batches, rate=0.1):
  """Logs of one step; batches has one batch a replica."""
  joined = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
  data = tf.data.Dataset.from_tensors(joined).unbatch()
  data = data.batch(len(joined["image"]), drop_remainder=True)
  batch = next(iter(strategy.experimental_distribute_dataset(data)))
  logs = {name: values.numpy() for name, values in step([batch], [rate], 0).items()}
  assert {values.shape for values in logs.values()} == {(1,)}
  assert logs["is_finite"] == 1
  return {name: float(values[0]) for name, values in logs.items()}


def weights_of(network):
  return [weight.numpy() for weight in network.trainable_variables]


@pytest.fixture(scope="module")
def one_device(make_strategy):
  return make_strategy()


@pytest.fixture(scope="module")
def two_devices(make_strategy):
  return make_strategy(2)


@pytest.fixture(scope="module")
def steps(make_config, one_device, two_devices):
  """Logs, weights before and after a step with decay and clipping, by replicas' data."""
  # A single step of SGD shows the gradient itself, which Adam would rescale.
  config = make_config(
    {
      "train.optimizer": "sgd",
      "train.momentum": 0.0,
      "train.weight_decay": 0.01,
      "train.clip_norm": 0.5,
    }
  )
  found = {}
  for name, strategy, seeds in [
    ("first", one_device, [1]),
    ("second", one_device, [2]),
    ("same", two_devices, [1, 1]),
    ("different", two_devices, [1, 2]),
  ]:
    network, step = make_step(
      config,
      strategy,
      lambda: model_lib.build_network(config, NUM_CLASSES, pretrained=True),
    )
    before = weights_of(network)
    logs = one_step(step, strategy, [make_batch(seed) for seed in seeds])
    found[name] = (logs, before, weights_of(network))
  return found


class TestReplicas:
  def test_same_batch_gives_the_update_of_one_replica(self, steps):
    _, before, alone = steps["first"]
    _, before_both, both = steps["same"]
    moved = max(np.abs(a - b).max() for a, b in zip(alone, before))
    assert moved > 1e-3  # 100 times the tolerance
    for one, two in zip(before, before_both):
      np.testing.assert_array_equal(one, two)
    for one, two in zip(alone, both):
      np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)

  def test_losses_are_means(self, steps):
    first, second, both = (steps[k][0] for k in ("first", "second", "different"))
    for name in ("total_loss", "focal_loss", "box_loss"):
      assert abs(first[name] - second[name]) > 1e-6
      mean = (first[name] + second[name]) / 2
      assert both[name] == pytest.approx(mean, rel=1e-4)
    for name in ("total_loss", "focal_loss", "box_loss", "gradient_norm"):
      assert steps["same"][0][name] == pytest.approx(first[name], rel=1e-4)

  def test_counts_are_sums(self, steps):
    first, second, both = (steps[k][0] for k in ("first", "second", "different"))
    assert first["num_positive_anchors"] > 0
    assert first["objects_without_anchor"] == 2  # of two images
    for name in ("num_positive_anchors", "objects_without_anchor"):
      assert both[name] == first[name] + second[name]
    twice = steps["same"][0]["num_positive_anchors"]
    assert twice == 2 * first["num_positive_anchors"]

  def test_total_is_the_sum_of_its_parts(self, steps):
    logs = steps["first"][0]
    total = logs["focal_loss"] + logs["box_loss"]
    assert logs["total_loss"] == pytest.approx(total, rel=1e-5)


class TestClipping:
  @pytest.mark.parametrize("name", ["first", "same", "different"])
  def test_bounds_the_applied_norm(self, steps, name):
    logs, before, after = steps[name]
    moved = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(after, before)))
    assert logs["gradient_norm"] > 0.5  # before clipping
    assert moved == pytest.approx(0.1 * 0.5, rel=1e-3)  # rate x clip_norm


class _TwoWeights(tf.keras.Model):
  """A network whose answers are `kernel` and `bias`, at every anchor."""

  def __init__(self, num_anchors):
    super().__init__()
    self._num_anchors = num_anchors
    self.kernel = self.add_weight("kernel", [1], initializer="ones")
    self.bias = self.add_weight("bias", [1], initializer="ones")

  def call(self, images, training=False):
    from ap_detect.models import retinanet

    shape = [tf.shape(images)[0], self._num_anchors]
    return retinanet.Outputs(
      tf.ones([*shape, NUM_CLASSES]) * self.kernel, tf.ones([*shape, 4]) * self.bias
    )


@pytest.fixture
def by_hand(make_config, one_device, monkeypatch):
  """Function of a config's changes to (network, step): losses 3 x kernel and 2 x bias."""
  monkeypatch.setitem(
    losses.CLASSIFICATION_LOSSES,
    "focal_loss",
    lambda logits, labels: 3 * tf.reduce_mean(logits),
  )
  monkeypatch.setitem(
    losses.OFFSET_LOSSES,
    "smooth_l1",
    lambda outputs, targets, is_positive, normalizer: 2 * tf.reduce_mean(outputs),
  )

  def make(changes, optimizer=""):
    config = make_config({"train.momentum": 0.5, "train.clip_norm": 0.0, **changes})
    num_anchors = len(model_lib.make_anchors(config))
    return make_step(config, one_device, lambda: _TwoWeights(num_anchors), optimizer)

  return make


class TestWeightDecay:
  @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
  def test_is_in_the_gradient_of_every_weight(self, optimizer, by_hand, one_device):
    network, step = by_hand({"train.optimizer": optimizer, "train.weight_decay": 0.25})
    logs = one_step(step, one_device, [make_batch(1)])
    # Gradients 3 + 0.25 and 2 + 0.25; the bias too.
    assert logs["gradient_norm"] == pytest.approx(np.hypot(3.25, 2.25), rel=1e-5)
    moved = {"sgd": [0.325, 0.225], "adam": [0.1, 0.1]}[optimizer]
    found = [network.kernel.numpy()[0], network.bias.numpy()[0]]
    np.testing.assert_allclose(found, 1 - np.array(moved), rtol=1e-5)
    if optimizer == "adam":
      return
    one_step(step, one_device, [make_batch(1)])
    # Velocity 0.5 x 0.325 + 0.1 (3 + 0.25 x 0.675); and for the bias.
    found = [network.kernel.numpy()[0], network.bias.numpy()[0]]
    expected = [
      0.675 - (0.5 * 0.325 + 0.1 * (3 + 0.25 * 0.675)),
      0.775 - (0.5 * 0.225 + 0.1 * (2 + 0.25 * 0.775)),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_may_spare_biases(self, by_hand, one_device):
    changes = {"train.weight_decay": 0.25, "train.decay_all_weights": False}
    _, step = by_hand({"train.optimizer": "sgd", **changes})
    logs = one_step(step, one_device, [make_batch(1)])
    assert logs["gradient_norm"] == pytest.approx(np.hypot(3.25, 2), rel=1e-5)

  @pytest.mark.parametrize("name", ["sgdw", "lamb"])
  def test_decoupled_ones_leave_the_gradient_alone(self, name, by_hand, one_device):
    # The optimiser itself, which would decay, is not needed for it.
    changes = {"train.optimizer": name, "train.weight_decay": 0.5}
    _, step = by_hand(changes, optimizer="sgd")
    logs = one_step(step, one_device, [make_batch(1)])
    assert logs["gradient_norm"] == pytest.approx(np.hypot(3, 2), rel=1e-5)


def test_box_loss_weight(by_hand, one_device):
  """Gradients 3 and 0.25 x 2; the box loss itself is logged without its weight."""
  network, step = by_hand(
    {
      "train.optimizer": "sgd",
      "train.weight_decay": 0.0,
      "train.box_loss_weight": 0.25,
    }
  )
  logs = one_step(step, one_device, [make_batch(1)])
  assert logs["total_loss"] == pytest.approx(3 + 0.25 * 2, rel=1e-5)
  assert logs["box_loss"] == pytest.approx(2, rel=1e-5)
  found = [network.kernel.numpy()[0], network.bias.numpy()[0]]
  np.testing.assert_allclose(found, [1 - 0.1 * 3, 1 - 0.1 * 0.5], rtol=1e-5)


def test_balanced_box_loss(by_hand, one_device):
  """The box loss of 2 counts as 3, the classification loss, and then half of that."""
  changes = {"train.box_loss_weight": 0.5, "train.balance_box_loss": True}
  network, step = by_hand(
    {"train.optimizer": "sgd", "train.weight_decay": 0.0, **changes}
  )
  logs = one_step(step, one_device, [make_batch(1)])
  assert logs["total_loss"] == pytest.approx(3 + 0.5 * 3, rel=1e-5)
  assert logs["box_loss"] == pytest.approx(2, rel=1e-5)
  found = [network.kernel.numpy()[0], network.bias.numpy()[0]]
  np.testing.assert_allclose(found, [1 - 0.1 * 3, 1 - 0.1 * 0.75 * 2], rtol=1e-5)


def make_answers(anchors, seed=0):
  """(Outputs, Targets) of 2 images: random, with positive, ignored, background anchors."""
  rng = np.random.default_rng(seed)
  shape = [2, len(anchors)]
  labels = rng.choice([-1, 0, 1, 2, 3], shape, p=[0.1, 0.6, 0.1, 0.1, 0.1])
  box_targets = rng.normal(size=[*shape, 4]) * (labels > 0)[..., None]
  outputs = (
    tf.constant(rng.normal(size=[*shape, NUM_CLASSES]), tf.float32),
    tf.constant(box_targets + 0.3 * rng.normal(size=[*shape, 4]), tf.float32),
  )
  targets = matching.Targets(
    tf.constant(labels, tf.int32), tf.constant(box_targets, tf.float32), tf.constant(0)
  )
  return outputs, targets


@pytest.fixture
def make_ranking(make_config, one_device):
  """Function of a config's changes to (anchors, what ranks and compares in its step)."""

  def make(changes):
    config = make_config({"data.image_size_px": (32, 32), **changes})
    anchors = model_lib.make_anchors(config)
    _, step = make_step(config, one_device, lambda: _TwoWeights(len(anchors)))
    return anchors, step._rank

  return make


class TestLosses:
  @pytest.mark.parametrize("name", losses.CLASSIFICATION_LOSSES)
  @pytest.mark.parametrize("box_loss", [*losses.OFFSET_LOSSES, *losses.BOX_LOSSES])
  def test_every_pair_of_them_trains(self, name, box_loss, make_config, one_device):
    config = make_config(
      {
        "train.classification_loss": name,
        "train.box_loss": box_loss,
        "train.optimizer": "sgd",
        "train.jit_compile": "never",
        "data.image_size_px": (64, 64),
      }
    )
    num_anchors = len(model_lib.make_anchors(config))
    tf.config.run_functions_eagerly(True)
    try:
      network, step = make_step(config, one_device, lambda: _TwoWeights(num_anchors))
      logs = one_step(step, one_device, [make_batch(1, side=64)])
    finally:
      tf.config.run_functions_eagerly(False)
    assert logs["num_positive_anchors"] > 0 < logs["box_loss"]
    total = logs[name] + logs["box_loss"]
    assert logs["total_loss"] == pytest.approx(total, rel=1e-6)
    if name in ("focal_loss", "ohem_cross_entropy_loss", "quality_focal_loss"):
      # All scores are equal, so that those of a ranking pull at no common weight.
      assert network.kernel.numpy()[0] < 1
    assert network.bias.numpy()[0] != 1

  def test_smooth_l1_and_ap_loss_to_the_bit(self, make_ranking):
    """The step adds nothing to what the losses say of the same outputs."""
    anchors, rank = make_ranking({"train.classification_loss": "ap_loss"})
    outputs, targets = make_answers(anchors)
    scalars, gradients = rank(outputs, targets, tf.constant(7.0))
    value, by_logits = losses.ap_loss_and_gradient(outputs[0], targets.labels)
    with tf.GradientTape() as tape:
      tape.watch(outputs[1])
      box = losses.smooth_l1(
        outputs[1], targets.box_targets, targets.labels > 0, normalizer=tf.constant(7.0)
      )
    by_boxes = tape.gradient(box, outputs[1])
    assert (scalars.means["ap_loss"], scalars.means["box_loss"]) == (value, box)
    np.testing.assert_array_equal(gradients[0], by_logits)
    np.testing.assert_array_equal(gradients[1], by_boxes)

  def test_giou_is_that_of_decoded_boxes(self, make_ranking):
    anchors, rank = make_ranking({"train.box_loss": "giou"})
    outputs, targets = make_answers(anchors)
    is_positive = targets.labels.numpy() > 0
    scalars, gradients = rank(outputs, targets, tf.constant(3.0))
    boxes, objects = (
      [
        box_oracle.decode(offsets, anchors[at[1]], box_ops.BOX_VARIANCES)
        for at, offsets in zip(np.argwhere(is_positive), of.numpy()[is_positive])
      ]
      for of in (outputs[1], targets.box_targets)
    )
    mean = box_loss_oracle.giou(boxes, objects, [True] * len(boxes))
    expected = mean * len(boxes) / 3
    assert float(scalars.means["box_loss"]) == pytest.approx(expected, rel=1e-5)
    assert np.all(gradients[1].numpy()[~is_positive] == 0)
    assert np.any(gradients[1].numpy()[is_positive] != 0, axis=-1).all()

  @pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
  def test_outputs_that_are_not_positive_have_no_influence(
    self, box_loss, make_ranking
  ):
    changes = {"train.classification_loss": "quality_focal_loss"}
    anchors, rank = make_ranking({**changes, "train.box_loss": box_loss})
    outputs, targets = make_answers(anchors)
    is_positive = (targets.labels > 0)[..., tf.newaxis]
    broken = outputs[0], tf.where(is_positive, outputs[1], np.nan)
    found, gradients = rank(broken, targets, tf.constant(3.0))
    expected, slopes = rank(outputs, targets, tf.constant(3.0))
    assert found.means == expected.means
    for one, other in zip(gradients, slopes):
      np.testing.assert_array_equal(one, other)


class TestQualities:
  def test_are_ious_of_positive_anchors(self, make_ranking, monkeypatch):
    passed = []

    def loss(logits, labels, *, qualities, factor):
      passed.append(qualities)
      return factor * tf.reduce_sum(qualities) * tf.reduce_sum(logits)

    monkeypatch.setitem(losses.CLASSIFICATION_LOSSES, "focal_loss", loss)
    anchors, rank = make_ranking(
      {"train.loss_options": {"factor": 2.0}, "train.box_loss_weight": 0.0}
    )
    outputs, targets = make_answers(anchors)
    _, gradients = rank(outputs, targets, tf.constant(1.0))
    (qualities,) = passed
    assert qualities.dtype == tf.float32
    expected = np.zeros(targets.labels.shape)
    for image, anchor in np.argwhere(targets.labels.numpy() > 0):
      box, truth = (
        box_oracle.decode(
          of.numpy()[image, anchor].astype(float),
          anchors[anchor],
          box_ops.BOX_VARIANCES,
        )
        for of in (outputs[1], targets.box_targets)
      )
      expected[image, anchor] = box_oracle.iou(box, truth)
    assert expected.max() > 0.9 > 0.8 > expected[expected > 0].min()
    np.testing.assert_allclose(qualities, expected, atol=1e-5)
    # Constants: the loss pulls at no box.
    np.testing.assert_allclose(gradients[0], 2 * expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradients[1], np.zeros(outputs[1].shape))

  def test_are_not_computed_where_no_loss_takes_them(self, make_ranking, monkeypatch):
    anchors, rank = make_ranking({"train.classification_loss": "ap_loss"})
    monkeypatch.delattr(step_lib.box_ops, "decode")
    rank(*make_answers(anchors), tf.constant(1.0))


def test_accumulated_batches_count_once_in_batch_statistics(make_config, one_device):
  """Though each is run forward twice."""
  changes = {"train.batch_size": 2, "train.accumulate_steps": 2}
  config = make_config({**changes, "train.jit_compile": "never"})

  def build():
    return model_lib.build_network(config, NUM_CLASSES, pretrained=True)

  network, step = make_step(config, one_device, build)
  batches = [make_batch(seed) for seed in (1, 2)]
  expected, _ = make_step(config, one_device, build)
  before = [weight.numpy() for weight in expected.non_trainable_weights]
  for batch in batches:
    expected(batch["image"], training=True)
  one_step(step, one_device, batches)
  statistics = [weight.numpy() for weight in expected.non_trainable_weights]
  assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(statistics, before))
  for weight, statistic in zip(network.non_trainable_weights, statistics):
    np.testing.assert_allclose(weight.numpy(), statistic, rtol=1e-5, atol=1e-6)
