"""The losses in every Keras that is installed: Keras 2, and Keras 3 beside it."""

import copy
import importlib.util
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ap_detect import losses

KERASES = [tf.keras] if keras.__version__.startswith("2.") else [tf.keras, keras]
IDS = ["Keras 2", "Keras 3"][: len(KERASES)]
in_every_keras = pytest.mark.parametrize("keras", KERASES, ids=IDS)
for_every_loss = pytest.mark.parametrize(
  ("loss", "function"),
  [(losses.APLoss, losses.ap_loss), (losses.AUCLoss, losses.auc_loss)],
)

# 2 images of 3 anchors: background, of class 2, ignored; of class 3, of class 1, background
LABELS = np.array([[0, 2, -1], [3, 1, 0]])
ONE_HOT = np.array(
  [[[0, 0, 0], [0, 1, 0], [-1, -1, -1]], [[0, 0, 1], [1, 0, 0], [0, 0, 0]]], np.float32
)
LOGITS = np.random.default_rng(0).normal(size=[2, 3, 3]).astype(np.float32)


@for_every_loss
@pytest.mark.parametrize(
  "y_true",
  [
    LABELS,
    LABELS.astype(np.float32),
    LABELS[..., np.newaxis],
    ONE_HOT,
    ONE_HOT.astype(np.int64),
  ],
  ids=["labels", "float labels", "a last dimension", "one-hot", "integer one-hot"],
)
def test_value_is_the_functions(loss, function, y_true):
  expected = function(LOGITS, LABELS, delta=0.5)
  assert 0 < expected < 1
  assert loss(delta=0.5)(y_true, LOGITS) == expected
  assert tf.function(loss(delta=0.5))(y_true, LOGITS) == expected


def test_one_class_is_the_same_as_labels_and_as_one_hot():
  labels = np.array([0, 1, -1, 1], np.float32)
  logits = LOGITS.ravel()[:4, np.newaxis]
  expected = losses.ap_loss(logits, labels.astype(int))
  assert losses.APLoss()(labels[:, np.newaxis], logits) == expected > 0


@for_every_loss
@pytest.mark.parametrize(
  ("sample_weight", "weights"),
  [
    ([[1.0, 2.0, 3.0], [0.0, 5.0, 0.0]],) * 2,
    (
      [[[1.0], [2.0], [3.0]], [[0.0], [5.0], [0.0]]],
      [[1.0, 2.0, 3.0], [0.0, 5.0, 0.0]],
    ),
    ([0.5, 2.0], [[0.5] * 3, [2.0] * 3]),
    ([[0.5], [2.0]], [[0.5] * 3, [2.0] * 3]),
    (0.25, [[0.25] * 3] * 2),
  ],
  ids=["of anchors", "a last dimension", "of images", "broadcast", "of all"],
)
def test_sample_weight_is_passed_on(loss, function, sample_weight, weights):
  expected = function(LOGITS, LABELS, weights=np.array(weights, np.float32))
  assert loss()(ONE_HOT, LOGITS, sample_weight=np.array(sample_weight)) == expected


def test_masked_anchors_are_ignored():
  mask = np.array([[True, True, False], [False, True, True]])
  logits = tf.constant(LOGITS)
  logits._keras_mask = tf.constant(mask)
  expected = losses.ap_loss(LOGITS, np.where(mask, LABELS, losses.IGNORED))
  np.testing.assert_allclose(losses.APLoss()(LABELS, logits), expected, rtol=1e-6)
  weights = np.array([1.0, 3.0])
  np.testing.assert_allclose(
    losses.APLoss()(LABELS, logits, sample_weight=weights),
    losses.ap_loss(LOGITS, LABELS, weights=mask * weights[:, np.newaxis]),
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  ("y_true", "message"),
  [
    (0.9 * ONE_HOT, "one-hot, all 0 or all -1; 4 of 6 labels are not"),
    (np.ones([2, 3, 3]), "6 of 6 labels"),
    (LABELS + 0.5, "whole numbers; 6 of 6 labels are not"),
  ],
)
def test_labels_that_are_none(y_true, message):
  with pytest.raises(ValueError, match=message):
    losses.APLoss()(y_true, LOGITS)
  assert np.isnan(tf.function(losses.APLoss())(tf.constant(y_true), LOGITS))


def test_shapes_that_do_not_fit():
  with pytest.raises(ValueError, match=r"y_true must be .* got \(2, 3, 4\)"):
    losses.APLoss()(np.zeros([2, 3, 4]), LOGITS)
  for shape in ([3], [2, 3, 3], [2, 3, 1, 1]):
    with pytest.raises(
      ValueError, match=r"sample_weight must have the shape .*\(2, 3\)"
    ):
      losses.APLoss()(LABELS, LOGITS, sample_weight=np.ones(shape))


def test_unknown_option():
  with pytest.raises(TypeError, match=r"AUCLoss has no option gamma; .* delta, "):
    losses.AUCLoss(gamma=2.0)


@for_every_loss
@in_every_keras
def test_config_rebuilds_it(loss, function, keras):
  del function
  original = loss(delta=0.25, jit_compile=False, name="mine")
  rebuilt = keras.losses.deserialize(keras.losses.serialize(original))
  assert isinstance(rebuilt, loss)
  assert isinstance(rebuilt, keras.losses.Loss)
  assert rebuilt.name == "mine"
  assert rebuilt.get_config() == original.get_config()
  assert rebuilt.get_config()["delta"] == 0.25


def points_and_labels():
  points = np.random.default_rng(1).normal(size=[64, 2]).astype(np.float32)
  return points, (points[:, 0] > 1.0).astype(np.int32)


