"""Anchors x ground truth -> what the network is to answer at every anchor."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from ap_detect import boxes as box_ops
from ap_detect.losses.labels import BACKGROUND, IGNORED

# IoUs that differ by less than this share of the larger one count as equal. XLA, another
# compiler or another device rounds an IoU differently by about 1e-7 of it; anchors of a
# regular grid tie for an object often, and no rounding may decide between them.
TIE_TOLERANCE = 1e-5


class Targets(NamedTuple):
  """What the network is to answer.

  Attributes:
    labels: [B, A] int32; IGNORED, BACKGROUND or the class 1..K.
    box_targets: [B, A, 4] float32, as `boxes.encode` gives them; 0 where the anchor is
      not positive.
    num_unmatched_objects: [] int32, objects to which no anchor was assigned.
  """

  labels: tf.Tensor
  box_targets: tf.Tensor
  num_unmatched_objects: tf.Tensor


def match_anchors(
  anchors,
  boxes,
  classes,
  ignored,
  *,
  positive_iou=0.5,
  negative_iou=0.4,
  force_match=True,
):
  """Assigns each anchor an object, the background, or nothing.

  An anchor whose IoU with an object is at least `positive_iou` is positive for the
  object of largest IoU; one whose largest IoU is below `negative_iou` is background;
  what lies between is ignored. With `force_match` every anchor that ties for an
  object's best IoU (above 0) is positive too, for its own object of largest IoU
  (authors' release). A background anchor is ignored where a crowd or difficult object
  covers at least the share `negative_iou` of the anchor's area.

  All comparisons allow for TIE_TOLERANCE, so that compiled and uncompiled functions,
  CPUs and GPUs assign the same: an anchor ties for an object's best IoU where it comes
  within 1e-5 of it, relatively, and of several objects that tie for an anchor it takes
  the first.

  Args:
    anchors: [A, 4] float32, yxyx, pixels.
    boxes: [B, G, 4] float32, yxyx, pixels; padding where classes is 0.
    classes: [B, G] integer; 1..K, 0 for padding.
    ignored: [B, G] bool; crowd or difficult objects.
    positive_iou: IoU from which an anchor is positive.
    negative_iou: IoU below which an anchor is background.
    force_match: whether an object may take its best anchors below `positive_iou`.

  Returns:
    Targets.
  """
  anchors = tf.convert_to_tensor(anchors, tf.float32)
  boxes, classes, ignored = _with_padding(boxes, classes, ignored)
  is_object = (classes > 0) & ~ignored
  iou = tf.where(is_object[..., tf.newaxis], box_ops.iou(boxes, anchors), 0.0)
  best_iou = tf.reduce_max(iou, axis=1)
  matched = _first(iou >= _almost(best_iou)[:, tf.newaxis])
  is_positive = best_iou >= _almost(positive_iou)
  if force_match:
    is_positive |= _is_best_of_some_object(iou)
  is_between = best_iou >= _almost(negative_iou)
  is_crowd = (classes > 0) & ignored
  is_ignored = is_between | _is_covered(anchors, boxes, is_crowd, negative_iou)
  labels = tf.where(
    is_positive,
    tf.gather(tf.cast(classes, tf.int32), matched, batch_dims=1),
    tf.where(is_ignored, IGNORED, BACKGROUND),
  )
  return Targets(
    labels,
    _box_targets(anchors, tf.gather(boxes, matched, batch_dims=1), is_positive),
    _count_unmatched(is_object, matched, is_positive),
  )


def _with_padding(boxes, classes, ignored):
  """The objects and one of padding, so that there is always one to choose from."""
  one = [[0, 0], [0, 1]]
  return tf.pad(boxes, [*one, [0, 0]]), tf.pad(classes, one), tf.pad(ignored, one)


def _almost(iou):
  """What an IoU must reach to count as being at least `iou`."""
  return iou * (1.0 - TIE_TOLERANCE)


def _first(holds):
  """Index of the first object [B, G, A] for which it holds; [B, A] int32."""
  # tf.argmax does not promise the first of several.
  num_objects = tf.shape(holds)[1]
  index = tf.range(num_objects)[tf.newaxis, :, tf.newaxis]
  return tf.reduce_min(tf.where(holds, index, num_objects), axis=1)


def _is_best_of_some_object(iou):
  best_of_object = tf.reduce_max(iou, axis=2, keepdims=True)
  return tf.reduce_any((iou >= _almost(best_of_object)) & (iou > 0), axis=1)


def _is_covered(anchors, boxes, is_crowd, share):
  # Not as a quotient, which graph mode rounds differently from eager mode.
  shared = box_ops.intersection(boxes, anchors)
  covers = shared >= _almost(share) * box_ops.area(anchors)
  return tf.reduce_any(covers & is_crowd[..., tf.newaxis], axis=1)


def _box_targets(anchors, matched_boxes, is_positive):
  is_positive = is_positive[..., tf.newaxis]
  # Elsewhere the anchor itself, whose offsets are 0, stands in: log(0) never happens.
  return box_ops.encode(tf.where(is_positive, matched_boxes, anchors), anchors)


def _count_unmatched(is_object, matched, is_positive):
  num_objects = tf.shape(is_object)[1]
  objects = tf.range(num_objects)[tf.newaxis, :, tf.newaxis]
  owned = (matched[:, tf.newaxis] == objects) & is_positive[:, tf.newaxis]
  return tf.reduce_sum(tf.cast(is_object & ~tf.reduce_any(owned, axis=2), tf.int32))
