"""Evaluates a run: COCO's figures, charts, detections drawn.

ap_detect evaluate --model_dir=... [--split=val] [--eval.<field>=<value> ...]
"""

from absl import flags

from ap_detect import command_line

MODEL_DIR = command_line.define_model_dir()
SPLIT = flags.DEFINE_string(
  "split", "", "Split to evaluate; by default the one the run validates on."
)
CHECKPOINT = command_line.define_checkpoint()
REPLICAS = command_line.define_replicas()
DATA_ROOT = command_line.define_path(
  "data_root", "", "Folder of the data, where it is not the one the run was trained on."
)
OUTPUT_DIR = command_line.define_path(
  "output_dir", "", "Folder to write into; by default <model_dir>/eval/<split>."
)
EVAL = command_line.define_eval_overrides()


def main(_):
  command_line.load_tensorflow()
  from ap_detect.runs import replicas
  from ap_detect.training import evaluation_files

  evaluation_files.evaluate_run(
    MODEL_DIR.value,
    split=SPLIT.value,
    checkpoint=CHECKPOINT.value,
    data_root=DATA_ROOT.value,
    output_dir=OUTPUT_DIR.value,
    eval_overrides=EVAL(),
    strategy=replicas.make_strategy(REPLICAS.value),
  )


if __name__ == "__main__":
  command_line.run(main)
