"""What a start may change in a run that is there, and what it does about it."""

from __future__ import annotations

import dataclasses

from absl import logging

from ap_detect import config as config_lib
from ap_detect.runs import folder
from ap_detect.training import classification_losses

_START_ANEW = (
  "start a new run from its weights: the same command with --model_dir=<another folder> "
  "--config.model.initial_checkpoint={}"
)


def check_changes(model_dir, record, config):
  """Raises ValueError where a start would change in a run what must not change.

  Args:
    model_dir: the run's folder.
    record: the run's record, as runs.folder.read_record gives it.
    config: Config of the start.
  """
  changes = _changes(record["config"], config)
  refused = [
    f"{change.name}: {change.before!r} -> {change.after!r}"
    for change in changes
    if not change.is_allowed
  ]
  if refused:
    raise ValueError(
      "\n  ".join(
        [f"{model_dir} holds a run of another config (saved -> now):", *refused]
      )
      + f"\nGive the saved values to continue it. Otherwise {_START_ANEW.format(model_dir)}"
    )


def _changes(saved, config):
  """What config.changes finds between a record's config and that of a start."""
  loss = config.train.classification_loss
  before, after = (
    classification_losses.with_defaults(each, of=loss)
    for each in (config_lib.resolve(saved), config)
  )
  return config_lib.changes(before, after)


def check_classes(model_dir, record, classes):
  """As `check_changes`, for the folder.Classes of the start's data."""
  saved = folder.Classes.from_json(record["classes"])
  if saved != classes:
    raise ValueError(
      f"{model_dir} holds a run with {len(saved.names)} classes {saved}, but the data "
      f"now has {len(classes.names)} classes {classes}; {_START_ANEW.format(model_dir)}"
    )


def read_newest_record(model_dir):
  """The record of the newest checkpoint that can be read; None for none."""
  for path in folder.checkpoint_paths(model_dir):
    try:
      return folder.read_record(path)
    except folder.UNREADABLE:
      continue
  return None


def bring_best_up_to_date(run_state, validator, restored_from) -> bool:
  """Has the record's best be there, and judged as later ones will be.

  Args:
    run_state: state.TrainingState that is restored.
    validator: validation.Validator.
    restored_from: path of its checkpoint.

  Returns:
    Whether it was not so.
  """
  before = run_state.record.best
  best = validator.judge_best()
  if best is before:
    return False
  run_state.restore(restored_from)  # its weights, after those of the best
  run_state.record.best = best
  return True


def enter_changes(record, config, *, num_replicas, split_size) -> bool:
  """Takes over what this start changes, and says so.

  Args:
    record: state.Record of the run.
    config: Config of the start.
    num_replicas: of the start.
    split_size: images of its training split.

  Returns:
    Whether it changes anything.
  """
  clock = record.clock
  changes = {
    change.name: [change.before, change.after]
    for change in _changes(record.config, config)
  }
  if record.replicas != num_replicas:
    changes["replicas"] = [record.replicas, num_replicas]
  if clock.split_size != split_size:
    changes["images of the training split"] = [clock.split_size, split_size]
    clock.resize(split_size)
    record.epoch_sums, record.is_epoch_end = {}, False
  record.config, record.replicas = dataclasses.asdict(config), num_replicas
  for name, (old, new) in changes.items():
    logging.info(
      "changed at step %d: %s is %r now, %r before", clock.step, name, new, old
    )
  if changes:
    record.changes.append({"step": clock.step, "changes": changes})
  return bool(changes)
