"""Fine-tunes EfficientNet-lite0 with AP-loss on a small dataset of your own.

  ap_detect train --config=own_data --model_dir=runs/mine \
    --config.data.root=<folder of images and annotations> \
    --config.model.backbone_weights=imagenet

Source: AP-loss (Chen et al. 2019) with the changes that short fine-tuning wants: Adam
with a cosine rate, frozen first layers, He-initialised heads of 64 channels. On BCCD the
box loss wants 4 times the paper's weight (docs/results.md).
Cost: for 200 images, 7 to 15 minutes on 2 free cores.
Result: see "Results" in README.md.

With many classes a lower rate learns faster: on VOC's 20, a third of this one found three
times as much after an epoch (docs/results.md), but on 3 classes it ended lower. So try
--config.train.learning_rate=3e-4 too.

Without weights the backbone starts from nothing: nothing is frozen then, and the same
time gives a lower AP.
"""

from ap_detect.config import default_config


def get_config():
  config = default_config()
  config.model.backbone = "efficientnet_lite0"
  config.model.backbone_weights = ""
  config.model.frozen_levels = 2
  config.model.fpn_channels = 64
  config.model.head_convolutions = 3
  config.model.head_initializer = "he"
  config.model.anchor_base_scale = 3.0
  config.data.image_size_px = (320, 320)
  config.data.zoom_range = (0.6, 1.3)
  config.data.color_jitter = 0.5
  config.train.batch_size = 8
  config.train.epochs = 30
  config.train.optimizer = "adam"
  config.train.box_loss_weight = 4.0
  config.train.learning_rate = 1e-3
  config.train.schedule = "cosine"
  config.train.warmup_steps = 50
  config.train.clip_norm = 10.0
  config.train.validate_every_epochs = 3
  # AP-loss's scores mean nothing in themselves: evaluation keeps them all.
  config.eval.score_threshold = 0.0
  return config
