"""Learning-rate schedules over epochs."""

from __future__ import annotations

import dataclasses
import math

from ap_detect import config


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Linear warm-up, then a constant, stepwise or cosine learning rate.

  It follows epochs done and images seen, not steps: a run that goes on with another
  number of replicas or another batch size keeps its place.

  Attributes:
    learning_rate: after warm-up.
    kind: "constant", "step" or "cosine".
    epochs: where the cosine reaches 0.
    decay_epochs: where "step" multiplies the rate by decay_factor.
    decay_factor: see decay_epochs.
    warmup_images: while so many images are seen, the rate is also multiplied by a factor
      that grows linearly from warmup_start_factor to 1.
    warmup_start_factor: see warmup_images.

  Raises:
    ValueError: unknown kind, or a cosine over no epochs.
  """

  learning_rate: float
  kind: str = "constant"
  epochs: float = 0.0
  decay_epochs: tuple[float, ...] = ()
  decay_factor: float = 0.1
  warmup_images: int = 0
  warmup_start_factor: float = 1 / 3

  def __post_init__(self):
    if self.kind not in config.SCHEDULES:
      raise ValueError(f"kind must be one of {config.SCHEDULES}, got {self.kind!r}")
    if self.kind == "cosine" and self.epochs <= 0:
      raise ValueError(f"cosine requires epochs > 0, got {self.epochs}")

  def __call__(self, epochs_done: float, images: int) -> float:
    """Learning rate of a step.

    Args:
      epochs_done: before the step, with fractions.
      images: seen before the step, since the start of the run.

    Example:
      >>> rate = Schedule(0.4, "step", decay_epochs=(2,), warmup_images=100)
      >>> round(rate(0, 50), 4), rate(1.9, 5000), round(rate(2, 6000), 4)
      (0.2667, 0.4, 0.04)
    """
    return self.learning_rate * self._decay(epochs_done) * self._warmup(images)

  def _decay(self, epochs_done):
    if self.kind == "step":
      passed = sum(epochs_done >= epoch for epoch in self.decay_epochs)
      return self.decay_factor**passed
    if self.kind == "cosine":
      progress = min(epochs_done / self.epochs, 1.0)
      return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0

  def _warmup(self, images):
    if images >= self.warmup_images:
      return 1.0
    start = self.warmup_start_factor
    return start + (1 - start) * images / self.warmup_images
