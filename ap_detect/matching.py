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

# Up to so many objects of an image are compared with all anchors at once. Where an image
# of the split has more, they are compared in chunks, of which a batch takes as many as it
# has objects for: that image costs time in its own batch alone, and hardly memory.
_MOST_AT_ONCE = 64
_CHUNK = 16


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
  objects = _Objects(boxes, classes, ignored)

  def iou(chunk):
    is_object = objects.take(objects.is_object, chunk)[..., tf.newaxis]
    boxes = objects.take(objects.boxes, chunk)
    return tf.where(is_object, box_ops.iou(boxes, anchors), 0.0)

  def compare(chunk):
    boxes = objects.take(objects.boxes, chunk)
    is_crowd = objects.take(objects.is_crowd, chunk)
    is_covered = _is_covered(anchors, boxes, is_crowd, negative_iou)
    found = iou(chunk)
    return tf.reduce_max(found, axis=1), _is_best_of_some(found), is_covered

  best_iou, is_best, is_covered = objects.fold(
    compare, (tf.maximum, tf.logical_or, tf.logical_or)
  )

  def find(chunk):
    # The first one within the tolerance is known only once the best IoU is.
    holds = iou(chunk) >= _almost(best_iou)[:, tf.newaxis]
    return (_first(holds, objects.indices(chunk)),)

  (matched,) = objects.fold(find, (tf.minimum,))
  is_positive = best_iou >= _almost(positive_iou)
  if force_match:
    is_positive |= is_best

  def count_unmatched(chunk):
    index = objects.indices(chunk)[:, tf.newaxis]
    owned = (matched[:, tf.newaxis] == index) & is_positive[:, tf.newaxis]
    is_object = objects.take(objects.is_object, chunk)
    unmatched = is_object & ~tf.reduce_any(owned, axis=2)
    return (tf.reduce_sum(tf.cast(unmatched, tf.int32)),)

  (num_unmatched,) = objects.fold(count_unmatched, (tf.add,))
  is_ignored = (best_iou >= _almost(negative_iou)) | is_covered
  labels = tf.where(
    is_positive,
    tf.gather(objects.classes, matched, batch_dims=1),
    tf.where(is_ignored, IGNORED, BACKGROUND),
  )
  matched_boxes = tf.gather(objects.boxes, matched, batch_dims=1)
  return Targets(
    labels, _box_targets(anchors, matched_boxes, is_positive), num_unmatched
  )


class _Objects:
  """Ground truth in chunks, the last one filled up with padding.

  There is at least one of padding, so that there is always an object to choose from.
  """

  def __init__(self, boxes, classes, ignored):
    count = boxes.shape[1]
    self._at_once = count is not None and count < _MOST_AT_ONCE
    if count is None:
      count = tf.shape(boxes)[1]
    missing = [[0, 0], [0, 1 if self._at_once else _CHUNK - count % _CHUNK]]
    self._size = count + 1 if self._at_once else _CHUNK
    self.boxes = tf.pad(boxes, [*missing, [0, 0]])
    self.classes = tf.cast(tf.pad(classes, missing), tf.int32)
    ignored = tf.pad(ignored, missing)
    self.is_object = (self.classes > 0) & ~ignored
    self.is_crowd = (self.classes > 0) & ignored

  def take(self, values, chunk):
    """A chunk [B, G', ...] of values [B, G, ...]."""
    shape = [tf.shape(values)[0], -1, self._size, *values.shape[2:]]
    return values if self._at_once else tf.reshape(values, shape)[:, chunk]

  def indices(self, chunk):
    """[G'] int32, places of a chunk's objects among all."""
    return chunk * self._size + tf.range(self._size)

  def fold(self, function, combine):
    """Results of all chunks that have an object; one chunk is in memory at a time.

    Args:
      function: of a chunk's number to a tuple of tensors.
      combine: for each place of the tuple a function of two such tensors.
    """
    first = function(tf.constant(0))
    if self._at_once:
      return first
    has_object = tf.reduce_any(self.classes > 0, axis=0)
    chunk_of = tf.range(tf.shape(has_object)[0]) // self._size
    last = tf.reduce_max(tf.where(has_object, chunk_of, 0))

    def step(chunk, found):
      both = zip(combine, found, function(chunk))
      return chunk + 1, tuple(join(*values) for join, *values in both)

    _, found = tf.while_loop(
      lambda chunk, _: chunk <= last,
      step,
      (tf.constant(1), first),
      parallel_iterations=1,
    )
    return found


def _almost(iou):
  """What an IoU must reach to count as being at least `iou`."""
  return iou * (1.0 - TIE_TOLERANCE)


def _first(holds, indices):
  """Index of the first object [B, G', A] for which it holds; [B, A] int32."""
  # tf.argmax does not promise the first of several.
  return tf.reduce_min(tf.where(holds, indices[:, tf.newaxis], tf.int32.max), axis=1)


def _is_best_of_some(iou):
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
