import functools
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.models import backbones, drop_connect

MODES = {
  "eager": lambda function: function,
  "graph": tf.function,
  "xla": lambda function: tf.function(function, jit_compile=True),
}
LITE0_WEIGHTS = (
  pathlib.Path(__file__).resolve().parents[3]
  / "shared/weights/efficientnet_lite0_imagenet.weights.h5"
)


class Seed(tf.Module):
  """A seed in a variable, as the training step has it."""

  def __init__(self, *value):
    super().__init__()
    self.value = tf.Variable(value, dtype=tf.int32, trainable=False)

  def draw(self):
    return self.value + 0


def drop(layer, features, mode="eager"):
  return MODES[mode](lambda: layer(tf.constant(features), training=True))().numpy()


def seeded_layer(rate, *seed, name="drop"):
  layer = drop_connect.DropConnect(rate, name=name)
  drop_connect.draw_from(tf.keras.Sequential([layer]), lambda: tf.constant(seed))
  return layer


def small_network():
  """Two residual branches, each left out for whole images, in Keras' own way."""
  layers = tf.keras.layers
  images = tf.keras.Input((8, 8, 3), name="pixels")
  x = layers.Conv2D(4, 3, padding="same", name="stem")(images)
  for number in (1, 2):
    branch = layers.Conv2D(4, 3, padding="same", name=f"conv{number}")(x)
    branch = layers.BatchNormalization(name=f"bn{number}")(branch)
    branch = layers.Dropout(0.3, noise_shape=(None, 1, 1, 1), name=f"drop{number}")(
      branch
    )
    x = layers.Add(name=f"add{number}")([x, branch])
  return tf.keras.Model(images, x, name="small")


def pixels(*shape):
  return np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)


