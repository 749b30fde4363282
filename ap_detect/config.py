"""Typed configuration of a run: defaults, checks, files, and what a restart may change.

`config_fields` has the fields themselves, `config_rules` what a field is made of.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from typing import Any, NamedTuple

import ml_collections
from absl import logging

from ap_detect import config_rules
from ap_detect.config_fields import (
  AUGMENTATIONS,
  BOX_LOSS_NORMALIZERS,
  BOX_LOSSES,
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
  "BOX_LOSSES",
  "BOX_LOSS_NORMALIZERS",
  "DATA_FORMATS",
  "HEAD_INITIALIZERS",
  "JIT_COMPILE",
  "MOVED_FIELDS",
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
  "override_loss_options",
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


class _Moved(NamedTuple):
  """A field of `train` in earlier versions that is an option of the loss today."""

  default: Any
  ignored_by: tuple[str, ...]


_MOVED = {
  "delta": _Moved(1.0, ("focal_loss",)),
  "interpolated": _Moved(True, ("focal_loss", "auc_loss")),
  "images_per_ranking": _Moved(0, ("focal_loss",)),
}
MOVED_FIELDS = tuple(f"train.{name}" for name in _MOVED)


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
  values = override_loss_options(values, [])  # moves old names
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


def override_loss_options(values: Any, overrides: list[tuple[str, Any]]) -> Any:
  """Nested values with options of the loss overridden, and those of old names moved.

  Args:
    values: as for `resolve`.
    overrides: (field, value) in the order they were given. The field is
      "train.loss_options", "train.loss_options.<option>" or one of MOVED_FIELDS.

  Returns:
    Nested values without MOVED_FIELDS; the same ones where there is nothing to do.

  Raises:
    ValueError: an option has one value by its old name and another one by its new one.
  """
  train: Any = values.get("train", {}) if hasattr(values, "keys") else None
  options: Any = train.get("loss_options", {}) if hasattr(train, "keys") else None
  if not hasattr(options, "keys"):
    return values  # which `resolve` refuses
  loss = train.get("classification_loss", TrainConfig.classification_loss)
  options, train = {**options}, {**train}
  old = {name: train.pop(name) for name in _MOVED if name in train}
  if not old and not overrides:
    return values
  for name, value in _moved(old, loss).items():
    if options.setdefault(name, value) != value:
      raise ValueError(
        f"train.{name}, now train.loss_options.{name}, is given by both names, as "
        f"{value!r} and {options[name]!r}"
      )
  for field, value in overrides:
    name = field.rpartition(".")[2]
    if field in MOVED_FIELDS:
      options.update(_moved({name: value}, loss))
    elif field == "train.loss_options":
      options = {**value}
    else:
      options[name] = value
  return {**values, "train": {**train, "loss_options": options}}


def _moved(old: dict[str, Any], loss: str) -> dict[str, Any]:
  """Options of a loss, of fields that were there before; the log says so."""
  options = {}
  for name, value in old.items():
    if loss not in _MOVED[name].ignored_by:
      options[name] = None if (name, value) == ("images_per_ranking", 0) else value
    elif value != _MOVED[name].default:
      _say_once(f"train.{name} is left out, for {loss} has no such option")
  if options:
    _say_once(
      ", ".join(f"train.{name} is train.loss_options.{name} now" for name in options)
    )
  return options


@functools.cache
def _say_once(text):
  # A start reads its run's config several times.
  logging.info("%s", text)


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
    name: "section.field", or "section.field.key" of a mapping.
    before: the value it was saved with.
    after: the value it has now.
    is_allowed: whether a run that is started again may have it changed.
  """

  name: str
  before: Any
  after: Any
  is_allowed: bool


def changes(saved: Config, current: Config) -> list[Change]:
  """The fields whose values differ, in the order of the fields.

  Of a mapping, the keys; one that is not there counts as None.
  """
  found: list[Change] = []
  for section in SECTIONS:
    before, after = getattr(saved, section), getattr(current, section)
    for item in describe(section):
      name = item.name.partition(".")[2]
      pair = getattr(before, name), getattr(after, name)
      found += [
        Change(f"{item.name}{key}", old, new, item.may_change)
        for key, old, new in _parts(*pair)
        if old != new
      ]
  return found


def _parts(before, after):
  """(".key", its two values) of all keys of two mappings; else ("", the two values)."""
  if not (isinstance(before, dict) and isinstance(after, dict)):
    return [("", before, after)]
  return [(f".{key}", before.get(key), after.get(key)) for key in {**before, **after}]


def _broken_relations(config: Config) -> list[str]:
  """Messages on fields that do not fit each other."""
  model, data = config.model, config.data
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
  ]
  return [message for holds, message in relations if not holds]
