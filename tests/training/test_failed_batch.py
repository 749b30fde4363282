"""The file of a batch whose loss is not finite, and the way back to the weights before it."""

import types

import numpy as np
import pytest

from ap_detect.training import failed_batch, state

FAILED = failed_batch.FailedBatch(
  {"image": np.arange(12.0, dtype=np.float32), "ignored": np.array([True, False])},
  # More than ten, whose names must not be sorted as text.
  [np.full([number + 1], number, np.float32) for number in range(12)],
  {"step": 7, "images": ["a", 3], "class_names": ["äpfel"], "config": {"x": [1, None]}},
)


class TestFile:
  def test_round_trip(self, tmp_path):
    path = str(tmp_path / "non_finite" / "step-7.npz")
    failed_batch.write(path, FAILED)
    found = failed_batch.read(path)
    assert found.about == FAILED.about
    assert found.batch.keys() == FAILED.batch.keys()
    for name, value in FAILED.batch.items():
      np.testing.assert_array_equal(found.batch[name], value)
      assert found.batch[name].dtype == value.dtype
    assert len(found.weights) == 12
    for one, other in zip(found.weights, FAILED.weights):
      np.testing.assert_array_equal(one, other)

  @pytest.mark.parametrize("damage", ["cut", "text", "other"])
  def test_what_is_none(self, tmp_path, damage):
    path = tmp_path / "step-7.npz"
    failed_batch.write(str(path), FAILED)
    if damage == "cut":
      path.write_bytes(path.read_bytes()[:-100])
    elif damage == "text":
      path.write_text("step 7")
    else:
      np.savez(path, weights=np.zeros(3))
    with pytest.raises(ValueError, match=r"step-7\.npz must be a file that a training"):
      failed_batch.read(str(path))

  def test_no_file(self, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
      failed_batch.read(str(tmp_path / "nowhere.npz"))


class Run:
  """A run whose checkpoint is at step 5; its weights are the number of the next step."""

  def __init__(self, fails_at=(), interrupted_at=None):
    self.record = None
    self.weights, self.restored, self.done = None, 0, []
    self.received = ""
    self._fails_at, self._interrupted_at = list(fails_at), interrupted_at

  def restore(self, path):
    assert path == "step-5"
    self.restored += 1
    clock = state.Clock(100, step=5, images=20, position=20)
    self.record, self.weights = state.Record(clock, {}, {}, 1), 5

  def run_step(self, batch, clock):
    assert batch == clock.position == 4 * clock.step
    assert self.weights == clock.step
    self.weights += 1
    self.done.append(clock.step)
    if clock.step == self._interrupted_at:
      self.received = "SIGINT"
    if clock.step in self._fails_at:
      self.weights = None
      return False
    return True

  def repeat(self, step):
    def batches(position):
      assert self.record.clock.position == position
      return range(position, 1000, 4)

    return failed_batch.repeat(
      state.Clock(100, step=step, images=4 * step, position=4 * step),
      state=self,
      path="step-5",
      batches=batches,
      run_step=self.run_step,
      batch_size=4,
      signals=types.SimpleNamespace(received="") if self._is_calm() else self,
    )

  def _is_calm(self):
    return self._interrupted_at is None


class TestRepeat:
  def test_up_to_the_step_but_not_that(self):
    run = Run()
    clock, weights_at = run.repeat(8)
    assert (clock.step, weights_at, run.weights) == (8, 8, 8)
    assert (run.done, run.restored) == ([5, 6, 7], 1)

  def test_the_first_step_after_the_checkpoint(self):
    run = Run()
    clock, weights_at = run.repeat(5)
    assert (clock.step, weights_at, run.weights, run.done) == (5, 5, 5, [])

  def test_where_an_earlier_one_fails_it_is_that(self):
    run = Run(fails_at=[7])
    clock, weights_at = run.repeat(12)
    assert (clock.step, clock.position, weights_at, run.weights) == (7, 28, 7, 7)
    assert (run.done, run.restored) == ([5, 6, 7, 5, 6], 2)

  def test_a_signal_ends_it(self):
    run = Run(interrupted_at=6)
    clock, weights_at = run.repeat(12)
    assert (clock.step, weights_at, run.weights) == (12, 7, 7)
