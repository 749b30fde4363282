"""Trains a detector, or continues a run: python train.py --config=... --model_dir=..."""

from ap_detect import command_line
from ap_detect import config as config_lib

CONFIG = command_line.define_config("configs/shapes.py")
MODEL_DIR = command_line.define_model_dir()


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
  command_line.run(main)
