"""Evaluates a run by COCO's figures: python evaluate.py --model_dir=... [--split=val]"""

from absl import flags

from ap_detect import config as config_lib

MODEL_DIR = flags.DEFINE_string("model_dir", "runs/shapes", "Folder of the run.")
SPLIT = flags.DEFINE_string(
  "split", "", "Split to evaluate; by default the one the run validates on."
)
CHECKPOINT = flags.DEFINE_string(
  "checkpoint", "", "Path of a checkpoint, or 'latest'; by default the best."
)


def main(_):
  from ap_detect.training import evaluation

  evaluation.evaluate_run(
    MODEL_DIR.value, split=SPLIT.value, checkpoint=CHECKPOINT.value
  )


if __name__ == "__main__":
  config_lib.run(main)
