"""The example with KerasHub's RetinaNet, where KerasHub is installed."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect import losses
from ap_detect.data import shapes

keras_hub = pytest.importorskip("keras_hub")

SIZE = (64, 64)


@pytest.fixture(scope="module")
def example(load_script):
  return load_script("examples/kerashub_retinanet.py")


@pytest.fixture(scope="module")
def batch(example):
  dataset = shapes.make_shapes("train", num_images=4, image_size_px=SIZE)
  return next(iter(example.make_batches(dataset, image_size_px=SIZE, batch_size=4)))


@pytest.fixture(scope="module")
def detector(example):
  example.keras.utils.set_random_seed(0)
  detector = example.build_detector(len(shapes.CLASS_NAMES), head_convolutions=1)
  example.compile_detector(detector)
  return detector


def targets(detector, images, objects):
  """Our labels of what KerasHub matches: its -2, -1, 0.. are our -1, 0, 1.."""
  _, classes = detector.label_encoder(images, objects["boxes"], objects["labels"])
  return tf.cast(classes, tf.int32) + 1


def test_loss_and_gradient_are_ap_loss(detector, batch):
  images, objects = batch
  labels = targets(detector, images, objects)
  # Anchors of all three kinds, or the comparison would say less.
  assert {-1, 0} < set(np.unique(labels)) and (labels.numpy() > 0).sum() > 3
  outputs = detector(images, training=False)
  logits = outputs["cls_logits"]
  with tf.GradientTape(persistent=True) as tape:
    tape.watch(logits)
    total = detector.compute_loss(images, objects, outputs, None)
    expected = losses.ap_loss(logits, labels)
  gradient = tape.gradient(total, logits)  # of the box loss 0
  assert np.abs(gradient).max() > 0
  np.testing.assert_allclose(
    gradient, tape.gradient(expected, logits), rtol=1e-5, atol=1e-9
  )
  said = {metric.name: metric.result() for metric in detector.metrics}
  np.testing.assert_allclose(said["cls_logits_loss"], expected, rtol=1e-6)


def test_a_batch_without_objects_has_no_loss(detector, batch):
  images, objects = batch
  objects = {
    "boxes": tf.zeros_like(objects["boxes"]),
    "labels": -tf.ones_like(objects["labels"]),
  }
  outputs = detector(images, training=False)
  assert detector.compute_loss(images, objects, outputs, None) == 0


def test_a_few_steps_learn(detector, batch):
  history = detector.fit(
    tf.data.Dataset.from_tensors(batch).repeat(12),
    verbose=0,
    epochs=2,
    steps_per_epoch=6,
  ).history
  first, last = history["cls_logits_loss"]
  assert last < 0.9 * first
