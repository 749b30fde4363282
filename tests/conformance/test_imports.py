"""The package's shape: who may import whom, docstrings, and examples that hold."""

import ast
import doctest
import importlib
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

import ap_detect

PACKAGE = pathlib.Path(ap_detect.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Each part and the parts it may import. A part may always import itself.
PURE = ("errors", "boxes", "images", "config", "drawing", "charts", "losses")
MIDDLE = ("anchors", "anchor_coverage", "matching", "models", "data", "metrics")
MAY_IMPORT = {
  "": ("detector",),  # ap_detect/__init__.py, when load is called
  "legacy_keras": (),
  **{part: () for part in PURE},
  "config_rules": (),
  "config_fields": ("config_rules",),
  "config": ("config_rules", "config_fields"),
  "config_files": (),
  "logs": ("errors",),
  "command_line": ("config", "config_files", "config_rules", "errors", "logs"),
  "provenance": ("command_line",),
  "anchors": ("boxes",),
  "anchor_coverage": ("boxes", "anchors"),
  "matching": ("boxes", "losses"),
  "models": ("legacy_keras", "boxes", "anchors"),
  "data": ("errors", "boxes", "images"),
  "metrics": ("errors", "data"),
  "runs": ("legacy_keras", *PURE, *MIDDLE),
  "training": ("legacy_keras", *PURE, *MIDDLE, "logs", "runs"),
  "detector": ("errors", "images", "data", "runs", "training"),
  "serving": (
    *("legacy_keras", "errors", "boxes", "images", "models", "data", "metrics"),
    *("runs", "training"),
  ),
  "commands": (
    *("legacy_keras", *PURE, *MIDDLE),
    *("command_line", "logs", "runs", "training", "serving"),
  ),
  "__main__": ("commands",),
}


def module_name(path):
  parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(name):
  """The part that a module belongs to: `models` for ap_detect.models.fpn."""
  return (*name.split("."), "")[1]


def imported_modules(path):
  """Modules of the package that a file imports, wherever in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      if node.module == "ap_detect":
        found |= {f"ap_detect.{alias.name}" for alias in node.names}
      else:
        found.add(node.module)
  return {name for name in found if name.split(".")[0] == "ap_detect"}


def ids(path):
  return module_name(path)


def test_every_part_has_its_place():
  assert {part_of(module_name(path)) for path in FILES} <= set(MAY_IMPORT)


def test_every_folder_is_a_package():
  """A wheel has no others."""
  folders = {path.parent for path in FILES}
  assert folders == {path.parent for path in FILES if path.name == "__init__.py"}


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_imports_point_up_the_list_only(path):
  part = part_of(module_name(path))
  imported = {part_of(name) for name in imported_modules(path)} - {part}
  assert imported <= set(MAY_IMPORT[part])


def test_the_list_itself_has_no_circle():
  placed = set()
  while len(placed) < len(MAY_IMPORT):
    free = {
      part
      for part, others in MAY_IMPORT.items()
      if part not in placed and set(others) <= placed
    }
    assert free, f"circle among {set(MAY_IMPORT) - placed}"
    placed |= free


# --help, a wrong flag and a run's folder that is in use are answered at once.
@pytest.mark.parametrize("module", ["command_line", "logs", "runs.lock", "runs.files"])
def test_what_is_needed_first_loads_without_tensorflow(module):
  code = f"import sys, ap_detect.{module}; print('tensorflow' in sys.modules)"
  result = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=PACKAGE.parent,
    check=True,
  )
  assert result.stdout.strip() == "False"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_everything_public_has_a_docstring(path):
  tree = ast.parse(path.read_text(encoding="utf-8"))
  missing = [
    node.name
    for node in tree.body
    if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    and not node.name.startswith("_")
    and node.name != "main"  # of a command, which the module's docstring describes
    and not ast.get_docstring(node)
  ]
  assert not missing
  assert ast.get_docstring(tree) or not tree.body


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_examples_hold(path):
  if ">>>" not in path.read_text(encoding="utf-8"):
    pytest.skip("no example")
  module = importlib.import_module(module_name(path))
  results = doctest.testmod(module, extraglobs={"tf": tf})
  assert results.attempted > 0
  assert results.failed == 0
