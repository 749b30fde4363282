"""A run: its folder, and what its config stands for."""

from ap_detect import legacy_keras

legacy_keras.select()
