"""How a config's field is declared: type, default, meaning and rule in one place."""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Rule(NamedTuple):
  """What a field's value must be.

  Attributes:
    accepts: function of a value of the field's type; whether the rule holds.
    requirement: completes "<field> must ...".
    normalize: function that a value passes through first.
  """

  accepts: Callable[[Any], bool]
  requirement: str
  normalize: Callable[[Any], Any] = lambda value: value


anything = Rule(lambda value: True, "")
positive = Rule(lambda value: value > 0, "be positive")
not_negative = Rule(lambda value: value >= 0, "not be negative")
all_positive = Rule(lambda values: bool(values) and min(values) > 0, "be positive")
local_path = Rule(lambda path: "://" not in path, "be a local path", os.path.expanduser)
import_paths = Rule(
  lambda paths: all(map(_is_import_path, paths)),
  "be import paths of the form 'package.module.Name'",
)
loss_name = Rule(
  lambda name: name.isidentifier() or _is_import_path(name),
  "be a name or an import path 'package.module.function'",
)


def _is_import_path(path):
  return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", path)


def between(low, high) -> Rule:
  """Rule of numbers from low to high, both included."""
  return Rule(lambda value: low <= value <= high, f"be {low} to {high}")


def one_of(choices: tuple[str, ...]) -> Rule:
  """Rule of a closed set of names."""
  return Rule(lambda value: value in choices, f"be one of {choices}")


def field(default, meaning: str, rule: Rule = anything, *, may_change=False) -> Any:
  """A field of a configuration's dataclass.

  Args:
    default: value where none is given; a dict is copied.
    meaning: for people; sentences.
    rule: what the value must be.
    may_change: whether a run that is started again may have another value.

  Returns:
    Field to be assigned in the body of a dataclass.
  """
  metadata = {"meaning": meaning, "rule": rule, "may_change": may_change}
  if isinstance(default, dict):
    return dataclasses.field(default_factory=default.copy, metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


class Field(NamedTuple):
  """A field as it is described to people.

  Attributes:
    name: "section.field".
    type_name: such as "float", "tuple of str" or "mapping".
    default: value where none is given.
    meaning: sentences, the rule among them.
    may_change: whether a run that is started again may have another value.
  """

  name: str
  type_name: str
  default: Any
  meaning: str
  may_change: bool


def describe(section: str, section_type) -> list[Field]:
  """The fields of a section's dataclass, as it defines them."""
  types = typing.get_type_hints(section_type)
  return [
    Field(
      f"{section}.{item.name}",
      _type_name(types[item.name]),
      _default(item),
      _meaning(item.metadata),
      item.metadata["may_change"],
    )
    for item in dataclasses.fields(section_type)
  ]


def _default(item):
  is_made = item.default is dataclasses.MISSING
  return item.default_factory() if is_made else item.default


def convert(section: str, section_type, values) -> tuple[dict[str, Any], list[str]]:
  """Values in the types of their fields.

  Args:
    section: name of the section, for messages.
    section_type: its dataclass.
    values: mapping of its fields' names to values.

  Returns:
    ({field: value} of the values that have the right type, messages on the others).
  """
  types = typing.get_type_hints(section_type)
  converted, faults = {}, []
  for item in dataclasses.fields(section_type):
    if item.name not in values:
      continue
    value, type_hint = values[item.name], types[item.name]
    try:
      converted[item.name] = item.metadata["rule"].normalize(_cast(value, type_hint))
    except (TypeError, ValueError, OverflowError):
      faults.append(
        f"{section}.{item.name} must be of type {_type_name(type_hint)}, got {value!r}"
      )
  return converted, faults


def broken_rules(section: str, values) -> list[str]:
  """Messages on the values of a section's dataclass that break their field's rule."""
  faults = []
  for item in dataclasses.fields(values):
    rule, value = item.metadata["rule"], getattr(values, item.name)
    if not rule.accepts(value):
      faults.append(f"{section}.{item.name} must {rule.requirement}, got {value!r}")
  return faults


def is_tuple_of_str(section_type, name: str) -> bool:
  """Whether a field holds several names."""
  return typing.get_type_hints(section_type).get(name) == tuple[str, ...]


def _cast(value, type_hint):
  """The value in its field's type; integers pass for floats, lists for tuples."""
  if _is_mapping(type_hint):
    if not hasattr(value, "keys"):
      raise TypeError
    return _plain(value)
  if _is_tuple(type_hint):
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
      raise TypeError
    return tuple(_cast(item, _element(type_hint)) for item in value)
  if type_hint is float and type(value) is int:
    return float(value)
  if type(value) is not type_hint:
    raise TypeError
  return value


def _plain(value):
  """What JSON can hold, with tuples for lists and dicts for mappings."""
  if hasattr(value, "keys"):
    if not all(isinstance(name, str) for name in value):
      raise TypeError
    return {name: _plain(value[name]) for name in value}
  if isinstance(value, (list, tuple)):
    return tuple(map(_plain, value))
  if not isinstance(value, (bool, int, float, str, type(None))):
    raise TypeError
  return value


def _is_mapping(type_hint):
  return typing.get_origin(type_hint) is Mapping


def _is_tuple(type_hint):
  return typing.get_origin(type_hint) is tuple


def _element(type_hint):
  return typing.get_args(type_hint)[0]


def _type_name(type_hint):
  if _is_tuple(type_hint):
    return f"tuple of {_element(type_hint).__name__}"
  if _is_mapping(type_hint):
    return "mapping"
  return type_hint.__name__


def _meaning(metadata):
  requirement = metadata["rule"].requirement
  must = f" Must {requirement}." if requirement else ""
  return metadata["meaning"] + must
