"""A new run that starts from another run's weights: what it gets, and what it keeps."""

import json
import os
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ap_detect.models import backbones, retinanet
from ap_detect.training import initial_weights, trainer

SIZE = (64, 64)


def make_network(backbone, *, num_classes=3, **options):
  """A network whose every variable has values of its own."""
  network = retinanet.build_retinanet(
    backbones.build_backbone(backbone),
    num_classes=num_classes,
    **{"fpn_channels": 8, "head_convolutions": 1, **options},
  )
  rng = np.random.default_rng()
  for variable in network.variables:
    variable.assign(rng.normal(size=variable.shape).astype(np.float32))
  return network


def save(network, folder):
  return tf.train.Checkpoint(network=network).write(str(folder / "other-1"))


def names(network):
  return [variable.name.split(":")[0] for variable in network.variables]


def values(network):
  return [variable.numpy() for variable in network.variables]


def changed(network, before):
  """Names of the variables that have not the values of `before` any more."""
  pairs = zip(names(network), values(network), before)
  return {name for name, now, then in pairs if not np.array_equal(now, then)}


def listen(patch):
  """Lines that the module under test, and nobody else, will log."""
  lines = []

  def info(text, *parts):
    lines.append(text % parts)

  patch.setattr(initial_weights, "logging", types.SimpleNamespace(info=info))
  return lines


@pytest.fixture
def said(monkeypatch):
  """What the module under test logs."""
  return listen(monkeypatch)


@pytest.fixture
def other_names(small_backbone):
  """A backbone with small_backbone's shapes and other names; returns its name."""

  def build(images, weights):
    feature = images
    for level, channels in enumerate((8, 8, 16, 16, 16), start=1):
      feature = tf.keras.layers.Conv2D(
        channels, 3, 2, padding="same", use_bias=False, name=f"other{level}"
      )(feature)
      feature = tf.keras.layers.BatchNormalization()(feature)
      feature = tf.keras.layers.ReLU(name=f"c{level}")(feature)
    return tf.keras.Model(images, feature)

  original = backbones._BACKBONES[small_backbone]
  backbones._BACKBONES["other_names"] = original._replace(build=build)
  yield "other_names"
  del backbones._BACKBONES["other_names"]


class TestValues:
  @pytest.mark.parametrize(
    "backbone",
    ["five_convolutions", pytest.param("csp_darknet_nano", marks=pytest.mark.slow)],
  )
  def test_every_variable(self, small_backbone, backbone, tmp_path):
    source, network = make_network(backbone), make_network(backbone)
    # Layers without names of their own are counted on from the first network.
    assert names(network) != names(source)
    assert len(changed(network, values(source))) == len(network.variables)
    initial_weights.load_initial_weights(network, save(source, tmp_path))
    # Both networks have their variables in the same order.
    assert changed(network, values(source)) == set()

  def test_every_replica(self, small_backbone, tmp_path):
    source = make_network(small_backbone)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
      network = make_network(small_backbone)
    initial_weights.load_initial_weights(network, save(source, tmp_path))
    for variable, expected in zip(network.variables, values(source)):
      assert len(variable.values) == 2
      for replica in variable.values:
        np.testing.assert_array_equal(replica, expected, err_msg=variable.name)

  def test_beside_an_optimizer_s_state(self, small_backbone, tmp_path, said):
    source = make_network(small_backbone)
    # The kind that keeps its state beside each variable, as tensorflow-addons' do.
    optimizer = tf.keras.optimizers.legacy.SGD(0.1, momentum=0.9)
    optimizer._create_all_weights(source.trainable_variables)
    checkpoint = tf.train.Checkpoint(
      network=source, optimizer=optimizer, epoch=tf.Variable(3)
    )
    path = checkpoint.write(str(tmp_path / "other-1"))
    network = make_network(small_backbone)
    initial_weights.load_initial_weights(network, path)
    assert changed(network, values(source)) == set()
    total = len(network.variables)
    assert said == [f"loaded {total} of {total} variables from {path}"]


