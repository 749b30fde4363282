"""A report as text for the terminal and as one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple, Union

import numpy as np
from PIL import Image

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-size: 14px; }
th, td { padding: 0.15rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
p { white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; }
"""


class Table(NamedTuple):
  """Rows of cells below a header.

  Attributes:
    header: of each column.
    rows: cells, as many in each as the header has; any value with a str().
  """

  header: Sequence[str]
  rows: Sequence[Sequence[object]]


class Picture(NamedTuple):
  """An image, which only the HTML shows.

  Attributes:
    description: for those who cannot see it.
    pixels: [H, W, 3] uint8.
  """

  description: str
  pixels: np.ndarray


class Heading(NamedTuple):
  """A title above what follows."""

  text: str


Part = Union[Heading, str, Table, Picture]


def to_text(parts: Sequence[Part]) -> str:
  """The report for a terminal: first columns to the left, others to the right."""
  blocks = [_part_to_text(part) for part in parts if not isinstance(part, Picture)]
  return "\n\n".join(blocks)


def to_html(title: str, parts: Sequence[Part]) -> str:
  """The report as a whole page; what stands in the parts is shown as it is written."""
  body = "\n".join(_part_to_html(part) for part in parts)
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
    f"<body>\n<h1>{html.escape(title)}</h1>\n{body}\n</body>\n</html>\n"
  )


def _part_to_text(part):
  if isinstance(part, Table):
    return _table_to_text(part)
  return f"== {part.text} ==" if isinstance(part, Heading) else part


def _table_to_text(table):
  rows = [[str(cell) for cell in row] for row in (table.header, *table.rows)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
  return "\n".join(
    "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
    for row in rows
  )


def _part_to_html(part):
  if isinstance(part, Heading):
    return f"<h2>{html.escape(part.text)}</h2>"
  if isinstance(part, Picture):
    return _picture_to_html(part)
  if isinstance(part, Table):
    header = _row_to_html("th", part.header)
    return "\n".join(
      ["<table>", header, *(_row_to_html("td", row) for row in part.rows), "</table>"]
    )
  return f"<p>{html.escape(part)}</p>"


def _row_to_html(tag, cells):
  inside = "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells)
  return f"<tr>{inside}</tr>"


def _picture_to_html(picture):
  file = io.BytesIO()
  Image.fromarray(picture.pixels).save(file, "PNG")
  content = base64.b64encode(file.getvalue()).decode("ascii")
  description = html.escape(picture.description)
  return f'<img src="data:image/png;base64,{content}" alt="{description}">'
