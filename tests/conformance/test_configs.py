"""Every file in configs/ loads, resolves, builds, and takes a step at reduced size."""

import ast
import importlib.util
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

from ap_detect import config as config_lib
from ap_detect.runs import model as model_lib
from ap_detect.training import step as step_lib
from ap_detect.training import trainer

CONFIGS = sorted(pathlib.Path(__file__).resolve().parents[2].glob("configs/*.py"))
SIZE_PX = 128


def load(path):
  spec = importlib.util.spec_from_file_location(f"configs_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def overrides_in(text):
  """The (field, value) pairs of all "--config.field=value" in a text."""
  pattern = r"--config\.([\w.]+)=(\"[^\"]*\"|\S+?)(?=[.)]*(?:\s|$))"
  found = re.findall(pattern, text)
  return [(name, value.strip('"')) for name, value in found]


def override(values, name, text):
  """Sets a field of a ConfigDict as the command line does."""
  section, *parts, field = name.split(".")
  fields = values[section]
  for part in parts:  # loss_options
    fields = fields[part]
  is_text = isinstance(fields.get(field), str)
  fields[field] = text if is_text else ast.literal_eval(text)


ROWS = [
  pytest.param(path, row, id=f"{path.stem}-{'='.join(row)}")
  for path in CONFIGS
  for row in overrides_in(ast.get_docstring(ast.parse(path.read_text())))
  if row[0] not in ("data.root", "model.backbone_weights")
]


def is_slow(path):
  return "r101" in path.stem


BUILT = [
  pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * is_slow(path))
  for path in CONFIGS
]


def reduced(values):
  """A config without weights, as small as its backbone lets it be."""
  values.model.backbone_weights = ""
  values.model.fpn_channels = 16
  values.model.head_convolutions = 1
  values.data.image_size_px = (SIZE_PX, SIZE_PX)
  values.data.root = values.data.root or "given by the user"
  values.train.batch_size = max(
    2, values.train.loss_options.get("images_per_ranking", 0)
  )
  return config_lib.resolve(values)


def take_step(config, strategy):
  """One step of training from noise; returns (network, weights before, logs)."""
  tf.keras.utils.set_random_seed(0)
  with strategy.scope():
    network = model_lib.build_network(config, 2, pretrained=True)
    feed = step_lib.Feed()
    optimizer = trainer.make_optimizer(config.train, feed, network)
    step = trainer.make_step(config, network, optimizer, feed, strategy)
  before = [weight.numpy() for weight in network.trainable_variables]
  batch = make_batch(config.train.batch_size)
  logs = step([batch], [config.train.learning_rate], 0)
  assert np.isfinite(logs["total_loss"][0]) and logs["is_finite"][0]
  assert logs["num_positive_anchors"][0] > 0
  return network, before, logs


def make_batch(num_images=2):
  rng = np.random.default_rng(0)
  return {
    "image": rng.uniform(0, 255, [num_images, SIZE_PX, SIZE_PX, 3]).astype(np.float32),
    "boxes": np.tile(np.array([[[10, 20, 50, 60]]], np.float32), [num_images, 1, 1]),
    "classes": np.ones([num_images, 1], np.int32),
    "ignored": np.zeros([num_images, 1], bool),
  }


@pytest.fixture
def without_graphs():
  """One step alone is much faster without compiling it."""
  tf.config.run_functions_eagerly(True)
  yield
  tf.config.run_functions_eagerly(False)


def test_there_are_configs():
  assert {"shapes", "own_data"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_resolves_as_it_is(path):
  values = load(path).get_config()
  values.data.root = values.data.root or "given by the user"
  config = config_lib.resolve(values)
  assert load(path).__doc__
  assert config.model.backbone


@pytest.mark.parametrize("path, row", ROWS)
@pytest.mark.usefixtures("without_graphs")
def test_rows_of_the_paper_take_a_step(path, row, small_backbone):
  values = load(path).get_config()
  before = config_lib.resolve({**values, "data": {**values.data, "root": "given"}})
  override(values, *row)
  values.data.root = "given"
  assert config_lib.changes(before, config_lib.resolve(values))
  values.model.backbone = small_backbone
  values.model.frozen_levels = 0
  config = reduced(values)
  _, _, logs = take_step(config, tf.distribute.OneDeviceStrategy("CPU:0"))
  assert config.train.classification_loss in logs


def test_the_rows_are_found():
  assert len(ROWS) >= 13


@pytest.mark.parametrize("path", BUILT)
@pytest.mark.usefixtures("without_graphs")
def test_takes_a_step(path):
  config = reduced(load(path).get_config())
  network, before, _ = take_step(config, tf.distribute.OneDeviceStrategy("CPU:0"))
  after = [weight.numpy() for weight in network.trainable_variables]
  moved = [np.any(a != b) for a, b in zip(after, before)]
  # All the heads and the pyramid above; a block that starts at 0 may wait a step.
  assert np.mean(moved) > 0.5
  found = model_lib.make_detect(config)(
    network(make_batch()["image"], training=False), tf.fill([2, 2], float(SIZE_PX))
  )
  assert found.boxes.shape == (2, config.eval.max_detections, 4)
