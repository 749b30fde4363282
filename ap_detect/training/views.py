"""The views of an image that a network is tested on: its scales, and mirrored or not."""

from __future__ import annotations

import collections

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect import config as config_lib
from ap_detect.data.pipeline import View
from ap_detect.models import detections
from ap_detect.runs import model as model_lib

# Every stride up to P5's divides a canvas; its longer side grows by steps, so that a
# dataset's aspects need few canvases, each of which is one compiled graph.
_MULTIPLE_PX = 32
_LONGER_STEP_PX = 128


def views_of(height: int, width: int, config: config_lib.Config) -> tuple[View, ...]:
  """The views that a config tests an image of some size on.

  Args:
    height: of the image, pixels.
    width: of the image, pixels.
    config: Config.

  Returns:
    Views; images that have the same can share a batch.

  Example:
    >>> config = config_lib.Config(eval=config_lib.EvalConfig(test_scales=("500/833",)))
    >>> views_of(375, 500, config)  # 500 x 667 pixels in a canvas
    (View(canvas_size=(512, 768), fit_size=(500, 833), mirrored=False),)
  """
  evaluation = config.eval
  if evaluation.test_scales:
    sizes = [
      _fit(height, width, *config_lib.parse_test_scale(scale))
      for scale in evaluation.test_scales
    ]
  else:
    sizes = [(config.data.image_size_px, config.data.image_size_px)]
  mirrorings = (False, True) if evaluation.horizontal_flip else (False,)
  return tuple(
    View(canvas, fit, mirrored) for canvas, fit in sizes for mirrored in mirrorings
  )


def group_by_views(records, config: config_lib.Config):
  """{views: indices of the records that are tested on them}, see `views_of`."""
  groups = collections.defaultdict(list)
  for index, record in enumerate(records):
    groups[views_of(record.height, record.width, config)].append(index)
  return dict(groups)


def _fit(height, width, shorter, longer):
  """(canvas_size, fit_size) of an image at a test scale."""
  scale = min(shorter / min(height, width), longer / max(height, width))
  resized = round(max(height, width) * scale)
  canvas = (
    _round_up(shorter, _MULTIPLE_PX),
    min(_round_up(resized, _LONGER_STEP_PX), _round_up(longer, _MULTIPLE_PX)),
  )
  canvas = canvas[0], max(canvas)
  if height <= width:
    return canvas, (shorter, longer)
  return canvas[::-1], (longer, shorter)


def _round_up(side, multiple):
  return -(-side // multiple) * multiple


def make_detect(network, views: tuple[View, ...], config: config_lib.Config):
  """Function of a batch of views to detections in pixels of the original images.

  Candidates of all views are put together before NMS.

  Args:
    network: tf.keras.Model of images -> Outputs.
    views: of every image in the batch.
    config: Config.

  Returns:
    Function (batch of `pipeline.evaluation_batches`) -> Detections.
  """
  evaluation = config.eval
  layouts = [
    (model_lib.make_anchors(config, size), model_lib.level_sizes(config, size))
    for size in (view.canvas_size for view in views)
  ]

  def detect(batch):
    found = []
    for view, (anchors, level_sizes), pictures in zip(views, layouts, batch):
      outputs = network(pictures["image"], training=False)
      candidates = detections.find_candidates(
        outputs,
        anchors,
        level_sizes=level_sizes,
        content_size=pictures["content_size"],
        candidates_per_level=evaluation.candidates_per_level,
      )
      found.append(_to_original(candidates, pictures, view))
    merged = detections.Candidates(*(tf.concat(part, axis=1) for part in zip(*found)))
    return detections.suppress(
      merged,
      num_classes=outputs.class_logits.shape[-1],
      score_threshold=evaluation.score_threshold,
      nms_iou=evaluation.nms_iou,
      max_detections=evaluation.max_detections,
    )

  return detect


def _to_original(candidates, pictures, view):
  """Candidates in pixels of the original image, mirrored back."""
  boxes = candidates.boxes
  if view.mirrored:
    width = pictures["content_size"][:, tf.newaxis, 1]
    boxes = box_ops.mirror(boxes, width)
  # Clipping in the input's pixels leaves at most a rounding error here.
  return candidates._replace(boxes=boxes / pictures["scale"][:, tf.newaxis, tf.newaxis])
