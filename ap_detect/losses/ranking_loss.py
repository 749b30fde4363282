"""Ranking losses by their errors: what all losses on the engine have in common."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from ap_detect.losses import compiling
from ap_detect.losses import labels as labels_lib
from ap_detect.losses.ranking import across_replicas, engine, knots


# Nothing in here needs AutoGraph, which would take longer than the tracing itself.
@tf.autograph.experimental.do_not_convert
def ranking_loss(
  logits,
  labels,
  errors,
  *,
  weights=None,
  class_weights=None,
  qualities=None,
  delta=1.0,
  images_per_ranking=None,
  ranking_scope="replica",
  jit_compile=True,
  form=None,
):
  """A loss of how every positive compares with everything else.

  L = sum_{i in P} w_i e_i / sum_{i in P} w_i, where e_i is the error that `errors` makes
  of the positive's comparisons f(s_j - s_i) with all positives and all negatives (Chen
  et al. 2019, eqs. 5, 14). The gradient is the error-driven update (eqs. 9, 13), not the
  derivative of the value.

  It takes O((|P| + |N|) log |P|) time and O(|P| + |N|) memory like the value. In the form
  for CPUs it is computed only where it is asked for. Both need 88 bytes an anchor, more
  where more than 16,384 are positive, and the gradient 4 bytes a logit beside itself. In
  the form for GPUs it is computed with the value, in less than twice the logits' bytes
  and 180 bytes an anchor. What goes by the anchor are tables of knots, with room for all
  anchors to be positive.

  Args:
    logits: [..., K] float; scores of every anchor for every class. Ranked as one list.
      float16 and bfloat16 are computed in float32. At most 2^31 - 1 in one ranking. In
      the form for GPUs their offsets from knots are counted in units of about 2^-34
      delta for 2^24 logits, and twice that for each doubling, so that sums fit 63 bits.
    labels: [...] integer; IGNORED, BACKGROUND or the anchor's class 1..K. For a binary
      ranking K is 1 and the labels are -1, 0 and 1.
    errors: function of ranking.errors.Comparisons to ranking.errors.Errors, traced once
      for each shape. Pass the same function every time, or it is traced anew.
    weights: [...] float >= 0; w_i of the anchors that are positive. Ranks are not
      weighted. An anchor of weight 0 is ignored; a background anchor of any other weight
      counts fully. None is 1 for all.
    class_weights: [K] float >= 0; factor of w_i for the positives of each class. With 0
      they still count in the ranks of others. None is 1 for all.
    qualities: [...] float; of the anchors that are positive, for errors that ask for it.
    delta: half-width of the smoothed step f (eq. 14), in logit units; > 0.
    images_per_ranking: rank groups of so many entries of the first dimension apart,
      and take the mean of their losses; must divide that dimension. A group without
      positives counts 0. None ranks everything together.
    ranking_scope: "replica", or "global": the entries of all replicas of a
      `tf.distribute` strategy are ranked together, as if their first dimensions were
      joined in the replicas' order, or groups of `images_per_ranking` of them. Call it
      in every replica, outside of conditionals, loops and what XLA compiles. Every
      replica gets the loss of its ranking, and a gradient times the number of replicas
      that rank together, so that means over replicas are what one replica would get of
      everything. Only positives' scores and 32 bytes a positive cross the replicas.
    jit_compile: whether to compile the loss with XLA when it is called outside of a
      function that is compiled itself. False runs it op by op: slower, for debugging.
    form: "cpu" or "gpu", the form of the passes over all logits; both give the same
      to rounding on any device. None is "gpu" where TensorFlow sees a GPU.

  Returns:
    [] float32. 0 where there is no positive. NaN, as is the gradient of all entries of
    the ranking that are not ignored, where a logit that is not ignored is not finite, or
    where a label is out of range or a weight negative or not finite in a traced function.
    The same input always gives the same bits.

  Raises:
    ValueError: shapes do not fit, delta is not positive, form is unknown, or a label or
      weight that is not a tensor is out of range.
    InvalidArgumentError: a label or weight of an eager tensor is out of range.

  Example:
    >>> from ap_detect.losses import Errors
    >>> def misses(positives):  # how many negatives lie above, whatever the ranks
    ...   b = positives.negatives_above
    ...   return Errors(error=b, weight=tf.ones_like(b))
    >>> logits = tf.constant([[2.0], [0.0], [5.0]])
    >>> float(ranking_loss(logits, tf.constant([1, 0, 0]), misses))
    1.0
  """
  logits = tf.convert_to_tensor(logits)
  group = _group(logits, images_per_ranking, ranking_scope)
  if group is not None:
    images_per_ranking = None
  logits, anchors, step = _checked(
    logits, labels, weights, class_weights, qualities, delta
  )
  _check_sizes(logits, images_per_ranking, group.size if group else 1)
  if group is not None:
    across = _across(errors, jit_compile, _form(form))
    return _rank_across(logits, anchors, step, group, across)
  functions = _functions(errors, images_per_ranking, jit_compile, _form(form))

  @tf.custom_gradient
  def with_update(logits):
    value, *found = functions.rank(tf.stop_gradient(logits), anchors, step)
    return value, functools.partial(
      functions.gradient, logits, anchors.labels, step, found
    )

  return with_update(logits)


def loss_and_gradient(loss, logits, labels, **options):
  """The value of a ranking loss and its update as plain values.

  Args:
    loss: function of logits, labels and options.
    logits, labels, **options: its arguments.

  Returns:
    (loss [] float32, update [..., K] of the logits' type).
  """
  logits = tf.convert_to_tensor(logits)
  with tf.GradientTape(watch_accessed_variables=False) as tape:
    tape.watch(logits)
    value = loss(logits, labels, **options)
  return value, tape.gradient(value, logits)


def with_ranking_options(loss):
  """Decorator that shows `ranking_loss`'s options in the signature of a loss.

  Not `qualities`, which a loss that takes them names itself.

  Args:
    loss: function that passes its `**options` on to `ranking_loss`.

  Returns:
    The same function.
  """
  own = inspect.signature(loss)
  names = [*own.parameters.values()][:-1]
  options = [
    option
    for option in inspect.signature(ranking_loss).parameters.values()
    if option.kind is option.KEYWORD_ONLY
    and option.name not in (*own.parameters, "qualities")
  ]
  loss.__signature__ = own.replace(parameters=[*names, *options])
  return loss


def _group(logits, images_per_ranking, ranking_scope):
  """The across_replicas.Group that ranks together; None where each replica may rank alone.

  Raises:
    ValueError: the scope is unknown, or the replicas cannot be divided as is asked for.
  """
  if ranking_scope not in ("replica", "global"):
    raise ValueError(
      f"ranking_scope must be 'replica' or 'global', got {ranking_scope!r}"
    )
  context = tf.distribute.get_replica_context()
  if ranking_scope == "replica":
    return None
  if context is None:
    raise ValueError(
      "ranking_scope='global' must be called in a replica (Strategy.run)"
    )
  replicas = context.num_replicas_in_sync
  if replicas == 1:
    return None
  if images_per_ranking is None:
    return across_replicas.Group(context, replicas)
  images = logits.shape[0] if logits.shape.rank else None
  if not images:
    return None
  size = replicas_per_ranking(images, replicas, images_per_ranking)
  return across_replicas.Group(context, size) if size > 1 else None


def replicas_per_ranking(images: int, replicas: int, images_per_ranking: int) -> int:
  """How many replicas rank together, where rankings may go across replicas.

  Args:
    images: of a replica.
    replicas: how many there are.
    images_per_ranking: see `ranking_loss`.

  Raises:
    ValueError: neither replicas nor a replica's images can be divided so.
  """
  size, rest = divmod(images_per_ranking, images)
  if size and not rest and replicas % size == 0:
    return size
  if 0 < images_per_ranking < images and images % images_per_ranking == 0:
    return 1
  raise ValueError(
    "images_per_ranking must divide the first dimension of a replica's logits, "
    f"{images}, or be a multiple of it that divides the {images * replicas} of all "
    f"{replicas} replicas, got {images_per_ranking}"
  )


def _rank_across(logits, anchors, step, group, across):
  rows = tf.reshape(logits, [-1, logits.shape[-1]])
  anchors = _flat(anchors)

  @tf.custom_gradient
  def with_update(rows):
    value, *found = across.rank(tf.stop_gradient(rows), anchors, step, group)

    def gradient(upstream):
      upstream = tf.cast(upstream, tf.float32) * group.size
      return across.gradient(rows, anchors.labels, step, found, upstream)

    return value, gradient

  return with_update(rows)


@compiling.cached
def _across(errors, jit_compile, form):
  return across_replicas.Across(errors, form, jit_compile)


def _flat(anchors):
  """engine.Anchors of fields [...] as of fields [R]."""
  return engine.Anchors(
    *(field if field is None else tf.reshape(field, [-1]) for field in anchors)
  )


def _form(form):
  if form is None:
    form = "gpu" if tf.config.list_logical_devices("GPU") else "cpu"
  if form not in engine.FORMS:
    raise ValueError(f"form must be one of {[*engine.FORMS]} or None, got {form!r}")
  return engine.FORMS[form]


def _checked(logits, labels, weights, class_weights, qualities, delta):
  """(logits [..., K], engine.Anchors with fields [...], knots.Step)."""
  if not 0 < delta < float("inf"):
    raise ValueError(f"delta must be positive and finite, got {delta}")
  logits, labels = labels_lib.checked(logits, labels)
  if weights is not None:
    weights = labels_lib.checked_numbers("weights", weights, labels.shape)
    labels = tf.where(weights == 0, labels_lib.IGNORED, labels)
  if class_weights is not None:
    class_weights = labels_lib.checked_numbers(
      "class_weights", class_weights, logits.shape[-1:]
    )
    index = tf.clip_by_value(labels - 1, 0, logits.shape[-1] - 1)
    of_classes = tf.where(labels > 0, tf.gather(class_weights, index), 1.0)
    weights = of_classes if weights is None else weights * of_classes
  if weights is not None:
    # What a label out of range does: NaN.
    is_fit = (weights >= 0) & tf.math.is_finite(weights)
    is_fit |= labels == labels_lib.IGNORED
    labels = tf.where(is_fit, labels, labels_lib.INVALID)
  if qualities is not None:
    qualities = tf.cast(tf.convert_to_tensor(qualities), tf.float32)
    labels_lib.check_shape("qualities", qualities, labels.shape)
    is_lost = (labels > 0) & ~tf.math.is_finite(qualities)
    labels = tf.where(is_lost, labels_lib.INVALID, labels)
  return logits, engine.Anchors(labels, weights, qualities), knots.Step.of(delta)


def _check_sizes(logits, images_per_ranking, replicas):
  """Raises ValueError where a ranking of so many images or replicas is none."""
  number = logits.shape.num_elements()
  if number is not None:
    number *= replicas
  if images_per_ranking is not None:
    images = logits.shape[0] if logits.shape.rank > 1 else None
    if logits.shape.rank < 2 or images_per_ranking < 1:
      raise ValueError(
        "images_per_ranking must be at least 1, for logits of at least 2 dimensions; "
        f"got {images_per_ranking} for logits of shape {logits.shape}"
      )
    if images is not None and images % images_per_ranking:
      raise ValueError(
        f"images_per_ranking must divide the first dimension of the logits, {images}, "
        f"got {images_per_ranking}"
      )
    if images and number:
      number = number // images * images_per_ranking
  labels_lib.check_number(number, logits.shape, "; set images_per_ranking")


class _Functions(NamedTuple):
  rank: Callable[..., Any]
  gradient: Callable[..., Any]


@compiling.cached
def _functions(errors, images_per_ranking, jit_compile, form):
  """Value and update as functions of tensors; traced once for each shape."""

  def rank(logits, anchors, step):
    if images_per_ranking is None:
      rows = tf.reshape(logits, [-1, logits.shape[-1]])
      return form.rank(rows, _flat(anchors), step, errors)
    groups = _grouped(logits, images_per_ranking)
    fields = {
      name: tf.reshape(field, tf.shape(groups)[:2])
      for name, field in anchors._asdict().items()
      if field is not None
    }
    values, *found = tf.map_fn(
      lambda group: form.rank(group[0], engine.Anchors(**group[1]), step, errors),
      (groups, fields),
      fn_output_signature=(tf.float32, *form.signature),
    )
    return tf.reduce_sum(values) / _number(groups), *found

  def gradient(logits, labels, step, found, upstream):
    if images_per_ranking is None:
      rows = tf.reshape(logits, [-1, logits.shape[-1]])
      result = form.gradient(rows, tf.reshape(labels, [-1]), step, found, upstream)
      return tf.reshape(result, tf.shape(logits))
    groups = _grouped(logits, images_per_ranking)
    labels = tf.reshape(labels, tf.shape(groups)[:2])
    share = tf.cast(upstream, tf.float32) / _number(groups)
    result = tf.map_fn(
      lambda group: form.gradient(group[0], group[1], step, group[2:], share),
      (groups, labels, *found),
      fn_output_signature=logits.dtype,
    )
    return tf.reshape(result, tf.shape(logits))

  if not jit_compile:
    return _Functions(rank, gradient)
  return _Functions(compiling.compiled(rank), compiling.compiled(gradient))


def _grouped(logits, images):
  """[groups, R, K]."""
  shape = tf.shape(logits)
  rows = images * tf.reduce_prod(shape[1:-1])
  return tf.reshape(logits, tf.stack([shape[0] // images, rows, logits.shape[-1]]))


def _number(groups):
  return tf.cast(tf.maximum(tf.shape(groups)[0], 1), tf.float32)
