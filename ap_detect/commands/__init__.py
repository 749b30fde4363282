"""The command `ap_detect`, each of whose commands is a module of this package."""

from __future__ import annotations

import ast
import difflib
import pathlib
import runpy
import sys

from ap_detect import command_line, legacy_keras

legacy_keras.select()

NAMES = (
  "train",
  "evaluate",
  "export",
  "predict",
  "check",
  "preview",
  "write_tfrecords",
  "debug_batch",
)


def run(name: str) -> None:
  """Runs a command on the flags in sys.argv, as python -m ap_detect.commands.<name>."""
  runpy.run_module(f"{__name__}.{name}", run_name="__main__", alter_sys=True)


def main() -> None:
  """Runs the command that sys.argv names first, or lists them all."""
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name in NAMES:
    del sys.argv[1]
    run(name)
  elif name in command_line.HELP:
    print(_overview())
  elif name:
    near = difflib.get_close_matches(name, NAMES, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    commands = ", ".join(NAMES)
    sys.exit(f"error: there is no command {name!r}{guess} The commands are {commands}")
  else:
    sys.exit(_overview())


def _overview():
  width = max(map(len, NAMES)) + 2
  lines = [f"  {name.ljust(width)}{_summary(name)}" for name in NAMES]
  return "\n".join(
    [
      "usage: ap_detect COMMAND [--flag=value ...]\n",
      *lines,
      "\nap_detect COMMAND --help lists a command's flags.",
    ]
  )


def _summary(name):
  """First line of a command's docstring, without importing the command."""
  source = pathlib.Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
  return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
