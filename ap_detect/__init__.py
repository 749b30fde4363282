"""AP-loss object detection for TensorFlow 2 / Keras.

Importing this package selects the Keras 2 API (`tf_keras`) where TensorFlow's own
default is Keras 3. Modules of the package import TensorFlow after this line has run,
so that nobody needs to set `TF_USE_LEGACY_KERAS` by hand.
"""

import os

from ap_detect import legacy_keras

# TensorFlow's notes on the processor's instructions and on absent GPUs would bury what
# the commands print. What fails raises in Python all the same; set the variable to 0
# to see everything.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
legacy_keras.select()


def load(model_dir, checkpoint=""):
  """Opens a trained run to detect with, see `detector.Detector`.

  Args:
    model_dir: the run's folder.
    checkpoint: "" for the best checkpoint, "latest", or a checkpoint's path.

  Returns:
    detector.Detector.

  Raises:
    ValueError: there is no such run or checkpoint.
  """
  from ap_detect import detector

  return detector.load(model_dir, checkpoint)
