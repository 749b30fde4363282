"""Evaluation: every image once, in original pixels, uncut, whatever the replicas."""

import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from runs import fellows

from ap_detect import boxes as box_ops
from ap_detect.data import augment, pipeline, shapes
from ap_detect.data.records import DetectionDataset, ImageRecord
from ap_detect.metrics import METRIC_NAMES, ScoreCalibration, score_thresholds
from ap_detect.models import retinanet
from ap_detect.runs import files, scores
from ap_detect.runs import model as model_lib
from ap_detect.serving import graph
from ap_detect.training import evaluation, evaluation_files

INPUT_BOX = np.array([10.0, 25.0, 30.0, 75.0], np.float32)


class OneBoxNetwork:
  """Says of any picture: class 2 at INPUT_BOX, scored by how red its corner is."""

  variables = ()

  def __init__(self, anchors):
    self._anchors = tf.constant(anchors)
    iou = box_ops.iou(tf.constant(INPUT_BOX[np.newaxis]), self._anchors)[0]
    self._best = tf.one_hot(tf.argmax(iou), len(anchors))
    self.seen = []

  def __call__(self, images, training=False):
    def remember(pixels):
      self.seen.extend(pixels)
      return np.float32(0)

    zero = tf.numpy_function(remember, [images], tf.float32)
    batch_size = tf.shape(images)[0]
    offsets = box_ops.encode(tf.constant(INPUT_BOX), self._anchors)
    redness = images[:, 0, 0, 0] / 255 * 4 - 2 + tf.reshape(zero, [])
    logits = tf.where(self._best[:, tf.newaxis] > 0, [-30.0, 1.0, -30.0], -30.0)
    is_found = tf.cast(logits > 0, tf.float32)
    logits = tf.where(
      is_found > 0, redness[:, tf.newaxis, tf.newaxis] * is_found, logits
    )
    return retinanet.Outputs(logits, tf.tile(offsets[tf.newaxis], [batch_size, 1, 1]))


@pytest.fixture
def config(make_config):
  return make_config({"eval.score_threshold": 0.01})


@pytest.fixture
def records(tmp_path):
  """Five PNG files of different sizes and aspects, redder and redder."""
  sizes = [(256, 512), (60, 40), (128, 128), (300, 200), (90, 333)]
  found = []
  for number, (height, width) in enumerate(sizes):
    pixels = np.full([height, width, 3], (50 * number + 20, 90, 30), np.uint8)
    path = str(tmp_path / f"{number}.png")
    Image.fromarray(pixels).save(path)
    found.append(
      ImageRecord(
        image_id=f"picture{number}",
        image=path,
        height=height,
        width=width,
        boxes=np.zeros([0, 4], np.float32),
        classes=np.zeros([0], np.int32),
        ignored=np.zeros([0], bool),
        areas=np.zeros([0], np.float32),
      )
    )
  return found


def make_evaluator(config, devices=("CPU:0",)):
  network = OneBoxNetwork(model_lib.make_anchors(config))
  strategy = tf.distribute.MirroredStrategy(list(devices))
  return evaluation.Evaluator(network, config, strategy), network


