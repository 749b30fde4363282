"""The embedded dataset "shapes": images drawn from a seed."""

from ap_detect.data.shapes.scenes import (
  CLASS_NAMES,
  SPLITS,
  make_shapes,
  write_shapes,
)

__all__ = ["CLASS_NAMES", "SPLITS", "make_shapes", "write_shapes"]
