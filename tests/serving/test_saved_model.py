"""The exported graph: what evaluation finds, in a process that has TensorFlow alone."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from ap_detect.data import shapes
from ap_detect.runs import model as model_lib
from ap_detect.serving import saved_model
from ap_detect.training import evaluation

OUTPUTS = {
  "detection_boxes",
  "detection_scores",
  "detection_classes",
  "num_detections",
}

# Runs as a process of its own: the signatures' answers as .npz, by both loaders.
LOADER = """
import sys
for name in ("ap_detect", "keras_cv", "keras", "tf_keras"):
  sys.modules[name] = None
import numpy as np
import tensorflow as tf
folder, requests, answers = sys.argv[1:]
requests = np.load(requests, allow_pickle=True)
files = [bytes(file) for file in requests["files"]]
found = {}
loaded = tf.saved_model.load(folder)
for name, key, value in [
  ("image_bytes", "image_bytes", tf.constant(files)),
  ("serving_default", "inputs", tf.constant(requests["pixels"])),
]:
  for output, tensor in loaded.signatures[name](**{key: value}).items():
    found[f"v2/{name}/{output}"] = tensor.numpy()
with tf.compat.v1.Session(graph=tf.Graph()) as session:
  meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
  for name, key, value in [
    ("image_bytes", "image_bytes", files),
    ("serving_default", "inputs", requests["pixels"]),
  ]:
    signature = meta.signature_def[name]
    tensors = {k: info.name for k, info in signature.outputs.items()}
    feed = {signature.inputs[key].name: value}
    for output, value in session.run(tensors, feed).items():
      found[f"v1/{name}/{output}"] = value
np.savez(answers, **found)
"""


@pytest.fixture(scope="module")
def records():
  """Pictures of four sizes and aspects."""
  sizes = [(128, 128), (96, 200), (150, 80), (70, 70)]
  return [
    shapes.make_shapes("test", num_images=1, image_size_px=size, seed=seed).records[0]
    for seed, size in enumerate(sizes)
  ]


@pytest.fixture(scope="module")
def evaluator(restored_run):
  return evaluation.Evaluator(
    restored_run.network, restored_run.config, restored_run.strategy
  )


@pytest.fixture(scope="module")
def found(evaluator, records):
  """Evaluation's ImageDetections; one call a picture, for sizes differ."""
  return [evaluator.detect([record])[0] for record in records]


@pytest.fixture(scope="module")
def class_thresholds(found):
  """Each class's median score, so that about half of its detections go."""
  scores = np.concatenate([image.scores for image in found])
  classes = np.concatenate([image.classes for image in found])
  return [
    float(np.median(scores[classes == k])) if np.any(classes == k) else 0.5
    for k in range(1, 7)
  ]


def export(restored_run, folder, class_thresholds, **options):
  return saved_model.export(
    restored_run.network,
    model_lib.make_detect(restored_run.config),
    folder,
    image_size=restored_run.config.data.image_size_px,
    class_names=restored_run.classes.names,
    class_thresholds=class_thresholds,
    **options,
  )


@pytest.fixture(scope="module")
def exported(restored_run, class_thresholds, tmp_path_factory):
  """Versions 1, cut by nothing, and 2, cut by class_thresholds."""
  folder = str(tmp_path_factory.mktemp("export"))
  versions = [
    export(restored_run, folder, thresholds)
    for thresholds in ([0.0] * 6, class_thresholds)
  ]
  assert versions == [os.path.join(folder, number) for number in ("1", "2")]
  return versions


def png(record):
  buffer = io.BytesIO()
  Image.fromarray(record.image).save(buffer, "PNG")
  return buffer.getvalue()


def assert_equal(answer, index, record, expected):
  """One picture's answer against its ImageDetections."""
  count = int(answer["num_detections"][index])
  assert count == len(expected.scores) > 0
  boxes = answer["detection_boxes"][index] * ([record.height, record.width] * 2)
  np.testing.assert_allclose(boxes[:count], expected.boxes, atol=1e-2)
  np.testing.assert_allclose(
    answer["detection_scores"][index][:count], expected.scores, rtol=1e-4, atol=1e-6
  )
  np.testing.assert_array_equal(
    answer["detection_classes"][index][:count], expected.classes
  )
  for name in ("detection_boxes", "detection_scores", "detection_classes"):
    assert not np.any(answer[name][index][count:])


