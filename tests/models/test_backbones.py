import functools
import sys

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.models import backbones

SIZE = (128, 96)
SMALL = ("csp_darknet_nano", "efficientnet_lite0")


def pixels(count=1):
  rng = np.random.default_rng(0)
  return rng.uniform(0, 255, (count, *SIZE, 3)).astype(np.float32)


@functools.cache
def plain_model(name):
  """A backbone without weights and with nothing frozen, built once."""
  return backbones.build_backbone(name)


def inner(model):
  """The network after the normalisation."""
  return model.layers[-1]


def last_part(variable):
  return variable.name.split("/")[-1].split(":")[0]


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name == "resnet101" else ())
    for name in backbones.BACKBONES
  ],
)
def test_every_backbone_gives_strides_8_16_32(name):
  features = plain_model(name)(pixels())
  shapes = [feature.shape[1:3].as_list() for feature in features]
  assert shapes == [[16, 12], [8, 6], [4, 3]]
  assert all(np.isfinite(feature).all() and np.ptp(feature) > 0 for feature in features)


def test_resnets_subtract_the_mean_from_bgr():
  # RGB (10, 20, 30) -> BGR (30, 20, 10) - (103.939, 116.779, 123.68)
  model = plain_model("resnet18")
  normalization = model.get_layer("input_normalization")
  found = normalization(tf.constant([[[[10.0, 20.0, 30.0]]]]))
  np.testing.assert_allclose(found[0, 0, 0], [-73.939, -96.779, -113.68], rtol=1e-6)
  expected = tf.keras.applications.resnet.preprocess_input(pixels())
  np.testing.assert_allclose(normalization(pixels()), expected, atol=1e-4)


