"""Backbones: images in, feature maps C3-C5 out; each owns its input normalisation."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from typing import Callable, NamedTuple

import h5py
import tensorflow as tf

from ap_detect.models import drop_connect

# Subtracted from BGR by the original (Caffe) ResNet; tf.keras.applications' "caffe" mode.
RESNET_MEAN_BGR = (103.939, 116.779, 123.68)

# Public ImageNet weights: address and MD5. The ResNets' are tf.keras.applications' own,
# without the classifier. Lite0's are Google's, converted for a Keras network of the same
# layers as keras-cv's (Apache-2.0).
_KERAS_RESNETS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
_IMAGENET_WEIGHTS = {
  "resnet50": (
    f"{_KERAS_RESNETS}resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "4d473c1dd8becc155b73f8504c6f6626",
  ),
  "resnet101": (
    f"{_KERAS_RESNETS}resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "88cf7a10940856eca736dc7b7e228a21",
  ),
  "efficientnet_lite0": (
    "https://github.com/sebastian-sz/efficientnet-lite-keras/releases/download/v1.0/"
    "efficientnet_lite_b0_notop.h5",
    "d7a91a3c0e7f0bdffe67f599ebe511cd",
  ),
}


class _Backbone(NamedTuple):
  """How to build one backbone.

  Attributes:
    build: (input tensor, path of a weights file or None) -> Keras model.
    normalize: [B, H, W, 3] RGB 0..255 float32 -> what the weights were trained on.
    level_ends: names of the last layers of C1..C5, of strides 2, 4, 8, 16, 32.
  """

  build: Callable
  normalize: Callable
  level_ends: tuple[str, ...]


class InputNormalization(tf.keras.layers.Layer):
  """A backbone's input normalisation as the network's first layer.

  In float32 whatever the network computes in: bfloat16 has 8 bits for 256 grey levels
  and their mean.
  """

  def __init__(self, normalize, **kwargs):
    super().__init__(dtype=tf.float32, **kwargs)
    self._normalize = normalize

  def call(self, images):
    return self._normalize(images)


def build_backbone(name, *, weights="", frozen_levels=0, freeze_batch_norm=False):
  """A backbone as a Keras model from pixels to feature maps.

  Args:
    name: "resnet50", "resnet101" (tf.keras.applications), "resnet18",
      "csp_darknet_nano" or "efficientnet_lite0" (keras-cv).
    weights: "" for none, "imagenet" (resnet50, resnet101, efficientnet_lite0;
      downloaded once, into Keras' cache), or the path of a file that Keras' save_weights
      wrote for the same network, .weights.h5 or .h5, with or without a classifier.
    frozen_levels: 0 to 5; layers up to the end of C<n> are not trained.
    freeze_batch_norm: whether batch normalisation keeps the statistics it has; right
      where the weights are pretrained, wrong where they are not.

  Returns:
    tf.keras.Model: [B, H, W, 3] float32 RGB 0..255 -> [C3, C4, C5], of strides 8, 16
    and 32. H and W are multiples of 32.

  Raises:
    ValueError: unknown name, or weights that do not exist, do not fit or could not be
      downloaded.
  """
  if name not in _BACKBONES:
    raise ValueError(
      f"model.backbone must be one of {sorted(_BACKBONES)}, got {name!r}"
    )
  if not 0 <= frozen_levels <= 5:
    raise ValueError(f"model.frozen_levels must be 0 to 5, got {frozen_levels}")
  spec = _BACKBONES[name]
  path = _find_weights(name, weights)
  images = tf.keras.Input((None, None, 3), name="images")
  normalized = InputNormalization(spec.normalize, name="input_normalization")(images)
  with _quiet_keras_cv():
    network = spec.build(tf.keras.Input((None, None, 3)), path)
    features = tf.keras.Model(
      network.inputs, [network.get_layer(end).output for end in spec.level_ends[2:]]
    )
  _freeze(network, spec.level_ends, frozen_levels, freeze_batch_norm=freeze_batch_norm)
  return tf.keras.Model(images, features(normalized), name=name)


def _find_weights(name, weights):
  """Path of a backbone's weights file; None for no weights."""
  if not weights:
    return None
  if weights == "imagenet":
    return _download_imagenet(name)
  if not os.path.isfile(weights):
    raise ValueError(f"model.backbone_weights: no file {weights!r}")
  return weights


def _download_imagenet(name):
  if name not in _IMAGENET_WEIGHTS:
    raise ValueError(
      f"model.backbone_weights: 'imagenet' exists for {sorted(_IMAGENET_WEIGHTS)}; for "
      f"{name} give the path of a file, .weights.h5 or .h5, that Keras' save_weights "
      f"wrote for the network that {__name__} builds, or '' for none"
    )
  address, md5 = _IMAGENET_WEIGHTS[name]
  try:
    return tf.keras.utils.get_file(
      origin=address, file_hash=md5, hash_algorithm="md5", cache_subdir="models"
    )
  except Exception as error:  # Keras raises no narrower one
    raise ValueError(
      f"model.backbone_weights: the ImageNet weights of {name} could not be downloaded "
      f"({error}). Where there is no network, give the path of that file"
    ) from error


def _freeze(network, level_ends, frozen_levels, *, freeze_batch_norm):
  names = [layer.name for layer in network.layers]
  num_frozen = names.index(level_ends[frozen_levels - 1]) + 1 if frozen_levels else 0
  for layer in network.layers[:num_frozen]:
    layer.trainable = False
  if freeze_batch_norm:
    for module in network.submodules:
      if isinstance(module, tf.keras.layers.BatchNormalization):
        module.trainable = False


def _build_keras_resnet(constructor_name):
  def build(images, weights):
    constructor = getattr(tf.keras.applications, constructor_name)
    network = constructor(include_top=False, weights=None, input_tensor=images)
    _load_weights(network, weights)
    return network

  return build


def _build_resnet18(images, weights):
  import keras_cv

  network = keras_cv.models.ResNetBackbone(
    stackwise_filters=[64, 128, 256, 512],
    stackwise_blocks=[2, 2, 2, 2],
    stackwise_strides=[1, 2, 2, 2],
    block_type="basic_block",
    include_rescaling=False,
    input_tensor=images,
  )
  _load_weights(network, weights)
  return network


def _build_csp_darknet_nano(images, weights):
  import keras_cv

  network = keras_cv.models.CSPDarkNetBackbone(
    stackwise_channels=[32, 64, 128, 256],
    stackwise_depth=[1, 3, 3, 1],
    include_rescaling=False,
    input_tensor=images,
  )
  _load_weights(network, weights)
  return network


def _build_efficientnet_lite0(images, weights):
  import keras_cv

  network = keras_cv.models.EfficientNetLiteBackbone(
    stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
    stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
    stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
    stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
    stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
    stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
    width_coefficient=1.0,
    depth_coefficient=1.0,
    include_rescaling=False,
    input_tensor=images,
  )
  network = drop_connect.replace_dropout(network)
  _load_weights(network, weights)
  return network


def _load_weights(network, path):
  if path is None:
    return
  try:
    if _names_every_layer(path, network):
      network.load_weights(path, by_name=True)
    else:
      network.load_weights(path)
  except (OSError, ValueError, KeyError, IndexError, AssertionError) as error:
    raise ValueError(
      f"model.backbone_weights: {path!r} does not fit {network.name}: {error}"
    ) from error


def _names_every_layer(path, network):
  """Whether a file of Keras' older HDF5 format has all of a network's layers by name.

  Such a file may hold a classifier too, over which reading in the layers' order stumbles.
  """
  if not h5py.is_hdf5(path):
    return False
  with h5py.File(path, "r") as file:
    layers = file.get("model_weights", file)
    return all(layer.name in layers for layer in network.layers if layer.weights)


def _resnet_normalize(images):
  return images[..., ::-1] - tf.constant(RESNET_MEAN_BGR)


def _centered(images):
  return (images - 127.0) / 128.0


@contextlib.contextmanager
def _quiet_keras_cv():
  """keras-cv announces its backend on import and trips over Keras' own deprecations."""
  with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore", UserWarning)
    with contextlib.redirect_stdout(io.StringIO()):
      yield


def _keras_resnet_ends(conv4_blocks):
  return (
    "conv1_relu",
    "conv2_block3_out",
    "conv3_block4_out",
    f"conv4_block{conv4_blocks}_out",
    "conv5_block3_out",
  )


_BACKBONES = {
  # For short runs from scratch on a CPU: width 0.25 and depth 0.33 of CSPDarkNet-L.
  "csp_darknet_nano": _Backbone(
    _build_csp_darknet_nano,
    _centered,
    ("stem_conv", "dark2_csp", "dark3_csp", "dark4_csp", "dark5_csp"),
  ),
  "resnet18": _Backbone(
    _build_resnet18,
    _resnet_normalize,
    ("conv1_relu", *(f"v2_stack_{stack}_block2_out" for stack in range(4))),
  ),
  "resnet50": _Backbone(
    _build_keras_resnet("ResNet50"), _resnet_normalize, _keras_resnet_ends(6)
  ),
  "resnet101": _Backbone(
    _build_keras_resnet("ResNet101"), _resnet_normalize, _keras_resnet_ends(23)
  ),
  "efficientnet_lite0": _Backbone(
    _build_efficientnet_lite0,
    _centered,
    # C5 ends before the convolution to 1,280 channels, which only classification needs.
    (
      "block1a_project_bn",
      "block2b_add",
      "block3b_add",
      "block5c_add",
      "block7a_project_bn",
    ),
  ),
}
BACKBONES = tuple(sorted(_BACKBONES))
