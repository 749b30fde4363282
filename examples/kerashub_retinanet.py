"""KerasHub's RetinaNet trained with AP-loss, on the embedded shapes data.

  pip install -e . keras-hub        # Python 3.12 or newer: KerasHub needs Keras 3
  python examples/kerashub_retinanet.py --epochs=5

The model, its anchors, its matching and `fit` are KerasHub's and Keras 3's. AP-loss
enters by one argument of `compile`. Its scores rank boxes and are no probabilities, so
the threshold of KerasHub's NMS is next to 0. From random weights, on a CPU, five epochs
let the losses begin to fall; a useful detector takes more of them, or a preset's weights.
"""

from __future__ import annotations

import keras
import keras_hub
import tensorflow as tf
from absl import app, flags

from ap_detect.data import augment, pipeline, shapes
from ap_detect.losses import APLoss

EPOCHS = flags.DEFINE_integer("epochs", 5, "Epochs to train.", lower_bound=1)
IMAGES = flags.DEFINE_integer("images", 400, "Training images.", lower_bound=1)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 4, "Images a batch.", lower_bound=1)
SIDE = flags.DEFINE_integer("image_side_px", 128, "Height and width.", lower_bound=64)


def build_detector(num_classes, *, head_convolutions=2):
  """A small RetinaNet with random weights.

  Args:
    num_classes: K.
    head_convolutions: hidden convolutions of each head.

  Returns:
    keras_hub.models.RetinaNetObjectDetector, not compiled.
  """
  encoder = keras_hub.models.ResNetBackbone(
    input_conv_filters=[64],
    input_conv_kernel_sizes=[7],
    stackwise_num_filters=[64, 64, 64, 64],
    stackwise_num_blocks=[1, 1, 1, 1],
    stackwise_num_strides=[1, 2, 2, 2],
    block_type="basic_block",
  )
  backbone = keras_hub.models.RetinaNetBackbone(
    encoder, min_level=3, max_level=5, use_p5=True
  )
  return keras_hub.models.RetinaNetObjectDetector(
    backbone,
    num_classes=num_classes,
    bounding_box_format="yxyx",
    pre_logits_num_conv_layers=head_convolutions,
    prediction_decoder=keras_hub.layers.NonMaxSuppression(
      from_logits=True, bounding_box_format="yxyx", confidence_threshold=1e-6
    ),
  )


def compile_detector(detector, learning_rate=1e-3):
  """Compiles a detector with AP-loss and KerasHub's own box loss."""
  detector.compile(
    optimizer=keras.optimizers.Adam(learning_rate, clipnorm=10.0),
    classification_loss=APLoss(),
    # XLA takes a minute to compile the whole step, which a CPU does not get back.
    jit_compile=bool(tf.config.list_physical_devices("GPU")),
  )


def make_batches(dataset, *, image_size_px, batch_size):
  """Endless augmented batches as KerasHub takes them.

  Args:
    dataset: DetectionDataset.
    image_size_px: (height, width).
    batch_size: B.

  Returns:
    tf.data.Dataset of (images [B, H, W, 3] float32 in -1..1, {"boxes": [B, G, 4] float32
    yxyx in pixels, "labels": [B, G] float32, class 0..K-1, or -1 where there is none}).
  """

  def as_kerashub_has_it(batch):
    # Objects to ignore, here those cut by the canvas, have no place in its targets.
    is_used = (batch["classes"] > 0) & ~batch["ignored"]
    return batch["image"] / 127.5 - 1.0, {
      "boxes": tf.where(is_used[..., tf.newaxis], batch["boxes"], 0.0),
      "labels": tf.cast(tf.where(is_used, batch["classes"] - 1, -1), tf.float32),
    }

  batches = pipeline.training_batches(
    dataset, steps=augment.zoom_steps(image_size_px), batch_size=batch_size
  )
  return batches.map(as_kerashub_has_it)


def main(_):
  keras.utils.set_random_seed(0)
  size = (SIDE.value, SIDE.value)
  dataset = shapes.make_shapes("train", num_images=IMAGES.value, image_size_px=size)
  batches = make_batches(dataset, image_size_px=size, batch_size=BATCH_SIZE.value)
  detector = build_detector(len(dataset.class_names))
  compile_detector(detector)
  detector.fit(
    batches,
    epochs=EPOCHS.value,
    steps_per_epoch=-(-IMAGES.value // BATCH_SIZE.value),
    verbose=2,
  )
  images, _ = next(iter(batches))
  found = detector.predict(images, verbose=0)
  for box, label, score in zip(
    found["boxes"][0][:5], found["labels"][0], found["confidence"][0]
  ):
    name = dataset.class_names[int(label)]
    print(f"{name:10}{score:7.4f}  " + " ".join(f"{side:6.1f}" for side in box))


if __name__ == "__main__":
  app.run(main)
