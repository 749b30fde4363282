"""AP-loss, ResNet-101, PASCAL VOC 07+12 trainval -> VOC07 test: the paper's Table 3.

  ap_detect train --config=voc07_r101 --model_dir=runs/voc07_r101 \
    --config.data.root=VOCdevkit

Source: Chen et al. 2019, section 4.3. Expected: AP50 83.9 at a single scale of 500 px,
84.9 with several. Not run by this project.
Hardware: 2 GPUs, 8 images each, as the paper; the learning rate is for these 16 images.
Data: VOCdevkit with VOC2007 (trainval and test) and VOC2012 (trainval).

The paper names no scales for its multi-scale test. With these, and mirrored:

  ap_detect evaluate --model_dir=runs/voc07_r101 \
    --output_dir=runs/voc07_r101/eval/several_scales --eval.horizontal_flip=True \
    --eval.test_scales="('300/500', '400/667', '500/833', '600/1000', '700/1167')"
"""

import pathlib
import runpy

_R50 = runpy.run_path(str(pathlib.Path(__file__).with_name("voc07_r50.py")))


def get_config():
  config = _R50["get_config"]()
  config.model.backbone = "resnet101"
  config.eval.test_scales = ("500/833",)
  return config
