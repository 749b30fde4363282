"""The network (backbones, fpn, heads, retinanet) and its post-processing (detections)."""

from ap_detect import legacy_keras

legacy_keras.select()
