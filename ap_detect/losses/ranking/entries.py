"""The entries of one ranking, for losses that are computed from the scores themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from ap_detect.losses import labels as labels_lib
from ap_detect.losses.ranking import knots, scans, tables

_NAN = np.float32(np.nan)


class Entries(NamedTuple):
  """The positives and the negatives among all box-class pairs.

  Attributes:
    scores: [R, K] float32; 0 where ignored.
    is_negative: [R, K] bool.
    is_own: [R, K] bool; the entry of a positive anchor's own class.
    positives: knots.Positives, in ascending order, with room for R + 1.
    is_used: [R + 1] bool; which of those there are.
    count: [] int32; |P|.
    is_ignored: [R, 1] bool.
    is_bad: [] bool; whether a score that is not ignored is not finite, or a label is out
      of range.
  """

  scores: tf.Tensor
  is_negative: tf.Tensor
  is_own: tf.Tensor
  positives: knots.Positives
  is_used: tf.Tensor
  count: tf.Tensor
  is_ignored: tf.Tensor
  is_bad: tf.Tensor

  @classmethod
  def of(cls, logits, labels) -> Entries:
    """The entries of logits [..., K] of any floating type and labels [R] int32."""
    classes = logits.shape[-1]
    logits = tf.reshape(logits, [-1, classes])
    is_ignored = (labels == labels_lib.IGNORED)[:, tf.newaxis]
    is_positive = labels > labels_lib.BACKGROUND
    scores = tf.where(is_ignored, 0.0, tf.cast(logits, tf.float32))
    index = tf.clip_by_value(labels - 1, 0, classes - 1)
    own = tf.gather(scores, index, batch_dims=1)
    own = tf.where(tf.math.is_finite(own), own, 0.0)
    is_used = tf.cast(is_positive, tf.int32)
    count_up_to = tf.pad(
      scans.sum_up_to(is_used), [[0, 1]], constant_values=tf.int32.max
    )
    positives = knots.collect(
      tf.pad(own, [[0, 1]], constant_values=knots.INFINITY),
      count_up_to,
      tables.length(labels) + 1,
      scans.search_in_loop,
    )
    is_own = tables.is_own_class(labels, classes)
    is_out_of_range = (labels < labels_lib.IGNORED) | (labels > classes)
    return cls(
      scores=scores,
      is_negative=~(is_own | is_ignored),
      is_own=is_own,
      positives=positives,
      is_used=positives.is_used,
      count=tf.reduce_sum(is_used),
      is_ignored=is_ignored,
      is_bad=tf.reduce_any(is_out_of_range) | ~tf.reduce_all(tf.math.is_finite(scores)),
    )

  @property
  def positive_scores(self):
    """[R + 1] float32, ascending; 0 where not used."""
    return tf.where(self.is_used, self.positives.scores, 0.0)

  def value(self, value):
    """[] float32 of a value: 0 where there is no positive, NaN where an entry is bad."""
    value = tf.where(self.count > 0, tf.cast(value, tf.float32), 0.0)
    return tf.where(self.is_bad, _NAN, value)

  def gradient(self, of_entries, of_positives):
    """The gradient of every entry.

    Args:
      of_entries: [R, K] float32; of ignored ones nothing is taken.
      of_positives: [R + 1] float; what is added for each positive, in their order.

    Returns:
      [R, K] float32; 0 where ignored, NaN elsewhere where an entry is bad.
    """
    at = self.positives.anchors[:, tf.newaxis]
    own = tf.where(self.is_used, tf.cast(of_positives, tf.float32), 0.0)
    own = tf.scatter_nd(at, own, [tables.length(self.scores) + 1])[:-1]
    result = of_entries + tf.where(self.is_own, own[:, tf.newaxis], 0.0)
    return tf.where(self.is_ignored, 0.0, tf.where(self.is_bad, _NAN, result))


def checked(logits, labels):
  """Checks the arguments of a loss.

  Args:
    logits: [..., K] float.
    labels: [...] integer.

  Returns:
    (logits [..., K] tensor, labels [R] int32).

  Raises:
    ValueError, InvalidArgumentError: as `ranking_loss`.
  """
  logits, labels = labels_lib.checked(logits, labels)
  labels_lib.check_number(logits.shape.num_elements(), logits.shape)
  return logits, tf.reshape(labels, [-1])
