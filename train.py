"""Trains a detector, or continues a run: python train.py --config=... --model_dir=..."""

from absl import flags

from ap_detect import config as config_lib

CONFIG = config_lib.define_flag("configs/shapes.py")
MODEL_DIR = flags.DEFINE_string("model_dir", "runs/shapes", "Folder of the run.")


def main(_):
  # Before the seconds that importing TensorFlow takes.
  config, model_dir = config_lib.resolve(CONFIG.value), MODEL_DIR.value
  from ap_detect.training import evaluation, trainer

  trainer.train(config, model_dir)
  evaluation.evaluate_run(model_dir)
  print(
    f"run          {model_dir}/\n\nNext:\n"
    f"  tensorboard --logdir={model_dir}/tensorboard\n"
    f"  python evaluate.py --model_dir={model_dir}\n"
    f"  python export/export_saved_model.py --model_dir={model_dir}"
    f" --export_dir={model_dir}/export\n"
    f"  python -m ap_detect.commands.predict --model_dir={model_dir}"
    f" --output_dir={model_dir}/predictions PICTURE_OR_FOLDER ..."
  )


if __name__ == "__main__":
  config_lib.run(main)
