"""The clock, the record, and checkpoints that are whole or not there."""

import json
import os

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import fellows

from ap_detect.runs import folder
from ap_detect.training import optimizers, state, step

sizes = st.integers(1, 50)


class TestClock:
  def test_by_hand(self):
    """10 images, batches of 4: after 3 steps 12 images, 1.2 epochs, 2 steps to the 2nd."""
    clock = state.Clock(10).after(3, 4)
    assert (clock.step, clock.images, clock.position) == (3, 12, 12)
    assert (clock.epochs_done, clock.epoch) == (1.2, 1)
    assert clock.steps_to(2, 4) == 2
    assert clock.steps_to(1, 4) == 0

  def test_another_split_begins_at_the_epoch(self):
    clock = state.Clock(10).after(3, 4)
    clock.resize(16)
    assert (clock.epochs_done, clock.position, clock.images) == (1.0, 16, 12)

  @settings(max_examples=200, deadline=None)
  @given(split=sizes, batches=st.lists(sizes, max_size=20), epochs=st.integers(1, 9))
  def test_steps_to_are_the_fewest(self, split, batches, epochs):
    clock = state.Clock(split)
    for batch in batches:  # a run may change its batch size at any step
      steps = clock.steps_to(epochs, batch)
      assert clock.after(steps, batch).epochs_done >= epochs
      assert steps == 0 or clock.after(steps - 1, batch).epochs_done < epochs
      clock = clock.after(1, batch)
    assert clock.position == clock.images == sum(batches)
    assert clock.step == len(batches)


def make_record(**changes):
  fields = {
    "clock": state.Clock(10, 8, 3, 12, 12),
    "config": {"train": {"seed": 5, "decay_epochs": [1, 2]}},
    "classes": {"names": ["a"], "category_ids": [7]},
    "replicas": 2,
    "history": [{"epoch": 1, "AP": 0.1, "APs": None}],
    "validation": {"epoch": 1, "step": 3, "metrics": {}, "score_thresholds": {}},
    "best": {"checkpoint": "epoch-1", "metrics": {"AP": 1 / 3}},
    "changes": [{"step": 2, "changes": {"train.epochs": [3, 4]}}],
    "epoch_sums": {"total_loss": [0.1 + 0.2, 3]},
    "is_epoch_end": True,
  }
  return state.Record(**{**fields, **changes})


def test_record_survives_json():
  record = make_record()
  text = json.dumps(record.to_json())
  assert state.Record.from_json(json.loads(text)) == record
  assert json.loads(text)["step"] == 3
  assert record.is_validated
  assert not make_record(validation={"step": 2}).is_validated
  assert not make_record(validation=None).is_validated


def make_state(
  model_dir, record=None, value=0.0, keep_checkpoints=2, slots=True, **options
):
  network = tf.keras.Sequential([tf.keras.layers.Dense(3, input_shape=(2,))])
  optimizer = optimizers.make_optimizer("sgd", step.Feed().learning_rate)
  if slots:
    optimizers.create_state(optimizer, network.trainable_variables)
  found = state.TrainingState(
    str(model_dir),
    network,
    optimizer,
    record or make_record(validation=None),
    keep_checkpoints=keep_checkpoints,
    **options,
  )
  fill(network, value)
  return found, network


def fill(network, value):
  for weight in network.weights:
    weight.assign(tf.fill(weight.shape, value))


def saved(model_dir, subfolder="checkpoints"):
  return [
    os.path.basename(p) for p in folder.checkpoint_paths(str(model_dir), subfolder)
  ]


def advance(run_state, steps=1):
  run_state.record.clock = run_state.record.clock.after(steps, 4)