class TestMisfits:
  def test_other_classes(self, small_backbone, tmp_path, said):
    source = make_network(small_backbone, num_classes=3)
    path = save(source, tmp_path)
    network = make_network(small_backbone, num_classes=5)
    before = values(network)
    initial_weights.load_initial_weights(network, path)
    kept = {"class_head_output/kernel", "class_head_output/bias"}
    assert changed(network, before) == set(names(network)) - kept
    assert changed(network, values(source)) == kept
    total = len(network.variables)
    assert said == [  # 6 anchors a cell; 6 x 3 = 18, 6 x 5 = 30
      "not loaded: class_head_output/bias, in the checkpoint [18], here [30]",
      "not loaded: class_head_output/kernel, in the checkpoint [3, 3, 8, 18], "
      "here [3, 3, 8, 30]",
      f"loaded {total - 2} of {total} variables from {path}",
    ]

  def test_other_anchors_with_as_many_class_outputs(
    self, small_backbone, tmp_path, said
  ):
    # 6 x 3 = 9 x 2 = 18 outputs of the class head; 24 and 36 of the box head.
    path = save(make_network(small_backbone, num_classes=3), tmp_path)
    network = make_network(small_backbone, num_classes=2, anchors_per_cell=9)
    before = values(network)
    initial_weights.load_initial_weights(network, path)
    kept = {
      f"{head}_head_output/{part}"
      for head in ("class", "box")
      for part in ("kernel", "bias")
    }
    assert changed(network, before) == set(names(network)) - kept
    assert "not loaded: box_head_output/bias, in the checkpoint [24], here [36]" in said
    assert len(said) == 5

  def test_longer_and_shorter_heads(self, small_backbone, tmp_path, said):
    short = make_network(small_backbone, head_convolutions=1)
    long = make_network(small_backbone, head_convolutions=2)
    before = values(long)
    initial_weights.load_initial_weights(long, save(short, tmp_path))
    kept = {
      f"{head}_head_conv1/{part}"
      for head in ("class", "box")
      for part in ("kernel", "bias")
    }
    assert changed(long, before) == set(names(long)) - kept
    assert "not loaded: box_head_conv1/bias, in the checkpoint absent, here [8]" in said
    said.clear()
    long = make_network(small_backbone, head_convolutions=2)
    initial_weights.load_initial_weights(short, save(long, tmp_path))
    expected = dict(zip(names(long), values(long)))
    found = dict(zip(names(short), values(short)))
    heads = [name for name in found if name.startswith(("class_head", "box_head"))]
    assert len(heads) == 8
    for name in heads:
      np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert "not loaded: box_head_conv1/bias, in the checkpoint [8], here absent" in said

  def test_a_layer_is_loaded_as_a_whole(self, small_backbone, tmp_path):
    # Of another width the outputs' kernels do not fit; their biases alone would.
    path = save(make_network(small_backbone, fpn_channels=8), tmp_path)
    network = make_network(small_backbone, fpn_channels=16)
    before = values(network)
    initial_weights.load_initial_weights(network, path)
    kept = {
      name for name in names(network) if name.startswith(("fpn_", "class", "box"))
    }
    assert changed(network, before) == set(names(network)) - kept
    # Kernel and bias of three laterals, five levels, and two heads of two layers.
    assert len(kept) == 2 * (3 + 5 + 2 * 2)


class TestErrors:
  def test_another_backbone(self, small_backbone, other_names, tmp_path):
    path = save(make_network(other_names), tmp_path)
    network = make_network(small_backbone)
    before = values(network)
    with pytest.raises(ValueError, match=r"other-1 holds another backbone: in the pl"):
      initial_weights.load_initial_weights(network, path)
    assert changed(network, before) == set()

  @pytest.mark.slow
  @pytest.mark.parametrize(
    ("source", "backbone"), [("resnet50", "resnet101"), ("resnet101", "resnet50")]
  )
  def test_a_longer_and_a_shorter_backbone(self, source, backbone, tmp_path):
    path = save(make_network(source), tmp_path)
    with pytest.raises(ValueError, match=r"conv5_block1_1_conv/kernel \[1, 1, 1024"):
      initial_weights.load_initial_weights(make_network(backbone), path)

  def test_no_checkpoint(self, small_backbone, tmp_path):
    network = make_network(small_backbone)
    with pytest.raises(ValueError, match=r"model\.initial_checkpoint: .*nowhere/ep"):
      initial_weights.load_initial_weights(network, "nowhere/epoch-7")
    with pytest.raises(ValueError, match=r"initial_checkpoint: there is no checkpoint"):
      initial_weights.load_initial_weights(network, str(tmp_path))
    (tmp_path / "config.json").write_text("{}")  # of a run, then
    with pytest.raises(ValueError, match=r"initial_checkpoint: .* no checkpoint yet"):
      initial_weights.load_initial_weights(network, str(tmp_path))

  def test_a_checkpoint_of_something_else(self, small_backbone, tmp_path):
    path = tf.train.Checkpoint(epoch=tf.Variable(1)).write(str(tmp_path / "other-1"))
    with pytest.raises(ValueError, match=r"other-1 holds another backbone.* nothing"):
      initial_weights.load_initial_weights(make_network(small_backbone), path)


