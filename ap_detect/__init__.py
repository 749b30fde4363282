"""AP-loss object detection for TensorFlow 2 / Keras.

Importing this package, or `ap_detect.losses`, selects no Keras. The parts that have
networks (models, runs, training, serving, commands, `load`) are written for Keras 2 and
select it when they are imported, see `legacy_keras`.
"""

import os

# TensorFlow's notes on the processor's instructions and on absent GPUs would bury what
# the commands print. What fails raises in Python all the same; set the variable to 0
# to see everything.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def load(model_dir, checkpoint="", *, averaged_weights=True, calibrate=True):
  """Opens a trained run to detect with, see `detector.Detector`.

  Args:
    model_dir: the run's folder.
    checkpoint: "" for the best checkpoint, "latest", or a checkpoint's path.
    averaged_weights: whether these are used, where the run keeps them.
    calibrate: whether scores are the precision to expect of detections, or as the
      network gives them, see `detector.load`.

  Returns:
    detector.Detector.

  Raises:
    ValueError: there is no such run or checkpoint.
  """
  from ap_detect import detector

  return detector.load(
    model_dir, checkpoint, averaged_weights=averaged_weights, calibrate=calibrate
  )
