"""What evaluate_run and validation write beside COCO's figures."""

import dataclasses
import glob
import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ap_detect.data import shapes
from ap_detect.metrics import evaluate_voc
from ap_detect.runs import data as data_lib
from ap_detect.runs import files, scores
from ap_detect.runs import folder as folder_lib
from ap_detect.runs import model as model_lib
from ap_detect.training import evaluation, evaluation_files


class StandIn(evaluation.Evaluator):
  """Finds every object of 4 shapes pictures where it is, less the first picture's."""

  def __init__(self, network, config, strategy, workers):
    self._workers = workers

  def detect(self, records):
    truth = shapes.make_shapes("val", num_images=4).records[1:]
    none = evaluation.ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))
    found = [
      evaluation.ImageDetections(r.boxes, np.full(len(r.boxes), 0.75), r.classes)
      for r in truth
    ]
    return [none, *found]


@pytest.fixture
def evaluate(make_config, tmp_path, monkeypatch, capsys):
  """Function (dataset, split) -> (what evaluate_run returns, eval folder, printed)."""

  def run_it(dataset, split="val"):
    classes = folder_lib.Classes(dataset.class_names, dataset.category_ids)
    restored = model_lib.RestoredRun(
      make_config(), classes, None, None, "the/checkpoint"
    )

    monkeypatch.setattr(model_lib, "restore", lambda *_, **__: restored)
    monkeypatch.setattr(data_lib, "open_split", lambda *_, **__: dataset)
    monkeypatch.setattr(scores, "load_judgement", lambda *_: None)
    monkeypatch.setattr(evaluation, "Evaluator", StandIn)
    returned = evaluation_files.evaluate_run(str(tmp_path), split=split)
    folder = tmp_path / "eval" / split.replace("/", "_")
    return returned, str(folder), capsys.readouterr().out

  return run_it


def shapes_like_voc(**changes):
  """4 shapes pictures whose ids are strings and whose ignored objects are difficult."""
  data = shapes.make_shapes("val", num_images=4)
  records = [dataclasses.replace(r, image_id=f"p/{r.image_id}") for r in data.records]
  return dataclasses.replace(
    data, records=tuple(records), ignored_are_crowds=False, **changes
  )


def without_labels(data):
  none = {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int32)}
  none.update(ignored=np.zeros(0, bool), areas=np.zeros(0, np.float32))
  records = tuple(dataclasses.replace(r, **none) for r in data.records)
  return dataclasses.replace(data, records=records, has_labels=False)


def test_voc_data(evaluate):
  data = shapes_like_voc()
  _, folder, printed = evaluate(data)
  metrics = files.read_json(os.path.join(folder, "metrics.json"))
  results = files.read_json(os.path.join(folder, "detections.json"))
  assert metrics["voc"] == json.loads(json.dumps(evaluate_voc(data, results).to_json()))
  assert 0 < metrics["voc"]["area"]["AP50"] < 1
  assert "VOC 2007, 11 points" in printed
  pictures = sorted(os.listdir(os.path.join(folder, "pictures")))
  assert pictures == ["01_p_1.png", "02_p_2.png", "03_p_3.png"]


def test_ids_that_are_no_names_of_files(evaluate):
  """Addresses, say: of pictures only the end counts, and VOC's files are not written."""
  data = shapes.make_shapes("val", num_images=4)
  ids = [f"https://bucket/{'long' * 99}/{name}" for name in ("a_b", "a b", "a/b", "c")]
  records = tuple(
    dataclasses.replace(record, image_id=name)
    for record, name in zip(data.records, ids)
  )
  data = dataclasses.replace(data, records=records, ignored_are_crowds=False)
  _, folder, _ = evaluate(data)
  pictures = sorted(os.listdir(os.path.join(folder, "pictures")))
  assert len(pictures) == 3 and all(name.endswith("g_a_b.png") for name in pictures)
  assert all(len(name) < 100 for name in pictures)
  _, folder, printed = evaluate(without_labels(data))
  assert not any("comp4" in name for name in os.listdir(folder))
  assert "for VOC      not written: image ids must have no white space" in printed


