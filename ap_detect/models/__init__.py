"""The network (backbones, fpn, heads, retinanet) and its post-processing (detections)."""