def test_lite0_centres_rgb():
  # (0 - 127) / 128, (127 - 127) / 128, (255 - 127) / 128
  model = plain_model("efficientnet_lite0")
  normalization = model.get_layer("input_normalization")
  found = normalization(tf.constant([[[[0.0, 127.0, 255.0]]]]))
  np.testing.assert_allclose(found[0, 0, 0], [-127 / 128, 0, 1], rtol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_the_model_normalises_its_input(name):
  model = plain_model(name)
  normalized = model.get_layer("input_normalization")(pixels())
  for a, b in zip(model(pixels()), inner(model)(normalized)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("frozen_levels", [0, 1, 2, 5])
def test_frozen_levels_of_resnet18(frozen_levels):
  model = backbones.build_backbone("resnet18", frozen_levels=frozen_levels)
  # C1 ends after conv1; C<n> is the stage v2_stack_<n - 2>.
  frozen = ("conv1", *(f"v2_stack_{stage}_" for stage in range(4)))[:frozen_levels]
  for layer in inner(model).layers:
    if layer.weights:
      is_frozen = layer.name.startswith(frozen)
      assert bool(layer.trainable_variables) != is_frozen, layer.name
  assert (len(model.trainable_variables) == 0) == (frozen_levels == 5)


def test_frozen_levels_of_resnet50_are_the_releases():
  # The release freezes conv1 and the first stage, conv2.
  model = backbones.build_backbone("resnet50", frozen_levels=2, freeze_batch_norm=True)
  for layer in inner(model).layers:
    if layer.weights:
      is_frozen = layer.name.startswith(("conv1_", "conv2_")) or "_bn" in layer.name
      assert bool(layer.trainable_variables) != is_frozen, layer.name


def test_frozen_levels_of_lite0():
  model = backbones.build_backbone("efficientnet_lite0", frozen_levels=2)
  for layer in inner(model).layers:
    if layer.weights:
      is_frozen = layer.name.startswith(("stem", "block1", "block2"))
      assert bool(layer.trainable_variables) != is_frozen, layer.name


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("freeze", [False, True])
def test_frozen_batch_norm_keeps_its_statistics_and_weights(name, freeze):
  model = plain_model(name)
  if freeze:
    model = backbones.build_backbone(name, freeze_batch_norm=True)
  trained = {last_part(variable) for variable in model.trainable_variables}
  assert ("gamma" in trained) != freeze
  assert any("kernel" in part for part in trained)
  statistics = [v for v in model.variables if last_part(v).startswith("moving_")]
  before = [variable.numpy() for variable in statistics]
  model(pixels(count=2), training=True)
  changed = [
    not np.array_equal(variable, old) for variable, old in zip(statistics, before)
  ]
  assert len(changed) > 10
  assert not any(changed) if freeze else all(changed)


@pytest.mark.parametrize("name", SMALL)
def test_weights_from_a_file_are_used(name, tmp_path):
  path = str(tmp_path / "backbone.weights.h5")
  spec = backbones._BACKBONES[name]
  source = spec.build(tf.keras.Input((*SIZE, 3)), None)
  for variable in source.variables:  # biases and statistics, too, as if trained
    variable.assign_add(tf.random.stateless_uniform(variable.shape, (1, 2), 0.0, 0.02))
  source.save_weights(path)
  ends = [source.get_layer(end).output for end in spec.level_ends[2:]]
  expected = tf.keras.Model(source.inputs, ends)(spec.normalize(pixels()))
  loaded = backbones.build_backbone(name, weights=path)(pixels())
  for a, b in zip(loaded, expected):
    np.testing.assert_array_equal(a, b)


def test_a_missing_weights_file_is_named():
  with pytest.raises(ValueError, match=r"no file 'nowhere/x\.weights\.h5'"):
    backbones.build_backbone("resnet18", weights="nowhere/x.weights.h5")


@pytest.mark.parametrize("name", ["x.weights.h5", "x.h5", "x.keras", "x.ckpt", "x"])
def test_a_file_that_holds_no_weights_is_named(name, tmp_path):
  path = tmp_path / name
  path.write_text("no weights")
  with pytest.raises(ValueError, match=f"{path.name}' does not fit"):
    backbones.build_backbone("resnet18", weights=str(path))


def test_weights_of_another_network_are_named(tmp_path):
  path = str(tmp_path / "lite0.weights.h5")
  spec = backbones._BACKBONES["efficientnet_lite0"]
  spec.build(tf.keras.Input((*SIZE, 3)), None).save_weights(path)
  with pytest.raises(ValueError, match=r"lite0\.weights\.h5' does not fit"):
    backbones.build_backbone("resnet18", weights=path)


def test_a_checkpoint_of_something_else_is_named(tmp_path):
  path = tf.train.Checkpoint(epoch=tf.Variable(1)).write(str(tmp_path / "epoch-1"))
  with pytest.raises(ValueError, match=r"epoch-1\.index' does not fit"):
    backbones.build_backbone("resnet18", weights=f"{path}.index")


def keras_resnet(name, *, include_top):
  """The classifier of tf.keras.applications, with weights as if trained."""
  constructor = {
    "resnet50": tf.keras.applications.ResNet50,
    "resnet101": tf.keras.applications.ResNet101,
  }[name]
  network = constructor(
    include_top=include_top, weights=None, input_shape=(*SIZE, 3), classes=7
  )
  rng = np.random.default_rng(1)
  for variable in network.variables:
    part = last_part(variable)
    if part != "kernel":  # kernels are random as they are
      centre = 1.0 if part in ("gamma", "moving_variance") else 0.0
      variable.assign(centre + rng.uniform(-0.2, 0.2, variable.shape))
  return network


@pytest.mark.parametrize(
  ("name", "include_top", "ending"),
  [
    ("resnet50", True, ".h5"),
    ("resnet50", False, ".weights.h5"),
    pytest.param("resnet50", True, ".weights.h5", marks=pytest.mark.slow),
    pytest.param("resnet50", False, ".h5", marks=pytest.mark.slow),
    pytest.param("resnet101", True, ".h5", marks=pytest.mark.slow),
    pytest.param("resnet101", False, ".h5", marks=pytest.mark.slow),
  ],
)
def test_resnets_are_keras_resnets_block_by_block(name, include_top, ending, tmp_path):
  reference = keras_resnet(name, include_top=include_top)
  path = str(tmp_path / f"resnet{ending}")
  reference.save_weights(path)
  model = backbones.build_backbone(name, weights=path)
  ends = [layer.name for layer in reference.layers if layer.name.endswith("_out")]
  blocks = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}[name]
  assert ends == [
    f"conv{stage}_block{block}_out"
    for stage, count in zip((2, 3, 4, 5), blocks)
    for block in range(1, count + 1)
  ]
  ends = ["conv1_relu", *ends]
  expected = run_layers(
    reference, ends, tf.keras.applications.resnet.preprocess_input(pixels())
  )
  normalized = model.get_layer("input_normalization")(pixels())
  found = run_layers(inner(model), ends, normalized)
  for end in ends:
    assert_near(found[end], expected[end], end)
  levels = ("conv3_block4_out", f"conv4_block{blocks[2]}_out", "conv5_block3_out")
  for end, feature in zip(levels, model(pixels())):
    assert_near(feature, expected[end], end)


def run_layers(network, names, inputs):
  """{name: output} of some layers."""
  outputs = {name: network.get_layer(name).output for name in names}
  return tf.keras.Model(network.inputs, outputs)(inputs)


def assert_near(found, expected, name):
  scale = np.abs(expected).max()
  assert scale > 0
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale, err_msg=name)


