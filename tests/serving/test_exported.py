"""What is served has the metrics of what was evaluated."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from serving import files

from ap_detect.data import shapes
from ap_detect.data.records import ImageRecord
from ap_detect.runs import files as run_files
from ap_detect.serving import exported as exported_lib
from ap_detect.training import evaluation, evaluation_files


@pytest.fixture(scope="module")
def opened_again(exported, tmp_path_factory):
  """By the folder of its versions, of which it is the highest by number."""
  versions = tmp_path_factory.mktemp("versions")
  (versions / "9").mkdir()
  shutil.copytree(exported, versions / "0010")
  return exported_lib.Exported(str(versions))


def test_served_is_evaluated(opened_again, restored_run):
  """50 images of several sizes: the same boxes, scores, classes, and AP."""
  datasets = [
    shapes.make_shapes("val", num_images=10, image_size_px=size, seed=seed)
    for seed, size in enumerate(
      [(128, 128), (96, 200), (150, 80), (70, 70), (200, 120)]
    )
  ]
  records = [
    dataclasses.replace(record, image_id=number)
    for number, record in enumerate(r for dataset in datasets for r in dataset.records)
  ]
  dataset = dataclasses.replace(datasets[0], records=tuple(records))
  evaluator = evaluation.Evaluator(
    restored_run.network, restored_run.config, restored_run.strategy
  )
  # A call a size, as pictures in memory need it.
  found_offline = [
    image for part in datasets for image in evaluator.detect(part.records)
  ]
  offline, expected, _ = evaluation.judge(dataset, found_offline)
  found = opened_again.detect(dataset.records)
  for one, other in zip(expected, found):
    assert len(one.scores) == len(other.scores)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    np.testing.assert_array_equal(one.classes, other.classes)
  served, _, _ = evaluation.judge(dataset, found)
  assert offline.metrics["AP50"] > 0
  assert served.metrics == pytest.approx(offline.metrics, abs=1e-6)


def test_evaluate_run(opened_again, trained_run, tmp_path, capsys):
  model_dir = str(tmp_path / "run")
  shutil.copytree(trained_run, model_dir)
  found = evaluation_files.evaluate_run(model_dir, exported=opened_again)
  said = run_files.read_json(
    os.path.join(model_dir, "eval", "val_exported", "metrics.json")
  )
  assert said["AP"] == found.metrics["AP"]
  assert said["saved_model"] == opened_again.path
  assert opened_again.path in capsys.readouterr().out
  best = run_files.read_json(os.path.join(model_dir, "best.json"))
  assert said["AP"] == pytest.approx(best["metrics"]["AP"], abs=1e-6)


def test_other_classes(opened_again, trained_run, monkeypatch):
  monkeypatch.setattr(opened_again, "class_names", ("cat", "dog"))
  with pytest.raises(ValueError, match=r"must have the classes of .*has cat, dog"):
    evaluation_files.evaluate_run(trained_run, exported=opened_again)


def test_an_image_that_is_not_served(opened_again, tmp_path):
  path = tmp_path / "large.png"
  path.write_bytes(files.make_png(1001, 1000))
  nothing = np.zeros([0], np.int32)
  record = ImageRecord(
    *("large", str(path), 1001, 1000, np.zeros([0, 4], np.float32), nothing),
    *(nothing.astype(bool), nothing.astype(np.float32)),
  )
  with pytest.raises(ValueError, match="says that image large is invalid"):
    opened_again.detect([record])


def test_no_export(tmp_path):
  with pytest.raises(ValueError, match="is no exported model"):
    exported_lib.Exported(str(tmp_path))
