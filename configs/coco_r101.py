"""AP-loss, ResNet-101, COCO trainval35k -> test-dev: the paper's Table 3.

  ap_detect train --config=coco_r101 --model_dir=runs/coco_r101 \
    --config.data.root=coco

Source: Chen et al. 2019, section 4.3. Expected of COCO's evaluation server, at a single
scale of 500 px: AP 37.4, AP50 58.6, AP75 40.5, small 17.3, medium 40.8, large 51.9; with
several scales AP 42.1, AP50 63.5, AP75 46.4, 25.6, 45.0, 53.9. Not run by this project.
Hardware: 2 GPUs, 8 images each, as the paper; the learning rate is for these 16 images.
Data: COCO 2017; its train2017 and val2017 are the paper's trainval35k and minival.

Test-dev has no public labels. This writes the results file for the server, from
annotations/image_info_test-dev2017.json and test2017/, at one scale and at several; the
paper does not name its scales:

  ap_detect evaluate --model_dir=runs/coco_r101 --split=test-dev2017
  ap_detect evaluate --model_dir=runs/coco_r101 --split=test-dev2017 \
    --output_dir=runs/coco_r101/eval/several_scales --eval.horizontal_flip=True \
    --eval.test_scales="('400/667', '500/833', '600/1000', '700/1167', '800/1333')"
"""

import pathlib
import runpy

_R50 = runpy.run_path(str(pathlib.Path(__file__).with_name("coco_r50.py")))


def get_config():
  config = _R50["get_config"]()
  config.model.backbone = "resnet101"
  return config
