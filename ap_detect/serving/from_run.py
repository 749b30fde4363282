"""What is served of a trained run, and what is said of it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re

import tensorflow as tf

from ap_detect.runs import model as model_lib
from ap_detect.runs import scores
from ap_detect.serving.graph import DEFAULT_MAX_IMAGE_PIXELS, Detector


def open_run(
  model_dir,
  checkpoint="",
  *,
  averaged_weights=True,
  max_image_pixels=DEFAULT_MAX_IMAGE_PIXELS,
  **score_options,
):
  """A run's Detector.

  Args:
    model_dir: the run's folder.
    checkpoint: see runs.folder.find_checkpoint.
    averaged_weights: see runs.model.restore.
    max_image_pixels: see Detector.
    **score_options: see runs.scores.load_shown_scores.

  Returns:
    (Detector, description): description is what ap_detect.json says of it beyond the
    Detector itself: the run, checkpoint, metrics and versions.

  Raises:
    ValueError: no such run or checkpoint, or it has no score thresholds.
  """
  # On no particular device, so that the graph names none.
  restored = model_lib.restore(
    model_dir,
    checkpoint,
    averaged_weights=averaged_weights,
    strategy=tf.distribute.get_strategy(),
  )
  config, names = restored.config, restored.classes.names
  shown = scores.load_shown_scores(model_dir, restored.checkpoint, **score_options)
  detector = Detector(
    network=restored.network,
    anchors=model_lib.make_anchors(config),
    post_process=model_lib.make_detect(config),
    image_size=config.data.image_size_px,
    class_names=names,
    class_thresholds=tuple(shown.thresholds.per_class[name] for name in names),
    calibration=shown.calibration,
    exif_orientation=config.data.exif_orientation,
    max_image_pixels=max_image_pixels,
  )
  validation = scores.load_validation(model_dir, restored.checkpoint)
  return detector, {
    "run": os.path.basename(os.path.abspath(model_dir)),
    "checkpoint": os.path.basename(restored.checkpoint),
    "metrics": validation["metrics"] if validation else None,
    "max_detections": config.eval.max_detections,
    "versions": {
      "python": platform.python_version(),
      "tensorflow": tf.__version__,
      "ap_detect": _own_version(),
    },
  }


def default_model_name(model_dir, export_dir):
  """Name of a served model: of its folder, or of the run whose own folder that is.

  It stands in addresses and commands: what needs quotes there becomes "_".
  """
  own = os.path.join(model_dir, "export")
  path = (
    model_dir if os.path.abspath(export_dir) == os.path.abspath(own) else export_dir
  )
  return re.sub(
    r"[^\w.-]+", "_", os.path.basename(os.path.abspath(path)), flags=re.ASCII
  )


def _own_version():
  """Version of the installed package; None where it is run without being installed."""
  try:
    return importlib.metadata.version("ap_detect")
  except importlib.metadata.PackageNotFoundError:
    return None