def compiled_model(keras, loss):
  model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1, "linear")])
  model.set_weights([np.zeros([2, 1]), np.zeros([1])])
  model.compile(optimizer=keras.optimizers.SGD(1.0), loss=loss, jit_compile=False)
  return model


def ap_loss_of(model, points, labels, delta):
  with tf.GradientTape() as tape:
    loss = losses.ap_loss(model(points), labels, delta=delta)
  return loss.numpy(), tape.gradient(loss, model.trainable_weights)[0].numpy()


@in_every_keras
def test_a_saved_model_brings_it_back(keras, tmp_path):
  points, labels = points_and_labels()
  model = compiled_model(keras, losses.APLoss(delta=0.5))
  model.save(str(tmp_path / "model.keras"))
  loaded = keras.models.load_model(str(tmp_path / "model.keras"))
  assert loaded.loss.get_config() == model.loss.get_config()
  value = loaded.evaluate(points, labels, batch_size=64, verbose=0)
  np.testing.assert_allclose(
    value, ap_loss_of(model, points, labels, 0.5)[0], rtol=1e-6
  )


OF_ANOTHER_PROCESS = """
import sys
import {keras} as keras
from ap_detect import losses  # the first loss of this process is the loaded one
model = keras.models.load_model(sys.argv[1])
assert isinstance(model.loss, losses.APLoss) and isinstance(model.loss, keras.losses.Loss)
print(model.loss.get_config()["delta"])
"""


@in_every_keras
@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_another_process_loads_it(keras, ending, tmp_path):
  path = tmp_path / f"model.{ending}"
  compiled_model(keras, losses.APLoss(delta=0.5)).save(str(path))
  is_own = keras is KERASES[0] and importlib.util.find_spec("tf_keras")
  name = "tf_keras" if is_own else "keras"
  done = subprocess.run(
    [sys.executable, "-c", OF_ANOTHER_PROCESS.format(keras=name), str(path)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split()[-1] == "0.5"


@for_every_loss
def test_copies(loss, function):
  original = loss(delta=0.5, class_weights=[1.0, 2.0, 0.5])
  expected = function(LOGITS, LABELS, delta=0.5, class_weights=[1.0, 2.0, 0.5])
  for copied in (pickle.loads(pickle.dumps(original)), copy.deepcopy(original)):
    assert isinstance(copied, loss) and copied.get_config() == original.get_config()
    assert copied(LABELS, LOGITS) == expected


def test_labels_that_their_type_rounds():
  """As Keras 2 hands them over where the model computes in bfloat16."""
  logits = tf.zeros([2, 1000], tf.bfloat16)
  with pytest.raises(
    ValueError, match=r"bfloat16, .* up to 256 only, for 1000 classes"
  ):
    losses.APLoss()(tf.constant([3.0, 999.0], tf.bfloat16), logits)
  assert losses.APLoss()(tf.constant([3.0, 999.0]), logits) > 0


@in_every_keras
def test_fit_learns_to_rank_what_counts(keras):
  points, labels = points_and_labels()
  weights = np.tile([1.0, 0.0], 32)
  # What does not count says the opposite.
  given = np.where(weights, labels, 1 - labels)
  model = compiled_model(keras, losses.APLoss(delta=0.1))
  before, _ = ap_loss_of(model, points, labels, 0.1)
  model.fit(points, given, batch_size=64, epochs=30, sample_weight=weights, verbose=0)
  after, _ = ap_loss_of(model, points, labels, 0.1)
  assert after < 0.5 * before


@in_every_keras
def test_replicas_with_the_same_data_make_the_update_of_one(keras, make_strategy):
  points, labels = points_and_labels()
  data = tf.data.Dataset.from_tensor_slices(
    (np.tile(points, [2, 1]), np.tile(labels, 2))
  ).batch(128, drop_remainder=True)
  with make_strategy(2).scope():
    model = compiled_model(keras, losses.APLoss())
  value, gradient = ap_loss_of(model, points, labels, 1.0)
  assert np.abs(gradient).max() > 0.01
  (said,) = model.fit(data, verbose=0).history["loss"]
  np.testing.assert_allclose(said, value, rtol=1e-6)
  # From weights of 0, at a rate of 1.
  np.testing.assert_allclose(model.get_weights()[0], -gradient, rtol=1e-5)


@in_every_keras
def test_replicas_rank_all_data_together(keras, make_strategy):
  points, labels = points_and_labels()
  data = tf.data.Dataset.from_tensor_slices((points, labels)).batch(
    64,
    drop_remainder=True,  # the loss of a known size is traced ten times as fast
  )
  with make_strategy(2).scope():
    model = compiled_model(
      keras, losses.APLoss(ranking_scope="global", jit_compile=False)
    )
  value, gradient = ap_loss_of(model, points, labels, 1.0)
  halves = [ap_loss_of(model, points[h::2], labels[h::2], 1.0)[0] for h in (0, 1)]
  assert abs(value - np.mean(halves)) > 0.01  # what rankings of their own would say
  (said,) = model.fit(data, verbose=0).history["loss"]
  np.testing.assert_allclose(said, value, rtol=1e-6)
  np.testing.assert_allclose(model.get_weights()[0], -gradient, rtol=1e-5)


@pytest.mark.skipif(len(KERASES) == 1, reason="Keras 2 has no other backends")
def test_keras_on_something_else_is_refused(monkeypatch):
  monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
  assert not isinstance(losses.APLoss(), keras.losses.Loss)
  monkeypatch.delitem(sys.modules, "tf_keras")
  with pytest.raises(ImportError, match="APLoss requires Keras on TensorFlow"):
    losses.APLoss()
