"""Flags that the commands of experiments share, and the catalog by them."""

from __future__ import annotations

import catalog
import plan
from absl import flags

from ap_detect import command_line

# Flags belong to the script that calls the functions below.
flags.disclaim_key_flags()


class Settings:
  """The flags; read them once they are parsed."""

  def __init__(self):
    self._runs_dir = command_line.define_path(
      "runs_dir", "runs/experiments", "Folder of the runs and their logs."
    )
    self._results_dir = define_results_dir()
    self._note = flags.DEFINE_string(
      "note", "", "What else to say in JSON files, as that the machine was shared."
    )
    self._places = {
      name: command_line.define_path(name, "", _PLACES[name])
      for name in plan.all_places(catalog.DATASETS)
    }

  @property
  def note(self) -> str:
    """For JSON files."""
    return self._note.value

  @property
  def places(self) -> dict[str, str]:
    """Flag -> path, "" for what was not given."""
    return {name: flag.value for name, flag in self._places.items()}

  def catalog(self) -> plan.Catalog:
    """All experiments, with the results that are there."""
    return make_catalog(self._results_dir.value)

  @property
  def runs_dir(self) -> str:
    """Folder of the runs."""
    return self._runs_dir.value

  def arguments(self) -> list[str]:
    """What gives another command the same settings."""
    of_all = [self._runs_dir, self._results_dir, self._note, *self._places.values()]
    return [f"--{one.name}={one.value}" for one in of_all if one.value != one.default]


def define_results_dir():
  """Defines --results_dir."""
  return command_line.define_path(
    "results_dir", str(plan.RESULTS), "Folder of the JSON files."
  )


def make_catalog(results_dir: str) -> plan.Catalog:
  """All experiments, with the results in a folder."""
  return plan.Catalog(catalog.EXPERIMENTS, catalog.DATASETS, results_dir)


_PLACES = {
  "bccd_dir": "Folder of BCCD (github.com/Shenggan/BCCD_Dataset), in VOC's layout.",
  "voc_dir": "Folder of VOC 2007, with Annotations/, ImageSets/ and JPEGImages/.",
  "weights": "Weights file of EfficientNet-lite0, trained on ImageNet.",
}
