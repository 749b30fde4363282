"""AP-loss on PASCAL VOC 2007, train -> val, from an EfficientNet-lite0, without a GPU.

  python train.py --config=configs/voc07_lite0.py --model_dir=runs/voc07_lite0 \
    --config.data.root=VOCdevkit/VOC2007 \
    --config.model.backbone_weights=<lite0 weights, .weights.h5>

Source: AP-loss (Chen et al. 2019) with its expansion, cropping and warping of training
pictures, at 256 x 256 and with the changes that short fine-tuning wants: Adam with a
cosine rate, He-initialised heads of 64 channels, colours left as they are. No figure of
the paper is comparable: it trains on 07+12 trainval and tests on VOC07 test.
Cost: about 3 hours on 2 CPU cores. It has not been run to its end: docs/results.md.
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
  config.data.image_size_px = (256, 256)
  config.data.augmentation = "ssd"
  config.train.batch_size = 8
  config.train.epochs = 28
  config.train.optimizer = "adam"
  config.train.learning_rate = 1e-3
  config.train.schedule = "cosine"
  config.train.warmup_steps = 200
  config.train.clip_norm = 10.0
  config.train.validate_every_epochs = 7
  # AP-loss's scores mean nothing in themselves: evaluation keeps them all.
  config.eval.score_threshold = 0.0
  return config
