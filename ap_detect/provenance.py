"""Measured figures as a JSON file, with what they were measured on and by what."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
from importlib import metadata

from absl import flags

from ap_detect import command_line

# Flags belong to the script that calls define_flags.
flags.disclaim_key_flags()

_CHECKOUT = pathlib.Path(__file__).resolve().parents[1]

# Before command_line takes from it what absl does not understand.
_ARGUMENTS = tuple(sys.argv)


def define_flags():
  """Defines --json=<file> and --note=<text>.

  Returns:
    Function of a benchmark's results, a dict, and the names of packages whose versions
    matter to it besides TensorFlow's. It prints what they were measured on, and writes
    both into the file, if one is given.
  """
  path = command_line.define_path("json", "", "File to write all figures into.")
  note = flags.DEFINE_string(
    "note",
    "",
    "What else to say in that file, as that the machine was shared.",
    allow_override=True,  # a process may import several scripts that have it
  )

  def report(results, packages=()):
    measured = describe(note.value, packages)
    print(summary(measured))
    if path.value:
      text = json.dumps({**measured, **results}, indent=1)
      pathlib.Path(path.value).write_text(text + "\n", encoding="utf-8")

  return report


def summary(measured):
  """One line of what results were measured on.

  Args:
    measured: the contents of a JSON file.
  """
  commit = f"commit {measured['commit'] or 'unknown'}, {measured['date']}"
  parts = (machine_summary(measured), commit, measured["note"])
  return "; ".join(filter(None, parts))


def machine_summary(measured):
  """The part of `summary` that says which machine and which versions."""
  machine, versions = measured["machine"], measured["versions"]
  return "; ".join(
    [
      f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
      *machine["gpus"],
      ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]
  )


def describe(note="", packages=()):
  """What this process measures on what; no names of the machine, and no folders of it.

  Args:
    note: what else to say.
    packages: names of packages whose versions matter besides TensorFlow's.

  Returns:
    dict of command, commit, date, machine, versions and note.
  """
  import tensorflow as tf

  gpus = tf.config.list_physical_devices("GPU")
  details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
  return {
    "command": shlex.join(["python", *map(_without_folders, _ARGUMENTS)]),
    "commit": _commit(),
    "date": datetime.date.today().isoformat(),
    "machine": {
      "processor": _processor(),
      "cores": os.cpu_count(),
      "memory_gib": round(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
      ),
      "gpus": [one.get("device_name", "unknown") for one in details],
    },
    "versions": {
      "python": platform.python_version(),
      "tensorflow": tf.__version__,
      **{name: metadata.version(name) for name in packages},
    },
    "note": note,
  }


def _without_folders(argument):
  """A script by its place in the checkout, other absolute paths as their last part."""
  if argument == _ARGUMENTS[0]:
    script = pathlib.Path(argument).resolve()
    if _CHECKOUT in script.parents:
      return script.relative_to(_CHECKOUT).as_posix()
  name, equals, value = argument.rpartition("=")
  if os.path.isabs(os.path.expanduser(value)):
    value = os.path.basename(os.path.normpath(value))
  return name + equals + value


def _commit():
  """Of the checkout, with "-dirty" where files differ from it; "" where there is none."""
  command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
  try:
    done = subprocess.run(
      command, cwd=_CHECKOUT, stdout=subprocess.PIPE, text=True, check=True
    )
  except (OSError, subprocess.CalledProcessError):
    return ""
  return done.stdout.strip()


def _processor():
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      for line in file:
        if line.startswith("model name"):
          return line.partition(":")[2].strip()
  except OSError:  # not on Linux
    pass
  return platform.processor() or platform.machine()
