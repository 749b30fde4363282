"""What is kept of a training: metrics.csv, its chart, TensorBoard; and callbacks."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import os
import time
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api as hparams
from tensorboard.summary.writer import event_file_writer

from ap_detect import charts, errors
from ap_detect.runs import files, folder


class MetricsFile:
  """metrics.csv in a run's folder: a row per logging.

  Args:
    model_dir: the run's folder.
    step: rows of later steps are removed: the run went on from here.
  """

  def __init__(self, model_dir, step):
    path = os.path.join(model_dir, folder.METRICS)
    rows = _read_rows(path)
    kept = [row for row in rows if int(row["step"]) <= step]
    self._columns: list[str] = list(rows[0]) if rows else []
    if len(kept) < len(rows):
      _write_rows(path, self._columns, kept)
    self._path = path
    self._file = open(path, "a", encoding="utf-8", newline="")  # noqa: SIM115

  def write(self, row):
    """Appends a row, which is on disk when this returns.

    Columns that the file lacks, as one of an earlier version does, are added to it.

    Args:
      row: dict of column -> number; None leaves the field empty. Floats are written
        with 7 significant digits, which is what float32 has.
    """
    is_first = not self._columns
    if is_first:
      self._columns = list(row)
    elif not row.keys() <= set(self._columns):
      self._add_columns(row)
    writer = csv.DictWriter(self._file, self._columns, lineterminator="\n")
    with errors.naming(self._path):
      if is_first:
        writer.writeheader()
      writer.writerow({name: _short(value) for name, value in row.items()})
      self._file.flush()

  def close(self):
    """Closes the file."""
    with errors.naming(self._path):
      self._file.close()

  def _add_columns(self, names):
    self._columns += [name for name in names if name not in self._columns]
    self._file.close()
    _write_rows(self._path, self._columns, _read_rows(self._path))
    self._file = open(self._path, "a", encoding="utf-8", newline="")  # noqa: SIM115


class NoMetricsFile:
  """In place of a MetricsFile, for a worker that writes none."""

  def write(self, row):
    """Does nothing."""

  def close(self):
    """Does nothing."""


def _read_rows(path):
  """The rows of a CSV file, without a last one that was cut off; [] for no file."""
  if not os.path.exists(path):
    return []
  with open(path, encoding="utf-8", newline="") as file:
    text = file.read()
  whole = text[: text.rfind("\n") + 1]
  if whole != text:
    files.write_text(path, whole)
  return list(csv.DictReader(io.StringIO(whole)))


def _write_rows(path, columns, rows):
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, text.getvalue())


def _short(value):
  return f"{value:.7g}" if isinstance(value, float) else value


def write_chart(model_dir, history):
  """Draws training.png: losses and learning rate by metrics.csv, and validations.

  Args:
    model_dir: the run's folder.
    history: metrics of each validation, as in state.Record.
  """
  rows = _read_rows(os.path.join(model_dir, folder.METRICS))
  epochs = [float(row["epoch"]) for row in rows]
  names = [name for name in (rows[0] if rows else ()) if name.endswith("_loss")]
  picture = charts.training_picture(
    {name: (epochs, [float(row[name]) for row in rows]) for name in names},
    (epochs, [float(row["learning_rate"]) for row in rows]),
    {
      name: ([entry["epoch"] for entry in history], [entry[name] for entry in history])
      for name in ("AP", "AP50", "AP75")
    },
  )
  files.write_png(os.path.join(model_dir, folder.TRAINING_CHART), picture)


def open_tensorboard(model_dir, step):
  """tf.summary writer of a run that is at some step.

  It tells TensorBoard that what an earlier start wrote of later steps does not hold. The
  first start does so too, for TensorBoard takes the first such note for a beginning.
  """
  path = os.path.join(model_dir, folder.TENSORBOARD)
  _await_next_second(path)
  notes = event_file_writer.EventFileWriter(path, filename_suffix=".start")
  log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  notes.add_event(
    event_pb2.Event(wall_time=time.time(), step=step + 1, session_log=log)
  )
  notes.close()
  return tf.summary.create_file_writer(path)


def _await_next_second(path):
  """TensorBoard reads files in the order of their names, which begin with the second."""
  names = [name.split(".") for name in os.listdir(path)] if os.path.isdir(path) else []
  seconds = [int(name[3]) for name in names if len(name) > 3 and name[3].isdigit()]
  newest = max(seconds, default=0)
  while newest - 2 <= time.time() < newest + 1:  # not for a clock that was wrong
    time.sleep(0.05)


def write_scalars(writer, row):
  """Writes a row of metrics.csv to TensorBoard."""
  with writer.as_default(step=row["step"]):
    for name, value in row.items():
      if name in ("step", "images", "epoch") or value is None:
        continue
      is_train = name.endswith(("_loss", "_norm"))
      tf.summary.scalar(f"train/{name}" if is_train else name, value)


def write_histograms(group, edges, counts):
  """Writes counts of bins as TensorBoard's histograms; to the default writer and step.

  TensorFlow's own summary takes the values themselves. Bins beyond all values are left
  out, alike in all histograms, for TensorBoard shows empty ones too.

  Args:
    group: what the histograms have in common.
    edges: [N + 1] of the bins.
    counts: {name: [N] counts}.
  """
  filled = np.flatnonzero(sum(counts.values()))
  for name, values in counts.items() if len(filled) else ():
    bins = np.stack([edges[:-1], edges[1:], values], axis=-1)
    tf.summary.write(
      f"{group}/{name}",
      tf.constant(bins[filled[0] : filled[-1] + 1], tf.float64),
      metadata=histogram_metadata.create_summary_metadata(None, None),
    )


def write_hyper_parameters(writer, config, model_dir):
  """Writes a config for TensorBoard's table of hyper-parameters.

  Without a description of the experiment, for then TensorBoard puts the fields first in
  which runs differ.

  Args:
    writer: tf.summary writer.
    config: Config.
    model_dir: the run's folder, whose name the run has in the table.
  """
  values = {
    f"{section}.{name}": value if isinstance(value, (bool, int, float)) else str(value)
    for section, fields in dataclasses.asdict(config).items()
    for name, value in fields.items()
  }
  with writer.as_default(step=0):
    hparams.hparams(values, trial_id=os.path.basename(os.path.abspath(model_dir)))


class Speed:
  """Images per second, and the share of the time that was spent waiting for data."""

  def __init__(self):
    self.restart()

  def restart(self):
    """Forgets what was: what comes next is no training time."""
    self._since = None
    self._images = 0
    self._waited = 0.0

  def start(self):
    """Counts from now on, unless it does already."""
    if self._since is None:
      self.restart()
      self._since = time.monotonic()

  def add(self, images, waited):
    """Counts images, and seconds that their batches were waited for."""
    self._images += images
    self._waited += waited

  def take(self):
    """(images per second, share waited) since the last time; (None, None) for no time."""
    since, images, waited = self._since, self._images, self._waited
    if since is None or not images:
      return None, None
    self.restart()
    self.start()
    seconds = max(time.monotonic() - since, 1e-9)
    return images / seconds, min(waited / seconds, 1.0)


def make_callbacks(paths: Sequence[str], others, model, **params):
  """Keras callbacks by import path, and others, in Keras' own list.

  Args:
    paths: "package.module.Name" of a callback's class, or of a function that makes one;
      called without arguments.
    others: callbacks.
    model: tf.keras.Model that they get as their `model`.
    params: what they find in `params`.

  Returns:
    tf.keras.callbacks.CallbackList.

  Raises:
    ValueError: a path cannot be imported, or does not lead to a callback.
  """
  callbacks = [*(_make_callback(path) for path in paths), *others]
  return tf.keras.callbacks.CallbackList(callbacks, model=model, **params)


def _make_callback(path):
  module_name, _, name = path.rpartition(".")
  try:
    callback = getattr(importlib.import_module(module_name), name)()
  except (ImportError, AttributeError, ValueError, TypeError) as error:
    raise ValueError(
      "train.callbacks must be import paths, package.module.Name, of Keras callbacks "
      f"that can be made without arguments; {path!r}: {error}"
    ) from error
  callbacks = tf.keras.callbacks
  if isinstance(
    callback, (callbacks.LearningRateScheduler, callbacks.ReduceLROnPlateau)
  ):
    raise ValueError(
      f"train.callbacks: {path} sets the learning rate, which follows train.schedule "
      "here; callbacks may watch a training and stop it"
    )
  if not isinstance(callback, callbacks.Callback):
    raise ValueError(
      f"train.callbacks: {path} must make a tf.keras.callbacks.Callback, got {callback!r}"
    )
  return callback
