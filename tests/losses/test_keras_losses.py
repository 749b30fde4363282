import numpy as np
import pytest
import tensorflow as tf

from ap_detect import losses


@pytest.mark.parametrize(
  ("loss", "function"),
  [(losses.APLoss, losses.ap_loss), (losses.AUCLoss, losses.auc_loss)],
)
def test_value_is_the_functions(loss, function):
  random = np.random.default_rng(0)
  logits = random.normal(size=[12, 3]).astype(np.float32)
  labels = random.integers(0, 4, 12)
  expected = function(logits, labels, delta=0.5)
  assert loss(delta=0.5)(labels, logits) == expected
  assert loss(delta=0.5)(labels[:, None].astype(np.float32), logits) == expected


@pytest.mark.parametrize("loss", [losses.APLoss, losses.AUCLoss])
def test_config_rebuilds_it(loss):
  original = loss(delta=0.25, jit_compile=False)
  rebuilt = loss.from_config(original.get_config())
  assert rebuilt.get_config() == original.get_config()
  assert rebuilt.get_config()["delta"] == 0.25


def test_fit_learns_to_rank():
  random = np.random.default_rng(1)
  points = random.normal(size=[64, 2]).astype(np.float32)
  labels = (points[:, 0] > 1.0).astype(np.int32)
  model = tf.keras.Sequential([tf.keras.layers.Dense(1, input_shape=[2])])
  model.compile(optimizer=tf.keras.optimizers.SGD(1.0), loss=losses.APLoss(delta=0.1))
  before = model.evaluate(points, labels, batch_size=64, verbose=0)
  model.fit(points, labels, batch_size=64, epochs=30, verbose=0)
  after = model.evaluate(points, labels, batch_size=64, verbose=0)
  assert after < 0.5 * before


def test_sample_weight_is_refused():
  with pytest.raises(ValueError, match="no sample_weight"):
    losses.APLoss()(np.array([1, 0]), np.zeros([2, 1], np.float32), sample_weight=1.0)
