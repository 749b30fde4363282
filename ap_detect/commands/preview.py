"""Shows training images as the network sees them.

ap_detect preview --config=... [--output=preview.png]

Writes one sheet of the first augmented images that training on this config would see,
with their boxes and labels. Ignored objects are dashed and grey; a dot is the centre of
one or more positive anchors, in the colour of their class. The same config gives the
same sheet.
"""

from __future__ import annotations

import math
import os
from typing import NamedTuple

from absl import flags

from ap_detect import command_line

if __name__ == "__main__":
  # Before the imports below, which need TensorFlow: help comes at once.
  CONFIG = command_line.define_config("shapes")
  OUTPUT = command_line.define_path("output", "preview.png", "PNG file to write.")
  NUM_PICTURES = flags.DEFINE_integer(
    "num_pictures", 16, "How many images to show.", lower_bound=1
  )
  command_line.load_tensorflow()

import numpy as np

from ap_detect import config as config_lib
from ap_detect import drawing, matching
from ap_detect.data import pipeline
from ap_detect.runs import data as data_lib
from ap_detect.runs import files
from ap_detect.runs import model as model_lib


class Preview(NamedTuple):
  """One training image and what matching made of it.

  Attributes:
    picture: [H, W, 3] uint8, with boxes, labels, anchors and a caption.
    image_id: the dataset's own id.
    num_positive_anchors: anchors that are to find an object.
    num_objects: objects that count.
    num_unmatched_objects: those of them that no anchor is to find.
  """

  picture: np.ndarray
  image_id: int | str
  num_positive_anchors: int
  num_objects: int
  num_unmatched_objects: int


def make_previews(config, num_pictures):
  """The first training images of a config.

  Args:
    config: Config.
    num_pictures: how many; more than the split has come from the next epoch.

  Returns:
    list of num_pictures Previews.

  Raises:
    ValueError: faults in the data, or no object to train on.
  """
  dataset = data_lib.open_training_split(config)
  anchors = model_lib.make_anchors(config)
  batch_size = config.train.batch_size
  batches = data_lib.make_batches(config, dataset, batch_size)
  previews: list[Preview] = []
  for step, batch in enumerate(batches.take(math.ceil(num_pictures / batch_size))):
    indices = pipeline.images_at(
      len(dataset.records), step * batch_size, batch_size, seed=config.train.seed
    )
    for i, index in enumerate(indices):
      example = {name: values[i].numpy() for name, values in batch.items()}
      image_id = dataset.records[index].image_id
      previews.append(
        _make_preview(config, example, image_id, anchors, dataset.class_names)
      )
  return previews[:num_pictures]


def preview(config, output, *, num_pictures=16):
  """Writes the sheet of a config's first training images.

  Args:
    config: Config.
    output: path of the PNG file; its folder is made if missing.
    num_pictures: how many images; at least 1.

  Returns:
    list of Previews, as they are on the sheet.

  Raises:
    ValueError: `output` is no PNG file, or faults in the data.
  """
  if not output.lower().endswith(".png"):
    raise ValueError(f"--output must name a .png file, got {output!r}")
  previews = make_previews(config, num_pictures)
  columns = math.ceil(math.sqrt(len(previews)))
  sheet = drawing.contact_sheet([item.picture for item in previews], columns)
  os.makedirs(os.path.dirname(output) or os.curdir, exist_ok=True)
  files.write_png(output, sheet)
  return previews


def _make_preview(config, example, image_id, anchors, class_names):
  model = config.model
  targets = matching.match_anchors(
    anchors,
    *(example[name][np.newaxis] for name in ("boxes", "classes", "ignored")),
    positive_iou=model.positive_iou,
    negative_iou=model.negative_iou,
    force_match=model.force_match,
  )
  anchor_labels = targets.labels[0].numpy()
  is_positive = anchor_labels > 0
  is_object = example["classes"] > 0
  classes, ignored = example["classes"][is_object], example["ignored"][is_object]
  picture = drawing.draw_targets(
    np.round(example["image"]).astype(np.uint8),
    example["boxes"][is_object],
    [class_names[k - 1] for k in classes],
    classes=classes,
    ignored=ignored,
    anchors=anchors[is_positive],
    anchor_classes=anchor_labels[is_positive],
  )
  num_positive, num_objects = int(is_positive.sum()), int((~ignored).sum())
  num_unmatched = int(targets.num_unmatched_objects)
  caption = (
    f"{image_id}\n{num_positive} positive anchors; "
    f"{num_unmatched} of {num_objects} objects without one"
  )
  return Preview(
    drawing.with_caption(picture, caption),
    image_id,
    num_positive,
    num_objects,
    num_unmatched,
  )


def main(_):
  config = config_lib.resolve(CONFIG.value)
  previews = preview(config, OUTPUT.value, num_pictures=NUM_PICTURES.value)
  num_positive = sum(item.num_positive_anchors for item in previews)
  num_objects = sum(item.num_objects for item in previews)
  num_unmatched = sum(item.num_unmatched_objects for item in previews)
  print(
    f"{len(previews)} images with {num_objects} objects, {num_unmatched} of them "
    f"without an anchor, and {num_positive} positive anchors\nsheet   {OUTPUT.value}"
  )


if __name__ == "__main__":
  command_line.run(main)