class TestCheckpoints:
  def test_everything_comes_back(self, tmp_path):
    record = make_record()
    run_state, _ = make_state(tmp_path, record, value=2.5)
    path = run_state.save()
    assert os.path.basename(path) == "step-3-validated"
    other, restored = make_state(tmp_path)
    assert other.restore_latest() == path
    assert other.record == record
    np.testing.assert_array_equal(restored.weights[0], np.full([2, 3], 2.5))

  def test_latest_steps_stay(self, tmp_path):
    run_state, _ = make_state(tmp_path)
    for _ in range(4):
      run_state.save()
      advance(run_state, 4)
    assert saved(tmp_path) == ["step-15", "step-11"]
    run_state.record.validation = {"step": 19}
    run_state.save()  # takes the place of one that was not validated
    assert saved(tmp_path) == ["step-19-validated", "step-15"]
    run_state.record.clock = state.Clock(10, step=100)
    run_state.save()  # by number, not by letters
    assert saved(tmp_path) == ["step-100", "step-19-validated"]

  def test_validated_one_replaces_the_other(self, tmp_path):
    run_state, _ = make_state(tmp_path)
    run_state.save()
    run_state.record.validation = {"step": 3}
    run_state.save()
    assert saved(tmp_path) == ["step-3-validated"]

  @pytest.mark.parametrize("failing", ["data-00000-of-00001", "index"])
  def test_killed_while_saving(self, tmp_path, monkeypatch, failing):
    """Whatever stops it: the new checkpoint is not there, the old one is the latest."""
    run_state, network = make_state(tmp_path, value=1.0)
    run_state.save()
    advance(run_state)
    replace = os.replace

    def killed(source, target):
      if source.endswith(failing):
        raise KeyboardInterrupt
      replace(source, target)

    monkeypatch.setattr(state.os, "replace", killed)
    fill(network, 2.0)
    with pytest.raises(KeyboardInterrupt):
      run_state.save()
    monkeypatch.undo()
    assert saved(tmp_path) == ["step-3"]
    other, restored = make_state(tmp_path)
    other.restore_latest()
    assert restored.weights[0].numpy()[0, 0] == 1.0
    # And the run comes past it again.
    fill(restored, 2.0)
    advance(other)
    other.save()
    assert saved(tmp_path) == ["step-4", "step-3"]
    again, restored = make_state(tmp_path)
    again.restore_latest()
    assert restored.weights[0].numpy()[0, 0] == 2.0

  @pytest.mark.parametrize(
    "damage", ["no data", "empty data", "short data", "short index"]
  )
  def test_damaged_latest(self, tmp_path, damage, monkeypatch):
    run_state, network = make_state(tmp_path, value=1.0)
    run_state.save()
    advance(run_state)
    fill(network, 2.0)
    path = run_state.save()
    data, index = f"{path}.data-00000-of-00001", f"{path}.index"
    if damage == "no data":
      os.remove(data)
    else:
      size = 0 if damage == "empty data" else 40
      os.truncate(index if damage == "short index" else data, size)
    said = []
    monkeypatch.setattr(
      "ap_detect.runs.model.logging.warning",
      lambda text, *parts: said.append(text % parts),
    )
    other, restored = make_state(tmp_path)
    assert os.path.basename(other.restore_latest()) == "step-3"
    assert restored.weights[0].numpy()[0, 0] == 1.0
    assert other.record.clock.step == 3
    assert "step-4 is damaged" in said[0] and "step-3" in said[0]
    # Out of the way of the one that the run will write again.
    assert saved(tmp_path) == ["step-3"]
    assert os.path.exists(tmp_path / "checkpoints/damaged/step-4.index")

  def test_all_damaged(self, tmp_path):
    run_state, _ = make_state(tmp_path)
    path = run_state.save()
    os.truncate(f"{path}.index", 0)
    other, _ = make_state(tmp_path)
    with pytest.raises(ValueError, match="step-3 is damaged or does not fit"):
      other.restore_latest()
    assert saved(tmp_path) == ["step-3"]

  def test_one_without_the_optimiser_s_state_is_refused(self, tmp_path):
    """Finding: nothing said so, and momentum began at 0."""
    run_state, _ = make_state(tmp_path, slots=False)
    run_state.save()
    complete, _ = make_state(tmp_path)
    with pytest.raises(ValueError, match="does not fit"):
      complete.restore_latest()

  def test_broken_weights_are_not_saved(self, tmp_path):
    run_state, network = make_state(tmp_path, value=1.0)
    run_state.save()
    advance(run_state)
    network.weights[1].assign([1.0, np.nan, 1.0])
    with pytest.raises(
      state.NonFiniteError, match=r"bias.* is not finite after step 4"
    ):
      run_state.save()
    assert saved(tmp_path) == ["step-3"]

  def test_a_changed_record_is_saved_again(self, tmp_path):
    """What a start changes in a run that has no step left."""
    run_state, _ = make_state(tmp_path)
    run_state.save()
    run_state.record.replicas = 5
    assert os.path.basename(run_state.save()) == "step-3"  # nothing is written
    for replicas in (2, 3):
      run_state.record.replicas = replicas
      run_state.save(is_changed=True)
      assert len(saved(tmp_path)) == 1  # in the place of the one before
    other, _ = make_state(tmp_path)
    other.restore_latest()
    assert other.record.replicas == 3

  def test_one_that_may_not_be_read_is_not_given_up(self, tmp_path, monkeypatch):
    run_state, _ = make_state(tmp_path)
    run_state.save()
    advance(run_state)
    run_state.save()

    def forbidden(path):
      raise tf.errors.PermissionDeniedError(None, None, path)

    monkeypatch.setattr(run_state, "restore", forbidden)
    with pytest.raises(tf.errors.PermissionDeniedError):
      run_state.restore_latest()
    assert saved(tmp_path) == ["step-4", "step-3"]

  def test_half_of_a_checkpoint_goes(self, tmp_path):
    run_state, _ = make_state(tmp_path)
    path = run_state.save()
    os.remove(f"{path}.index")  # killed while it was removed
    advance(run_state)
    run_state.save()
    names = os.listdir(tmp_path / "checkpoints")
    assert sorted(names) == ["step-4.data-00000-of-00001", "step-4.index"]


