"""AP-loss on the embedded "shapes" dataset: the demo."""

from ap_detect.config import default_config


def get_config():
  config = default_config()
  config.model.backbone = "csp_darknet_nano"
  config.model.backbone_weights = ""
  config.model.frozen_levels = 0
  config.model.fpn_channels = 64
  config.model.head_convolutions = 2
  config.model.head_initializer = "he"
  config.model.anchor_base_scale = 2.0
  config.data.format = "shapes"
  config.data.image_size_px = (128, 128)
  config.train.batch_size = 16
  config.train.epochs = 8
  config.train.optimizer = "adam"
  config.train.learning_rate = 2e-3
  config.train.schedule = "cosine"
  config.train.warmup_steps = 100
  config.train.clip_norm = 10.0
  config.eval.score_threshold = 0.0
  return config
