"""Checks a dataset before training, and whether anchors fit it.

ap_detect check --config=... [--output_dir=...]

Lists all faults of the training and validation split and ends with status 1 if there are
any, unless data.skip_faulty has them left out. Else prints what is in the data, how much
of it the config's anchors cover, and which anchors would cover it better; writes
report.html, the same with charts, and report.json, the numbers.
"""

from __future__ import annotations

import os
import sys

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
from ap_detect.data import dataset as dataset_lib
from ap_detect.runs import data as data_lib
from ap_detect.runs import files


def read_splits(config):
  """The training and the validation split of a config.

  Where the training split has faults, the validation split is read with the classes it
  has itself.

  Args:
    config: Config.

  Returns:
    (DetectionDataset, DetectionDataset).

  Raises:
    DataError: faults in the data, all that were found in either split.
    ValueError: a split has no object that counts.
  """
  splits = config.data.train_split, config.data.val_split
  datasets: list[dataset_lib.DetectionDataset] = []
  failed: list[tuple[str, dataset_lib.DataError]] = []
  for split in splits:
    class_names = datasets[0].class_names if datasets else ()
    try:
      datasets.append(data_lib.open_split(config, split, class_names))
    except dataset_lib.DataError as error:
      failed.append(("", error))
  if failed:
    # What both splits meet, such as a missing folder, is one fault.
    raise dataset_lib.DataError.join(failed)
  for split, dataset in zip(splits, datasets):
    data_lib.check_objects(dataset, split)
  return tuple(datasets)


def check(config, output_dir):
  """Checks a config's data and writes report.html and report.json.

  Args:
    config: Config.
    output_dir: where the two go; made if missing.

  Returns:
    The report as text.

  Raises:
    ValueError: see `read_splits`; nothing is written then.
  """
  findings = check_measures.measure(config, read_splits(config))
  parts = check_report.to_parts(findings)
  os.makedirs(output_dir, exist_ok=True)
  files.write_text(
    os.path.join(output_dir, "report.html"),
    report_page.to_html("Check of the data", parts),
  )
  files.write_json(
    os.path.join(output_dir, "report.json"), check_report.to_json(findings)
  )
  return report_page.to_text(parts)


def main(_):
  config, output_dir = config_lib.resolve(CONFIG.value), OUTPUT_DIR.value
  try:
    text = check(config, output_dir)
  except dataset_lib.DataError as error:
    # The error's own message has the first ones only.
    sys.exit(f"error: {error.describe()}")
  print(
    f"{text}\n\nreport    {output_dir}/report.html\nnumbers   {output_dir}/report.json"
  )


if __name__ == "__main__":
  command_line.run(main)
