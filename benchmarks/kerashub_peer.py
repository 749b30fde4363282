"""KerasHub's RetinaNet as a yardstick, on the backbone and anchors that are ours."""

from __future__ import annotations

# Last layers of C3, C4 and C5 in Keras' ResNet-50.
RESNET_ENDS = {
  "P3": "conv3_block4_out",
  "P4": "conv4_block6_out",
  "P5": "conv5_block3_out",
}


def build(num_classes, *, own_resnet=False, prediction_decoder=None):
  """A RetinaNet on a ResNet-50, with random weights, for boxes `yxyx`, not compiled.

  Heads and pyramid are KerasHub's, which have our sizes; but P6 comes from P5 there, and
  from C5 here.

  Args:
    num_classes: K.
    own_resnet: whether the ResNet-50 is KerasHub's own rather than Keras', which is ours.
    prediction_decoder: keras_hub.layers.NonMaxSuppression; None for KerasHub's default.

  Returns:
    keras_hub.models.RetinaNetObjectDetector.
  """
  import keras
  import keras_hub

  if own_resnet:
    encoder = keras_hub.models.ResNetBackbone(
      input_conv_filters=[64],
      input_conv_kernel_sizes=[7],
      stackwise_num_filters=[64, 128, 256, 512],
      stackwise_num_blocks=[3, 4, 6, 3],
      stackwise_num_strides=[1, 2, 2, 2],
      block_type="bottleneck_block",
    )
  else:
    encoder = keras.applications.ResNet50(include_top=False, weights=None)
    encoder.pyramid_outputs = {
      level: encoder.get_layer(end).output for level, end in RESNET_ENDS.items()
    }
  backbone = keras_hub.models.RetinaNetBackbone(
    encoder, min_level=3, max_level=7, use_p5=True
  )
  return keras_hub.models.RetinaNetObjectDetector(
    backbone,
    num_classes=num_classes,
    bounding_box_format="yxyx",
    anchor_generator=keras_hub.layers.AnchorGenerator(
      "yxyx",
      min_level=3,
      max_level=7,
      num_scales=2,
      aspect_ratios=[0.5, 1.0, 2.0],
      anchor_size=4.0,
    ),
    prediction_decoder=prediction_decoder,
  )
