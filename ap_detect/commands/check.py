"""Checks a dataset before training, and whether anchors fit it.

ap_detect check --config=... [--output_dir=...]

Lists what is invalid in the training and validation split, by kind, and ends with status
1 if training would refuse it. Says what is in the data, sound parts at least, how much of
it the config's anchors cover, and which anchors would cover it better. Writes report.html,
the same with charts, and report.json, the numbers and everything that is invalid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from typing import NamedTuple

from ap_detect import command_line

if __name__ == "__main__":
  # Before the imports below, which need TensorFlow: help comes at once.
  CONFIG = command_line.define_config("shapes")
  OUTPUT_DIR = command_line.define_path(
    "output_dir", "runs/check", "Where report.html and report.json go."
  )
  command_line.load_tensorflow()

from ap_detect import config as config_lib
from ap_detect.commands import check_measures, check_report, report_page
from ap_detect.data.records import DataError, DetectionDataset
from ap_detect.runs import data as data_lib
from ap_detect.runs import files


class Reading(NamedTuple):
  """What could be read of a config's splits.

  Attributes:
    datasets: DetectionDatasets by role, "training" and "validation"; without those of
      which nothing can be measured.
    refusal: why training would not start; None where it would.
  """

  datasets: dict[str, DetectionDataset]
  refusal: DataError | None


def read_splits(config) -> Reading:
  """Reads the training and the validation split, and what is sound where faults are.

  Where nothing of the training split can be read, the validation split is read with the
  classes it has itself.

  Args:
    config: Config.
  """
  splits = {"training": config.data.train_split, "validation": config.data.val_split}
  datasets: dict[str, DetectionDataset] = {}
  refused: list[tuple[str, DataError]] = []
  for role, split in splits.items():
    class_names = next((data.class_names for data in datasets.values()), ())
    dataset, error = _read(config, split, class_names)
    if error is not None:
      refused.append(("", error))
    if dataset is not None:
      datasets[role] = dataset
  if len(datasets) == len(splits):
    data_lib.warn_of_shared_images(*datasets.values())
  # What both splits meet, such as a missing folder, is one fault.
  return Reading(datasets, DataError.join(refused) if refused else None)


def _read(config, split, class_names):
  """(DetectionDataset or None, DataError or None)."""
  refusal, dataset = None, None
  try:
    dataset = data_lib.open_split(config, split, class_names)
  except DataError as error:
    refusal = error
    data = dataclasses.replace(config.data, skip_faulty=True)
    with contextlib.suppress(DataError):
      sound = dataclasses.replace(config, data=data)
      dataset = data_lib.open_split(sound, split, class_names)
  if dataset is not None:
    try:
      data_lib.check_objects(dataset, split)
    except ValueError as error:
      dataset = None
      refusal = refusal or DataError([str(error)])
  return dataset, refusal


def check(config, output_dir):
  """Checks a config's data and writes report.html and report.json.

  Args:
    config: Config.
    output_dir: where the two go; made if missing.

  Returns:
    (the report as text, the DataError that training would end with, or None).
  """
  datasets, refusal = read_splits(config)
  # Without training data there is nothing to compare anchors with.
  findings = (
    check_measures.measure(config, datasets) if "training" in datasets else None
  )
  parts = check_report.to_parts(findings, refusal)
  os.makedirs(output_dir, exist_ok=True)
  files.write_text(
    os.path.join(output_dir, "report.html"),
    report_page.to_html("Check of the data", parts),
  )
  files.write_json(
    os.path.join(output_dir, "report.json"), check_report.to_json(findings, refusal)
  )
  return report_page.to_text(parts), refusal


def main(_):
  config, output_dir = config_lib.resolve(CONFIG.value), OUTPUT_DIR.value
  text, refusal = check(config, output_dir)
  print(
    f"{text}\n\nreport    {output_dir}/report.html\nnumbers   {output_dir}/report.json"
  )
  if refusal is not None:
    count = len(refusal.faults)
    problems = "1 problem" if count == 1 else f"{count} problems"
    sys.exit(f"error: {problems} in the data, listed above; training would not start")


if __name__ == "__main__":
  command_line.run(main)
