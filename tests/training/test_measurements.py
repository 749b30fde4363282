"""Memory by the kernel's own count, norms and histograms by NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from ap_detect import matching
from ap_detect.runs import model as model_lib
from ap_detect.training import measurements


class TestMemory:
  def test_is_what_the_kernel_says(self):
    # Touched, so that it is resident; large beside what else may change.
    block = np.ones(300 * 2**20, np.uint8)
    measured = measurements.measure_memory()
    with open("/proc/self/status") as file:
      kilobytes = next(int(x.split()[1]) for x in file if x.startswith("VmRSS"))
    assert measured["host_memory_mib"] == pytest.approx(kilobytes / 1024, rel=0.1)
    assert measured["host_memory_mib"] > len(block) / 2**20

  def test_of_gpus_the_one_that_holds_the_most(self, monkeypatch):
    peaks = {"GPU:0": 3 * 2**20, "GPU:1": 5 * 2**20}
    gpus = [tf.config.LogicalDevice(f"/device:{name}", "GPU") for name in peaks]
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: gpus)
    monkeypatch.setattr(
      tf.config.experimental,
      "get_memory_info",
      lambda name: {"peak": peaks[name], "current": 0},
    )
    assert measurements.measure_memory()["gpu_memory_mib"] == 5.0

  def test_no_gpu(self):
    assert measurements.measure_memory()["gpu_memory_mib"] is None


class TestCountLogits:
  @pytest.mark.parametrize("logits_at_once", [7, 64, 2**18])
  def test_numpy_counts_the_same(self, monkeypatch, logits_at_once):
    """Slices of 2, 21 and all anchors, of 100; some logits lie beyond the limits."""
    monkeypatch.setattr(measurements, "_LOGITS_AT_ONCE", logits_at_once)
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 12, [4, 25, 3]).astype(np.float32)
    labels = rng.choice([-1, 0, 0, 1, 2, 3], [4, 25])
    is_own = labels[..., np.newaxis] == np.arange(1, 4)
    is_counted = np.broadcast_to(labels[..., np.newaxis] >= 0, logits.shape)
    edges = measurements.bin_edges()
    # NumPy's last bin is closed above.
    inner = np.clip(logits, edges[0], np.nextafter(np.float32(edges[-1]), 0))
    expected = [
      np.histogram(inner[chosen & is_counted], edges)[0] for chosen in (is_own, ~is_own)
    ]
    found = tf.function(measurements.count_logits)(tf.constant(logits), labels)
    np.testing.assert_array_equal(found, expected)
    assert min(np.sum(expected, axis=1)) > 20

  def test_what_is_no_number(self):
    logits = tf.constant([[np.nan], [np.inf], [-np.inf]])
    positives, negatives = measurements.count_logits(logits, [1, 1, 0]).numpy()
    assert np.flatnonzero(positives).tolist() == [127] and positives[127] == 1
    assert np.flatnonzero(negatives).tolist() == [0] and negatives[0] == 1

  def test_nothing_of_the_logits_size_is_made(self):
    count = 4 * measurements._LOGITS_AT_ONCE
    graph = (
      tf.function(measurements.count_logits, autograph=False)
      .get_concrete_function(
        tf.TensorSpec([count // 4, 4]), tf.TensorSpec([count // 4], tf.int32)
      )
      .graph
    )
    large = {
      op.type
      for op in graph.get_operations()
      for output in op.outputs
      if (output.shape.num_elements() or 0) >= count
    }
    # A reshaped tensor shares its memory, and the loop is only handed it.
    assert large <= {"Placeholder", "Reshape", "StatelessWhile"}, large


@pytest.fixture(scope="module")
def network(make_config, make_strategy):
  with make_strategy(2).scope():
    return model_lib.build_network(make_config(), 3, pretrained=False)


def test_weight_norm(network):
  expected = np.sqrt(sum(np.sum(w.numpy() ** 2.0) for w in network.trainable_weights))
  norm = measurements.make_weight_norm(network)
  assert norm() == pytest.approx(expected, rel=1e-5)
  network.trainable_weights[0].assign_add(
    100 * tf.ones_like(network.trainable_weights[0])
  )
  assert norm() > 2 * expected  # of the weights as they are now


def test_scores_of_one_batch(network, make_config, make_strategy):
  """On two replicas; every image counts once, and the network stays as it is."""
  config, reads = make_config(), []
  anchors = model_lib.make_anchors(config)
  box = tf.constant([[[20.0, 20.0, 52.0, 52.0]]])
  batch = {
    "image": tf.random.stateless_uniform([1, 128, 128, 3], [1, 2], 0, 255),
    "boxes": box,
    "classes": tf.constant([[2]]),
    "ignored": tf.constant([[False]]),
  }

  def assign_targets(batch):
    return matching.match_anchors(
      anchors, batch["boxes"], batch["classes"], batch["ignored"]
    )

  counter = measurements.ScoreCounter(
    network,
    make_strategy(2),
    assign_targets,
    lambda: reads.append(1) or batch,
  )
  before = [weight.numpy() for weight in network.weights]
  counts = [counter(), counter()]
  labels = assign_targets(batch).labels.numpy()
  assert counts[0]["positives"].sum() == (labels > 0).sum() > 0
  # Three classes: the others of a positive anchor are negatives.
  negatives = 3 * (labels == 0).sum() + 2 * (labels > 0).sum()
  assert counts[0]["negatives"].sum() == negatives
  np.testing.assert_array_equal(counts[0]["negatives"], counts[1]["negatives"])
  assert reads == [1]
  for weight, value in zip(network.weights, before):
    np.testing.assert_array_equal(weight.numpy(), value)
