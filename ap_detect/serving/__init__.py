"""SavedModels for TensorFlow Serving: the graph, and the folder that a server reads."""

from ap_detect import legacy_keras

legacy_keras.select()
