"""Evaluates a run: COCO's figures, charts, detections drawn.

ap_detect evaluate --model_dir=... [--split=val] [--eval.<field>=<value> ...]
ap_detect evaluate --model_dir=... --saved_model=<folder of an exported model>
"""

from absl import flags

from ap_detect import command_line

MODEL_DIR = command_line.define_model_dir()
SPLIT = flags.DEFINE_string(
  "split", "", "Split to evaluate; by default the one the run validates on."
)
CHECKPOINT = command_line.define_checkpoint()
AVERAGED_WEIGHTS = command_line.define_averaged_weights()
SAVED_MODEL = command_line.define_path(
  "saved_model",
  "",
  "Folder of an exported model, or of its versions for the highest, or an exported file "
  "of detections (.onnx, .tflite), to evaluate in place of a checkpoint of the run, as "
  "it would be served.",
)
REPLICAS = command_line.define_replicas()
DATA_ROOT = command_line.define_path(
  "data_root", "", "Folder of the data, where it is not the one the run was trained on."
)
SKIP_FAULTY = flags.DEFINE_bool(
  "skip_faulty",
  None,
  "Whether invalid images and annotations are skipped, counted and reported; by default "
  "as the run's config has it.",
)
MAX_IMAGE_PIXELS = command_line.define_max_image_pixels()
OUTPUT_DIR = command_line.define_path(
  "output_dir", "", "Folder to write into; by default <model_dir>/eval/<split>."
)
EVAL = command_line.define_eval_overrides()


def main(_):
  command_line.load_tensorflow()
  from ap_detect.runs import cluster as cluster_lib
  from ap_detect.runs import replicas, workers
  from ap_detect.serving.exported import open_exported
  from ap_detect.training import evaluation_files

  if SAVED_MODEL.value and CHECKPOINT.value:
    raise ValueError("give --saved_model or --checkpoint, not both")
  cluster = cluster_lib.from_environment()
  if SAVED_MODEL.value and cluster.count > 1:
    raise ValueError("--saved_model is evaluated in one process; unset TF_CONFIG")
  with cluster.naming_lost():
    strategy = replicas.make_strategy(REPLICAS.value, cluster)
    evaluation_files.evaluate_run(
      MODEL_DIR.value,
      split=SPLIT.value,
      checkpoint=CHECKPOINT.value,
      averaged_weights=AVERAGED_WEIGHTS.value,
      data_overrides={
        "root": DATA_ROOT.value or None,
        "skip_faulty": SKIP_FAULTY.value,
        "max_image_pixels": MAX_IMAGE_PIXELS.value,
      },
      output_dir=OUTPUT_DIR.value,
      eval_overrides=EVAL(),
      strategy=strategy,
      exported=open_exported(SAVED_MODEL.value) if SAVED_MODEL.value else None,
    )
    workers.Workers(strategy).leave()


if __name__ == "__main__":
  command_line.run(main)
