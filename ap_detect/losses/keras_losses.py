"""The ranking losses as `tf.keras.losses.Loss`, for `Model.compile`."""

from __future__ import annotations

import tensorflow as tf

from ap_detect.losses.ap_loss import ap_loss
from ap_detect.losses.auc_loss import auc_loss


class _RankingLoss(tf.keras.losses.Loss):
  """Calls a loss function of logits and labels with fixed options."""

  def __init__(self, function, options, name):
    # The function returns the loss of the whole mini-batch: nothing is left to reduce.
    super().__init__(reduction=tf.keras.losses.Reduction.NONE, name=name)
    self._function = function
    self._options = options

  def __call__(self, y_true, y_pred, sample_weight=None):
    """The loss of a mini-batch.

    Args:
      y_true: [...] integer labels; a last dimension of 1 may follow.
      y_pred: [..., K] logits.
      sample_weight: None; a ranking has no weights of single samples.

    Returns:
      [] float32.

    Raises:
      ValueError: sample_weight was given, or as the function.
    """
    if sample_weight is not None:
      raise ValueError(f"{self.name} ranks all samples together: no sample_weight")
    with tf.name_scope(self.name):
      return self.call(y_true, y_pred)

  def call(self, y_true, y_pred):
    y_true, y_pred = tf.convert_to_tensor(y_true), tf.convert_to_tensor(y_pred)
    if y_true.shape.rank == y_pred.shape.rank:
      y_true = tf.squeeze(y_true, -1)
    if y_true.dtype.is_floating:  # Keras hands labels over as floats in places.
      y_true = tf.cast(tf.round(y_true), tf.int32)
    return self._function(y_pred, y_true, **self._options)

  def get_config(self):
    return {"name": self.name, **self._options}


class APLoss(_RankingLoss):
  """`ap_loss` as a Keras loss.

  Args:
    delta, interpolated, images_per_ranking, jit_compile: as for `ap_loss`.
    name: name of the loss in Keras' logs.

  Example:
    >>> float(APLoss()(tf.constant([1, 0, 0]), tf.constant([[2.0], [0.0], [5.0]])))
    0.5
  """

  def __init__(
    self,
    *,
    delta=1.0,
    interpolated=True,
    images_per_ranking=None,
    jit_compile=True,
    name="ap_loss",
  ):
    options = {
      "delta": delta,
      "interpolated": interpolated,
      "images_per_ranking": images_per_ranking,
      "jit_compile": jit_compile,
    }
    super().__init__(ap_loss, options, name)


class AUCLoss(_RankingLoss):
  """`auc_loss` as a Keras loss.

  Args:
    delta, images_per_ranking, jit_compile: as for `ap_loss`.
    name: name of the loss in Keras' logs.

  Example:
    >>> float(AUCLoss()(tf.constant([1, 0, 0]), tf.constant([[2.0], [0.0], [5.0]])))
    0.5
  """

  def __init__(
    self, *, delta=1.0, images_per_ranking=None, jit_compile=True, name="auc_loss"
  ):
    options = {
      "delta": delta,
      "images_per_ranking": images_per_ranking,
      "jit_compile": jit_compile,
    }
    super().__init__(auc_loss, options, name)
