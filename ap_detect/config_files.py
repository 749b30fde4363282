"""The config files that come with the package, found by name from any folder."""

from __future__ import annotations

import os

_PACKAGE = os.path.dirname(os.path.abspath(__file__))

# In an installed wheel they lie in the package, in a checkout beside it.
_FOLDERS = (
  os.path.join(_PACKAGE, "configs"),
  os.path.join(os.path.dirname(_PACKAGE), "configs"),
)


def folder() -> str:
  """Path of the folder of the config files."""
  return next(filter(os.path.isdir, _FOLDERS), _FOLDERS[0])


def names() -> list[str]:
  """Names of the config files, without ".py", sorted."""
  return sorted(
    name.removesuffix(".py") for name in os.listdir(folder()) if name.endswith(".py")
  )


def find(name_or_path: str) -> str:
  """Path of a config file.

  Args:
    name_or_path: name of one that comes with the package, such as "own_data", or a path
      that ends with ".py" (and then perhaps ":" and an argument of its get_config).

  Raises:
    ValueError: it is neither.

  Example:
    >>> find("configs/mine.py")
    'configs/mine.py'
  """
  if name_or_path.partition(":")[0].endswith(".py"):
    return name_or_path
  if name_or_path not in names():
    raise ValueError(
      "must be the path of a .py file or the name of a config that comes with "
      f"ap_detect: {', '.join(names())}"
    )
  return os.path.join(folder(), f"{name_or_path}.py")
