"""Training augmentation: steps that take an example and return it changed.

An example is a dict: `image` [H, W, 3], `boxes` [G, 4] float32 (yxyx, pixels of the
image), `classes` [G] int32, `ignored` [G] bool, `seed` [2] int32. Every step draws from
the example's seed alone, so that an epoch comes out the same however many threads make
it and wherever training was started again.
"""

from ap_detect.data.augment.colors import random_color, random_ssd_color
from ap_detect.data.augment.scale_jitter import (
  fit_steps,
  random_horizontal_flip,
  zoom_onto_canvas,
  zoom_steps,
)
from ap_detect.data.augment.ssd import (
  cut_to_window,
  random_crop,
  random_expansion,
  ssd_steps,
  warp_window,
)

__all__ = [
  "cut_to_window",
  "fit_steps",
  "random_color",
  "random_crop",
  "random_expansion",
  "random_horizontal_flip",
  "random_ssd_color",
  "ssd_steps",
  "warp_window",
  "zoom_onto_canvas",
  "zoom_steps",
]
