"""Which devices a run uses where there is no GPU; the tests' CPU is two devices."""

import pytest
import tensorflow as tf

from ap_detect.runs import cluster, replicas

pytestmark = pytest.mark.skipif(
  bool(tf.config.list_physical_devices("GPU")), reason="there is a GPU"
)


@pytest.mark.parametrize(("asked", "made"), [(0, 1), (1, 1), (2, 2)])
def test_as_many_as_asked_for(asked, made):
  strategy = replicas.make_strategy(asked)
  assert strategy.num_replicas_in_sync == made
  devices = [
    device.rpartition("device:")[2] for device in strategy.extended.worker_devices
  ]
  assert devices == [f"CPU:{number}" for number in range(made)]
  assert not replicas.compiles_by_default(strategy)


def test_more_than_tensorflow_started_with():
  tf.config.list_logical_devices()
  with pytest.raises(
    ValueError, match=r"3 replicas need as many CPU dev.* with 2 in th"
  ):
    replicas.make_strategy(3)


def test_batches_are_shared_out(make_strategy):
  """Nothing between them and a single CPU: what there would be tunes itself."""
  batches = tf.data.Dataset.range(8).batch(4)
  assert replicas.distribute(make_strategy(1), batches) is batches
  strategy = make_strategy(2)
  found = [
    [part.numpy().tolist() for part in strategy.experimental_local_results(batch)]
    for batch in replicas.distribute(strategy, batches)
  ]
  assert found == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_workers_on_cpus_have_one_replica_each():
  """Refused before anything waits for the other one."""
  two = cluster.Cluster((("worker", "localhost:1"), ("worker", "localhost:2")), 0)
  with pytest.raises(ValueError, match="2 workers of TF_CONFIG has one replica, got 2"):
    replicas.make_strategy(2, two)
