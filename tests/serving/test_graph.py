"""The exported graph finds what evaluation finds, whichever signature is asked."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from serving import files

from ap_detect import boxes as box_ops
from ap_detect.metrics import ScoreCalibration
from ap_detect.serving import graph
from ap_detect.training import evaluation


@pytest.fixture(scope="module")
def loaded(exported):
  return tf.saved_model.load(exported)


def assert_equal(answer, index, record, expected, class_names):
  """One image's answer against its ImageDetections."""
  count = int(answer["num_detections"][index])
  assert answer["valid"][index]
  assert count == len(expected.scores) > 0
  boxes = answer["detection_boxes"][index] * ([record.height, record.width] * 2)
  np.testing.assert_allclose(boxes[:count], expected.boxes, atol=1e-3)
  scores = answer["detection_scores"][index][:count]
  np.testing.assert_allclose(scores, expected.scores, atol=1e-5)
  classes = answer["detection_classes"][index][:count]
  np.testing.assert_array_equal(classes, expected.classes)
  names = [class_names[k - 1].encode() for k in expected.classes]
  assert answer["detection_names"][index].tolist() == names + [b""] * (100 - count)
  for name in ("detection_boxes", "detection_scores", "detection_classes"):
    assert not np.any(answer[name][index][count:])


class TestParity:
  @pytest.mark.parametrize("signature", ["image_bytes", "tf_example"])
  def test_files_of_different_sizes(
    self, signature, loaded, pngs, records, found, opened
  ):
    values = pngs if signature == "image_bytes" else list(map(files.example, pngs))
    answer = files.ask(loaded, signature, **{signature: values})
    for index, (record, expected) in enumerate(zip(records, found)):
      assert_equal(answer, index, record, expected, opened[0].class_names)

  def test_pixels(self, loaded, records, found, opened):
    for record, expected in zip(records[:2], found):
      # A batch of the picture twice.
      pixels = np.stack([record.image] * 2)
      answer = files.ask(loaded, "serving_default", inputs=pixels)
      for index in (0, 1):
        assert_equal(answer, index, record, expected, opened[0].class_names)

  def test_raw(self, loaded, restored_run, opened):
    pixels = np.random.default_rng(0).uniform(0, 255, [2, 128, 128, 3])
    pixels = pixels.astype(np.float32)
    answer = files.ask(loaded, "raw", inputs=pixels)
    outputs = restored_run.network(pixels, training=False)
    np.testing.assert_allclose(answer["logits"], outputs.class_logits, atol=1e-4)
    boxes = box_ops.decode(outputs.box_outputs, opened[0].anchors)
    np.testing.assert_allclose(answer["boxes"], boxes, atol=1e-3)


@pytest.fixture(scope="module")
def thresholds(found_uncut):
  """Of each class a score in the middle of those beyond the best 100 of image 0."""
  scores, classes = found_uncut[0].scores, found_uncut[0].classes
  assert len(scores) > 200
  return np.array(
    [np.median(scores[classes == k][-100:]) if k % 2 else 0.99 for k in range(1, 7)],
    np.float32,
  )


class TestThresholds:
  """They come before the cut to the best 100."""

  def cut(self, image, thresholds):
    kept = image.scores >= thresholds[image.classes - 1]
    return evaluation.ImageDetections(*(part[kept][:100] for part in image))

  def test_of_the_classes(self, opened, pngs, records, found_uncut, thresholds):
    detector = opened[0]._replace(class_thresholds=tuple(thresholds.tolist()))
    detect = graph.ServingModule(detector).functions["image_bytes"]
    answer = {name: value.numpy() for name, value in detect(tf.constant(pngs)).items()}
    for index, (record, image) in enumerate(zip(records, found_uncut)):
      expected = self.cut(image, thresholds)
      assert_equal(answer, index, record, expected, detector.class_names)

  def test_of_the_request(self, loaded, pngs, records, found_uncut, thresholds, opened):
    """They replace those of the model; each image has its own."""
    answer = files.ask(
      *(loaded, "image_bytes_with_thresholds"),
      image_bytes=pngs[:2],
      score_thresholds=np.stack([thresholds, 0 * thresholds]),
    )
    for index, values in enumerate([thresholds, 0 * thresholds]):
      expected = self.cut(found_uncut[index], values)
      assert_equal(answer, index, records[index], expected, opened[0].class_names)


