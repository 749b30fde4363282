"""What several workers tell each other, so that all of them do the same.

TensorFlow's exchanges wait for all workers: one that saves, stops or validates by itself
would have the others wait without end. So what a worker alone knows, as its clock, a
signal or what lies in the run's folder, is exchanged before anyone acts on it. All
methods here must be called by all workers, in the same order. With one worker they
exchange nothing.
"""

from __future__ import annotations

import functools
import os
import pickle
import secrets
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from ap_detect import errors
from ap_detect.data.records import DetectionDataset
from ap_detect.runs import cluster as cluster_lib
from ap_detect.runs import files, replicas

T = TypeVar("T")

# A shared disk may show a new file to others only after a while.
_SHARED_DISK_SECONDS = 60.0
_TOKEN = ".workers"


class Workers:
  """The workers of a run, as one of them sees them.

  Attributes:
    index: of this one, from 0.
    count: of all.
    is_chief: whether this one writes the run's files.

  Args:
    strategy: tf.distribute strategy; None for one worker.
  """

  def __init__(self, strategy: tf.distribute.Strategy | None = None):
    cluster = cluster_of(strategy) if strategy else cluster_lib.ALONE
    self.index, self.count = cluster.index, cluster.count
    self.is_chief = cluster.is_chief
    self._strategy: Any = strategy

  def gather(self, value: T) -> list[T]:
    """What each worker gave, in their order; what pickle takes."""
    if self.count == 1:
      return [value]
    # As safe as the cluster, whose servers run any graph that they are sent.
    content = pickle.dumps(value)
    padded = content + bytes(-len(content) % 8)  # pickle knows its end
    parts = self._exchange(tf.constant(np.frombuffer(padded, np.int64)))
    sizes, contents = (
      self._strategy.experimental_local_results(part)[0].numpy() for part in parts
    )
    texts = np.split(contents, np.cumsum(sizes)[:-1])
    return [pickle.loads(text.tobytes()) for text in texts if text.size]

  def tell(self, value: T) -> T:
    """What the chief gave."""
    return self.gather(value if self.is_chief else None)[0]  # type: ignore[return-value]

  def ask_chief(self, function: Callable[[], T]) -> T:
    """What a function returns to the chief, which alone calls it.

    Raises:
      What the function raises; where it is an error for the user, on all workers, as
      ValueError on the others.
    """
    if self.count == 1:
      return function()
    error: Exception | None = None
    answer: Any = None
    if self.is_chief:
      try:
        answer = function()
      except (ValueError, OSError) as caught:
        error, answer = caught, errors.describe(caught)
    is_error, answer = self.tell((error is not None, answer))
    if error:
      raise error
    if is_error:
      raise ValueError(answer)
    return answer

  def together(self, function: Callable[[], None], kinds) -> None:
    """Calls a function on all workers; where it fails on one, it fails on all.

    Args:
      function: of no arguments.
      kinds: of exceptions that are told to the others, who raise ValueError.
    """
    mine, problem = None, ""
    try:
      function()
    except kinds as error:
      mine, problem = error, errors.first_line(error)
    problems = self.gather(problem)
    if mine:
      raise mine
    for index, problem in enumerate(problems):
      if problem:
        raise ValueError(f"on worker {index}: {problem}")

  def require_same(self, what: str, value: object) -> None:
    """Raises ValueError on all workers where they do not have the same.

    Args:
      what: the value is, for people.
      value: what str has the same text for.
    """
    if self.count == 1:
      return
    digests = self.gather(zlib.crc32(str(value).encode()))
    others = [str(i) for i, digest in enumerate(digests) if digest != digests[0]]
    if others:
      raise ValueError(
        f"all workers must have the same {what}: there is another on worker "
        f"{', '.join(others)} than on worker 0. Give all of them the same command and "
        "the same files"
      )

  def require_same_images(self, split: str, dataset: DetectionDataset) -> None:
    """As `require_same`, of a split's classes, images and numbers of objects."""
    images = [(record.image_id, len(record.boxes)) for record in dataset.records]
    self.require_same(f"list of images of {split}", [dataset.class_names, images])

  def require_shared(self, model_dir: str) -> None:
    """Raises ValueError on all workers where one does not see the run's folder."""
    if self.count == 1:
      return
    path = os.path.join(model_dir, _TOKEN)
    token = self.tell(secrets.token_hex())
    if self.is_chief:
      files.write_text(path, token)
    self.gather(None)
    seen = self.gather(self.is_chief or _appears(path, token))
    if self.is_chief:
      os.remove(path)
    blind = [str(index) for index, is_seen in enumerate(seen) if not is_seen]
    if blind:
      raise ValueError(
        f"--model_dir={model_dir} must be one folder, on a disk that all workers share; "
        f"what worker 0 writes there is not seen by worker {', '.join(blind)}"
      )

  def leave(self) -> None:
    """Waits for all workers to be done, for who ends before is taken for lost."""
    self.gather(None)

  def distribute(self, make_batches: Callable[[int], tf.data.Dataset], batch_size: int):
    """The batches of this worker's replicas, as the strategy's steps take them.

    Args:
      make_batches: function of a batch size to the dataset of this worker's batches,
        which with several workers is read again from its beginning where it ends.
      batch_size: images a batch, over all replicas of all workers.
    """
    if self.count == 1:
      return replicas.distribute(self._strategy, make_batches(batch_size))
    per_replica = batch_size // self._strategy.num_replicas_in_sync
    # Endless, or every batch would be preceded by an exchange of whether all have one.
    return self._strategy.distribute_datasets_from_function(
      lambda context: make_batches(per_replica).repeat()
    )

  @functools.cached_property
  def _exchange(self):
    """Function of [n] int64 to the sizes of all replicas' ones, and all of them."""
    strategy = self._strategy
    num_local = len(strategy.extended.worker_devices)

    def exchange(content):
      context = tf.distribute.get_replica_context()
      # Of a worker's replicas the first speaks.
      speaks = tf.cast(context.replica_id_in_sync_group % num_local == 0, tf.int64)
      content = content[: tf.size(content, tf.int64) * speaks]
      sizes = context.all_gather(tf.shape(content, tf.int64), axis=0)
      return sizes, context.all_gather(content, axis=0)

    return tf.function(
      lambda content: strategy.run(exchange, args=(content,)),
      # Traced once, for all workers must number their exchanges alike.
      input_signature=[tf.TensorSpec([None], tf.int64)],
      autograph=False,
    )


ONE = Workers()


def cluster_of(strategy: tf.distribute.Strategy | None) -> cluster_lib.Cluster:
  """The Cluster of a strategy; of None, that of the environment."""
  is_for_many = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
  if strategy is None or is_for_many:
    return cluster_lib.from_environment()
  return cluster_lib.ALONE


def _appears(path, content):
  """Whether a file has some content, at once or after a while."""
  deadline = time.monotonic() + _SHARED_DISK_SECONDS
  while time.monotonic() < deadline:
    try:
      with open(path, encoding="utf-8") as file:
        if file.read() == content:
          return True
    except OSError:
      pass
    time.sleep(0.2)
  return False
