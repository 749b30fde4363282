"""Training and evaluation of a run: the only place, beside commands, that reads configs."""

from ap_detect import legacy_keras

legacy_keras.select()
