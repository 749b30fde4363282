"""AP-loss, ResNet-101, VOC 07+12 trainval and VOC07 test -> VOC12 test: Table 3.

  ap_detect train --config=voc12_r101 --model_dir=runs/voc12_r101 \
    --config.data.root=VOCdevkit

Source: Chen et al. 2019, section 4.3. Expected of VOC's evaluation server: AP50 83.1 at a
single scale of 500 px, 84.5 with several. Not run by this project.
Hardware: 2 GPUs, 8 images each, as the paper; the learning rate is for these 16 images.
Data: VOCdevkit with VOC2007 (trainval and test) and VOC2012 (trainval and test).

VOC12 test has no public labels. This writes comp4_det_test_<class>.txt for the server:

  ap_detect evaluate --model_dir=runs/voc12_r101 --split=VOC2012/test

What training reports on the way is on VOC07 test, which it has trained on: it says
whether training works, and nothing of accuracy.
"""

import pathlib
import runpy

_R101 = runpy.run_path(str(pathlib.Path(__file__).with_name("voc07_r101.py")))


def get_config():
  config = _R101["get_config"]()
  config.data.train_split = "VOC2007/trainval+VOC2007/test+VOC2012/trainval"
  return config
