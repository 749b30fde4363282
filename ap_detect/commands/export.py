"""Exports a run as a SavedModel for serving.

ap_detect export --model_dir=... [--export_dir=...]
"""

from ap_detect import command_line

MODEL_DIR = command_line.define_model_dir()
EXPORT_DIR = command_line.define_path(
  "export_dir", "", "Folder of the model's versions; default: <model_dir>/export."
)
CHECKPOINT = command_line.define_checkpoint()
SCORES = command_line.define_scores()


def main(_):
  command_line.load_tensorflow()
  import os

  from ap_detect.runs import model as model_lib
  from ap_detect.runs import scores
  from ap_detect.serving import saved_model

  model_dir = MODEL_DIR.value
  restored = model_lib.restore(model_dir, CHECKPOINT.value)
  shown = scores.load_shown_scores(model_dir, restored.checkpoint, **SCORES())
  thresholds = shown.thresholds.per_class
  version = saved_model.export(
    restored.network,
    model_lib.make_detect(restored.config),
    EXPORT_DIR.value or os.path.join(model_dir, "export"),
    image_size=restored.config.data.image_size_px,
    class_names=restored.classes.names,
    class_thresholds=[thresholds[name] for name in restored.classes.names],
    calibration=shown.calibration,
    exif_orientation=restored.config.data.exif_orientation,
  )
  print(f"exported {restored.checkpoint}\nto       {version}/")
  for name, threshold in thresholds.items():
    print(f"  {name}: scores from {threshold:.4f}")


if __name__ == "__main__":
  command_line.run(main)
