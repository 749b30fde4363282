"""RetinaNet500: focal loss, ResNet-101, COCO; the baseline of the paper's Table 3.

  ap_detect train --config=coco_r101_retinanet500 \
    --model_dir=runs/retinanet500 --config.data.root=coco

Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, sections 4 and 5:
9 anchors a cell, mirroring alone, SGD at 0.01 for 90,000 steps of 16 images, /10 at
60,000 and 80,000. Expected on test-dev: AP 34.4, AP50 53.1, AP75 36.8. Not run by this
project.
Hardware: 2 GPUs, 8 images each (Lin et al.: 8 GPUs, 2 images each).
Data: COCO 2017; its train2017 and val2017 are the paper's trainval35k and minival.

The training input is a square in which an image of 4:3 is 504 x 672 px.
"""

import pathlib
import runpy

_R101 = runpy.run_path(str(pathlib.Path(__file__).with_name("coco_r101.py")))


def get_config():
  config = _R101["get_config"]()
  config.model.anchor_octave_scales = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
  config.data.image_size_px = (672, 672)
  config.data.augmentation = "zoom"
  config.data.color_jitter = 0.0
  config.train.classification_loss = "focal_loss"
  config.train.learning_rate = 0.01
  config.train.epochs = 12
  config.train.decay_epochs = (8, 11)
  config.train.validate_every_epochs = 1
  return config