def test_calibrated_scores(opened, pngs, records, found_uncut):
  """Those that are shown, and that thresholds are compared with; padding stays 0."""
  lowest, *_, highest = sorted(np.concatenate([image.scores for image in found_uncut]))
  calibration = ScoreCalibration((float(lowest), float(highest)), (0.1, 0.9))
  shown = [
    image._replace(scores=calibration(image.scores).astype(np.float32))
    for image in found_uncut
  ]
  threshold = float(np.quantile(np.concatenate([s.scores for s in shown]), 0.9))
  detector = opened[0]._replace(
    calibration=calibration, class_thresholds=(threshold,) * 6
  )
  detect = graph.ServingModule(detector).functions["image_bytes"]
  answer = {name: value.numpy() for name, value in detect(tf.constant(pngs)).items()}
  for index, (record, image) in enumerate(zip(records, shown)):
    kept = image.scores >= threshold
    expected = evaluation.ImageDetections(*(part[kept][:100] for part in image))
    assert_equal(answer, index, record, expected, detector.class_names)


class TestFiles:
  """What is decoded in the graph, against PNG files of the pixels that are wanted."""

  def test_photos_are_turned_as_pillow_turns_them(self, loaded, records):
    photos, expected = [], []
    for orientation in range(1, 9):
      exif = Image.Exif()
      exif[0x0112] = orientation
      photos.append(files.encode(records[1].image, "JPEG", exif=exif))
      # Stored pixels as TensorFlow decodes JPEG, turned by Pillow.
      stored = tf.io.decode_jpeg(photos[-1], channels=3).numpy()
      image = Image.open(io.BytesIO(files.encode(stored, "PNG", exif=exif)))
      expected.append(files.encode(np.asarray(ImageOps.exif_transpose(image)), "PNG"))
    assert_same_answers(loaded, photos, expected)

  def test_other_formats(self, loaded, records):
    pixels = records[1].image
    deep = pixels[..., 0].astype(np.uint16) * 16 + 5  # 12 bits
    in_eight_bits = np.floor(deep * (255 / 4095) + 0.5).astype(np.uint8)
    assert_same_answers(
      loaded,
      [files.encode(pixels, "BMP"), files.encode(deep, "PNG")],
      [
        files.encode(pixels, "PNG"),
        files.encode(np.stack([in_eight_bits] * 3, -1), "PNG"),
      ],
    )

  def test_as_stored(self, opened, records):
    """Where the run's data.exif_orientation is False."""
    detector = opened[0]._replace(exif_orientation=False, class_thresholds=(0.0,) * 6)
    detect = graph.ServingModule(detector).functions["image_bytes"]
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = files.encode(records[1].image, "JPEG", exif=exif)
    stored = tf.io.decode_jpeg(photo, channels=3).numpy()
    answer = detect(tf.constant([photo, files.encode(stored, "PNG")]))
    for value in answer.values():
      np.testing.assert_array_equal(value[0], value[1])


def assert_same_answers(loaded, given, expected):
  answers = [
    files.ask(loaded, "image_bytes", image_bytes=batch) for batch in (given, expected)
  ]
  assert answers[0]["num_detections"].min() > 0
  for name in graph.DETECTIONS:
    np.testing.assert_array_equal(answers[0][name], answers[1][name], name)


def test_boxes_lie_in_the_image(opened):
  """Where rounding takes them over its edges."""
  detector = opened[0]

  def everywhere(outputs, content_size, *options):
    found = detector.post_process(outputs, content_size, *options)
    size = tf.tile(content_size, [1, 2])[:, tf.newaxis]
    box = size * [-1e-6, -1e-6, 1 + 1e-6, 1 + 1e-6]
    return found._replace(boxes=tf.zeros_like(found.boxes) + box)

  module = graph.ServingModule(detector._replace(post_process=everywhere))
  answer = module.functions["serving_default"](tf.zeros([1, 77, 129, 3], tf.uint8))
  boxes = answer["detection_boxes"].numpy()
  np.testing.assert_array_equal(boxes, np.broadcast_to([0, 0, 1, 1], boxes.shape))


class TestErrors:
  def test_as_many_thresholds_as_classes(self, opened):
    with pytest.raises(ValueError, match="6 classes need as many thresholds, got 2"):
      graph.ServingModule(opened[0]._replace(class_thresholds=(0.5, 0.5)))

  def test_names_are_lines(self, opened):
    detector = opened[0]._replace(class_names=("a\nb",), class_thresholds=(0.5,))
    with pytest.raises(ValueError, match=r"one line of text, got 'a\\nb'"):
      graph.ServingModule(detector)
