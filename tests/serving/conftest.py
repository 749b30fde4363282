"""A run's detector, exported twice, and images with what evaluation finds in them."""

import dataclasses

import pytest
import tensorflow as tf
from serving import files

from ap_detect.data import shapes
from ap_detect.serving import folder, from_run
from ap_detect.training import evaluation


@pytest.fixture(scope="session")
def opened(trained_run):
  """(Detector, description) of trained_run, with the network's own scores."""
  return from_run.open_run(trained_run, calibrate=False)


@pytest.fixture(scope="session")
def records():
  """Pictures of four sizes and aspects."""
  sizes = [(128, 128), (96, 200), (150, 80), (70, 70)]
  return [
    shapes.make_shapes("test", num_images=1, image_size_px=size, seed=seed).records[0]
    for seed, size in enumerate(sizes)
  ]


@pytest.fixture(scope="session")
def pngs(records):
  return [files.encode(record.image, "PNG") for record in records]


@pytest.fixture(scope="session")
def found_uncut(restored_run, records):
  """Evaluation's ImageDetections, more than D; one call a picture, for sizes differ."""
  config = restored_run.config
  config = dataclasses.replace(
    config, eval=dataclasses.replace(config.eval, max_detections=1000)
  )
  evaluator = evaluation.Evaluator(restored_run.network, config, restored_run.strategy)
  return [evaluator.detect([record])[0] for record in records]


@pytest.fixture(scope="session")
def found(found_uncut):
  """The best 100 of each image."""
  assert any(len(image.scores) > 100 for image in found_uncut)
  return [
    evaluation.ImageDetections(*(part[:100] for part in image)) for image in found_uncut
  ]


@pytest.fixture(scope="session")
def exported(opened, tmp_path_factory):
  """Path of a version that is cut by no threshold; images of up to 1 MP."""
  detector, description = opened
  return folder.export(
    detector._replace(class_thresholds=(0.0,) * 6, max_image_pixels=1_000_000),
    str(tmp_path_factory.mktemp("export")),
    model_name="shapes",
    description=description,
  )


@pytest.fixture(scope="session")
def loaded(exported):
  return tf.saved_model.load(exported)


@pytest.fixture(scope="session")
def images(records):
  """JPEG, PNG and BMP files of several sizes."""
  kinds = ("JPEG", "PNG", "BMP", "JPEG")
  return [files.encode(record.image, kind) for record, kind in zip(records, kinds)]