def cut(image, class_thresholds):
  kept = image.scores >= np.array(class_thresholds, np.float32)[image.classes - 1]
  assert 0 < kept.sum() < len(kept)
  return evaluation.ImageDetections(*(part[kept] for part in image))


class TestParity:
  def test_files_of_different_sizes_in_one_request(self, exported, records, found):
    serve = tf.saved_model.load(exported[0]).signatures["image_bytes"]
    answer = serve(image_bytes=tf.constant([png(record) for record in records]))
    answer = {name: value.numpy() for name, value in answer.items()}
    assert set(answer) == OUTPUTS
    for index, (record, expected) in enumerate(zip(records, found)):
      assert_equal(answer, index, record, expected)

  def test_pixels(self, exported, records, found):
    serve = tf.saved_model.load(exported[0]).signatures["serving_default"]
    for record, expected in zip(records[:2], found):
      # A batch of the picture twice.
      answer = serve(inputs=tf.constant(np.stack([record.image] * 2)))
      answer = {name: value.numpy() for name, value in answer.items()}
      for index in (0, 1):
        assert_equal(answer, index, record, expected)

  def test_cut_by_each_class_s_threshold(
    self, exported, records, found, class_thresholds
  ):
    serve = tf.saved_model.load(exported[1]).signatures["image_bytes"]
    answer = serve(image_bytes=tf.constant([png(record) for record in records]))
    answer = {name: value.numpy() for name, value in answer.items()}
    for index, (record, image) in enumerate(zip(records, found)):
      assert_equal(answer, index, record, cut(image, class_thresholds))

  def test_empty_batch_and_batch_of_one(self, exported, records, found):
    loaded = tf.saved_model.load(exported[0])
    nothing = loaded.signatures["image_bytes"](image_bytes=tf.zeros([0], tf.string))
    assert nothing["detection_boxes"].shape == (0, 100, 4)
    assert nothing["num_detections"].shape == (0,)
    nothing = loaded.signatures["serving_default"](
      inputs=tf.zeros([0, 50, 60, 3], tf.uint8)
    )
    assert nothing["detection_scores"].shape == (0, 100)
    one = loaded.signatures["image_bytes"](image_bytes=tf.constant([png(records[1])]))
    one = {name: value.numpy() for name, value in one.items()}
    assert_equal(one, 0, records[1], found[1])


class TestFiles:
  """What is decoded in the graph, against PNG files of the pixels that are wanted."""

  def test_photos_are_turned_as_pillow_turns_them(self, exported, records):
    loaded = tf.saved_model.load(exported[0])
    photos, expected = [], []
    for orientation in range(1, 9):
      exif = Image.Exif()
      exif[0x0112] = orientation
      photos.append(encode(records[1].image, "JPEG", exif=exif))
      # Stored pixels as TensorFlow decodes JPEG, turned by Pillow.
      stored = tf.io.decode_jpeg(photos[-1], channels=3).numpy()
      image = Image.open(io.BytesIO(encode(stored, "PNG", exif=exif)))
      expected.append(encode(np.asarray(ImageOps.exif_transpose(image)), "PNG"))
    assert_same_answers(loaded, photos, expected)

  def test_other_formats(self, exported, records):
    loaded = tf.saved_model.load(exported[0])
    pixels = records[1].image
    deep = pixels[..., 0].astype(np.uint16) * 16 + 5  # 12 bits
    in_eight_bits = np.floor(deep * (255 / 4095) + 0.5).astype(np.uint8)
    palette = Image.fromarray(pixels).convert("P")
    assert_same_answers(
      loaded,
      [encode(pixels, "BMP"), encode(deep, "PNG"), encode(palette, "GIF")],
      [
        encode(pixels, "PNG"),
        encode(np.stack([in_eight_bits] * 3, -1), "PNG"),
        encode(palette.convert("RGB"), "PNG"),
      ],
    )

  def test_as_stored(self, restored_run, records, tmp_path):
    """Where the run's data.exif_orientation is False."""
    version = export(restored_run, str(tmp_path), [0.0] * 6, exif_orientation=False)
    loaded = tf.saved_model.load(version)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encode(records[1].image, "JPEG", exif=exif)
    stored = tf.io.decode_jpeg(photo, channels=3).numpy()
    assert_same_answers(loaded, [photo], [encode(stored, "PNG")])


