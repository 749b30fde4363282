"""The profiler over some steps, and what it leaves in the folder."""

import glob

import pytest
import tensorflow as tf

from ap_detect.training import profiling


class Notes:
  """A training step that notes its calls, and the profiler that notes its own."""

  def __init__(self, monkeypatch):
    self.said = []
    profiler = tf.profiler.experimental
    monkeypatch.setattr(profiler, "start", lambda path: self.said.append("start"))
    monkeypatch.setattr(profiler, "stop", lambda: self.said.append("stop"))

  def __call__(self, batches, rates, first_step):
    self.said.append(first_step)
    return {"total_loss": tf.zeros([len(batches)])}


@pytest.fixture
def notes(monkeypatch):
  return Notes(monkeypatch)


def run(notes, steps, first=0, end=6, at_once=1):
  with profiling.profiled(notes, profiling.Steps.parse(steps), "run") as step:
    for number in range(first, end, at_once):
      logs = step([None] * at_once, [0.1] * at_once, number)
      assert logs["total_loss"].shape == (at_once,)
  return notes.said


def test_these_steps_and_no_others(notes):
  assert run(notes, "2:4") == [0, 1, "start", 2, 3, "stop", 4, 5]


def test_several_steps_in_a_call(notes):
  """Whole calls: those that do one of the steps."""
  assert run(notes, "2:5", at_once=3) == ["start", 0, 3, "stop"]
  notes.said.clear()
  assert run(notes, "3:5", at_once=3) == [0, "start", 3, "stop"]


def test_a_training_that_ends_before(notes, hear):
  assert run(notes, "4:9") == [0, 1, 2, 3, "start", 4, 5, "stop"]
  lines = hear("warning")
  notes.said.clear()
  assert run(notes, "7:9") == [0, 1, 2, 3, 4, 5]
  assert lines == ["no trace: step 7 was not reached"]


def test_an_error_in_a_step_ends_it(notes):
  def fail(*_):
    raise ValueError("loss")

  with (
    pytest.raises(ValueError, match="loss"),
    profiling.profiled(fail, profiling.Steps(0, 2), "run") as step,
  ):
    step([None], [0.1], 0)
  assert notes.said == ["start", "stop"]


def test_without_steps_nothing_is_between(notes):
  with profiling.profiled(notes, None, "run") as step:
    assert step is notes


def test_the_trace_lies_where_it_is_said(tmp_path, hear):
  def step(batches, rates, first_step):
    return {"total_loss": tf.linalg.matmul(tf.ones([64, 64]), tf.ones([64, 64]))[0, :1]}

  lines = hear("info")
  steps = profiling.Steps(0, 2)
  with profiling.profiled(step, steps, str(tmp_path)) as profiled:
    for number in range(3):
      profiled([None], [0.1], number)
  (trace,) = glob.glob(f"{tmp_path}/tensorboard/plugins/profile/*/*.xplane.pb")
  with open(trace, "rb") as file:
    content = file.read()
  assert b"MatMul" in content and b"train" in content
  assert f"steps 0:2 are profiled in {tmp_path}/tensorboard/plugins/profile" in lines[0]


@pytest.mark.parametrize("text", ["", "3", "3:3", "5:3", "a:b", "-1:2", "1:2:3"])
def test_what_are_no_steps(text):
  with pytest.raises(ValueError, match=r"--profile_steps must be a:b with a < b"):
    profiling.Steps.parse(text)


def test_steps_that_are_past():
  profiling.check_ahead(profiling.Steps(5, 9), 5)
  with pytest.raises(
    ValueError, match=r"5:9 begins before step 6, .*=16:26 lies ahead"
  ):
    profiling.check_ahead(profiling.Steps(5, 9), 6)
