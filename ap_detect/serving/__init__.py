"""The exported graph: signatures, labels, versions."""

from ap_detect import legacy_keras

legacy_keras.select()
