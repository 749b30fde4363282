"""The training step: what is decayed, clipped, averaged and counted."""

import numpy as np
import pytest
import tensorflow as tf

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


def make_batch(seed, num_images=2):
  """Noise with an object that anchors reach, one that none does, and padding."""
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, 80, [num_images, 3, 2])
  size = rng.uniform(20, 40, [num_images, 3, 2])
  boxes = np.concatenate([corner, corner + size], axis=-1).astype(np.float32)
  boxes[:, 1] = [-500, -500, -400, -400]
  classes = rng.integers(1, NUM_CLASSES + 1, [num_images, 3]).astype(np.int32)
  classes[:, 2] = 0
  return {
    "image": rng.uniform(0, 255, [num_images, 128, 128, 3]).astype(np.float32),
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
  monkeypatch.setattr(
    trainer,
    "_classification_loss",
    lambda train: step_lib.with_gradient(
      lambda logits, labels: 3 * tf.reduce_mean(logits)
    ),
  )
  monkeypatch.setattr(
    step_lib.losses,
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