class TestDetect:
  def test_boxes_are_in_pixels_of_the_original(self, config, records):
    evaluator, _ = make_evaluator(config)
    found = evaluator.detect(records)
    # 5 images in batches of 4: the padding of the last batch adds none.
    assert len(found) == len(records) == 5
    for number, (record, image) in enumerate(zip(records, found)):
      scale = min(128 / record.height, 128 / record.width)
      limits = [record.height, record.width] * 2
      expected = np.minimum(INPUT_BOX / scale, limits)
      np.testing.assert_allclose(image.boxes, [expected], rtol=1e-4)
      assert image.classes.tolist() == [2]
      logit = (50 * number + 20) / 255 * 4 - 2
      np.testing.assert_allclose(image.scores, [1 / (1 + np.exp(-logit))], rtol=1e-4)

  def test_by_hand(self, config, records):
    """256 x 512 pixels shrink by 4: the box grows by 4."""
    found = make_evaluator(config)[0].detect(records[:1])
    np.testing.assert_allclose(found[0].boxes, [[40, 100, 120, 300]], rtol=1e-5)

  def test_two_replicas_find_what_one_does(self, config, records):
    alone = make_evaluator(config)[0].detect(records)
    both = make_evaluator(config, ("CPU:0", "CPU:1"))[0].detect(records)
    assert len(both) == len(alone)
    for one, two in zip(alone, both):
      for expected, found in zip(one, two):
        np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_network_gets_the_same_pixels_everywhere(self, config, records):
    """Training, evaluation, and both signatures of the exported graph."""
    evaluator, network = make_evaluator(config)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [200, 200, 3], dtype=np.uint8)
    Image.fromarray(pixels).save(records[0].image)
    record = ImageRecord(**{**vars(records[0]), "height": 200, "width": 200})
    data = DetectionDataset((record,), ("a", "b", "c"), (1, 2, 3), True)
    batches = pipeline.training_batches(
      data,
      steps=augment.zoom_steps(config.data.image_size_px, horizontal_flip=0.0),
      batch_size=1,
    )
    trained = next(iter(batches))["image"].numpy()[0]
    evaluator.detect([record])
    evaluated = network.seen[0]
    network.seen.clear()
    module = graph.ServingModule(
      graph.Detector(
        network=network,
        anchors=model_lib.make_anchors(config),
        post_process=model_lib.make_detect(config),
        image_size=config.data.image_size_px,
        class_names=data.class_names,
        class_thresholds=(0.0, 0.0, 0.0),
      )
    )
    with open(record.image, "rb") as file:
      module.functions["image_bytes"](tf.constant([file.read()]))
    module.functions["serving_default"](tf.constant(pixels[np.newaxis]))
    assert len(network.seen) == 2
    assert trained.std() > 10
    for other in (evaluated, *network.seen):
      np.testing.assert_allclose(other, trained, atol=1e-3)


def test_workers_detect_on_their_shares(config, records, make_strategy):
  """Of 5 images in batches of 2 on each; all know of all."""
  evaluator, _ = make_evaluator(config)
  expected = evaluator.detect(records)
  seen = [[], []]

  def work(fellow):
    network = OneBoxNetwork(model_lib.make_anchors(config))
    found = evaluation.Evaluator(network, config, make_strategy(), fellow).detect(
      records
    )
    seen[fellow.index] = sorted({round(float(p[0, 0, 0])) for p in network.seen})
    return found

  for found in fellows.run_all(work, strategy=make_strategy()):
    assert len(found) == len(expected) == 5
    for image, expected_image in zip(found, expected):
      for part, expected_part in zip(image, expected_image):
        np.testing.assert_array_equal(part, expected_part)
  # Red is 50 x number + 20; the last batch is filled up with the last image.
  assert seen == [[20, 70, 220], [120, 170, 220]]


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory):
  """(model_dir, CocoEvaluation) after evaluate_run."""
  model_dir = str(tmp_path_factory.mktemp("evaluated") / "run")
  shutil.copytree(trained_run, model_dir)
  return model_dir, evaluation_files.evaluate_run(model_dir)


