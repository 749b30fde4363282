"""A trained detector for use from Python."""

from __future__ import annotations

import collections
import functools
import io
import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect import errors
from ap_detect import images as image_ops
from ap_detect.data import image_headers, pipeline
from ap_detect.runs import model as model_lib
from ap_detect.runs import scores
from ap_detect.training import evaluation, views


class DetectedObjects(NamedTuple):
  """What was detected in one image, best score first.

  Attributes:
    boxes: [D, 4] float32, yxyx, pixels of the image.
    scores: [D] float32, the precision to expect of detections with this score, see
      `load`.
    classes: [D] int32, 1..K.
    labels: the names of these classes, [D].
  """

  boxes: np.ndarray
  scores: np.ndarray
  classes: np.ndarray
  labels: tuple[str, ...]


def load(model_dir, checkpoint="", *, averaged_weights=True, calibrate=True):
  """Opens a trained run.

  Args:
    model_dir: the run's folder.
    checkpoint: "" for the best checkpoint, "latest", or a checkpoint's path.
    averaged_weights: see runs.model.restore.
    calibrate: whether scores are calibrated on the run's validation split, so that they
      are precisions to expect; otherwise they are the network's own, which rank
      detections and mean no more.

  Returns:
    Detector.

  Raises:
    ValueError: there is no such run or checkpoint.
  """
  model_dir, checkpoint = os.fspath(model_dir), os.fspath(checkpoint)
  # One device is enough for images that come one by one.
  strategy = tf.distribute.get_strategy()
  run = model_lib.restore(
    model_dir, checkpoint, averaged_weights=averaged_weights, strategy=strategy
  )
  return Detector(run, model_dir, calibrate=calibrate)


class Detector:
  """Detects objects in images; `load` makes one.

  Attributes:
    class_names: names of the classes 1..K.
  """

  def __init__(self, run: model_lib.RestoredRun, model_dir: str, *, calibrate: bool):
    self.class_names = run.classes.names
    self._run = run
    self._functions: dict = {}
    # Of each choice of thresholds.
    self._load_shown_scores = functools.lru_cache(
      functools.partial(
        scores.load_shown_scores, model_dir, run.checkpoint, calibrate=calibrate
      )
    )

  def detect(
    self, images, *, score_threshold=None, min_precision=None, min_recall=None
  ):
    """Detects objects in one image or in several.

    Args:
      images: an image, or a list of them. An image is the path of a file, the bytes of
        one, or an array [H, W, 3] of uint8, RGB. Files are in the formats that
        `images.decode_image` reads. An array [B, H, W, 3] is B images.
      score_threshold: score that detections need; by default the run's own threshold
        of each class, best by F1 on its validation split.
      min_precision, min_recall: instead, the threshold that had this on the validation
        split, see runs.scores.load_shown_scores.

    Returns:
      DetectedObjects of the image, or a list of them where there are several: what
      `ap_detect predict` finds.

    Raises:
      ValueError: something is no image, or cannot be decoded; or the run was not
        validated yet, so that it has no thresholds, or had no such precision or recall.
    """
    shown = self._load_shown_scores(
      score_threshold=score_threshold,
      min_precision=min_precision,
      min_recall=min_recall,
    )
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
      return self._detect_all(images, shown)
    return self._detect_all([images], shown)[0]

  def _detect_all(self, images, shown):
    found = []
    # Few images at a time, for decoded they take a lot of memory.
    size = self._run.config.eval.batch_size
    for start in range(0, len(images), size):
      chosen = images[start : start + size]
      pixels = [_load_pixels(image, self._run.config.data) for image in chosen]
      found += self._detect(pixels)
    return [self._to_objects(image, shown) for image in found]

  def _detect(self, pixels):
    """ImageDetections of some images [H, W, 3] uint8."""
    groups = collections.defaultdict(list)
    for index, image in enumerate(pixels):
      height, width, _ = image.shape
      groups[views.views_of(height, width, self._run.config)].append(index)
    found: list = [None] * len(pixels)
    for shown, indices in groups.items():
      # Only whole batches are detected on as such: each size is a graph of its own.
      is_whole = len(indices) == self._run.config.eval.batch_size
      for batch in [indices] if is_whole else [[index] for index in indices]:
        detect = self._function(shown, len(batch))
        parts = [part.numpy() for part in detect([pixels[index] for index in batch])]
        for index, *image in zip(batch, *parts):
          *columns, count = image
          found[index] = evaluation.ImageDetections(*(c[:count] for c in columns))
    return found

  def _function(self, shown, batch_size):
    """Function of `batch_size` images that are tested on these views to Detections."""
    if (shown, batch_size) not in self._functions:
      detect = views.make_detect(self._run.network, shown, self._run.config)
      signature = [[tf.TensorSpec([None, None, 3], tf.uint8)] * batch_size]

      def show_and_detect(pixels):
        examples = [
          tuple(pipeline.show(image, view) for view in shown) for image in pixels
        ]
        return detect(tf.nest.map_structure(lambda *parts: tf.stack(parts), *examples))

      self._functions[shown, batch_size] = tf.function(show_and_detect, signature)
    return self._functions[shown, batch_size]

  def _to_objects(self, found, shown):
    found = evaluation.to_shown(found, self.class_names, shown)
    labels = tuple(self.class_names[k - 1] for k in found.classes)
    return DetectedObjects(found.boxes, found.scores, found.classes, labels)


def _load_pixels(image, data):
  """[H, W, 3] uint8 of an image in any form; `data` is the run's DataConfig."""
  if isinstance(image, (str, os.PathLike)):
    with open(image, "rb") as file:
      return _decode(file.read(), os.fspath(image), data)
  if isinstance(image, bytes):
    return _decode(image, "an image given as bytes", data)
  pixels = np.asarray(image)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
    raise ValueError(
      "an image must be a path, the bytes of a file, or an array [H, W, 3] of uint8, "
      f"got a {type(image).__name__} of shape {list(pixels.shape)} and {pixels.dtype}"
    )
  return pixels


def _decode(encoded, name, data):
  try:
    turns = data.exif_orientation
    header = image_headers.read_header(io.BytesIO(encoded), exif_orientation=turns)
    if header.height * header.width > data.max_image_pixels:
      raise ValueError(
        f"it has {header.width} x {header.height} pixels, more than the run's "
        f"data.max_image_pixels, {data.max_image_pixels}"
      )
    return image_ops.decode_image(encoded, exif_orientation=turns).numpy()
  except (ValueError, tf.errors.OpError) as error:
    raise ValueError(
      f"{name}: cannot be decoded: {errors.first_line(error)}"
    ) from error
