"""TensorFlow's profiler over some steps of a training."""

from __future__ import annotations

import contextlib
import os
import re
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from ap_detect.runs import folder


class Steps(NamedTuple):
  """Steps from the first one up to, but not including, the end; numbered as in logs."""

  first: int
  end: int

  @classmethod
  def parse(cls, text: str) -> Steps:
    """Steps of "a:b".

    Raises:
      ValueError: it is something else, or holds no step.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
      raise ValueError(
        "--profile_steps must be a:b with a < b, the first step to profile and the one "
        f"to stop before, as in 100:110, got {text!r}"
      )
    return cls(int(found[1]), int(found[2]))


def check_ahead(steps: Steps, done: int) -> None:
  """Raises ValueError where a run that has done so many steps is past the first one."""
  if steps.first < done:
    raise ValueError(
      f"--profile_steps={steps.first}:{steps.end} begins before step {done}, where this "
      f"run goes on; --profile_steps={done + 10}:{done + 20} lies ahead"
    )


@contextlib.contextmanager
def profiled(step, steps, model_dir):
  """A training step that is profiled while it does some of the steps.

  Args:
    step: training.step.TrainingStep, or what is called like one.
    steps: Steps; None for none, and then `step` itself.
    model_dir: the run's folder, into whose TensorBoard files the trace goes.
  """
  if steps is None:
    yield step
    return
  profiled_step = _ProfiledStep(
    step, steps, os.path.join(model_dir, folder.TENSORBOARD)
  )
  try:
    yield profiled_step
  finally:
    profiled_step.close()


class _ProfiledStep:
  def __init__(self, step, steps, path):
    self._step = step
    self._steps = steps
    self._path = path
    self._is_on = self._is_done = False

  def __call__(self, batches, rates, first_step):
    end = first_step + len(batches)
    if not self._is_done and not self._is_on and end > self._steps.first:
      tf.profiler.experimental.start(self._path)
      self._is_on = True
    with tf.profiler.experimental.Trace("train", step_num=first_step, _r=1):
      logs = self._step(batches, rates, first_step)
    if self._is_on and end >= self._steps.end:
      # What the device still has to do is part of the steps.
      tf.nest.map_structure(lambda value: value.numpy(), logs)
      self._stop()
    return logs

  def close(self):
    if self._is_on:
      self._stop()
    elif not self._is_done:
      logging.warning("no trace: step %d was not reached", self._steps.first)

  def _stop(self):
    tf.profiler.experimental.stop()
    self._is_on, self._is_done = False, True
    logging.info(
      "steps %d:%d are profiled in %s; to look at them: pip install "
      "tensorboard-plugin-profile, then tensorboard --logdir=%s, Profile",
      *(*self._steps, os.path.join(self._path, "plugins", "profile"), self._path),
    )
