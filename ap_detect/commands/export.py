"""Exports a run as a SavedModel for serving.

ap_detect export --model_dir=... [--export_dir=...]
"""

from ap_detect import command_line

MODEL_DIR = command_line.define_model_dir()
EXPORT_DIR = command_line.define_path(
  "export_dir", "", "Folder of the model's versions; default: <model_dir>/export."
)
CHECKPOINT = command_line.define_checkpoint()
SCORE_THRESHOLD = command_line.define_score_threshold()


def main(_):
  command_line.load_tensorflow()
  import os

  from ap_detect.runs import folder
  from ap_detect.runs import model as model_lib
  from ap_detect.serving import saved_model

  model_dir = MODEL_DIR.value
  restored = model_lib.restore(model_dir, CHECKPOINT.value)
  thresholds = folder.load_thresholds(
    model_dir, SCORE_THRESHOLD.value, checkpoint=restored.checkpoint
  ).per_class
  version = saved_model.export(
    restored.network,
    model_lib.make_detect(restored.config),
    EXPORT_DIR.value or os.path.join(model_dir, "export"),
    image_size=restored.config.data.image_size_px,
    class_names=restored.classes.names,
    class_thresholds=[thresholds[name] for name in restored.classes.names],
    exif_orientation=restored.config.data.exif_orientation,
  )
  print(f"exported {restored.checkpoint}\nto       {version}/")
  for name, threshold in thresholds.items():
    print(f"  {name}: scores from {threshold:.4f}")


if __name__ == "__main__":
  command_line.run(main)
