"""Polygons are dropped where they are not needed, and nothing else is."""

import json
import tracemalloc

import pytest

from ap_detect.data.readers import annotation_json, text_files

POLYGON = [[1.5, 2.5, 3.5, 4.5, 5.5, 6.5]]
RLE = {"size": [2, 2], "counts": [1, 3]}


def load(value):
  return annotation_json.loads(json.dumps(value))


@pytest.mark.parametrize("segmentation", [POLYGON, RLE, [], None])
def test_beside_a_box(segmentation):
  item = {"id": 1, "bbox": [0, 1.5, 2, 3], "iscrowd": 0}
  content = {"annotations": [{**item, "segmentation": segmentation}], "info": {}}
  assert load(content) == {"annotations": [item], "info": {}}


@pytest.mark.parametrize(
  "bbox", [None, [], [0, 0, 0, 0], [1, 1, 2], [1, 1, 2, "3"], [1, 1, 2, -1], "box"]
)
def test_where_there_is_no_box_they_stay(bbox):
  content = [{"id": 1, "bbox": bbox, "segmentation": POLYGON}, {"segmentation": RLE}]
  assert load(content) == content


def test_they_take_no_memory(tmp_path):
  item = {"id": 1, "bbox": [0, 0, 2, 3], "segmentation": [[0.125] * 1000]}
  path = tmp_path / "polygons.json"
  path.write_text(json.dumps({"annotations": [item] * 1000}))
  tracemalloc.start()
  try:
    annotation_json.loads(text_files.read(str(path)))
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # The numbers alone would take a million times 24 bytes, and their lists 8 MB.
  assert peak < 2 * path.stat().st_size + 2e6 < 24e6


@pytest.mark.parametrize("text", ["", "{", '{"a": nan}', "[" * 100_000])
def test_what_is_no_json(text):
  with pytest.raises((ValueError, RecursionError)):
    annotation_json.loads(text)
