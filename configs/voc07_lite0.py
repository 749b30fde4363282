"""AP-loss on PASCAL VOC 2007, train -> val, from an EfficientNet-lite0, without a GPU.

  ap_detect train --config=voc07_lite0 --model_dir=runs/voc07_lite0 \
    --config.data.root=VOCdevkit/VOC2007 \
    --config.model.backbone_weights=<lite0 weights, .weights.h5>

Source: AP-loss (Chen et al. 2019) with the changes that short fine-tuning wants: 320 x 320
pixels, Adam with a cosine rate, He-initialised heads of 64 channels, and zoom instead of
the paper's expansion and cropping. No figure of the paper is comparable: it trains on
07+12 trainval and tests on VOC07 test.
Cost: about 2 hours on 2 CPU cores.
Result: docs/results.md.
"""

from ap_detect.config import default_config


def get_config():
  config = default_config()
  config.model.backbone = "efficientnet_lite0"
  config.model.backbone_weights = ""
  config.model.fpn_channels = 64
  config.model.head_convolutions = 3
  config.model.head_initializer = "he"
  config.model.anchor_base_scale = 3.0
  config.data.format = "voc"
  config.data.voc_one_based_inclusive = True
  config.data.image_size_px = (320, 320)
  config.data.zoom_range = (0.5, 1.5)
  config.data.color_jitter = 0.5
  config.train.batch_size = 8
  config.train.epochs = 56
  config.train.optimizer = "adam"
  config.train.learning_rate = 3e-4
  config.train.schedule = "cosine"
  config.train.warmup_steps = 200
  config.train.clip_norm = 10.0
  config.train.validate_every_epochs = 4
  # AP-loss's scores mean nothing in themselves: evaluation keeps them all.
  config.eval.score_threshold = 0.0
  return config
