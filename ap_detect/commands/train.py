"""Trains a detector, or continues a run.

ap_detect train [--config=...] [--model_dir=...] [--config.<section>.<field>=<value> ...]

Ends with COCO's figures on the validation split and the next commands to type.
"""

from ap_detect import command_line, logs
from ap_detect import config as config_lib
from ap_detect.runs import lock

CONFIG = command_line.define_config("shapes")
MODEL_DIR = command_line.define_model_dir()
REPLICAS = command_line.define_replicas()


def main(_):
  config, model_dir = config_lib.resolve(CONFIG.value), MODEL_DIR.value
  # Before the seconds that importing TensorFlow takes.
  with lock.lock(model_dir), logs.kept(model_dir):
    command_line.load_tensorflow()
    from ap_detect.runs import data, replicas
    from ap_detect.training import evaluation_files, trainer

    strategy = replicas.make_strategy(REPLICAS.value)
    trainer.train(config, model_dir, strategy=strategy)
    evaluation_files.evaluate_run(model_dir, strategy=strategy)
    samples = data.write_samples(config, model_dir)
  print(
    f"run          {model_dir}/\n\nNext:\n"
    f"  tensorboard --logdir={model_dir}/tensorboard\n"
    f"  ap_detect evaluate --model_dir={model_dir}\n"
    f"  ap_detect export --model_dir={model_dir} --export_dir={model_dir}/export\n"
    f"  ap_detect predict --model_dir={model_dir}"
    f" --output_dir={model_dir}/predictions {samples or 'IMAGE_OR_FOLDER ...'}"
  )


if __name__ == "__main__":
  command_line.run(main)
