"""Rank & Sort loss (Oksuz et al., "Rank & Sort Loss for Object Detection and Instance
Segmentation", ICCV 2021)."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses import ranking_loss as ranking_loss_lib
from ap_detect.losses.ranking.errors import Errors

# Pairs of positives that are compared at a time.
_PAIRS = 2**22


@ranking_loss_lib.with_ranking_options
def rank_and_sort_loss(logits, labels, *, qualities, delta=0.5, **options):
  """Rank & Sort loss: positives above negatives, and the better positives first.

  L = 1/|P| sum_{i in P} (e_R(i) + e_S(i)), the errors of ranking and of sorting beyond
  what the best order would leave (Oksuz et al. 2021). With a step that is smooth,
  f(s_j - s_i), and Y_j the quality of positive j,

    e_R(i) = b_i / rank(i), rank(i) = sum_{j in P} f(s_j - s_i) + b_i
    e_S(i) = mean of 1 - Y_j over positives j, weighted by f(s_j - s_i), minus the same
             mean over those with Y_j >= Y_i alone.

  A positive's comparison with itself counts f(0) = 1/2, as in the authors' code; in
  `ap_loss` it counts 1. The gradient is the error-driven update: e_R(i) is put on
  negatives by their f(s_j - s_i), e_S(i) on positives of lesser quality by theirs.

  Time and memory are those of `ranking_loss` and O(|P|^2) time for sorting.

  Args:
    logits: [..., K] float; scores of every anchor for every class. Ranked as one list.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K.
    qualities: [...] float in [0, 1]; of the anchors that are positive: how well their
      box fits, as the IoU of the predicted box with its object's.
    delta: as for `ranking_loss`; half of it is the authors' choice.
    **options: as for `ranking_loss`.

  Returns:
    [] float32. 0 where there is no positive. NaN as `ranking_loss`, and where a
    positive's quality is not finite.

  Raises:
    ValueError, InvalidArgumentError: as `ranking_loss`.

  Example:
    >>> logits = tf.constant([[0.0], [3.0], [5.0]])
    >>> labels, qualities = tf.constant([1, 1, 0]), tf.constant([1.0, 0.5, 0.0])
    >>> # Ranks of the positives: 2.5 and 1.5, for 1/2 instead of 1 is of themselves.
    >>> # The better positive lies below the other: (0 / 2 + 0.5) / 1.5 - 0 = 1/3.
    >>> loss = rank_and_sort_loss(logits, labels, qualities=qualities)
    >>> abs(float(loss) - (1 / 2.5 + 1 / 1.5 + 1 / 3) / 2) < 1e-6
    True
  """
  return ranking_loss_lib.ranking_loss(
    logits, labels, errors, qualities=qualities, delta=delta, **options
  )


def rank_and_sort_loss_and_gradient(logits, labels, **options):
  """Rank & Sort loss and its error-driven update as plain values.

  Args:
    logits, labels, **options: as `rank_and_sort_loss`.

  Returns:
    (loss [] float32, gradient [..., K] of the logits' type).
  """
  return ranking_loss_lib.loss_and_gradient(
    rank_and_sort_loss, logits, labels, **options
  )


def errors(positives):
  """Errors of ranking and of sorting of every positive.

  Args:
    positives: ranking.errors.Comparisons, with qualities.

  Returns:
    ranking.errors.Errors.
  """
  above = positives.negatives_above
  rank = positives.rank_in_positives - 0.5 + above
  weight = tf.where(above > 0, 1.0 / rank, 0.0)

  def add_up(steps, own, others):
    """Over others j, of f_ij: all, of lesser quality, and both weighted by 1 - Y_j."""
    of_lesser = tf.where(others[0] < own[0], steps, 0.0)
    sums = (steps, of_lesser, steps * (1 - others[0]), of_lesser * (1 - others[0]))
    return tuple(tf.reduce_sum(x, 1) for x in sums)

  quality = positives.qualities
  all_, lesser, misses, lesser_misses = _over_pairs(positives, add_up, (quality,), 4)
  is_used = positives.is_used
  all_ = tf.where(is_used, all_, 1.0)  # f(0) = 1/2 of itself is among them
  sorting = misses / all_ - (misses - lesser_misses) / (all_ - lesser)
  sorting = tf.where(is_used & (lesser > 0), tf.maximum(sorting, 0.0), 0.0)
  owed = positives.shares * sorting / tf.where(lesser > 0, lesser, 1.0)

  def push(steps, own, others):
    """Over others i that own j is of lesser quality than, of what i owes to j."""
    # f(s_j - s_i) is 1 - f(s_i - s_j).
    owed_here = tf.where(own[0] < others[0], others[1] * (1.0 - steps), 0.0)
    return (tf.reduce_sum(owed_here, 1),)

  (pushed,) = _over_pairs(positives, push, (quality, owed), 1)
  return Errors(above * weight + sorting, weight, pushed)


def _over_pairs(positives, function, fields, number):
  """Sums over all pairs of positives, in blocks of others.

  Args:
    positives: ranking.errors.Comparisons.
    function: of (steps [n, block] = f(s_other - s_own), 0 for others that are not used;
      the fields of own, [n, 1] each; of others, [1, block] each) to `number` sums [n].
    fields: tuple of [n] float64.
    number: of sums.

  Returns:
    Tuple of `number` [n] float64.
  """
  n = positives.scores.shape[0]
  size = tf.shape(positives.scores)[0] if n is None else n
  count = tf.reduce_sum(tf.cast(positives.is_used, tf.int32))
  scores = tf.where(positives.is_used, tf.cast(positives.scores, tf.float64), 0.0)
  own = tuple(field[:, tf.newaxis] for field in fields)

  def block(begin, start, width):
    at = start + tf.range(width)
    is_new = (at >= begin) & (at < count)
    others, *values = (
      tf.slice(field, [start], [width])[tf.newaxis] for field in (scores, *fields)
    )
    steps = (others - scores[:, tf.newaxis]) / (2.0 * positives.delta) + 0.5
    steps = tf.clip_by_value(steps, 0.0, 1.0)
    return function(tf.where(is_new, steps, 0.0), own, values)

  if n is not None and n * n <= _PAIRS:
    return block(0, 0, n)
  width = 64 if n is None else max(_PAIRS // n, 1)
  width = tf.minimum(width, size)

  def body(begin, *sums):
    # The last block is moved back; others it has seen do not count again.
    found = block(begin, tf.minimum(begin, size - width), width)
    return begin + width, *(total + part for total, part in zip(sums, found))

  start = [0] + [tf.zeros([size], tf.float64)] * number
  return tf.while_loop(lambda begin, *_: begin < count, body, start)[1:]