def write_coco(root, num_classes):
  """Four training and four validation pictures with an object each."""
  (root / "annotations").mkdir(parents=True)
  rng = np.random.default_rng(num_classes)
  for split in ("train", "val"):
    (root / split).mkdir()
    content = {
      "images": [],
      "annotations": [],
      "categories": [{"id": k, "name": f"c{k}"} for k in range(1, num_classes + 1)],
    }
    for number in range(1, 5):
      pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
      Image.fromarray(pixels).save(root / split / f"{number}.png")
      content["images"].append(
        {"id": number, "file_name": f"{number}.png", "height": 64, "width": 64}
      )
      content["annotations"].append(
        {
          "id": number,
          "image_id": number,
          "category_id": number % num_classes + 1,
          "bbox": [8, 8, 40, 30],
          "area": 1200,
          "iscrowd": 0,
        }
      )
    path = root / "annotations" / f"instances_{split}.json"
    path.write_text(json.dumps(content))
  return str(root)


def read_network(model_dir, checkpoint):
  """{key: value} of a network's variables in a checkpoint."""
  reader = tf.train.load_checkpoint(os.path.join(model_dir, checkpoint))
  return {
    key: reader.get_tensor(key)
    for key in reader.get_variable_to_shape_map()
    if key.startswith("network/")
  }


@pytest.fixture(scope="module")
def runs(make_config, tmp_path_factory):
  """A run of one step with 3 classes, and one with 5 that starts from it."""
  folder = tmp_path_factory.mktemp("initial")
  source, target = str(folder / "source"), str(folder / "target")
  changes = {
    "data.format": "coco",
    "data.image_size_px": SIZE,
    "train.epochs": 1,
    "train.warmup_steps": 0,
    "train.schedule": "constant",
  }
  data = write_coco(folder / "three", 3)
  trainer.train(make_config({**changes, "data.root": data}), source)
  config = make_config(
    {
      **changes,
      "data.root": write_coco(folder / "five", 5),
      "model.initial_checkpoint": source,
      # Not read: there is none of this backbone.
      "model.backbone_weights": "imagenet",
      "model.frozen_levels": 2,
    }
  )
  with pytest.MonkeyPatch.context() as patch:
    lines = listen(patch)
    trainer.train(config, target)
  shutil.move(source, f"{source}_moved")
  return {
    "source": f"{source}_moved",
    "target": target,
    "config": config,
    "lines": lines,
  }


class TestRun:
  def test_starts_with_the_other_run_s_best_weights(self, runs):
    expected = read_network(runs["source"], "best/epoch-1")
    found = read_network(runs["target"], "checkpoints/step-0")
    assert set(found) == set(expected)
    other = [key for key in found if not np.array_equal(found[key], expected[key])]
    assert sorted(found[key].shape for key in other) == [(3, 3, 16, 30), (30,)]

  def test_says_what_it_did_not_load(self, runs):
    total = len(read_network(runs["source"], "best/epoch-1"))
    assert runs["lines"][:-1] == [
      "not loaded: class_head_output/bias, in the checkpoint [18], here [30]",
      "not loaded: class_head_output/kernel, in the checkpoint [3, 3, 16, 18], "
      "here [3, 3, 16, 30]",
    ]
    assert runs["lines"][-1].startswith(
      f"loaded {total - 2} of {total} variables from "
    )

  def test_freezes_as_a_pretrained_backbone(self, runs):
    start = read_network(runs["target"], "checkpoints/step-0")
    end = read_network(runs["target"], "checkpoints/step-1-validated")
    moved = {key for key in start if not np.array_equal(start[key], end[key])}
    inner = "network/layer_with_weights-0/layer_with_weights-"
    # A convolution and a batch normalisation a level; C1 and C2 are frozen, and so is
    # every batch normalisation.
    in_backbone = {
      int(key[len(inner) :].split("/")[0]) for key in moved if inner in key
    }
    assert in_backbone == {4, 6, 8}

  def test_goes_on_without_the_other_run(self, runs):
    before = read_network(runs["target"], "checkpoints/step-1-validated")
    trainer.train(runs["config"], runs["target"])
    after = read_network(runs["target"], "checkpoints/step-1-validated")
    assert all(np.array_equal(before[key], after[key]) for key in before)

  def test_a_new_run_without_it_stops(self, runs, tmp_path):
    with pytest.raises(ValueError, match=r"model\.initial_checkpoint: there is no"):
      trainer.train(runs["config"], str(tmp_path / "run"))
