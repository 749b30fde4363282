"""What workers tell each other; training/test_several_workers has processes do so."""

import numpy as np
import pytest
from runs import fellows

from ap_detect.runs import workers


def test_the_chief_is_asked_once():
  asked = []
  found = fellows.run_all(lambda fellow: fellow.ask_chief(lambda: asked.append(1) or 7))
  assert found == [7, 7]
  assert asked == [1]


def test_what_the_chief_is_refused_is_refused_to_all():
  def refuse():
    raise FileExistsError(17, "File exists", "run/x")

  def ask(fellow):
    try:
      fellow.ask_chief(refuse)
    except (OSError, ValueError) as error:
      return type(error), str(error)

  (kind, _), other = fellows.run_all(ask)
  assert kind is FileExistsError
  said = "run/x: File exists; a file is where a folder should be"
  assert other == (ValueError, said)


def test_what_fails_on_one_fails_on_all():
  def work(fellow):
    def fail():
      if fellow.index == 1:
        raise KeyError("damaged")

    fellow.together(lambda: None, KeyError)
    try:
      fellow.together(fail, KeyError)
    except KeyError:
      return "itself"

  chief, itself, third = fellows.run_all(work, count=3)
  assert itself == "itself"
  assert str(chief) == str(third) == "on worker 1: 'damaged'"


def test_workers_must_have_the_same():
  found = fellows.run_all(
    lambda fellow: fellow.require_same("config", {"seed": fellow.index // 2}), count=4
  )
  for error in found:
    assert str(error).startswith(
      "all workers must have the same config: there is another on worker 2, 3 than on "
      "worker 0."
    )
  assert fellows.run_all(lambda fellow: fellow.require_same("x", [1])) == [None, None]


def test_the_folder_must_be_shared(tmp_path, monkeypatch):
  def work(fellow):
    fellow.require_shared(str(tmp_path))

  assert fellows.run_all(work) == [None, None]
  assert not list(tmp_path.iterdir())
  seen = workers._appears
  monkeypatch.setattr(workers, "_SHARED_DISK_SECONDS", 0.3)
  monkeypatch.setattr(
    workers, "_appears", lambda path, token: seen(path, f"{token} of another disk")
  )
  for error in fellows.run_all(work):
    assert f"--model_dir={tmp_path} must be one folder, on a disk that all" in str(
      error
    )
    assert "what worker 0 writes there is not seen by worker 1" in str(error)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [None, "", {"a": [1.5, np.float32(0.1)]}, "x" * 5000])
def test_an_exchange_by_tensorflow(value, make_strategy):
  """As one of two workers, which has two replicas, whose fellow is not there."""
  one = workers.Workers(make_strategy(2))
  one.count = 2
  assert one.gather(value) == [value]
