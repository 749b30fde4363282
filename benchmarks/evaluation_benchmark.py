"""Times the evaluation of a run: the whole, and the network's share of it.

  python benchmarks/evaluation_benchmark.py --model_dir=runs/voc07_lite0 \
    --split=mini_val --eval.test_scales="('500/833',)"

Prints images a second of the evaluation as `evaluate.py` does it, with reading and
resizing; then, on batches that are in memory already, the seconds of network and
post-processing together and of the network alone, in alternation, and the network's
share. Graphs are built before the clock starts.
"""

from __future__ import annotations

import dataclasses
import time

from absl import flags

from ap_detect import command_line, provenance

_MODEL_DIR = command_line.define_model_dir()
_SPLIT = flags.DEFINE_string("split", "", "Split; by default the run's val_split.")
_IMAGES = flags.DEFINE_integer("num_images", 200, "Images to take of it at most.")
_EVAL = command_line.define_eval_overrides()
_report = provenance.define_flags()


def main(_):
  import tensorflow as tf

  from ap_detect import config as config_lib
  from ap_detect.data import pipeline
  from ap_detect.runs import data as data_lib
  from ap_detect.runs import model as model_lib
  from ap_detect.training import evaluation, views

  restored = model_lib.restore(_MODEL_DIR.value)
  values = dataclasses.asdict(restored.config)
  values["eval"].update(_EVAL())
  config = config_lib.resolve(values)
  split = _SPLIT.value or config.data.val_split
  records = data_lib.open_split(config, split, restored.classes.names).records
  records = records[: _IMAGES.value]
  groups = views.group_by_views(records, config)
  evaluator = evaluation.Evaluator(restored.network, config, restored.strategy)
  evaluator.detect([records[indices[0]] for indices in groups.values()])
  whole = _seconds(evaluator.detect, records)
  print(f"evaluation: {len(records)} images, {len(records) / whole:.1f} images/s")

  both, alone = 0.0, 0.0
  for group, indices in groups.items():
    batches = pipeline.evaluation_batches(
      [records[i] for i in indices], views=group, batch_size=config.eval.batch_size
    )
    detect = tf.function(views.make_detect(restored.network, group, config))
    network = tf.function(
      lambda batch: [restored.network(view["image"], training=False) for view in batch]
    )
    # All read first: reading the next ones would take its share of the cores.
    for number, batch in enumerate(list(batches)):
      if number == 0:
        detect(batch), network(batch)
      both += _seconds(detect, batch)
      alone += _seconds(network, batch)
  print(f"network and post-processing {both:.2f} s, network alone {alone:.2f} s")
  print(f"the network's share: {alone / both:.1%} of both, {alone / whole:.1%} of all")
  _report(
    {
      "images": len(records),
      "evaluation_seconds": whole,
      "network_and_post_processing_seconds": both,
      "network_seconds": alone,
    }
  )


def _seconds(function, argument):
  begin = time.perf_counter()
  function(argument)
  return time.perf_counter() - begin


if __name__ == "__main__":
  command_line.run(main)
