"""ap_detect.load: what predict finds, for every way in which an image can be given."""

import io

import numpy as np
import pytest
from PIL import Image

import ap_detect
from ap_detect.commands import predict
from ap_detect.data import shapes
from ap_detect.runs import files, scores


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Paths of PNG files, of three sizes."""
  folder = tmp_path_factory.mktemp("images")
  paths = []
  for size in ((128, 128), (96, 150), (64, 64)):
    made = shapes.make_shapes("test", num_images=2, image_size_px=size)
    for record in made.records:
      paths.append(folder / f"{len(paths)}.png")
      Image.fromarray(record.image).save(paths[-1])
  return paths


@pytest.fixture(scope="module")
def detector(trained_run):
  found = ap_detect.load(trained_run)
  assert found.class_names == shapes.CLASS_NAMES
  return found


def pixels_of(path):
  return np.asarray(Image.open(path))


def assert_same(found, expected):
  assert found.labels == expected.labels
  np.testing.assert_array_equal(found.classes, expected.classes)
  np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
  np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)


@pytest.mark.parametrize(
  "options", [{}, {"score_threshold": 0.0}, {"min_recall": 0.05}]
)
def test_finds_what_predict_finds(detector, trained_run, images, options, tmp_path):
  paths = list(map(str, images))
  predict.predict(trained_run, paths, str(tmp_path), **options)
  entries = files.read_json(str(tmp_path / "predictions.json"))
  all_found = detector.detect(paths, **options)
  assert len(all_found) == len(entries) == len(paths)
  assert sum(len(found.labels) for found in all_found) > 0
  for found, entry in zip(all_found, entries):
    expected = entry["detections"]
    assert found.labels == tuple(item["label"] for item in expected)
    assert found.classes.tolist() == [item["class"] for item in expected]
    for name, key in (("boxes", "box_yxyx"), ("scores", "score")):
      values = getattr(found, name)
      wanted = np.array([item[key] for item in expected], np.float32)
      np.testing.assert_allclose(values, wanted.reshape(values.shape), atol=1e-3)
      assert values.dtype == np.float32


def test_scores_as_the_network_gives_them(detector, trained_run, images):
  raw = ap_detect.load(trained_run, calibrate=False).detect(
    images[0], score_threshold=0
  )
  expected = detector.detect(images[0], score_threshold=0)
  np.testing.assert_array_equal(raw.boxes, expected.boxes)
  calibration = scores.load_judgement(trained_run).calibration
  np.testing.assert_allclose(calibration(raw.scores), expected.scores, rtol=1e-6)
  assert not np.allclose(raw.scores, expected.scores, rtol=0.01)


def test_ways_to_give_an_image(detector, images):
  path = images[2]
  expected = detector.detect(str(path), score_threshold=0)
  assert len(expected.labels) > 10
  assert expected.boxes.shape == (len(expected.labels), 4)
  assert (np.diff(expected.scores) <= 0).all()
  file = io.BytesIO()
  Image.open(path).save(file, "PNG")
  for image in (path, path.read_bytes(), pixels_of(path), Image.open(path)):
    assert_same(detector.detect(image, score_threshold=0), expected)


def test_several_at_once(detector, images):
  expected = [detector.detect(path, score_threshold=0) for path in images]
  # Batches of 4, one of them whole and of one size.
  order = [2, 2, 3, 3, 0, 1, 4, 5, 2]
  mixed = [images[i] if i % 2 else pixels_of(images[i]) for i in order]
  for found, index in zip(detector.detect(mixed, score_threshold=0), order):
    assert_same(found, expected[index])
  stacked = np.stack([pixels_of(path) for path in images[:2]])
  for found, one in zip(detector.detect(stacked, score_threshold=0), expected):
    assert_same(found, one)
  assert detector.detect([]) == []


@pytest.mark.parametrize(
  ("image", "said"),
  [
    (b"no image", r"an image given as bytes: cannot be decoded"),
    (
      np.zeros([8, 8], np.uint8),
      r"\[H, W, 3\] of uint8, got a ndarray of shape \[8, 8\]",
    ),
    (np.zeros([8, 8, 3], np.float32), r"of shape \[8, 8, 3\] and float32"),
    (np.zeros([8, 8, 4], np.uint8), r"\[8, 8, 4\]"),
  ],
)
def test_what_is_no_image(detector, image, said):
  with pytest.raises(ValueError, match=said):
    detector.detect(image, score_threshold=0)


def test_a_file_that_is_no_image(detector, tmp_path):
  path = tmp_path / "a.png"
  path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
  with pytest.raises(ValueError, match=r"a\.png: cannot be decoded"):
    detector.detect(path, score_threshold=0)
  with pytest.raises(FileNotFoundError):
    detector.detect(str(tmp_path / "b.png"), score_threshold=0)


def test_without_a_run(tmp_path):
  with pytest.raises(ValueError, match="holds no run"):
    ap_detect.load(tmp_path)


def test_an_image_that_is_too_large(detector, tmp_path):
  path = tmp_path / "large.png"
  Image.new("RGB", (10_000, 10_000)).save(path, compress_level=1)
  said = (
    r"large\.png: .* 10000 x 10000 pixels, more than the run's data.max_image_pixels"
  )
  with pytest.raises(ValueError, match=said):
    detector.detect(path, score_threshold=0)


def test_a_photo_is_turned_as_its_exif_says(detector, images, tmp_path):
  upright = Image.open(images[2])
  exif = Image.Exif()
  exif[0x0112] = 6  # shown turned by 90 degrees clockwise
  path = tmp_path / "turned.jpg"
  upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
  decoded = np.asarray(Image.open(path).transpose(Image.Transpose.ROTATE_270))
  expected = detector.detect(decoded, score_threshold=0)
  found = detector.detect(path, score_threshold=0)
  # Decoders differ a little in their pixels.
  np.testing.assert_allclose(found.scores[:5], expected.scores[:5], atol=1e-3)
  assert found.boxes[:, 3].max() > 97  # beyond the width that is stored
