"""A few images by heart: what is possible, and what is said to be in the way."""

import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.data import records as records_lib
from ap_detect.models.retinanet import Outputs
from ap_detect.runs import data as data_lib
from ap_detect.training import overfitting


def make_dataset(*images):
  """DetectionDataset of two classes; an image is its (class, box) pairs, 128 x 128 px."""
  rng = np.random.default_rng(0)
  made = []
  for number, objects in enumerate(images):
    boxes = np.array([box for _, box in objects], np.float32)
    sizes = boxes[:, 2:] - boxes[:, :2]
    made.append(
      records_lib.ImageRecord(
        image_id=f"image{number}",
        image=rng.integers(0, 255, [128, 128, 3]).astype(np.uint8),
        height=128,
        width=128,
        boxes=boxes,
        classes=np.array([class_id for class_id, _ in objects], np.int32),
        ignored=np.zeros(len(objects), bool),
        areas=sizes.prod(axis=1),
      )
    )
  return records_lib.DetectionDataset(
    records=tuple(made),
    class_names=("cat", "dog"),
    category_ids=(1, 2),
    ignored_are_crowds=False,
  )


FAR_APART = make_dataset(
  [(1, [10, 10, 42, 42]), (2, [70, 60, 118, 100])],
  [(1, [30, 50, 90, 100])],
  [(2, [5, 5, 55, 65]), (2, [60, 60, 100, 110])],
)


def answers_of(make_config, dataset, changes=None):
  config = overfitting.adapt_config(
    make_config({"train.batch_size": 2, **(changes or {})})
  )
  return overfitting._Answers(config, dataset)


class TestPerfect:
  def test_finds_all(self, make_config):
    """Three images in batches of two: the last one is filled up."""
    answers = answers_of(make_config, FAR_APART)
    perfect = [answer.perfect for answer in answers.all]
    assert answers.average_precision(perfect) == pytest.approx(1.0)
    assert answers.describe_lost() == []

  def test_finds_the_demo_s(self, make_config):
    dataset = data_lib.open_training_split(make_config())
    answers = answers_of(make_config, dataset, {"train.batch_size": 8})
    perfect = [answer.perfect for answer in answers.all]
    lost = answers.describe_lost()
    # Of the same class, some overlap by more than NMS lets through.
    assert all("another one overlaps it" in line for line in lost)
    objects = sum(len(record.boxes) for record in dataset.records)
    assert answers.average_precision(perfect) >= 1 - 2 * len(lost) / objects

  def test_says_why_an_object_is_lost(self, make_config):
    dataset = make_dataset(
      [(1, [10, 10, 50, 50]), (1, [10, 16, 50, 56])],  # IoU 34 / 46
      [(2, [100, 100, 103, 103]), (2, [20, 20, 84, 84])],  # smaller than any anchor
    )
    answers = answers_of(make_config, dataset, {"model.force_match": False})
    overlapped, small = answers.describe_lost()
    assert overlapped.startswith("cat [10.0, 1") and "in image0" in overlapped
    assert "overlaps it by an IoU of 0.74, more than eval.nms_iou, 0.5" in overlapped
    assert small.startswith("dog [100.0, 100.0, 103.0, 103.0] in image1: no anchor")
    perfect = [answer.perfect for answer in answers.all]
    assert answers.average_precision(perfect) < 0.8

  def test_an_object_that_is_annotated_twice(self, make_config):
    dataset = make_dataset([(1, [10, 10, 50, 50]), (1, [10, 10, 50, 50])])
    (lost,) = answers_of(make_config, dataset).describe_lost()
    assert "another one overlaps it by an IoU of 1.00" in lost

  def test_says_that_too_few_detections_are_kept(self, make_config):
    answers = answers_of(make_config, FAR_APART, {"eval.max_detections": 1})
    lost = answers.describe_lost()
    assert len(lost) == 2
    assert all("eval.max_detections (1)" in line for line in lost)


class Fake(tf.Module):
  """A network that answers with some of what is right, by the image at hand."""

  def __init__(self, answers, good):
    super().__init__()
    images = tf.concat([answer.pictures["image"] for answer in answers.all], 0)
    self._means = tf.reduce_mean(images, axis=[1, 2, 3])
    self._perfect = [
      tf.concat(parts, 0) for parts in zip(*(answer.perfect for answer in answers.all))
    ]
    self._good = good

  def __call__(self, images, training):
    means = tf.reduce_mean(images, axis=[1, 2, 3])
    index = tf.argmin(tf.abs(means[:, tf.newaxis] - self._means), axis=1)
    logits, boxes = (tf.gather(part, index) for part in self._perfect)
    good = self._good(training)
    wrong = tf.random.stateless_normal(tf.shape(logits), [1, 2])
    return Outputs(
      logits if "scores" in good else wrong, boxes if "boxes" in good else boxes + 3.0
    )


@pytest.fixture(scope="module")
def answers(make_config):
  return answers_of(make_config, FAR_APART)