def test_replicas_go_on_with_the_statistics_that_are_saved(tmp_path, make_strategy):
  """Those of batch norms that are trained are each replica's own."""
  strategy = make_strategy(2)
  with strategy.scope():
    network = tf.keras.Sequential(
      [tf.keras.layers.BatchNormalization(input_shape=(1,))]
    )
    optimizer = optimizers.make_optimizer("sgd", step.Feed().learning_rate)
    optimizers.create_state(optimizer, network.trainable_variables)
  mean = network.layers[0].moving_mean

  @tf.function
  def update():
    def in_replica():
      replica = tf.distribute.get_replica_context().replica_id_in_sync_group
      mean.assign([tf.cast(replica, tf.float32)])

    strategy.run(in_replica)

  update()
  values = [
    float(value.numpy()[0]) for value in strategy.experimental_local_results(mean)
  ]
  assert values == [0.0, 1.0]
  record = make_record(validation=None)
  state.TrainingState(
    str(tmp_path), network, optimizer, record, keep_checkpoints=2
  ).save()
  values = [
    float(value.numpy()[0]) for value in strategy.experimental_local_results(mean)
  ]
  assert values == [0.5, 0.5]


def test_only_the_chief_writes(tmp_path):
  """Of two workers; both restore what it wrote, here into other weights."""

  def work(fellow):
    run_state, network = make_state(
      tmp_path / str(fellow.index), value=1.0 + fellow.index, workers=fellow
    )
    path = run_state.save()
    run_state.save_best("epoch-1")
    run_state.write_views()
    fill(network, 9.0)
    run_state.restore_latest()
    return path, network.weights[0].numpy()[0, 0]

  with_chief = str(tmp_path / "0" / "checkpoints" / "step-3")
  assert fellows.run_all(work) == [(with_chief, 1.0)] * 2
  assert saved(tmp_path / "0", "best") == ["epoch-1"]
  assert (tmp_path / "0" / "config.json").exists()
  assert not (tmp_path / "1").exists()
  assert not tf.io.gfile.exists("ram://ap_detect")


def test_workers_must_start_from_the_same_weights(tmp_path):
  def work(fellow, last):
    run_state, network = make_state(tmp_path, value=1.0, workers=fellow)
    network.weights[-1].assign([0.0, 0.0, last if fellow.index else 0.0])
    run_state.check_workers()

  assert fellows.run_all(lambda fellow: work(fellow, 0.0)) == [None, None]
  for error in fellows.run_all(lambda fellow: work(fellow, 1e-7)):
    assert "must have the same weights to start from: there is an" in str(error)


class TestBest:
  def test_those_of_a_time_that_is_given_up_go(self, tmp_path):
    """The run went on from before them: they must not take the places of new ones."""
    run_state, _ = make_state(tmp_path)
    run_state.save_best("epoch-1")
    run_state.save()
    run_state.save_best("epoch-9")
    other, _ = make_state(tmp_path)
    run_state.record.best["checkpoint"] = "epoch-9"
    other.restore_latest()
    assert other.record.best["checkpoint"] == "epoch-1"
    assert saved(tmp_path, "best") == ["epoch-1"]

  def test_two_stay_with_their_records(self, tmp_path):
    run_state, network = make_state(tmp_path)
    for epoch in (1, 2, 10):
      fill(network, float(epoch))
      run_state.record.validation = {"step": epoch, "epoch": epoch}
      run_state.save_best(f"epoch-{epoch}")
    assert saved(tmp_path, "best") == ["epoch-10", "epoch-2"]
    path = str(tmp_path / "best/epoch-2")
    assert folder.read_record(path)["validation"]["epoch"] == 2
    run_state.restore_judged_weights(path)
    assert network.weights[0].numpy()[0, 0] == 2.0


def test_views_are_the_record(tmp_path):
  run_state, _ = make_state(tmp_path, make_record())
  run_state.write_views()
  names = ("config", "classes", "history", "best", "changes")
  for name in names:
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written == getattr(run_state.record, name)
  run_state.record.best, run_state.record.history = None, []
  run_state.write_views()  # a record that is older than they are
  assert not (tmp_path / "best.json").exists()
  assert not (tmp_path / "history.json").exists()
