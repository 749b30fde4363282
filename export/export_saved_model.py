"""Exports a run for serving: export_saved_model.py --model_dir=... --export_dir=..."""

from absl import flags

from ap_detect import command_line

MODEL_DIR = command_line.define_model_dir()
EXPORT_DIR = flags.DEFINE_string(
  "export_dir", "", "Folder of the model's versions; default: <model_dir>/export."
)
CHECKPOINT = command_line.define_checkpoint()
SCORE_THRESHOLD = command_line.define_score_threshold()


def main(_):
  import os

  from ap_detect.serving import saved_model
  from ap_detect.training import run

  model_dir = MODEL_DIR.value
  restored = run.restore(model_dir, CHECKPOINT.value)
  thresholds = run.load_thresholds(model_dir, SCORE_THRESHOLD.value).per_class
  version = saved_model.export(
    restored.network,
    run.make_detect(restored.config),
    EXPORT_DIR.value or os.path.join(model_dir, "export"),
    image_size=restored.config.data.image_size_px,
    class_names=restored.classes.names,
    class_thresholds=[thresholds[name] for name in restored.classes.names],
  )
  print(f"exported {restored.checkpoint}\nto       {version}/")
  for name, threshold in thresholds.items():
    print(f"  {name}: scores from {threshold:.4f}")


if __name__ == "__main__":
  command_line.run(main)
