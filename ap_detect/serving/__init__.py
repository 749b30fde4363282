"""What is served: SavedModels for TensorFlow Serving, and files for other runtimes."""

from ap_detect import legacy_keras

legacy_keras.select()