class TestMeasure:
  def test_wrong_boxes(self, answers):
    parts = answers.measure(Fake(answers, lambda training: ["scores"]))
    assert parts.network < 0.3 and parts.perfect_scores == parts.network
    assert parts.perfect_boxes == parts.perfect == pytest.approx(1.0)

  def test_wrong_scores(self, answers):
    parts = answers.measure(Fake(answers, lambda training: ["boxes"]))
    assert parts.network < 0.5
    assert parts.perfect_scores == pytest.approx(1.0)
    assert parts.perfect_boxes < 0.5

  def test_wrong_statistics(self, answers):
    good = ["scores", "boxes"]
    parts = answers.measure(Fake(answers, lambda training: good if training else []))
    assert parts.network < 0.3
    assert parts.batch_statistics == pytest.approx(1.0)

  def test_a_threshold_above_all_scores(self, make_config):
    answers = answers_of(make_config, FAR_APART, {"eval.score_threshold": 0.99999})
    parts = answers.measure(Fake(answers, lambda training: ["scores", "boxes"]))
    assert parts.network == 0.0
    assert parts.all_scores == pytest.approx(1.0)


GOOD = {"network": 0.6, "perfect": 1.0}


@pytest.mark.parametrize(
  ("parts", "losses", "norm_at_last", "said"),
  [
    ({"perfect_boxes": 0.98}, (1.0, 0.01), 55.0, "In the way: the boxes"),
    ({"perfect_scores": 0.98}, (1.0, 0.01), 55.0, "In the way: the scores"),
    ({"batch_statistics": 0.9}, (1.0, 0.01), 55.0, "In the way: batch normalisation"),
    ({"all_scores": 0.9}, (1.0, 0.01), 55.0, "In the way: eval.score_threshold=0 cuts"),
    (
      {},
      (1.0, 0.9),
      50.01,
      "In the way: the loss does not fall, and the weights hardly",
    ),
    (
      {},
      (1.0, 1.9),
      500.0,
      "In the way: the loss does not fall, and the weights blow up",
    ),
    (
      {},
      (1.0, 0.9),
      55.0,
      "In the way: the loss does not fall, though the weights move",
    ),
  ],
)
def test_explains(make_config, parts, losses, norm_at_last, said):
  names = ("perfect_boxes", "perfect_scores", "batch_statistics", "all_scores")
  parts = {**dict.fromkeys(names, 0.6), **GOOD, **parts}
  first = {"total_loss": losses[0], "weight_norm": 50.0, "num_positive_anchors": 3.0}
  rows = [
    {"step": 10.0, "total_loss": 1e9, "weight_norm": 1e9},
    {"step": 20.0, "total_loss": losses[1], "weight_norm": norm_at_last},
  ]
  lines = overfitting.explain(
    make_config(), overfitting.Parts(**parts), first, rows, ["cat [1] in image2: none"]
  )
  assert lines[0] == "AP 0.600 after 20 steps; 1.000 is possible"
  assert "  out of reach: cat [1] in image2: none" in lines
  assert f"  total_loss {losses[0]:.4g} at first, {losses[1]:.4g} at last" in lines
  assert [line for line in lines if line.startswith("In the way")] == [lines[-1]]
  assert lines[-1].startswith(said)


@pytest.mark.slow
def test_a_run_of_its_own(make_config, make_strategy, tmp_path, monkeypatch):
  """Too short to get there; the second time in another folder. The config is adapted."""
  monkeypatch.setattr(overfitting, "STEPS_PER_ROUND", 2)
  monkeypatch.setattr(overfitting, "MAX_ROUNDS", 1)
  config = make_config(
    {
      **{"data.augmentation": "ssd", "train.ema_decay": 0.9, "train.patience": 1},
      **{"eval.horizontal_flip": True, "train.log_every_steps": 1},
    }
  )
  model_dir = str(tmp_path / "run")
  os.makedirs(f"{model_dir}-overfit-3")
  outcome = overfitting.overfit(config, model_dir, 3, strategy=make_strategy())
  assert outcome.model_dir == f"{model_dir}-overfit-3-2"
  assert not outcome.is_reached
  assert sorted(os.listdir(tmp_path)) == ["run-overfit-3", "run-overfit-3-2"]
  rows = overfitting.read_rows(outcome.model_dir)
  assert [row["step"] for row in rows] == [1.0, 2.0]
  assert rows[-1]["epoch"] == 1.0
  assert outcome.lines[0].startswith("AP 0.")
  assert outcome.lines[-1].startswith("In the way: ")


def test_nothing_to_learn(make_config, tmp_path):
  """No anchor reaches any object: nothing is trained."""
  config = make_config({"model.anchor_base_scale": 60.0, "model.force_match": False})
  outcome = overfitting.overfit(config, str(tmp_path / "run"), 2)
  assert (outcome.model_dir, outcome.is_reached) == ("", False)
  assert os.listdir(tmp_path) == []
  assert outcome.lines[0] == "AP 0.000, which is all that is possible"
  assert all("no anchor is to learn it" in line for line in outcome.lines[1:-1])
  assert outcome.lines[-1].startswith("In the way: the objects that are out of reach")


def test_the_first_images_that_have_objects(hear):
  ignored = dataclasses.replace(FAR_APART.records[0], ignored=np.ones(2, bool))
  dataset = dataclasses.replace(FAR_APART, records=(ignored, *FAR_APART.records[1:]))
  (first,) = overfitting._first_images(dataset, 1).records
  assert first.image_id == "image1"
  lines = hear("info")
  assert len(overfitting._first_images(dataset, 5).records) == 2
  assert lines == ["only 2 images have objects that count"]
