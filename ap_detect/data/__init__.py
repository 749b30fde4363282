"""Datasets: readers -> records -> augment -> pipeline; shapes are drawn.

`read_split` reads a split of any folder of images; `records` has what it returns.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from ap_detect.data.readers.splits import read_split

__all__ = ["read_split"]


def __getattr__(name):
  # The reader needs TensorFlow, which others of this package do without.
  if name == "read_split":
    from ap_detect.data.readers import splits

    return splits.read_split
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
