"""TF_CONFIG, and who is gone by TensorFlow's errors."""

import json

import pytest
import tensorflow as tf

from ap_detect import errors
from ap_detect.runs import cluster

TWO = ["a:1", "b:2"]


def read(monkeypatch, value):
  text = value if isinstance(value, str) else json.dumps(value)
  monkeypatch.setenv("TF_CONFIG", text)
  return cluster.from_environment()


def test_workers(monkeypatch):
  task = {"type": "worker", "index": 1}
  found = read(monkeypatch, {"cluster": {"worker": TWO}, "task": task})
  assert (found.count, found.index, found.is_chief) == (2, 1, False)
  # As TensorFlow orders them: the chief first.
  jobs = {"worker": TWO, "chief": ["[::1]:3"]}
  found = read(monkeypatch, {"cluster": jobs, "task": task})
  assert (found.count, found.index, found.is_chief) == (3, 2, False)
  assert [address for _, address in found.addresses] == ["[::1]:3", "a:1", "b:2"]
  found = read(monkeypatch, {"cluster": jobs, "task": {"type": "chief", "index": "0"}})
  assert found.is_chief


@pytest.mark.parametrize(
  "value",
  ["", " ", {}, {"cluster": {}}, {"cluster": {"worker": ["a:1"]}, "task": {}}],
)
def test_one_process(monkeypatch, value):
  assert read(monkeypatch, value) is cluster.ALONE


@pytest.mark.parametrize(
  ("value", "problem"),
  [
    ("{'cluster'", "is not valid JSON"),
    ([], "must be a mapping"),
    ({"cluster": TWO}, "must have mappings as 'cluster' and 'task'"),
    ({"cluster": {"worker": "a:1"}}, "must have a list of \"host:port\" as 'worker'"),
    ({"cluster": {"worker": ["a", "b:2"]}}, 'must have a list of "host:port"'),
    ({"cluster": {"worker": TWO, "ps": ["c:3"]}}, "may list 'chief' and 'worker' only"),
    ({"cluster": {"chief": TWO}}, "may have one 'chief'"),
    ({"cluster": {"worker": ["a:1", "a:1"]}}, "has an address twice"),
    ({"cluster": {"worker": TWO}}, "type None, index None"),
    (
      {"cluster": {"worker": TWO}, "task": {"type": "worker", "index": 2}},
      "type 'worker', index 2",
    ),
  ],
)
def test_what_tensorflow_does_not_take(monkeypatch, value, problem):
  with pytest.raises(ValueError, match=r"^TF_CONFIG ") as raised:
    read(monkeypatch, value)
  assert problem in str(raised.value)


# As TensorFlow 2.15 and 2.21 have it.
SAID = {
  "Collective ops is aborted by: Connection reset by peer\nAdditional GRPC error "
  "information from remote target /job:worker/replica:0/task:1 while calling "
  "/tensorflow.WorkerService/RecvBuf:": "worker 1 of 2, b:2, has ended",
  "Collective ops is aborted by: Error reported from /job:worker/task:1: Task "
  "/job:worker/replica:0/task:1 heartbeat timeout.": "worker 1 of 2, b:2, has ended",
  "The following tasks are unhealthy (stopped sending heartbeats):\n"
  "/job:worker/replica:0/task:1": "worker 1 of 2, b:2, has ended",
  "Error on /job:worker/replica:0/task:0: Socket closed": "another of the 2 workers has ended",
}


@pytest.mark.parametrize("text", SAID)
def test_who_is_lost(text):
  chief = cluster.Cluster((("worker", "a:1"), ("worker", "b:2")), 0)
  with pytest.raises(errors.LostWorkerError) as raised, chief.naming_lost():
    raise tf.errors.UnavailableError(None, None, text)
  assert str(raised.value).startswith(SAID[text])
  assert errors.is_for_the_user(raised.value)
  assert errors.describe(raised.value) == str(raised.value)


@pytest.mark.parametrize(
  ("workers", "error"),
  [
    (cluster.ALONE, tf.errors.UnavailableError(None, None, "a service")),
    (
      cluster.Cluster((("worker", "a:1"), ("worker", "b:2")), 0),
      tf.errors.InvalidArgumentError(None, None, "a shape"),
    ),
  ],
)
def test_other_errors_stay(workers, error):
  with pytest.raises(type(error)) as raised, workers.naming_lost():
    raise error
  assert raised.value is error


def test_only_the_chief_enters():
  entered = []

  class Note:
    def __enter__(self):
      entered.append(self)

    def __exit__(self, *_):
      entered.append(None)

  workers = ("worker", "a:1"), ("worker", "b:2")
  with cluster.Cluster(workers, 1).on_chief(Note()):
    assert not entered
  first, second = Note(), Note()
  with cluster.Cluster(workers, 0).on_chief(first, second):
    assert entered == [first, second]
  assert entered == [first, second, None, None]
