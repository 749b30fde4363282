"""Training on pictures that a tf.data service makes."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.commands import preview
from ap_detect.training import state, trainer
from ap_detect.training import step as step_lib


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
  original = step_lib.TrainingStep.__call__
  steps = []

  def call(self, batches, rates, first_step):
    logs = original(self, batches, rates, first_step)
    steps.append(first_step)
    if first_step < 2:
      return logs
    return {**logs, "total_loss": tf.constant([np.nan]), "is_finite": tf.zeros([1])}

  monkeypatch.setattr(step_lib.TrainingStep, "__call__", call)
  config = make_config({"data.service_address": service, "train.batch_size": 4})
  message = r"total_loss is nan at step 2, images unknown \(a tf.data service"
  with pytest.raises(state.NonFiniteError, match=message):
    trainer.train(config, str(tmp_path))
  assert steps == [0, 1, 2]


def test_preview_makes_its_own_pictures(make_config):
  """Its captions name pictures, which a service's order would not tell."""
  config = make_config({"data.service_address": "grpc://localhost:1"})
  assert len(preview.make_previews(config, 2)) == 2