@functools.cache
def keras_cv_lite0():
  """keras-cv's own network, with weights and statistics as if trained."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(drop_connect, "replace_dropout", lambda network: network)
    network = backbones._build_efficientnet_lite0(tf.keras.Input((None, None, 3)), None)
  for index, variable in enumerate(network.variables):
    shift = tf.random.stateless_uniform(variable.shape, (1, index), 0.0, 0.02)
    variable.assign_add(shift)
  return network


@functools.cache
def lite0():
  return backbones._build_efficientnet_lite0(tf.keras.Input((None, None, 3)), None)


def drop_layers(network, kind=drop_connect.DropConnect):
  return [layer for layer in network.submodules if isinstance(layer, kind)]


def outputs_of(network, images):
  """C3, C4 and C5 of lite0 in evaluation."""
  ends = backbones._BACKBONES["efficientnet_lite0"].level_ends[2:]
  outputs = [network.get_layer(end).output for end in ends]
  normalized = backbones._BACKBONES["efficientnet_lite0"].normalize(images)
  return tf.keras.Model(network.inputs, outputs)(normalized, training=False)


@pytest.mark.parametrize("mode", MODES)
def test_hand_case_of_rate_one_half(mode):
  # What stays counts 1 / (1 - 0.5) = 2 times; an image stays or goes as a whole.
  features = np.arange(1, 1 + 40 * 2 * 3, dtype=np.float32).reshape(40, 2, 3)
  found = drop(seeded_layer(0.5, 1, 2), features, mode)
  is_kept = found[:, 0, 0] != 0
  np.testing.assert_array_equal(
    found, np.where(is_kept[:, None, None], 2, 0) * features
  )
  # 20 of 40, standard deviation 3.2
  assert 20 - 16 < is_kept.sum() < 20 + 16


@pytest.mark.parametrize("rate", [0.025, 0.2, 0.75])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_seed", [False, True])
def test_branches_are_left_out_at_the_rate(rate, mode, has_seed):
  layer = seeded_layer(rate, 5, 6) if has_seed else drop_connect.DropConnect(rate)
  count = 40_000
  found = drop(layer, np.ones((count, 1, 1, 1), np.float32), mode).ravel()
  deviation = (rate * (1 - rate) / count) ** 0.5
  assert abs(np.mean(found == 0) - rate) < 5 * deviation
  np.testing.assert_allclose(found[found != 0], 1 / (1 - rate), rtol=1e-6)
  # Neighbours are independent: so is their product's mean the square of the mean.
  kept = (found != 0) - (1 - rate)
  assert abs(np.mean(kept[1:] * kept[:-1])) < 5 * rate * (1 - rate) / count**0.5


def test_rate_0_leaves_out_nothing():
  features = pixels(50, 2, 2, 1)
  np.testing.assert_array_equal(drop(seeded_layer(0.0, 1, 2), features), features)


def test_gradients_reach_the_branches_that_stay():
  layer = seeded_layer(0.5, 1, 2)
  features = tf.constant(pixels(40, 2, 2, 1))
  with tf.GradientTape() as tape:
    tape.watch(features)
    result = layer(features, training=True)
  expected = np.where(result.numpy() != 0, 2.0, 0.0)
  np.testing.assert_array_equal(tape.gradient(result, features), expected)


@pytest.mark.parametrize("training", [False, None])
def test_evaluation_changes_nothing(training):
  features = pixels(50, 2, 2, 1)
  for layer in (drop_connect.DropConnect(0.9), seeded_layer(0.9, 1, 2)):
    np.testing.assert_array_equal(layer(features, training=training), features)


def test_a_frozen_layer_changes_nothing():
  features = pixels(50, 2, 2, 1)
  layer = seeded_layer(0.9, 1, 2)
  layer.trainable = False
  np.testing.assert_array_equal(drop(layer, features), features)
  layer.trainable = True
  assert (drop(layer, features) == 0).any()


def test_masks_follow_from_the_seed_and_the_name():
  features = np.ones((4000, 1), np.float32)

  def mask(*seed, name="drop"):
    return drop(seeded_layer(0.5, *seed, name=name), features)[:, 0] != 0

  np.testing.assert_array_equal(mask(1, 2), mask(1, 2))
  # Independent masks agree in half of the images: 2,000, standard deviation 32.
  for other in (mask(1, 3), mask(2, 2), mask(2, 1), mask(1, 2, name="drop_1")):
    assert abs(np.sum(mask(1, 2) == other) - 2000) < 5 * 32


def test_without_a_seed_every_call_draws_anew():
  layer = drop_connect.DropConnect(0.5)
  features = np.ones((200, 1), np.float32)
  assert (drop(layer, features) != drop(layer, features)).any()


def test_the_layers_of_lite0_draw_different_masks():
  seed = Seed(7, 8)
  network = lite0()
  drop_connect.draw_from(network, seed.draw)
  layers = drop_layers(network)
  assert len(layers) == 9
  features = tf.ones([20_000, 1, 1, 1])

  def all_masks():
    return tf.stack(
      [layer(features, training=True)[:, 0, 0, 0] != 0 for layer in layers]
    )

  masks = all_masks().numpy()
  # Correlations of 20,000 independent pairs have the deviation 0.0071.
  assert np.abs(np.corrcoef(masks) - np.eye(9)).max() < 5.5 * 0.0071
  compiled = {mode: MODES[mode](all_masks) for mode in ("graph", "xla")}
  for function in compiled.values():
    np.testing.assert_array_equal(function(), masks)
  # Traced once, the functions read the variable again at every step.
  seed.value.assign([7, 9])
  changed = all_masks().numpy()
  assert (changed != masks).any(axis=1).all()
  for function in compiled.values():
    np.testing.assert_array_equal(function(), changed)
  drop_connect.draw_from(network, None)


def test_a_compiled_network_leaves_out_what_an_uncompiled_one_does():
  network = drop_connect.replace_dropout(small_network())
  drop_connect.draw_from(network, Seed(3, 4).draw)
  images = tf.constant(pixels(64, 8, 8, 3))

  def run():
    return network(images, training=True)

  expected = run().numpy()
  for mode in ("graph", "xla"):
    found = MODES[mode](run)().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("has_seed", [False, True])
def test_frozen_stages_of_lite0_answer_the_same_for_the_same_image(has_seed):
  model = backbones.build_backbone(
    "efficientnet_lite0", frozen_levels=3, freeze_batch_norm=True
  )
  if has_seed:
    drop_connect.draw_from(model, lambda: tf.constant([1, 2]))
  images = np.repeat(pixels(1, 32, 32, 3), 64, axis=0)
  c3, c4, c5 = (feature.numpy() for feature in model(images, training=True))
  np.testing.assert_array_equal(c3, np.repeat(c3[:1], 64, axis=0))
  # The stages that are trained leave out some of their branches, 4 of them up to C4.
  for feature in (c4, c5):
    assert len(np.unique(feature.reshape(64, -1), axis=0)) > 1
  evaluated = [feature.numpy() for feature in model(images, training=False)]
  np.testing.assert_array_equal(c3, evaluated[0])
  for feature in evaluated:
    np.testing.assert_array_equal(feature, np.repeat(feature[:1], 64, axis=0))


def test_names_order_and_shapes_are_those_of_the_original():
  original, network = keras_cv_lite0(), lite0()
  assert [layer.name for layer in network.layers[1:]] == [
    layer.name for layer in original.layers[1:]
  ]
  for layer, theirs in zip(network.layers, original.layers):
    if isinstance(theirs, tf.keras.layers.Dropout):
      assert type(layer) is drop_connect.DropConnect
      assert layer.get_config()["rate"] == theirs.rate
    else:
      assert type(layer) is type(theirs)
  assert [(v.name, v.shape) for v in network.weights] == [
    (v.name, v.shape) for v in original.weights
  ]
  # A residual block's rate is 0.2 times its place among 16; blocks 2b to 6d.
  rates = [
    layer.get_config()["rate"] for layer in network.layers if "_drop" in layer.name
  ]
  np.testing.assert_allclose(
    rates, 0.2 * np.array([2, 4, 6, 7, 9, 10, 12, 13, 14]) / 16
  )


def test_the_original_drops_whole_images():
  # What replace_dropout relies on.
  for layer in drop_layers(keras_cv_lite0(), tf.keras.layers.Dropout):
    assert tuple(layer.get_config()["noise_shape"]) == (None, 1, 1, 1)


def test_the_replaced_network_has_weights_of_its_own():
  original = small_network()
  network = drop_connect.replace_dropout(original)
  before = original.get_layer("conv1").kernel.numpy()
  network.get_layer("conv1").kernel.assign(tf.zeros_like(before))
  np.testing.assert_array_equal(original.get_layer("conv1").kernel, before)


@pytest.mark.parametrize("name", ["x.h5", "x.weights.h5"])
def test_a_weights_file_of_the_original_is_loaded(name, tmp_path):
  path = str(tmp_path / name)
  keras_cv_lite0().save_weights(path)
  images = pixels(2, 64, 64, 3)
  found = backbones.build_backbone("efficientnet_lite0", weights=path)(images)
  for ours, theirs in zip(found, outputs_of(keras_cv_lite0(), images)):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.skipif(not LITE0_WEIGHTS.is_file(), reason="no ImageNet weights here")
def test_the_imagenet_weights_of_the_original_are_loaded():
  model = backbones.build_backbone("efficientnet_lite0", weights=str(LITE0_WEIGHTS))
  reference = tf.keras.models.clone_model(keras_cv_lite0())
  reference.load_weights(LITE0_WEIGHTS)
  images = pixels(1, 64, 64, 3)
  for ours, theirs in zip(model(images), outputs_of(reference, images)):
    np.testing.assert_array_equal(ours, theirs)


def test_a_checkpoint_with_dropout_is_restored_whole(tmp_path):
  # A run that was started before continues.
  original = small_network()
  optimizer = tf.keras.optimizers.legacy.SGD(0.1, momentum=0.9)
  variables = original.trainable_variables
  optimizer.apply_gradients([(tf.ones_like(v), v) for v in variables])
  path = tf.train.Checkpoint(network=original, optimizer=optimizer).write(
    str(tmp_path / "epoch-1")
  )
  network = drop_connect.replace_dropout(small_network())
  drop_connect.draw_from(network, Seed(1, 2).draw)
  restored = tf.keras.optimizers.legacy.SGD(0.1, momentum=0.9)
  restored._create_all_weights(network.trainable_variables)
  status = tf.train.Checkpoint(network=network, optimizer=restored).read(path)
  status.assert_existing_objects_matched()
  for ours, theirs in zip(network.weights, original.weights):
    np.testing.assert_array_equal(ours, theirs)
  for ours, theirs in zip(restored.get_weights(), optimizer.get_weights()):
    np.testing.assert_array_equal(ours, theirs)


def test_the_seed_is_no_part_of_the_network(tmp_path):
  network = drop_connect.replace_dropout(small_network())

  def stored(name):
    path = tf.train.Checkpoint(network=network).write(str(tmp_path / name))
    return tf.train.list_variables(path)

  before, weights = stored("before"), [v.ref() for v in network.variables]
  seed = Seed(1, 2)
  drop_connect.draw_from(network, seed.draw)
  network(pixels(2, 8, 8, 3), training=True)
  assert stored("after") == before
  assert [v.ref() for v in network.variables] == weights
  assert seed.value.ref() not in {
    v.ref() for module in network.submodules for v in module.variables
  }


@pytest.mark.parametrize("has_had_seed", [False, True])
def test_the_network_can_be_saved_as_a_saved_model(has_had_seed, tmp_path):
  network = drop_connect.replace_dropout(small_network())
  images = pixels(40, 8, 8, 3)
  if has_had_seed:
    drop_connect.draw_from(network, Seed(1, 2).draw)
    network(images, training=True)
    drop_connect.draw_from(network, None)
  tf.saved_model.save(network, str(tmp_path))
  loaded = tf.saved_model.load(str(tmp_path))
  expected = network(images, training=False)
  np.testing.assert_allclose(loaded(images, training=False), expected, rtol=1e-5)
  assert np.abs(loaded(images, training=True) - expected).max() > 1e-3


def test_a_function_of_a_network_with_a_seed_can_be_saved(tmp_path):
  # As the export does it: evaluation alone, which reads no seed.
  network = drop_connect.replace_dropout(small_network())
  drop_connect.draw_from(network, Seed(1, 2).draw)
  module = tf.Module()
  module.variables_of_network = network.variables
  module.run = tf.function(
    lambda images: network(images, training=False),
    input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32)],
  )
  tf.saved_model.save(module, str(tmp_path))
  images = pixels(3, 8, 8, 3)
  loaded = tf.saved_model.load(str(tmp_path))
  np.testing.assert_allclose(loaded.run(images), module.run(images), rtol=1e-5)


def test_a_layer_is_made_again_from_its_config():
  layer = drop_connect.DropConnect(0.3, name="block2b_drop")
  again = drop_connect.DropConnect.from_config(layer.get_config())
  assert again.name == "block2b_drop"
  assert again.get_config() == layer.get_config()
