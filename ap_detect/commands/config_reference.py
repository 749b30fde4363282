"""Prints every field of a config, as Markdown.

python -m ap_detect.commands.config_reference > docs/config.md
"""

from __future__ import annotations

from ap_detect import command_line
from ap_detect import config as config_lib

_HEAD = """\
# Fields of a config

Written by `python -m ap_detect.commands.config_reference > docs/config.md`.

A config file sets fields in its `get_config()`, the command line by
`--config.<section>.<field>=<value>`; what neither sets has the default below. A run
that is started again in its folder may have other values of the fields marked "yes" in
the last column, and of no others."""


def to_markdown() -> str:
  """All fields, by section: types, defaults, meanings, and what a restart may change."""
  lines = [_HEAD]
  for section, section_type in config_lib.SECTIONS.items():
    lines += [
      f"\n## {section}\n\n{section_type.__doc__}\n",
      "| field | type | default | meaning | may change |",
      "|---|---|---|---|---|",
    ]
    lines += [_row(item) for item in config_lib.describe(section)]
  return "\n".join(lines) + "\n"


def _row(item):
  may_change = "yes" if item.may_change else "no"
  cells = (
    *(f"`{item.name}`", item.type_name, f"`{item.default!r}`"),
    *(item.meaning.replace("<", "&lt;").replace("|", "\\|"), may_change),
  )
  return f"| {' | '.join(cells)} |"


def main(_):
  print(to_markdown(), end="")


if __name__ == "__main__":
  command_line.run(main)
