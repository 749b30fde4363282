"""Experiments' modules, which are scripts beside each other, and a catalog of small ones."""

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "experiments"))

# What makes the demo's network and data so small that a run takes seconds.
SMALL = {
  "model.fpn_channels": 16,
  "model.head_convolutions": 1,
  "data.shapes_train_images": 16,
  "data.shapes_val_images": 6,
  "train.epochs": 2,
  "train.warmup_steps": 2,
  "train.validate_every_epochs": 1,
  "train.log_every_steps": 1,
}


@pytest.fixture
def make_small(small_backbone, tmp_path):
  """Function of experiments to a plan.Catalog of them with small networks and data."""
  import catalog
  import plan

  def make(*experiments, folder=tmp_path / "results"):
    small = {**SMALL, "model.backbone": small_backbone}
    chosen = []
    for one in experiments:
      rows = [row._replace(overrides={**row.overrides, **small}) for row in one.rows]
      evaluations = [
        evaluation._replace(data={}) for evaluation in catalog_evaluations(one)
      ]
      chosen.append(one._replace(rows=tuple(rows), evaluations=tuple(evaluations)))
    return plan.Catalog(chosen, catalog.DATASETS, folder)

  def catalog_evaluations(experiment):
    return plan.Catalog([experiment], catalog.DATASETS).evaluations(experiment)

  return make
