"""Evaluates a run by COCO's figures: python evaluate.py --model_dir=... [--split=val]"""

from absl import flags

from ap_detect import command_line

MODEL_DIR = command_line.define_model_dir()
SPLIT = flags.DEFINE_string(
  "split", "", "Split to evaluate; by default the one the run validates on."
)
CHECKPOINT = command_line.define_checkpoint()


def main(_):
  from ap_detect.training import evaluation

  evaluation.evaluate_run(
    MODEL_DIR.value, split=SPLIT.value, checkpoint=CHECKPOINT.value
  )


if __name__ == "__main__":
  command_line.run(main)
