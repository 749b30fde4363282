"""AP-loss, ResNet-50, PASCAL VOC 07+12 trainval -> VOC07 test: the paper's ablations.

  ap_detect train --config=voc07_r50 --model_dir=runs/voc07_r50 \
    --config.data.root=VOCdevkit

Source: Chen et al. 2019, sections 4.1 and 4.2. Expected, tested at a shorter side of 600
px: AP 53.1, AP50 82.3, AP75 58.1 (VOC's AP; the paper's AP is its mean over IoU 0.5 to
0.95). Not run by this project.
Hardware: 2 GPUs, 8 images each, as the paper; the learning rate is for these 16 images.
Data: VOCdevkit with VOC2007 (trainval and test) and VOC2012 (trainval).

Rows of the paper's Table 1, each the command above with its own --model_dir and

  --config.train.loss_options.images_per_ranking=1   mini-batch 1:  52.4 / 80.2 / 56.7
  --config.train.loss_options.images_per_ranking=2   mini-batch 2:  53.0 / 81.7 / 57.8
  --config.train.loss_options.images_per_ranking=4   mini-batch 4:  52.8 / 82.2 / 58.0
  --config.train.loss_options.delta=0.25             delta 0.25:    50.2 / 80.7 / 53.6
  --config.train.loss_options.delta=0.5              delta 0.5:     51.3 / 81.6 / 55.4
  --config.train.loss_options.delta=2.0              delta 2:       52.8 / 82.6 / 57.2
  --config.train.loss_options.interpolated=False     not interpolated: 52.6 / 82.2 / 57.1

and of its Table 2:

  --config.train.classification_loss=focal_loss   focal loss: 51.3 / 80.9 / 55.3
  --config.train.classification_loss=auc_loss     AUC-loss:   49.3 / 79.7 / 51.8

What the paper leaves open and the authors' release does otherwise: it tests at 500 px
(--config.eval.test_scales="('500/833',)") and lets difficult objects become background
(--config.data.drop_ignored_objects=True).
"""

from ap_detect.config import default_config

CLASS_NAMES = (
  *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
  *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
  *("sheep", "sofa", "train", "tvmonitor"),
)


def get_config():
  config = default_config()
  config.model.backbone = "resnet50"
  config.data.format = "voc"
  config.data.voc_one_based_inclusive = True
  config.data.train_split = "VOC2007/trainval+VOC2012/trainval"
  config.data.val_split = "VOC2007/test"
  config.data.class_names = CLASS_NAMES
  config.data.image_size_px = (512, 512)
  config.data.augmentation = "ssd"
  config.data.color_jitter = 1.0
  config.train.epochs = 160
  config.train.decay_epochs = (110, 140)
  config.train.validate_every_epochs = 10
  config.eval.test_scales = ("600/1000",)
  return config
