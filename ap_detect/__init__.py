"""AP-loss object detection for TensorFlow 2 / Keras.

Importing this package selects the Keras 2 API (`tf_keras`) where TensorFlow's own
default is Keras 3. Modules of the package import TensorFlow after this line has run,
so that nobody needs to set `TF_USE_LEGACY_KERAS` by hand.
"""

from ap_detect import legacy_keras

legacy_keras.select()
