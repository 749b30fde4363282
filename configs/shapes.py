"""AP-loss on the embedded "shapes" data: the demo, from scratch on a laptop.

  ap_detect train

Source: AP-loss (Chen et al. 2019), on data and at a size where 10 minutes on 2 CPU cores
show something. What differs from the paper is what training from scratch in so short a
time wants: Adam with a cosine rate, He-initialised heads of 64 channels, batch
normalisation that is trained, square anchors from 16 px on (the objects' boxes are nearly
square and take 16 % to 60 % of the image's side).
Cost: 6 minutes of processor time; 4 to 8 minutes on 2 CPU cores.
Result: see "Results" in README.md, with focal loss beside it
(--config.train.classification_loss=focal_loss).
"""

from ap_detect.config import default_config


def get_config():
  config = default_config()
  config.model.backbone = "csp_darknet_nano"
  config.model.backbone_weights = ""
  config.model.fpn_channels = 64
  config.model.head_convolutions = 2
  config.model.head_initializer = "he"
  config.model.anchor_base_scale = 2.0
  config.model.anchor_aspect_ratios = (1.0,)
  config.data.format = "shapes"
  config.data.image_size_px = (128, 128)
  config.data.shapes_train_images = 4000
  config.train.batch_size = 8
  config.train.epochs = 7
  config.train.optimizer = "adam"
  config.train.learning_rate = 2e-3
  config.train.schedule = "cosine"
  config.train.warmup_steps = 100
  config.train.clip_norm = 10.0
  config.train.validate_every_epochs = 3
  # AP-loss's scores mean nothing in themselves: evaluation keeps them all.
  config.eval.score_threshold = 0.0
  return config