def test_imagenet_weights_are_downloaded(tmp_path, monkeypatch):
  # The public file is of Keras' older HDF5 format.
  path = str(tmp_path / "public.h5")
  spec = backbones._BACKBONES["efficientnet_lite0"]
  source = spec.build(tf.keras.Input((*SIZE, 3)), None)
  source.save_weights(path)
  asked = []
  monkeypatch.setattr(
    tf.keras.utils, "get_file", lambda **options: asked.append(options) or path
  )
  model = backbones.build_backbone("efficientnet_lite0", weights="imagenet")
  assert [options["origin"].split("/")[0] for options in asked] == ["https:"]
  assert len(asked[0]["file_hash"]) == 32
  for variable in inner(model).variables:
    layer, part = variable.name.split("/")
    expected = {last_part(v): v for v in source.get_layer(layer).variables}[
      part.split(":")[0]
    ]
    np.testing.assert_array_equal(variable, expected, err_msg=variable.name)


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_imagenet_weights_are_those_that_keras_takes(name):
  keras_module = sys.modules[tf.keras.applications.ResNet50.__module__]
  address, md5 = backbones._IMAGENET_WEIGHTS[name]
  assert md5 == keras_module.WEIGHTS_HASHES[name][1]  # without the classifier
  assert address.startswith(f"{keras_module.BASE_WEIGHTS_PATH}{name}_weights")
  assert address.endswith("_notop.h5")


def test_imagenet_weights_without_a_network(monkeypatch):
  def fail(**options):
    raise Exception(f"URL fetch failure on {options['origin']}")

  monkeypatch.setattr(tf.keras.utils, "get_file", fail)
  with pytest.raises(
    ValueError, match=r"could not be down.*failure on https:.*lite_b0"
  ):
    backbones.build_backbone("efficientnet_lite0", weights="imagenet")


@pytest.mark.parametrize("name", ["csp_darknet_nano", "resnet18"])
def test_imagenet_weights_exist_for_some_only(name):
  expected = rf"'imagenet' exists for .*lite0.*resnet50.*; for {name} give .*\.h5"
  with pytest.raises(ValueError, match=expected):
    backbones.build_backbone(name, weights="imagenet")


def test_impossible_arguments_raise():
  with pytest.raises(ValueError, match=r"must be one of .*resnet18.* got 'vgg'"):
    backbones.build_backbone("vgg")
  with pytest.raises(ValueError, match="must be 0 to 5, got 6"):
    backbones.build_backbone("resnet18", frozen_levels=6)
