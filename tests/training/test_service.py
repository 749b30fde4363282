"""Training on pictures that a tf.data service makes."""

import pytest
import tensorflow as tf

from ap_detect.commands import preview
from ap_detect.training import callbacks, trainer


@pytest.fixture
def service():
  """Address of a dispatcher with two workers in this process."""
  lib = tf.data.experimental.service
  dispatcher = lib.DispatchServer()
  address = dispatcher.target.partition("://")[2]
  workers = [lib.WorkerServer(lib.WorkerConfig(address)) for _ in range(2)]
  yield dispatcher.target
  del workers


@pytest.mark.slow
def test_training(make_config, service, tmp_path, monkeypatch):
  """A failing step does not claim to know its pictures."""
  original = callbacks.StepLogger.on_train_batch_end
  steps = []

  def on_train_batch_end(self, batch, logs=None):
    original(self, batch, logs)
    steps.append(self._step)
    if self._step == 3:
      original(self, batch, {**logs, "total_loss": float("nan")})

  monkeypatch.setattr(callbacks.StepLogger, "on_train_batch_end", on_train_batch_end)
  config = make_config({"data.service_address": service, "train.batch_size": 4})
  message = r"total_loss is nan at step 3, images unknown \(a tf.data service"
  with pytest.raises(callbacks.NonFiniteLossError, match=message):
    trainer.train(config, str(tmp_path))
  assert steps == [1, 2, 3]


def test_preview_makes_its_own_pictures(make_config):
  """Its captions name pictures, which a service's order would not tell."""
  config = make_config({"data.service_address": "grpc://localhost:1"})
  assert len(preview.make_previews(config, 2)) == 2
