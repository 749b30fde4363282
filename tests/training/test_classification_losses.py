"""The loss that a config names: ours or another's, its options, and what is refused."""

import dataclasses
import functools
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from ap_detect import config as config_lib
from ap_detect import losses
from ap_detect.training import classification_losses

LOGITS = tf.constant([[[2.0], [0.0], [5.0]]])
LABELS = tf.constant([[1, 0, 0]])


def train_config(name="ap_loss", jit_compile="auto", batch_size=2, **options):
  return dataclasses.replace(
    config_lib.TrainConfig(),
    classification_loss=name,
    loss_options=options,
    jit_compile=jit_compile,
    batch_size=batch_size,
  )


@pytest.fixture
def own(monkeypatch):
  """Function of definitions to a module `own_losses` with them."""

  def define(**definitions):
    module = types.ModuleType("own_losses")
    vars(module).update(definitions)
    monkeypatch.setitem(sys.modules, "own_losses", module)

  return define


def hinge(logits, labels, *, margin=1.0, weight=(1, 2), **others):
  return margin * tf.reduce_mean(logits) + others.get("shift", 0.0)


class TestFind:
  @pytest.mark.parametrize("name", ["ap_loss", "ap_detect.losses.ap_loss.ap_loss"])
  def test_with_its_options(self, name):
    loss = classification_losses.find(train_config(name, delta=0.25))
    assert (loss.name, loss.takes_qualities) == ("ap_loss", False)
    expected = losses.ap_loss(LOGITS, LABELS, delta=0.25)
    assert loss.function(LOGITS, LABELS) == expected

  def test_takes_qualities(self):
    loss = classification_losses.find(train_config("quality_focal_loss", beta=1.0))
    assert loss.takes_qualities
    qualities = tf.constant([[0.5, 0.0, 0.0]])
    expected = losses.quality_focal_loss(LOGITS, LABELS, qualities=qualities, beta=1.0)
    assert loss.function(LOGITS, LABELS, qualities=qualities) == expected

  @pytest.mark.parametrize(
    ("jit_compile", "told"), [("never", False), ("auto", True), ("always", True)]
  )
  def test_is_told_whether_to_compile_where_it_asks(self, jit_compile, told, own):
    own(
      asks=lambda logits, labels, *, jit_compile: jit_compile,
      does_not=lambda logits, labels: "called",
    )
    find = functools.partial(train_config, jit_compile=jit_compile)
    loss = classification_losses.find(find("own_losses.asks"))
    assert loss.function(LOGITS, LABELS) is told
    loss = classification_losses.find(find("own_losses.does_not"))
    assert loss.function(LOGITS, LABELS) == "called"

  @pytest.mark.parametrize(
    ("function", "expected"),
    [
      ("hinge_loss", "hinge_loss"),
      ("hinge", "hinge_loss"),
      ("total_loss", "classification_loss"),  # which the step logs itself
      ("box_loss", "classification_loss"),
    ],
  )
  def test_name_in_the_logs(self, function, expected, own):
    own(**{function: hinge})
    loss = classification_losses.find(train_config(f"own_losses.{function}"))
    assert loss.name == expected

  @pytest.mark.parametrize(
    ("name", "options", "said"),
    [
      ("hinge", {}, "one of ap_loss, auc_loss, focal_loss"),
      ("smooth_l1", {}, "got 'smooth_l1'"),
      ("no_package.losses.hinge", {}, "No module named 'no_package'"),
      ("own_losses.hinged", {}, "no attribute 'hinged'"),
      ("own_losses.margin", {}, "must be a function, got 3"),
      ("own_losses.one", {}, "logits, labels and .*too many positional"),
      ("own_losses.lacks", {"a": 1}, "missing a required .*'errors'"),
      ("own_losses.lacks", {"b": 1}, "no option 'b'; .* may have errors, a"),
      ("builtins.dict", {}, "no signature"),
      ("ap_loss", {"gamma": 2}, "ap_loss has no option 'gamma'; .* may have .*delta"),
      ("ap_loss", {"jit_compile": True}, "'jit_compile' is of a batch or the step's"),
      ("quality_focal_loss", {"qualities": 1}, "'qualities' is of a batch or"),
      ("quality_focal_loss", {"quality": 1}, "may have beta$"),
    ],
  )
  def test_refused(self, name, options, said, own):
    own(
      hinge=hinge,
      margin=3,
      one=lambda logits: 0.0,
      lacks=lambda logits, labels, errors, a=1: 0.0,
    )
    train = dataclasses.replace(train_config(name), loss_options=options)
    with pytest.raises(ValueError, match=said) as caught:
      classification_losses.find(train)
    assert "\n" not in str(caught.value)


