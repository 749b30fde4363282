"""Evaluating a run on data that lies elsewhere now, and on several splits of it."""

import json
import os
import shutil

import pytest

from ap_detect.data import shapes
from ap_detect.runs import files, folder
from ap_detect.training import evaluation_files


@pytest.fixture
def run_on_files(trained_run, tmp_path):
  """A run whose data was in a folder that is gone; the same data is in here/."""
  model_dir = str(tmp_path / "run")
  shutil.copytree(trained_run, model_dir)
  path = os.path.join(model_dir, "config.json")
  values = files.read_json(path)
  values["data"].update(format="coco", root=str(tmp_path / "gone"))
  files.write_json(path, values)
  for split in ("val", "test"):
    data = shapes.make_shapes(split, num_images=2, image_size_px=(128, 128))
    shapes.write_shapes(data, str(tmp_path / "here"), split)
  return model_dir


def test_data_root(run_on_files, tmp_path):
  with pytest.raises(ValueError, match="gone: there is no such folder"):
    evaluation_files.evaluate_run(run_on_files)
  root = str(tmp_path / "here")
  found = evaluation_files.evaluate_run(
    run_on_files, split="val+test", data_overrides={"root": root}
  )
  assert found.num_images == 4
  with open(os.path.join(run_on_files, "eval/val+test/detections.json")) as file:
    ids = {result["image_id"] for result in json.load(file)}
  assert ids == {"val/1", "val/2", "test/1", "test/2"}
  # The run itself stays as it was.
  assert folder.load_config(run_on_files).data.root == str(tmp_path / "gone")


def test_other_settings_of_evaluation(run_on_files, tmp_path):
  root = str(tmp_path / "here")
  with pytest.raises(ValueError, match=r"eval\.test_scales must be"):
    evaluation_files.evaluate_run(
      run_on_files,
      data_overrides={"root": root},
      eval_overrides={"test_scales": ("128",)},
    )
  evaluation_files.evaluate_run(
    run_on_files,
    data_overrides={"root": root},
    output_dir=str(tmp_path / "small"),
    eval_overrides={"test_scales": ("96/128",), "max_detections": 3},
  )
  assert not os.path.exists(os.path.join(run_on_files, "eval"))
  assert files.read_json(tmp_path / "small/metrics.json")["eval"]["max_detections"] == 3
  with open(tmp_path / "small/detections.json") as file:
    ids = [result["image_id"] for result in json.load(file)]
  assert {ids.count(image_id) for image_id in ids} == {3}
  assert folder.load_config(run_on_files).eval.max_detections == 100


def test_invalid_images_and_their_limit(run_on_files, tmp_path):
  """Of two images of 128 x 128 pixels, one is cut off."""
  data = {"root": str(tmp_path / "here"), "skip_faulty": None}
  path = sorted((tmp_path / "here/val").iterdir())[0]
  path.write_bytes(path.read_bytes()[:-60])
  with pytest.raises(ValueError, match=r"skip_faulty=True leaves out"):
    evaluation_files.evaluate_run(run_on_files, data_overrides=data)
  data["skip_faulty"] = True
  found = evaluation_files.evaluate_run(run_on_files, data_overrides=data)
  assert found.num_images == 1
  with pytest.raises(ValueError, match="there is no sound image"):
    evaluation_files.evaluate_run(
      run_on_files, data_overrides={**data, "max_image_pixels": 128 * 128 - 1}
    )
