"""Packs a split into a few large TFRecord files.

ap_detect write_tfrecords --config=... --split=... --output_dir=...

The split is read and checked as training reads it, joined from several where its name
says so, and written with the classes that training on the config has. To train on what
was written: --config.data.root=<output_dir>, and --config.data.format=auto where the
config names another format, with the names of the splits there as data.train_split and
data.val_split.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from ap_detect import command_line

if __name__ == "__main__":
  # Before the imports below, which need TensorFlow: help comes at once.
  CONFIG = command_line.define_config("shapes")
  SPLIT = flags.DEFINE_string("split", None, "Split to write.", required=True)
  OUTPUT_DIR = command_line.define_path(
    "output_dir", None, "Folder of the shards.", required=True
  )
  NAME = flags.DEFINE_string(
    "name", "", "Name of the written split; by default the same, if it is a plain name."
  )
  SHARD_MIB = flags.DEFINE_integer(
    "shard_mib", 128, "Size of a shard, MiB.", lower_bound=1
  )
  command_line.load_tensorflow()

from ap_detect import config as config_lib
from ap_detect.data.readers import tfrecords
from ap_detect.runs import data as data_lib


def write(config, split, output_dir, *, name="", shard_bytes=tfrecords.SHARD_BYTES):
  """Writes a split of a config's data.

  Args:
    config: Config.
    split: see splits.read_split.
    output_dir: folder to write into; made if missing.
    name: of the split there; "" for `split`, which must then be a plain name.
    shard_bytes: a shard is full from there on.

  Returns:
    Paths of the files, the index last.

  Raises:
    ValueError: faults in the data, or see tfrecords.write_tfrecords.
  """
  dataset = data_lib.open_split(
    config, split, _class_names(config, split), convertible=True
  )
  return tfrecords.write_tfrecords(
    dataset, output_dir, name or split, shard_bytes=shard_bytes
  )


def _class_names(config, split):
  """The classes of the training split, which may have more of them than this one."""
  data = config.data
  if split == data.train_split or data.class_names:
    return ()
  unchecked = dataclasses.replace(data, check_images=False)
  config = dataclasses.replace(config, data=unchecked)
  return data_lib.open_split(config, data.train_split, convertible=True).class_names


def main(_):
  paths = write(
    config_lib.resolve(CONFIG.value),
    SPLIT.value,
    OUTPUT_DIR.value,
    name=NAME.value,
    shard_bytes=SHARD_MIB.value * 2**20,
  )
  print(f"shards   {len(paths) - 1}, {paths[0]} and so on\nindex    {paths[-1]}")


if __name__ == "__main__":
  command_line.run(main)