class TestWithDefaults:
  def test_what_is_left_out_is_filled_in(self):
    config = config_lib.Config(train=train_config("focal_loss", gamma=1.0))
    filled = classification_losses.with_defaults(config)
    assert filled.train.loss_options == {"alpha": 0.25, "gamma": 1.0}
    assert classification_losses.with_defaults(filled) == filled
    found = classification_losses.with_defaults(config_lib.Config()).train.loss_options
    assert found["delta"] == 1.0 and found["images_per_ranking"] is None
    assert not {"jit_compile", "qualities", "ranking_scope"} & set(found)

  def test_of_another_s_only_what_a_record_can_hold(self, own):
    own(hinge=hinge)
    config = config_lib.Config(train=train_config("own_losses.hinge", shift=2))
    found = classification_losses.with_defaults(config).train.loss_options
    assert found == {"margin": 1.0, "shift": 2}


class TestCheck:
  @pytest.mark.parametrize("name", losses.CLASSIFICATION_LOSSES)
  def test_ours_pass(self, name):
    classification_losses.check(train_config(name), 3)

  def test_another_s_passes(self, own):
    own(hinge=hinge)
    classification_losses.check(train_config("own_losses.hinge", shift=2.0), 3)

  def test_has_the_shapes_of_a_batch(self, own):
    shapes = []

    def loss(logits, labels, *, qualities):
      shapes.append((logits.shape[0], logits.shape[2], *labels.shape))
      np.testing.assert_array_equal(qualities, labels)  # 1 where it is positive
      return tf.reduce_sum(logits)

    own(hinge=loss)
    classification_losses.check(train_config("own_losses.hinge", batch_size=5), 7)
    assert shapes == [(5, 7, 5, 2)]

  @pytest.mark.parametrize(
    ("options", "said"),
    [
      ({"delta": -1.0}, "{'delta': -1.0}: delta must be positive"),
      ({"delta": "a"}, "not supported between"),
      ({"interpolated": "no"}, "must be True or False, got 'no'"),
      ({"images_per_ranking": 3}, "must divide .* 8, got 3"),
      ({"images_per_ranking": -1}, "at least 1"),
    ],
  )
  def test_values_that_a_loss_refuses(self, options, said):
    train = train_config(batch_size=8, **options)
    with pytest.raises(ValueError, match=f"ap_loss with train.loss_options=.*{said}"):
      classification_losses.check(train, 3)

  def test_rankings_of_all_replicas(self):
    train = dataclasses.replace(
      train_config(batch_size=2, images_per_ranking=8),
      accumulate_steps=2,
      ranking_scope="global",
    )
    assert classification_losses.find(train).is_across_replicas
    classification_losses.check(train, 3, replicas=2)
    with pytest.raises(ValueError, match=r"must divide .* 4, got 8"):
      classification_losses.check(train, 3, replicas=1)
    with pytest.raises(ValueError, match=r"4, or be a multiple of it that .* got 3"):
      classification_losses.check(
        dataclasses.replace(train, loss_options={"images_per_ranking": 3}),
        3,
        replicas=3,
      )

  def test_losses_that_rank_nothing(self):
    train = dataclasses.replace(train_config("focal_loss"), ranking_scope="global")
    with pytest.raises(
      ValueError, match=r"ranking_scope=global is .*; focal_loss does"
    ):
      classification_losses.check(train, 3)

  @pytest.mark.parametrize(
    ("loss", "said"),
    [
      (lambda logits, labels: logits, r"got shape \(2, 2, 3\) float32$"),
      (lambda logits, labels: tf.cast(tf.reduce_sum(logits), tf.float64), "float64$"),
      (lambda logits, labels: tf.constant(0.0), "float32 without one"),
      (lambda logits, labels: float(logits), "only"),
    ],
  )
  def test_what_is_no_loss(self, loss, said, own):
    own(hinge=loss)
    with pytest.raises(ValueError, match=rf"own_losses\.hinge.*{said}"):
      classification_losses.check(train_config("own_losses.hinge"), 3)
