"""AP-loss, ResNet-50, COCO trainval35k -> minival: the COCO half of the paper's Table 2.

  ap_detect train --config=coco_r50 --model_dir=runs/coco_r50 \
    --config.data.root=coco

Source: Chen et al. 2019, sections 4.1 and 4.2. Expected, at a shorter side of 500 px:
AP 35.0, AP50 57.2, AP75 36.6 (35.4 in the rerun of Oksuz et al., "A Ranking-based,
Balanced Loss Function", 2020). Not run by this project.
Hardware: 2 GPUs, 8 images each, as the paper; the learning rate is for these 16 images.
Data: COCO 2017; its train2017 and val2017 are the paper's trainval35k and minival. A few
boxes of train2017 have no height (cocodataset/cocoapi, issue 355); skip_faulty leaves
them out, counted and listed.

Other rows of Table 2, each the command above with its own --model_dir and

  --config.train.classification_loss=focal_loss   focal loss: 33.9 / 55.0 / 35.7
  --config.train.classification_loss=auc_loss     AUC-loss:   25.5 / 44.9 / 26.0

The authors' release leaves images without objects out and lets crowds become
background, of which the paper says nothing: --config.data.drop_empty_images=True
--config.data.drop_ignored_objects=True.
"""

from ap_detect.config import default_config


def get_config():
  config = default_config()
  config.model.backbone = "resnet50"
  config.data.format = "coco"
  config.data.train_split = "train2017"
  config.data.val_split = "val2017"
  config.data.skip_faulty = True
  config.data.image_size_px = (512, 512)
  config.data.augmentation = "ssd"
  config.data.color_jitter = 1.0
  config.train.epochs = 100
  config.train.decay_epochs = (60, 80)
  config.train.validate_every_epochs = 5
  config.eval.test_scales = ("500/833",)
  return config