def test_coco_data_have_charts_and_no_figures_of_voc(evaluate):
  _, folder, printed = evaluate(shapes.make_shapes("val", num_images=4))
  for name in ("precision_recall.png", "confusion.png", "reliability.png"):
    path = os.path.join(folder, name)
    assert path in printed
    with Image.open(path) as picture:
      assert picture.mode == "RGB" and min(picture.size) > 200
  assert "voc" not in files.read_json(os.path.join(folder, "metrics.json"))
  assert "VOC" not in printed


def test_voc_data_without_labels(evaluate):
  returned, folder, printed = evaluate(
    without_labels(shapes_like_voc()), "VOC2012/test"
  )
  assert returned is None
  names = shapes.CLASS_NAMES
  texts = [f"comp4_det_test_{name}.txt" for name in names]
  assert sorted(os.listdir(folder)) == sorted(["detections.json", *texts])
  texts = [pathlib.Path(folder, name).read_text(encoding="utf-8") for name in texts]
  lines = [line.split() for text in texts for line in text.splitlines()]
  results = files.read_json(os.path.join(folder, "detections.json"))
  assert len(lines) == len(results) > 0
  assert {line[0] for line in lines} == {"p/2", "p/3", "p/4"}
  assert "split 'VOC2012/test' has no labels" in printed
  assert "no metrics, charts or pictures" in printed


def test_labels_without_an_object_that_counts(evaluate):
  data = dataclasses.replace(without_labels(shapes_like_voc()), has_labels=True)
  returned, folder, printed = evaluate(data, "background")
  assert returned is None
  assert files.read_json(os.path.join(folder, "detections.json"))
  assert "split 'background' has no object that counts" in printed


def test_coco_data_without_labels(evaluate):
  data = without_labels(shapes.make_shapes("val", num_images=4))
  returned, folder, printed = evaluate(data, "test2017")
  assert returned is None
  assert os.listdir(folder) == ["detections.json"]
  assert "VOC" not in printed


def test_calibration_error_is_printed_and_written(evaluate):
  _, folder, printed = evaluate(shapes.make_shapes("val", num_images=4))
  errors = files.read_json(os.path.join(folder, "metrics.json"))["calibration_error"]
  assert list(errors) == ["all", "shown"]
  (line,) = [line for line in printed.splitlines() if line.startswith("calibration ")]
  for by_name in errors.values():
    assert by_name["raw"] == pytest.approx(0.25)  # all right, at 0.75
    assert by_name["calibrated"] < 0.15
    assert f"0.2500 raw, {by_name['calibrated']:.4f} calibrated" in line


def test_files_stay_raw_and_pictures_are_calibrated(evaluate, monkeypatch):
  drawn = []
  original = evaluation_files.draw_found
  monkeypatch.setattr(
    evaluation_files,
    "draw_found",
    lambda pixels, found, names: drawn.append(found) or original(pixels, found, names),
  )
  found, folder, _ = evaluate(shapes.make_shapes("val", num_images=4))
  results = files.read_json(os.path.join(folder, "detections.json"))
  assert {result["score"] for result in results} == {0.75}
  expected = float(found.calibration(0.75))
  assert expected > 0.8
  scores_drawn = np.concatenate([image.scores for image in drawn])
  assert len(scores_drawn) > 0
  assert scores_drawn == pytest.approx(np.full(len(scores_drawn), expected))


def test_validation_shows_charts_in_tensorboard(trained_run):
  tags = {}
  for path in glob.glob(os.path.join(trained_run, "tensorboard", "*")):
    for event in tf.compat.v1.train.summary_iterator(path):
      for value in event.summary.value:
        tags.setdefault(value.tag, []).append(value)
  for name in ("charts/precision_recall", "charts/confusion"):
    assert len(tags[name]) == 3  # one an epoch
    width, height, png = tf.make_ndarray(tags[name][-1].tensor)
    assert tf.io.decode_png(png).shape == (int(height), int(width), 3)
