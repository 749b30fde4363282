"""A report as text and as HTML: the same content, and nothing in it taken for markup."""

import base64
import html.parser
import io

import numpy as np
from PIL import Image

from ap_detect.commands.report_page import Heading, Picture, Table, to_html, to_text

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
PARTS = [
  Heading("Classes & more"),
  "a <b>line</b>\n  and another",
  Table(("class", "count"), [["<script>alert(1)</script>", 12], ['"cat"', 3]]),
  Picture('a "picture"', PIXELS),
]


class Reader(html.parser.HTMLParser):
  """Tags, attributes and text of a page; every tag that is opened is closed."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.open, self.text, self.attributes = [], [], [], []
    self.feed(page)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in ("img", "meta"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_text():
  expected = """\
== Classes & more ==

a <b>line</b>
  and another

class                      count
<script>alert(1)</script>     12
"cat"                          3"""
  assert to_text(PARTS) == expected


def test_html_shows_names_as_they_are_written():
  reader = Reader(to_html("of <dogs>", PARTS))
  assert not {"script", "b", "dogs"} & set(reader.tags)
  for text in ("of <dogs>", "Classes & more", "a <b>line</b>\n  and another"):
    assert text in reader.text
  cells = ["class", "count", "<script>alert(1)</script>", "12", '"cat"', "3"]
  assert [text for text in reader.text if text in cells] == cells
  assert reader.tags.count("tr") == 3


def test_html_holds_its_pictures():
  reader = Reader(to_html("title", PARTS))
  attributes = dict(reader.attributes)
  assert attributes["alt"] == 'a "picture"'
  kind, content = attributes["src"].split(",")
  assert kind == "data:image/png;base64"
  picture = Image.open(io.BytesIO(base64.b64decode(content)))
  assert np.array_equal(np.asarray(picture), PIXELS)
