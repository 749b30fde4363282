"""Flags that the commands of experiments share, and what follows from them."""

from __future__ import annotations

import catalog
import plan
from absl import flags

from ap_detect import command_line

_PLACES = {
  "bccd_dir": "Folder of BCCD (github.com/Shenggan/BCCD_Dataset), in VOC's layout.",
  "voc_dir": "Folder of VOC 2007, with Annotations/, ImageSets/ and JPEGImages/.",
  "weights": "Weights file of EfficientNet-lite0, trained on ImageNet.",
}

RESULTS_DIR = command_line.define_path(
  "results_dir", str(plan.RESULTS), "Folder of the JSON files."
)
RUNS_DIR = command_line.define_path(
  "runs_dir", "runs/experiments", "Folder of the runs and their logs."
)
NOTE = flags.DEFINE_string(
  "note", "", "What else to say in JSON files, as that the machine was shared."
)
PLACES = {
  name: command_line.define_path(name, "", _PLACES[name])
  for name in plan.all_places(catalog.DATASETS)
}
_FLAGS = (RESULTS_DIR, RUNS_DIR, NOTE, *PLACES.values())

# `use` speaks for the script that calls it.
flags.disclaim_key_flags()


def use(*names: str) -> None:
  """Has the help of the script that calls it list some of the flags; none for all."""
  for flag in _FLAGS:
    if not names or flag.name in names:
      flags.declare_key_flag(flag.name)


def places() -> dict[str, str]:
  """Flag -> path of data, "" for what was not given."""
  return {name: flag.value for name, flag in PLACES.items()}


def make_catalog() -> plan.Catalog:
  """All experiments, with the results that are there."""
  return plan.Catalog(catalog.EXPERIMENTS, catalog.DATASETS, RESULTS_DIR.value)


def arguments() -> list[str]:
  """What gives another command the same settings."""
  return [f"--{one.name}={one.value}" for one in _FLAGS if one.value != one.default]
