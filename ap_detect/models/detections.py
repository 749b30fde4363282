"""Raw outputs -> detections: decode, keep the best per level, NMS per class.

In two halves, `find_candidates` and `suppress`, between which the candidates of several
views of an image can be put together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from ap_detect import boxes as box_ops


class Detections(NamedTuple):
  """Detections of a batch, best score first, padded with zeros to D.

  Attributes:
    boxes: [B, D, 4] float32, yxyx, in the candidates' pixels.
    scores: [B, D] float32 in (0, 1); sigmoid of the logit.
    classes: [B, D] int32, 1..K; 0 for padding.
    num_detections: [B] int32.
  """

  boxes: tf.Tensor
  scores: tf.Tensor
  classes: tf.Tensor
  num_detections: tf.Tensor


class Candidates(NamedTuple):
  """Decoded box-class pairs of a batch, in no order.

  Attributes:
    boxes: [B, C, 4] float32, yxyx; 0 where the score is.
    scores: [B, C] float32 in [0, 1); 0 for a pair that is none.
    classes: [B, C] int32, 1..K.
  """

  boxes: tf.Tensor
  scores: tf.Tensor
  classes: tf.Tensor


def detect(
  outputs,
  anchors,
  *,
  level_sizes,
  content_size,
  score_threshold=0.01,
  class_thresholds=None,
  calibrate=None,
  candidates_per_level=1000,
  nms_iou=0.5,
  max_detections=100,
):
  """Post-processing of the authors' release.

  Args:
    outputs, anchors, level_sizes, content_size, candidates_per_level: see
      `find_candidates`.
    score_threshold, class_thresholds, calibrate, nms_iou, max_detections: see
      `suppress`.

  Returns:
    Detections.
  """
  candidates = find_candidates(
    outputs,
    anchors,
    level_sizes=level_sizes,
    content_size=content_size,
    candidates_per_level=candidates_per_level,
  )
  return suppress(
    candidates,
    num_classes=outputs.class_logits.shape[-1],
    score_threshold=score_threshold,
    class_thresholds=class_thresholds,
    calibrate=calibrate,
    nms_iou=nms_iou,
    max_detections=max_detections,
  )


def find_candidates(
  outputs, anchors, *, level_sizes, content_size, candidates_per_level=1000
):
  """The best box-class pairs of every level, decoded and clipped.

  Args:
    outputs: retinanet.Outputs.
    anchors: [A, 4] float32, yxyx, pixels.
    level_sizes: number of anchors of each pyramid level; they sum to A.
    content_size: [B, 2] float32, height and width, in pixels of the network's input,
      of the image in it; boxes are clipped to it.
    candidates_per_level: box-class pairs a level, best scores first.

  Returns:
    Candidates, in pixels of the network's input.
  """
  scores, boxes, classes = _best_of_levels(
    outputs, anchors, level_sizes, candidates_per_level
  )
  boxes = box_ops.clip(boxes, content_size[:, :1], content_size[:, 1:])
  # A box that lay outside the image, or is NaN, has no area: score 0 never passes.
  has_area = box_ops.area(boxes) > 0
  scores = tf.where(has_area, scores, 0.0)
  boxes = tf.where(has_area[..., tf.newaxis], boxes, 0.0)
  return Candidates(boxes, scores, classes)


def suppress(
  candidates,
  *,
  num_classes,
  score_threshold=0.01,
  class_thresholds=None,
  calibrate=None,
  nms_iou=0.5,
  max_detections=100,
):
  """Non-maximum suppression per class.

  Args:
    candidates: Candidates.
    num_classes: K.
    score_threshold: candidates need a score above it; at least 0.
    class_thresholds: [B, K] float32; candidates of class k also need a score of at least
      class_thresholds[:, k - 1], before the best D are taken. None for no more than
      score_threshold.
    calibrate: function of scores [B, C], never decreasing, which class_thresholds are
      compared with in place of the scores; None for none.
    nms_iou: a box goes where its IoU with a better one of its class is above this.
    max_detections: D.

  Returns:
    Detections.
  """
  if class_thresholds is not None:
    needed = tf.gather(class_thresholds, candidates.classes - 1, batch_dims=1)
    scores = calibrate(candidates.scores) if calibrate else candidates.scores
    # Of score 0 none passes.
    scores = tf.where(scores >= needed, candidates.scores, 0.0)
    candidates = candidates._replace(scores=scores)

  def suppress_image(image):
    return _suppress(
      *image,
      num_classes=num_classes,
      score_threshold=score_threshold,
      nms_iou=nms_iou,
      max_detections=max_detections,
    )

  if candidates.scores.shape[0] == 1:
    # Without a loop, which TensorFlow Lite would fail in.
    found = suppress_image([part[0] for part in candidates])
    return Detections(*(part[tf.newaxis] for part in found))
  return Detections(
    *tf.map_fn(
      suppress_image,
      tuple(candidates),
      fn_output_signature=(tf.float32, tf.float32, tf.int32, tf.int32),
    )
  )


def _best_of_levels(outputs, anchors, level_sizes, candidates_per_level):
  """Best box-class pairs of every level: scores [B, C], boxes [B, C, 4], classes."""
  found_logits, found_boxes, found_classes = [], [], []
  start = 0
  for size in level_sizes:
    level = slice(start, start + size)
    logits, best_anchors, classes = _best_pairs(
      outputs.class_logits[:, level], size, candidates_per_level
    )
    offsets = tf.gather(outputs.box_outputs[:, level], best_anchors, batch_dims=1)
    level_anchors = tf.gather(anchors[level], best_anchors)
    found_logits.append(logits)
    found_boxes.append(box_ops.decode(offsets, level_anchors))
    found_classes.append(classes)
    start += size
  return (
    tf.sigmoid(tf.concat(found_logits, axis=1)),
    tf.concat(found_boxes, axis=1),
    tf.concat(found_classes, axis=1),
  )


def _best_pairs(class_logits, size, num_pairs):
  """Logits, anchors and classes, [B, C] each, of a level's best pairs; `size` anchors.

  The best C pairs are pairs of the C anchors whose best class scores highest, so that
  the sort over all classes sees only these. In the anchors' order, for then ties fall as
  among all pairs: to the lower index.
  """
  num_classes, num_anchors = class_logits.shape[-1], min(num_pairs, size)
  best = tf.math.top_k(tf.reduce_max(class_logits, axis=-1), num_anchors)
  anchors = tf.sort(best.indices)
  pairs = tf.gather(class_logits, anchors, batch_dims=1)
  pairs = tf.reshape(pairs, [-1, num_anchors * num_classes])
  logits, indices = tf.math.top_k(pairs, min(num_pairs, size * num_classes))
  anchors = tf.gather(anchors, indices // num_classes, batch_dims=1)
  return logits, anchors, indices % num_classes + 1


def _suppress(
  boxes, scores, classes, *, num_classes, score_threshold, nms_iou, max_detections
):
  """Per-class NMS of one image: boxes of different classes are moved apart.

  They are moved to the cells of a square, class by class, not to a line: the larger the
  coordinates, the more of a small box's place float32 rounds away.
  """
  side = math.ceil(math.sqrt(num_classes))
  cell = tf.stack([(classes - 1) // side, (classes - 1) % side] * 2, axis=-1)
  moved = boxes + tf.cast(cell, tf.float32) * (tf.reduce_max(boxes) + 1.0)
  kept, num_kept = tf.raw_ops.NonMaxSuppressionV4(
    boxes=moved,
    scores=scores,
    max_output_size=max_detections,
    iou_threshold=nms_iou,
    score_threshold=score_threshold,
    pad_to_max_output_size=True,
  )
  is_kept = tf.range(max_detections) < num_kept
  return (
    tf.where(is_kept[:, tf.newaxis], tf.gather(boxes, kept), 0.0),
    tf.where(is_kept, tf.gather(scores, kept), 0.0),
    tf.where(is_kept, tf.gather(classes, kept), 0),
    num_kept,
  )