class TestEvaluateRun:
  def test_metrics_file(self, evaluated):
    model_dir, found = evaluated
    metrics = files.read_json(os.path.join(model_dir, "eval", "val", "metrics.json"))
    assert {*METRIC_NAMES, "per_class"} <= set(metrics)
    assert set(metrics["per_class"]) == set(shapes.CLASS_NAMES)
    assert metrics["num_images"] == 4
    assert metrics["split"] == "val"
    assert metrics["checkpoint"].startswith(os.path.join(model_dir, "best", "epoch-"))
    assert metrics["eval"]["score_threshold"] == 0.0
    assert metrics["AP"] == found.metrics["AP"] is not None
    best = files.read_json(os.path.join(model_dir, "best.json"))
    assert metrics["AP"] == pytest.approx(best["metrics"]["AP"], abs=1e-6)

  def test_detections_file_gives_the_same_figures_elsewhere(self, evaluated, tmp_path):
    model_dir, found = evaluated
    val_set = shapes.make_shapes("val", num_images=4)
    with contextlib.redirect_stdout(io.StringIO()):
      truth = COCO(shapes.write_shapes(val_set, str(tmp_path), "val"))
      path = os.path.join(model_dir, "eval", "val", "detections.json")
      coco_eval = COCOeval(truth, truth.loadRes(path), "bbox")
      coco_eval.evaluate()
      coco_eval.accumulate()
      coco_eval.summarize()
    expected = [-1.0 if v is None else v for v in found.metrics.values()]
    np.testing.assert_allclose(coco_eval.stats, expected, atol=1e-9)
    assert max(expected) > 0

  def test_thresholds_do_not_cut(self, evaluated):
    model_dir, _ = evaluated
    results = files.read_json(os.path.join(model_dir, "eval", "val", "detections.json"))
    lowest = min(scores.load_judgement(model_dir).thresholds.per_class.values())
    assert min(result["score"] for result in results) < lowest
    for image_id in (1, 2, 3, 4):  # max_detections of each, for no score is too low
      assert sum(result["image_id"] == image_id for result in results) == 100

  def test_pictures(self, evaluated):
    pictures = os.listdir(os.path.join(evaluated[0], "eval", "val", "pictures"))
    assert sorted(pictures) == ["01_1.png", "02_2.png", "03_3.png"]  # num_pictures of 4

  def test_other_split_and_checkpoint(self, evaluated, capsys):
    model_dir, on_val = evaluated
    on_test = evaluation_files.evaluate_run(
      model_dir, split="test", checkpoint="latest"
    )
    assert on_test.num_objects != on_val.num_objects
    for split, found in (("val", on_val), ("test", on_test)):
      metrics = files.read_json(os.path.join(model_dir, "eval", split, "metrics.json"))
      assert (metrics["split"], metrics["AP"]) == (split, found.metrics["AP"])
    printed = capsys.readouterr().out
    assert os.path.join("checkpoints", "step-9-validated") in printed
    assert "Average Precision  (AP)" in printed

  def test_split_that_does_not_exist(self, evaluated):
    with pytest.raises(ValueError, match="train, val, test, got 'nowhere'"):
      evaluation_files.evaluate_run(evaluated[0], split="nowhere")

  def test_run_that_was_not_validated_yet(self, trained_run, tmp_path):
    model_dir = str(tmp_path / "run")
    shutil.copytree(trained_run, model_dir)
    os.remove(os.path.join(model_dir, "best.json"))
    evaluation_files.evaluate_run(model_dir)
    assert os.path.exists(
      os.path.join(model_dir, "eval", "val", "pictures", "01_1.png")
    )


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_what_is_shown_goes_by_class(is_calibrated):
  found = evaluation.ImageDetections(
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.array([0.9, 0.5, 0.5], np.float32),
    np.array([1, 1, 2], np.int32),
  )
  thresholds = score_thresholds.ScoreThresholds(
    0.6, 1.0, {"a": 0.6, "b": 0.5}, {"a": 1.0, "b": 1.0}
  )
  calibration = None
  if is_calibrated:
    calibration = ScoreCalibration((0.5, 0.9), (0.55, 0.8))
  shown = scores.ShownScores(calibration, thresholds)
  kept = evaluation.to_shown(found, ["a", "b"], shown)
  expected = [0.8, 0.55] if is_calibrated else [0.9, 0.5]
  assert kept.scores.tolist() == pytest.approx(expected)
  assert kept.scores.dtype == np.float32
  assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.5])
  assert kept.classes.tolist() == [1, 2]
  assert json.loads(json.dumps(kept.boxes.tolist())) == [[0, 1, 2, 3], [8, 9, 10, 11]]
