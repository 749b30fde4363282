"""The training step: what is decayed, clipped, averaged and counted."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.training import detector, optimizers, run

NUM_CLASSES = 3


def make_detector(config, strategy, learning_rate=0.1):
  with strategy.scope():
    tf.keras.utils.set_random_seed(0)
    model = detector.Detector(
      run.build_network(config, NUM_CLASSES, pretrained=True),
      run.make_anchors(config),
      model=config.model,
      train=config.train,
    )
    model.compile(
      optimizer=optimizers.make_optimizer(
        config.train.optimizer, learning_rate, momentum=config.train.momentum
      )
    )
  return model


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


def one_step(model, strategy, batches):
  """Logs of one step; batches has one batch a replica."""
  joined = {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}
  data = tf.data.Dataset.from_tensors(joined).unbatch()
  data = data.batch(len(joined["image"]), drop_remainder=True)
  history = model.fit(
    strategy.experimental_distribute_dataset(data),
    steps_per_epoch=1,
    epochs=1,
    verbose=0,
  )
  return {name: values[0] for name, values in history.history.items()}


def weights_of(model):
  return [weight.numpy() for weight in model.network.trainable_variables]


@pytest.fixture(scope="module")
def one_device():
  return tf.distribute.MirroredStrategy(["CPU:0"])


@pytest.fixture(scope="module")
def two_devices():
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


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
    model = make_detector(config, strategy)
    before = weights_of(model)
    logs = one_step(model, strategy, [make_batch(seed) for seed in seeds])
    found[name] = (logs, before, weights_of(model))
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
    assert first["gt_without_anchor"] == 2  # of two images
    for name in ("num_positive_anchors", "gt_without_anchor"):
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


class TestWeightDecay:
  @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
  def test_is_in_the_gradient_of_every_weight(
    self, optimizer, make_config, one_device, monkeypatch
  ):
    """Losses 3 x kernel and 2 x bias: their gradients are known."""
    config = make_config(
      {
        "train.optimizer": optimizer,
        "train.momentum": 0.5,
        "train.weight_decay": 0.25,
        "train.clip_norm": 0.0,
      }
    )
    monkeypatch.setattr(
      detector,
      "make_classification_loss",
      lambda train: lambda logits, labels: 3 * tf.reduce_mean(logits),
    )
    monkeypatch.setattr(
      detector.losses,
      "smooth_l1",
      lambda outputs, targets, is_positive: 2 * tf.reduce_mean(outputs),
    )
    anchors = run.make_anchors(config)
    with one_device.scope():
      network = _TwoWeights(len(anchors))
      model = detector.Detector(
        network, anchors, model=config.model, train=config.train
      )
      model.compile(optimizers.make_optimizer(optimizer, 0.1, momentum=0.5))
    logs = one_step(model, one_device, [make_batch(1)])
    # Gradients 3 + 0.25 and 2 + 0.25; the bias too.
    assert logs["gradient_norm"] == pytest.approx(np.hypot(3.25, 2.25), rel=1e-5)
    step = {"sgd": [0.325, 0.225], "adam": [0.1, 0.1]}[optimizer]
    found = [network.kernel.numpy()[0], network.bias.numpy()[0]]
    np.testing.assert_allclose(found, 1 - np.array(step), rtol=1e-5)
    if optimizer == "adam":
      return
    one_step(model, one_device, [make_batch(1)])
    # Velocity 0.5 x 0.325 + 0.1 (3 + 0.25 x 0.675); and for the bias.
    found = [network.kernel.numpy()[0], network.bias.numpy()[0]]
    expected = [
      0.675 - (0.5 * 0.325 + 0.1 * (3 + 0.25 * 0.675)),
      0.775 - (0.5 * 0.225 + 0.1 * (2 + 0.25 * 0.775)),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_decoupled_ones_leave_the_gradient_alone(self, make_config):
    for name in ("sgdw", "lamb"):
      config = make_config({"train.optimizer": name, "train.weight_decay": 0.5})
      model = detector.Detector(
        tf.keras.Sequential(),
        np.zeros([1, 4], np.float32),
        model=config.model,
        train=config.train,
      )
      gradients = [tf.ones([2])]
      assert model._regularize(gradients, [tf.ones([2])]) is gradients
