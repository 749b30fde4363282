"""predict: which files it takes, what it writes, and when it writes nothing."""

import os
import types

import numpy as np
import pytest
from PIL import Image

from ap_detect.commands import predict
from ap_detect.data import shapes
from ap_detect.data.records import DataError
from ap_detect.runs import files
from ap_detect.runs import scores as scores_lib
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


def relative(paths, folder):
  return [os.path.relpath(path, folder) for path in paths]


class TestFindImages:
  def test_folders_are_searched_to_the_bottom(self, folder):
    for name in ("c.bmp", "d.webp", "e.TIFF", "deeper/f.jfif"):
      (folder / name).write_bytes(b"")
    found = relative(predict.find_images([str(folder)]), folder)
    first = ["a.png", "b.JPG", "c.bmp", "d.webp"]
    assert found == [*first, "deeper/a.jpeg", "deeper/f.jfif", "e.TIFF"]

  def test_files_are_taken_as_given_and_once(self, folder):
    paths = [str(folder / "notes.txt"), str(folder / "a.png")]
    assert predict.find_images([*paths, paths[1]]) == paths

  def test_patterns(self, folder):
    found = predict.find_images([str(folder / "*.png"), str(folder / "**/a.*")])
    assert relative(found, folder) == ["a.png", "deeper/a.jpeg"]
    (folder / "b[1].png").write_bytes(b"")
    found = predict.find_images([str(folder / "b[1].png")])
    assert relative(found, folder) == ["b[1].png"]

  def test_what_predict_wrote_is_passed_over(self, folder, hear):
    lines = hear("info")
    out = folder / "predictions"
    out.mkdir()
    (out / "a.png").write_bytes(b"")
    (out / "mine.png").write_bytes(b"")
    files.write_json(str(out / "predictions.json"), [{"picture": "x/a.png"}])
    other = folder / "deeper/predictions.json"
    other.write_text("[1, 2]")  # another program's
    found = relative(predict.find_images([str(folder)]), folder)
    assert found == ["a.png", "b.JPG", "deeper/a.jpeg", "predictions/mine.png"]
    assert lines == [f"passed over in {out}: 1 images that predict wrote"]

  def test_errors(self, folder, tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
      predict.find_images([])
    with pytest.raises(ValueError, match=r"no such image or folder: x\*\.png, y"):
      predict.find_images(["x*.png", str(folder), "y"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image \(.jpg, .jpeg, .*\) in"):
      predict.find_images([str(tmp_path / "empty")])


class TestPredict:
  def test_writes_detections_and_pictures(self, trained_run, restored_run, folder):
    output_dir = str(folder.parent / "out")
    paths = predict.find_images([str(folder)])
    written, skipped = predict.predict(
      trained_run, paths, output_dir, score_threshold=0.0
    )
    assert skipped == 0
    entries = files.read_json(written)
    assert [entry["file"] for entry in entries] == paths
    pictures = [os.path.basename(entry["picture"]) for entry in entries]
    assert pictures == ["a.png", "b.jpg", "a.jpg"]
    assert sorted(os.listdir(output_dir)) == sorted([*pictures, "predictions.json"])
    sizes = [(entry["height"], entry["width"]) for entry in entries]
    assert sizes == [(100, 140), (128, 128), (90, 70)]
    evaluator = evaluation.Evaluator(
      restored_run.network, restored_run.config, restored_run.strategy
    )
    records, _ = predict.read_images(paths, max_image_pixels=10**6)
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
      drawn, source = Image.open(entry["picture"]), Image.open(entry["file"])
      assert drawn.format == source.format
      assert drawn.size != source.size or np.any(
        np.asarray(drawn.convert("RGB")) != np.asarray(source.convert("RGB"))
      )

  def test_score_threshold(self, trained_run, folder):
    """One below the half of all scores, and the run's own by default."""
    paths = [str(folder / "a.png")]

    def scores(name, **options):
      output_dir = str(folder.parent / name)
      path, _ = predict.predict(trained_run, paths, output_dir, **options)
      found = files.read_json(path)[0]["detections"]
      return [(item["label"], item["score"]) for item in found]

    everything = scores("all", score_threshold=0.0)
    middle = float(np.median([score for _, score in everything]))
    above = scores("above", score_threshold=middle)
    assert above == [item for item in everything if item[1] >= middle]
    assert 0 < len(above) < len(everything)
    own = scores_lib.load_shown_scores(trained_run).thresholds.per_class
    assert scores("own") == [item for item in everything if item[1] >= own[item[0]]]

    judgement = scores_lib.load_judgement(trained_run)
    raw = scores("raw", score_threshold=0.0, calibrate=False)
    assert [label for label, _ in raw] == [label for label, _ in everything]
    calibrated = judgement.calibration([score for _, score in raw])
    assert calibrated == pytest.approx([score for _, score in everything], rel=1e-6)
    assert calibrated != pytest.approx([score for _, score in raw], rel=0.01)

  def test_thresholds_are_those_of_the_checkpoint(
    self, trained_run, folder, monkeypatch
  ):
    asked = []
    original = scores_lib.load_shown_scores

    def load_shown_scores(model_dir, checkpoint):
      asked.append(os.path.relpath(checkpoint, trained_run))
      return original(model_dir, checkpoint)

    monkeypatch.setattr(scores_lib, "load_shown_scores", load_shown_scores)
    paths = [str(folder / "a.png")]
    predict.predict(trained_run, paths, str(folder.parent / "x"), checkpoint="latest")
    assert asked == ["checkpoints/step-9-validated"]

  def test_what_cannot_be_read_is_skipped_and_named(self, trained_run, folder, hear):
    lines = hear("warning")
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (9, 9)).save(folder / "named.jpg", "WEBP")
    (folder / "large.png").symlink_to(folder / "a.png")
    (folder / "._a.png").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X        ")
    paths = predict.find_images([str(folder), str(folder / "notes.txt")])
    written, skipped = predict.predict(
      trained_run, paths, str(folder.parent / "out"), max_image_pixels=128 * 110
    )
    kept = [entry["file"] for entry in files.read_json(written)]
    assert relative(kept, folder) == ["a.png", "deeper/a.jpeg", "large.png"]
    assert skipped == 5
    names = ("._a.png", "b.JPG", "cut.png", "named.jpg", "notes.txt")
    reasons = (
      "is a resource file of macOS",
      "claims 128 x 128 pixels",
      "truncated",
      "is WebP",
      "is no JPEG",
    )
    for name, reason in zip(names, reasons):
      (line,) = [line for line in lines if f"{name}: " in line]
      assert line.startswith("skipped: ")
      assert reason in line

  def test_no_sound_image(self, trained_run, folder):
    output_dir = folder.parent / "out"
    with pytest.raises(DataError, match=r"notes\.txt: is no JPEG"):
      predict.predict(trained_run, [str(folder / "notes.txt")], str(output_dir))
    assert not output_dir.exists()

  def test_turned_photo(self, trained_run, tmp_path, monkeypatch):
    """Size and drawing are of the photo as it is seen; one image is a batch of one."""
    sizes = []
    original = evaluation.pipeline.evaluation_batches

    def batches(records, *, views, batch_size):
      sizes.append(batch_size)
      return original(records, views=views, batch_size=batch_size)

    monkeypatch.setattr(evaluation.pipeline, "evaluation_batches", batches)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "turned.jpg", exif=exif)
    written, _ = predict.predict(
      trained_run, [str(tmp_path / "turned.jpg")], str(tmp_path / "out")
    )
    (entry,) = files.read_json(written)
    assert (entry["height"], entry["width"]) == (60, 40)
    drawn = Image.open(entry["picture"])
    assert drawn.height > drawn.width
    assert drawn.getexif().get(0x0112, 1) == 1
    assert sizes == [1]

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
  options.update(CHECKPOINT="", AVERAGED_WEIGHTS=True, MAX_IMAGE_PIXELS=None)
  for name, value in options.items():
    flag = types.SimpleNamespace(value=value)
    monkeypatch.setattr(predict, name, flag, raising=False)
  monkeypatch.setattr(predict, "SCORES", lambda: {"calibrate": False}, raising=False)
  predict.main(["predict", str(folder / "a.png"), str(folder / "notes.txt")])
  printed = capsys.readouterr().out
  assert "1 images written to" in printed
  assert "1 of 2 files skipped" in printed
  assert len(files.read_json(os.path.join(output_dir, "predictions.json"))) == 1