def encode(pixels, image_format, **options):
  image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
  buffer = io.BytesIO()
  image.save(buffer, image_format, **options)
  return buffer.getvalue()


def assert_same_answers(loaded, files, expected):
  answers = [
    loaded.signatures["image_bytes"](image_bytes=tf.constant(batch))
    for batch in (files, expected)
  ]
  assert int(tf.reduce_min(answers[0]["num_detections"])) > 0
  for name in OUTPUTS:
    np.testing.assert_array_equal(answers[0][name], answers[1][name], name)


class TestFormat:
  def test_every_output_has_the_batch_first(self, exported, records):
    loaded = tf.saved_model.load(exported[0])
    requests = {
      "image_bytes": {"image_bytes": tf.constant([png(r) for r in records[:3]])},
      "serving_default": {"inputs": tf.constant(np.stack([records[0].image] * 3))},
    }
    assert set(loaded.signatures) == set(requests)
    for name, request in requests.items():
      signature = loaded.signatures[name]
      (inputs,) = signature.structured_input_signature[1].values()
      assert inputs.shape[0] is None
      answer = signature(**request)
      assert set(answer) == OUTPUTS
      for output, value in answer.items():
        assert value.shape[0] == 3, output
        assert signature.structured_outputs[output].shape.rank >= 1
      assert answer["detection_classes"].dtype == tf.int32
      assert answer["num_detections"].dtype == tf.int32

  def test_labels(self, exported, restored_run):
    path = os.path.join(exported[0], "assets", "labels.txt")
    with open(path, encoding="utf-8") as file:
      assert file.read().splitlines() == list(restored_run.classes.names)

  def test_in_a_process_without_this_package(self, exported, records, found, tmp_path):
    requests, answers = str(tmp_path / "requests.npz"), str(tmp_path / "answers.npz")
    files = np.empty(len(records), object)
    files[:] = [png(record) for record in records]
    np.savez(requests, files=files, pixels=records[1].image[np.newaxis])
    done = subprocess.run(
      [sys.executable, "-c", LOADER, exported[0], requests, answers],
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
      cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = np.load(answers)
    for loader in ("v1", "v2"):
      for signature, pictures in [
        ("image_bytes", list(range(len(records)))),
        ("serving_default", [1]),
      ]:
        answer = {name: loaded[f"{loader}/{signature}/{name}"] for name in OUTPUTS}
        for index, number in enumerate(pictures):
          assert_equal(answer, index, records[number], found[number])


class TestExport:
  def test_versions_count_up_from_what_is_there(self, restored_run, tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "notes").mkdir()
    version = export(restored_run, str(tmp_path), [0.5] * 6)
    assert version == str(tmp_path / "8")
    assert sorted(os.listdir(tmp_path)) == ["7", "8", "notes"]

  def test_failure_leaves_nothing(self, restored_run, tmp_path, monkeypatch):
    def half_written(module, path, signatures):
      os.makedirs(path)
      with open(os.path.join(path, "saved_model.pb"), "w") as file:
        file.write("half")
      raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
      export(restored_run, str(tmp_path), [0.5] * 6)
    assert os.listdir(tmp_path) == []

  def test_errors(self, restored_run, tmp_path):
    with pytest.raises(ValueError, match="6 classes need as many thresholds, got 2"):
      export(restored_run, str(tmp_path), [0.5] * 2)
    with pytest.raises(ValueError, match=r"one line of text, got 'a\\nb'"):
      saved_model.export(
        restored_run.network,
        None,
        str(tmp_path),
        image_size=(128, 128),
        class_names=["a\nb"],
        class_thresholds=[0.5],
      )
    assert json.dumps(os.listdir(tmp_path)) == "[]"
