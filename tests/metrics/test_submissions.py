"""VOC's files of detections: read back as the development kit reads them."""

import os
import pathlib

import numpy as np
import pytest
from coco_cases import dataset, found, random_case, record
from oracles import boxes as box_oracle
from oracles import voc as voc_oracle

from ap_detect.metrics import write_comp4

BOX = [10, 20, 110, 120]


def read(path):
  """[(image id, score, xmin, ymin, xmax, ymax)]"""
  with open(path, encoding="utf-8") as file:
    rows = [line.split() for line in file]
  return [(row[0], *map(float, row[1:])) for row in rows]


def test_by_hand(tmp_path):
  # The pixels of rows 11..110 and columns 21..120, counted from 1.
  data = dataset(record("000004", [BOX], [1]), num_classes=2)
  results = found(data, "000004", [BOX], [0.25], [2])
  paths = write_comp4(tmp_path / "new", "test", data, results)
  assert [os.path.basename(path) for path in paths] == [
    "comp4_det_test_a.txt",
    "comp4_det_test_b.txt",
  ]
  texts = [pathlib.Path(path).read_text(encoding="utf-8") for path in paths]
  assert texts == ["", "000004 0.25 21.0 11.0 120.0 110.0\n"]


def test_data_need_no_objects(tmp_path):
  data = dataset(record("1"))
  (path,) = write_comp4(tmp_path, "test", data, found(data, "1", [BOX], [0.5]))
  assert read(path) == [("1", 0.5, 21, 11, 120, 110)]


@pytest.mark.parametrize("seed", range(3))
def test_scores_and_overlaps_are_the_same_when_read_back(seed, tmp_path):
  data, results, *_ = random_case(seed, crowds=False)
  rng = np.random.default_rng(seed)
  for result in results:
    result["bbox"] = (np.array(result["bbox"]) + rng.random(4)).tolist()
    # One that float32 has, so small that it needs an exponent.
    result["score"] = float(np.float32(10.0 ** -rng.uniform(0, 9)))
  truth = np.array([30.5, 10.25, 131.0, 99.0])  # yxyx
  paths = write_comp4(tmp_path, "val", data, results)
  for path, category in zip(paths, data.category_ids):
    expected = [r for r in results if r["category_id"] == category]
    rows = read(path)
    assert len(rows) == len(expected) > 0
    for row, result in zip(rows, expected):
      assert row[:2] == (str(result["image_id"]), result["score"])
      x, y, width, height = result["bbox"]
      kit_truth = voc_oracle.kit_box(truth[[1, 0, 3, 2]])
      kit_overlap = voc_oracle.overlap(row[2:], kit_truth)
      iou = box_oracle.iou([y, x, y + height, x + width], truth)
      assert kit_overlap == pytest.approx(iou, abs=1e-12)


@pytest.mark.parametrize("split", ["", "a/b", "a\\b"])
def test_split_that_is_no_name(split, tmp_path):
  with pytest.raises(ValueError, match="file's name"):
    write_comp4(tmp_path, split, dataset(record(1)), [])


def test_image_id_with_white_space(tmp_path):
  data = dataset(record("cell 1"))
  with pytest.raises(ValueError, match="white space, got 'cell 1'"):
    write_comp4(tmp_path, "test", data, found(data, "cell 1", [BOX], [0.5]))
