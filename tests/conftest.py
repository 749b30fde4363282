"""Two CPU devices, a network that builds in no time, and a run that tests share."""

import contextlib
import copy
import importlib.util
import os
import pathlib
import signal

import absl.logging
import pytest
import tensorflow as tf
from absl.testing import flagsaver

from ap_detect import models  # noqa: F401  selects Keras 2 before tf.keras is used

# Before anything makes a tensor: afterwards the devices are fixed.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0],
  [tf.config.LogicalDeviceConfiguration()] * 2,
)

# Shells start background jobs with SIGINT ignored, and so would all tests' processes.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = {
  "model": {
    "backbone": "five_convolutions",
    "backbone_weights": "",
    "frozen_levels": 0,
    "fpn_channels": 16,
    "head_convolutions": 1,
    "head_initializer": "he",
    "anchor_base_scale": 2.0,
  },
  "data": {
    "format": "shapes",
    "image_size_px": (128, 128),
    "shapes_train_images": 12,
    "shapes_val_images": 4,
  },
  "train": {
    "batch_size": 4,
    "epochs": 3,
    "classification_loss": "focal_loss",
    "optimizer": "adam",
    "learning_rate": 0.003,
    "schedule": "cosine",
    "warmup_steps": 2,
    "clip_norm": 10.0,
  },
  "eval": {"score_threshold": 0.0, "batch_size": 4, "num_pictures": 3},
}


def _five_convolutions(images, weights):
  assert weights is None
  layers = tf.keras.layers
  feature = images
  for level, channels in enumerate((8, 8, 16, 16, 16), start=1):
    feature = layers.Conv2D(channels, 3, 2, padding="same", use_bias=False)(feature)
    feature = layers.BatchNormalization()(feature)
    feature = layers.ReLU(name=f"c{level}")(feature)
  return tf.keras.Model(images, feature)


@pytest.fixture(autouse=True)
def unchanged_environment():
  """What a test sets would reach every process that later tests start."""
  before = dict(os.environ)
  yield
  after = dict(os.environ)
  for environment in (before, after):
    environment.pop("PYTEST_CURRENT_TEST", None)
  assert after == before


@pytest.fixture(scope="session")
def load_script():
  """Function of a script's path in the repository to the script as a module.

  Its flags are forgotten again: scripts define flags of the same names, absl's are
  known to the whole process, and which tests share a process is left to chance.
  """

  def load(path):
    path = pathlib.Path(__file__).parents[1] / path
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
      patch.syspath_prepend(str(path.parent))
      spec.loader.exec_module(module)
    return module

  return load


@pytest.fixture(scope="session")
def small_backbone():
  """Makes model.backbone="five_convolutions" known; returns the name."""
  from ap_detect.models import backbones

  name = SMALL["model"]["backbone"]
  backbones._BACKBONES[name] = backbones._Backbone(
    _five_convolutions,
    lambda images: (images - 127.0) / 64.0,
    tuple(f"c{level}" for level in range(1, 6)),
  )
  yield name
  del backbones._BACKBONES[name]


@pytest.fixture(scope="session")
def drawing():
  """Makes a context in which validations draw and write summaries; outside they do not.

  For it takes longer than such a training.
  """
  from ap_detect.training import validation

  draw = validation.Validator._write_summaries

  @contextlib.contextmanager
  def drawing_here():
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(validation.Validator, "_write_summaries", draw)
      yield

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(validation.Validator, "_write_summaries", lambda *_: None)
    yield drawing_here


@pytest.fixture(scope="session")
def make_config(small_backbone, drawing):
  """Config of the smallest run, changed by {"section.field": value}."""
  from ap_detect import config

  def make(changes=None):
    values = copy.deepcopy(SMALL)
    for name, value in (changes or {}).items():
      section, field = name.split(".")
      values[section][field] = value
    return config.resolve(values)

  return make


@pytest.fixture(scope="session")
def trained_run(make_config, drawing, tmp_path_factory):
  """Folder of a run of 3 epochs with AP-loss. Copy it before changing it."""
  from ap_detect.training import trainer

  model_dir = str(tmp_path_factory.mktemp("runs") / "trained")
  config = make_config({"train.classification_loss": "ap_loss"})
  with drawing():
    trainer.train(config, model_dir)
  return model_dir


@pytest.fixture(scope="session")
def restored_run(trained_run):
  """The RestoredRun of trained_run's best checkpoint."""
  from ap_detect.runs import model as model_lib

  return model_lib.restore(trained_run)


@pytest.fixture
def hear(monkeypatch):
  """Function of levels, "info" or "warning", to the list of what is logged at them."""

  def listen(*levels):
    lines = []
    for level in levels:
      monkeypatch.setattr(
        absl.logging, level, lambda text, *parts: lines.append(text % parts)
      )
    return lines

  return listen


@pytest.fixture
def at_info():
  """Lines of information are logged, as by the scripts."""
  before = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.INFO)
  yield
  absl.logging.set_verbosity(before)


@pytest.fixture(scope="session")
def random_backbone():
  """Makes model.backbone="random" known, which has drop-connect; returns the name."""
  from ap_detect.models import backbones, drop_connect

  def build(images, weights):
    layers = tf.keras.layers
    feature = images
    for level in range(1, 6):
      feature = layers.Conv2D(8, 3, 2, padding="same", use_bias=False)(feature)
      feature = layers.BatchNormalization()(feature)
      feature = drop_connect.DropConnect(0.3, name=f"drop{level}")(feature)
      feature = layers.ReLU(name=f"c{level}")(feature)
    return tf.keras.Model(images, feature)

  ends = tuple(f"c{level}" for level in range(1, 6))
  backbones._BACKBONES["random"] = backbones._Backbone(
    build, lambda images: (images - 127.0) / 64.0, ends
  )
  yield "random"
  del backbones._BACKBONES["random"]


@pytest.fixture(scope="session")
def make_strategy():
  """Function of a number of replicas to the strategy that all tests share for it.

  TensorFlow numbers a strategy's exchanges from the same start: of two strategies on the
  same devices, the second would take part in the first one's.
  """
  made = {}

  def make(num_replicas=1):
    if num_replicas not in made:
      devices = [f"CPU:{number}" for number in range(num_replicas)]
      made[num_replicas] = tf.distribute.MirroredStrategy(devices)
    return made[num_replicas]

  return make
