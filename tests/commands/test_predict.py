"""predict: which files it takes, what it writes, and when it writes nothing."""

import os
import types

import numpy as np
import pytest
from PIL import Image

from ap_detect.commands import predict
from ap_detect.data import dataset, shapes
from ap_detect.runs import files
from ap_detect.runs import folder as folder_lib
from ap_detect.training import evaluation


@pytest.fixture
def folder(tmp_path):
  """Pictures of different sizes, two of the same stem, and a file that is none."""
  root = tmp_path / "pictures"
  (root / "deeper").mkdir(parents=True)
  for seed, (name, size) in enumerate(
    [
      ("a.png", (100, 140)),
      ("b.JPG", (128, 128)),
      ("deeper/a.jpeg", (90, 70)),
    ]
  ):
    record = shapes.make_shapes("test", num_images=1, image_size_px=size, seed=seed)
    Image.fromarray(record.records[0].image).save(root / name)
  (root / "notes.txt").write_text("no picture")
  return root


class TestFindPictures:
  def test_folders_are_searched_to_the_bottom(self, folder):
    found = predict.find_pictures([str(folder)])
    names = [os.path.relpath(path, folder) for path in found]
    assert names == ["a.png", "b.JPG", "deeper/a.jpeg"]

  def test_files_are_taken_as_given(self, folder):
    paths = [str(folder / "notes.txt"), str(folder / "a.png")]
    assert predict.find_pictures(paths) == paths

  def test_errors(self, folder, tmp_path):
    with pytest.raises(ValueError, match="at least one picture"):
      predict.find_pictures([])
    with pytest.raises(ValueError, match=r"no such picture or folder: x\.png, y"):
      predict.find_pictures(["x.png", str(folder), "y"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no picture \(.jpg, .jpeg, .png\) in"):
      predict.find_pictures([str(tmp_path / "empty")])


class TestPredict:
  def test_writes_detections_and_pictures(self, trained_run, restored_run, folder):
    output_dir = str(folder.parent / "out")
    paths = predict.find_pictures([str(folder)])
    written = predict.predict(trained_run, paths, output_dir, score_threshold=0.0)
    entries = files.read_json(written)
    assert [entry["file"] for entry in entries] == paths
    pictures = [os.path.basename(entry["picture"]) for entry in entries]
    assert pictures == ["a.png", "b.png", "a_2.png"]
    assert sorted(os.listdir(output_dir)) == sorted([*pictures, "predictions.json"])
    sizes = [(entry["height"], entry["width"]) for entry in entries]
    assert sizes == [(100, 140), (128, 128), (90, 70)]
    evaluator = evaluation.Evaluator(
      restored_run.network, restored_run.config, restored_run.strategy
    )
    records = predict.read_pictures(paths, max_image_pixels=10**6)
    for entry, expected in zip(entries, evaluator.detect(records)):
      detections = entry["detections"]
      assert len(detections) == 100
      np.testing.assert_allclose(
        [found["box_yxyx"] for found in detections], expected.boxes, atol=1e-3
      )
      assert [found["class"] for found in detections] == expected.classes.tolist()
      assert all(
        found["label"] == shapes.CLASS_NAMES[found["class"] - 1] for found in detections
      )
      drawn = np.asarray(Image.open(entry["picture"]).convert("RGB"))
      source = np.asarray(Image.open(entry["file"]).convert("RGB"))
      assert drawn.shape != source.shape or np.any(drawn != source)

  def test_score_threshold(self, trained_run, folder):
    """One below the half of all scores, and the run's own by default."""
    paths = [str(folder / "a.png")]

    def scores(name, **options):
      path = predict.predict(trained_run, paths, str(folder.parent / name), **options)
      found = files.read_json(path)[0]["detections"]
      return [(item["label"], item["score"]) for item in found]

    everything = scores("all", score_threshold=0.0)
    middle = float(np.median([score for _, score in everything]))
    above = scores("above", score_threshold=middle)
    assert above == [item for item in everything if item[1] >= middle]
    assert 0 < len(above) < len(everything)
    own = folder_lib.load_thresholds(trained_run).per_class
    assert scores("own") == [item for item in everything if item[1] >= own[item[0]]]

  def test_thresholds_are_those_of_the_checkpoint(
    self, trained_run, folder, monkeypatch
  ):
    asked = []
    original = folder_lib.load_thresholds

    def load_thresholds(model_dir, score_threshold, *, checkpoint):
      asked.append(os.path.relpath(checkpoint, trained_run))
      return original(model_dir, score_threshold, checkpoint=checkpoint)

    monkeypatch.setattr(folder_lib, "load_thresholds", load_thresholds)
    paths = [str(folder / "a.png")]
    predict.predict(trained_run, paths, str(folder.parent / "x"), checkpoint="latest")
    assert asked == ["checkpoints/step-9-validated"]

  def test_faulty_files_are_listed_together(self, trained_run, folder):
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    output_dir = folder.parent / "out"
    paths = predict.find_pictures([str(folder), str(folder / "notes.txt")])
    with pytest.raises(dataset.DataError) as caught:
      predict.predict(trained_run, paths, str(output_dir))
    assert len(caught.value.faults) == 2
    assert "cut.png: truncated" in str(caught.value)
    assert "notes.txt: neither JPEG nor PNG" in str(caught.value)
    assert not output_dir.exists()

  def test_no_picture_is_written_over(self, trained_run, folder):
    before = (folder / "a.png").read_bytes()
    with pytest.raises(ValueError, match=r"a\.png would be written over"):
      predict.predict(trained_run, [str(folder / "a.png")], str(folder))
    assert (folder / "a.png").read_bytes() == before

  def test_no_run(self, folder, tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
      predict.predict(str(tmp_path), [str(folder / "a.png")], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_command(trained_run, folder, capsys, tmp_path, monkeypatch):
  output_dir = str(tmp_path / "out")
  options = {"MODEL_DIR": trained_run, "OUTPUT_DIR": output_dir}
  options.update(CHECKPOINT="", SCORE_THRESHOLD=0.9)
  for name, value in options.items():
    flag = types.SimpleNamespace(value=value)
    monkeypatch.setattr(predict, name, flag, raising=False)
  predict.main(["predict", str(folder / "a.png")])
  assert "1 pictures written to" in capsys.readouterr().out
  assert len(files.read_json(os.path.join(output_dir, "predictions.json"))) == 1
