"""What is measured of a training beside its steps: memory, weights, and scores.

Nothing here is part of a step's graph: each is a function of its own, called when a row
is written or the network is validated.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from ap_detect.losses import IGNORED

# Of histograms of logits. What lies beyond the limits counts in the outermost bins.
LOWEST_LOGIT, HIGHEST_LOGIT, NUM_BINS = -16.0, 16.0, 128
# Logits that are counted at a time, which bounds the memory.
_LOGITS_AT_ONCE = 2**18
_MIB = 2**20


def measure_memory():
  """Memory in use, in MiB; by column of metrics.csv.

  Returns:
    dict: "host_memory_mib", resident memory of this process, and "gpu_memory_mib", the
    most that TensorFlow has ever held on one of its GPUs; None where that is unknown.
  """
  gpus = tf.config.list_logical_devices("GPU")
  peaks = [
    tf.config.experimental.get_memory_info(gpu.name.rpartition("device:")[2])["peak"]
    for gpu in gpus
  ]
  return {
    "host_memory_mib": _resident_mib(),
    "gpu_memory_mib": max(peaks) / _MIB if peaks else None,
  }


def _resident_mib():
  try:
    with open("/proc/self/statm", encoding="ascii") as file:
      pages = int(file.read().split()[1])
  except OSError:  # no Linux
    return None
  return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


def make_weight_norm(network):
  """Function of no arguments to the L2 norm of all trained weights of a network."""

  @tf.function(autograph=False)
  def norm():
    return tf.linalg.global_norm([tf.convert_to_tensor(w) for w in weights])

  weights = network.trainable_weights
  return lambda: float(norm()) if weights else 0.0


class ScoreCounter:
  """Counts how high the network scores positives and negatives, on one and the same batch.

  A forward pass of one batch, in inference mode, so that nothing changes in the network.
  Beside a validation it costs nothing that can be seen; at every logging, a forward pass
  every ten steps would cost 3 % of the time. The batch never changes, so that it is only
  the network that moves the histograms.

  Args:
    network: tf.keras.Model of images -> Outputs.
    strategy: the tf.distribute strategy that it was made under.
    assign_targets: function of a batch to matching.Targets.
    read_batch: function of no arguments to the batch, called once; its images fit a
      replica.
  """

  def __init__(self, network, strategy, assign_targets, read_batch):
    self._network = network
    self._strategy = strategy
    self._assign_targets = assign_targets
    self._read_batch = read_batch
    self._batch = None
    self._count = tf.function(self._count_on_replicas, autograph=False)

  def __call__(self):
    """{"positives": counts, "negatives": counts}, [NUM_BINS] each, see `count_logits`."""
    if self._batch is None:
      self._batch = self._read_batch()
    return dict(zip(("positives", "negatives"), self._count(self._batch).numpy()))

  def _count_on_replicas(self, batch):
    counts = self._strategy.run(self._count_in_replica, args=(batch,))
    # All replicas have counted the same images.
    return self._strategy.experimental_local_results(counts)[0]

  def _count_in_replica(self, batch):
    logits = self._network(batch["image"], training=False)[0]
    return count_logits(logits, self._assign_targets(batch).labels)


def bin_edges():
  """[NUM_BINS + 1] float64, edges of the bins of `count_logits`."""
  return np.linspace(LOWEST_LOGIT, HIGHEST_LOGIT, NUM_BINS + 1)


def count_logits(logits, labels):
  """Histograms of the logits of positives and of negatives.

  A positive anchor's logit of its own class is a positive, all others of anchors that are
  not ignored are negatives, as the ranking losses have it. Logits that are NaN are not
  counted. Takes a slice at a time: memory does not grow with the logits.

  Args:
    logits: [..., K] float.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.

  Returns:
    [2, NUM_BINS] int64; positives, negatives. Bin i holds what is at least
    bin_edges()[i] and below the next one.

  Example: a positive at 0, a negative of another class at 99, and an ignored anchor
    >>> counts = count_logits([[0.0, 99.0], [-0.1, -0.1]], [1, IGNORED])
    >>> [np.flatnonzero(row).tolist() for row in counts]
    [[64], [127]]
  """
  logits = tf.convert_to_tensor(logits, tf.float32)
  num_classes = logits.shape[-1]
  rows, labels = tf.reshape(logits, [-1, num_classes]), tf.reshape(labels, [-1])
  labels = tf.cast(labels, tf.int32)
  size = max(1, _LOGITS_AT_ONCE // num_classes)
  own_class = tf.range(1, num_classes + 1)

  def count(start, counts):
    part, label = rows[start : start + size], labels[start : start + size, tf.newaxis]
    place = (part - LOWEST_LOGIT) * (NUM_BINS / (HIGHEST_LOGIT - LOWEST_LOGIT))
    counted = (label != IGNORED) & ~tf.math.is_nan(place)
    place = tf.clip_by_value(tf.where(counted, place, 0.0), 0.0, NUM_BINS - 1.0)
    index = tf.cast(place, tf.int32) + tf.where(label == own_class, 0, NUM_BINS)
    index = tf.where(counted, index, 2 * NUM_BINS)
    found = tf.math.bincount(
      tf.reshape(index, [-1]), minlength=2 * NUM_BINS + 1, maxlength=2 * NUM_BINS + 1
    )
    return start + size, counts + tf.cast(found, tf.int64)

  _, counts = tf.while_loop(
    lambda start, _: start < tf.shape(rows)[0],
    count,
    (tf.constant(0), tf.zeros([2 * NUM_BINS + 1], tf.int64)),
    parallel_iterations=1,
  )
  return tf.reshape(counts[: 2 * NUM_BINS], [2, NUM_BINS])
