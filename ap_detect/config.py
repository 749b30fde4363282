"""Typed configuration of a run: defaults, checks, files, and what a restart may change.

`config_fields` has the fields themselves, `config_rules` what a field is made of.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from typing import Any, NamedTuple

import ml_collections

from ap_detect import config_rules
from ap_detect.config_fields import (
  AUGMENTATIONS,
  BOX_LOSS_NORMALIZERS,
  CLASSIFICATION_LOSSES,
  DATA_FORMATS,
  HEAD_INITIALIZERS,
  JIT_COMPILE,
  OPTIMIZERS,
  SCHEDULES,
  DataConfig,
  EvalConfig,
  ModelConfig,
  TrainConfig,
  parse_test_scale,
)
from ap_detect.config_rules import Field

__all__ = [
  "AUGMENTATIONS",
  "BOX_LOSS_NORMALIZERS",
  "CLASSIFICATION_LOSSES",
  "DATA_FORMATS",
  "HEAD_INITIALIZERS",
  "JIT_COMPILE",
  "OPTIMIZERS",
  "SCHEDULES",
  "SECTIONS",
  "Change",
  "Config",
  "DataConfig",
  "EvalConfig",
  "Field",
  "ModelConfig",
  "TrainConfig",
  "changes",
  "default_config",
  "describe",
  "field_names",
  "load",
  "parse_test_scale",
  "resolve",
  "unknown_field",
]


@dataclasses.dataclass(frozen=True)
class Config:
  """A whole run."""

  model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)


SECTIONS = {
  "model": ModelConfig,
  "data": DataConfig,
  "train": TrainConfig,
  "eval": EvalConfig,
}


def default_config() -> ml_collections.ConfigDict:
  """The fields and defaults above, for a config file's get_config() to change."""
  return ml_collections.ConfigDict(dataclasses.asdict(Config()))


def resolve(values: Any) -> Config:
  """A checked Config from nested values.

  Args:
    values: nested mapping, such as get_config() or a saved config's JSON holds.

  Returns:
    Config.

  Raises:
    ValueError: unknown field, wrong type, or a value out of its range; all faults.
  """
  if not hasattr(values, "keys"):
    raise ValueError(f"a config must be a mapping of its sections, got {values!r}")
  faults = [unknown_field(name) for name in values if name not in SECTIONS]
  sections = {}
  for name, section_type in SECTIONS.items():
    section = values.get(name, {})
    if not hasattr(section, "keys"):
      faults.append(f"{name} must be a mapping of its fields, got {section!r}")
      continue
    names = {item.name for item in dataclasses.fields(section_type)}
    faults += [unknown_field(f"{name}.{key}") for key in section if key not in names]
    converted, wrong_types = config_rules.convert(name, section_type, section)
    faults += wrong_types
    sections[name] = section_type(**converted)
  if not faults:
    config = Config(**sections)
    for name, section in sections.items():
      faults += config_rules.broken_rules(name, section)
    faults += _broken_relations(config)
  if faults:
    raise ValueError("\n  ".join(["the config has faults:", *faults]))
  return config


def load(path: str) -> Config:
  """Config from the JSON file that a run saved; ValueError where it is none."""
  try:
    with open(path, encoding="utf-8") as file:
      return resolve(json.load(file))
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}: is not valid JSON: {error}") from error
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def describe(section: str) -> list[Field]:
  """The fields of a section: names, types, defaults, meanings, what may change."""
  return config_rules.describe(section, SECTIONS[section])


def field_names() -> list[str]:
  """Names of all fields, "section.field"."""
  return [item.name for section in SECTIONS for item in describe(section)]


def unknown_field(name: str) -> str:
  """Message for a field that does not exist."""
  valid = field_names()
  near = difflib.get_close_matches(name, valid, n=1)
  guess = f"; did you mean {near[0]!r}?" if near else "."
  return "\n    ".join(
    [f"there is no config field {name!r}{guess} The fields are:", *valid]
  )


class Change(NamedTuple):
  """A field that differs between two starts of a run.

  Attributes:
    name: "section.field".
    before: the value it was saved with.
    after: the value it has now.
    is_allowed: whether a run that is started again may have it changed.
  """

  name: str
  before: Any
  after: Any
  is_allowed: bool


def changes(saved: Config, current: Config) -> list[Change]:
  """The fields whose values differ, in the order of the fields."""
  found = []
  for section in SECTIONS:
    before, after = getattr(saved, section), getattr(current, section)
    for item in describe(section):
      name = item.name.partition(".")[2]
      pair = getattr(before, name), getattr(after, name)
      if pair[0] != pair[1]:
        found.append(Change(item.name, *pair, item.may_change))
  return found


def _broken_relations(config: Config) -> list[str]:
  """Messages on fields that do not fit each other."""
  model, data, train = config.model, config.data, config.train
  relations = [
    (
      data.augmentation == "zoom" or data.zoom_range == (1.0, 1.0),
      f"data.zoom_range must be (1.0, 1.0) with augmentation {data.augmentation!r}, "
      f"which does not use it, got {data.zoom_range}",
    ),
    (
      data.format == "shapes" or data.root,
      "data.root must name the dataset's folder: --config.data.root=...",
    ),
    (
      data.format != "shapes" or not data.class_names,
      f"data.class_names must be empty for shapes, got {data.class_names}",
    ),
    (
      0 <= model.negative_iou <= model.positive_iou <= 1 and model.positive_iou > 0,
      "0 <= model.negative_iou <= model.positive_iou <= 1 must hold, got "
      f"{model.negative_iou} and {model.positive_iou}",
    ),
    (
      train.images_per_ranking >= 0
      and train.batch_size % (train.images_per_ranking or 1) == 0,
      "train.images_per_ranking must divide train.batch_size, got "
      f"{train.images_per_ranking} and {train.batch_size}",
    ),
  ]
  return [message for holds, message in relations if not holds]
