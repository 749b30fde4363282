"""The fields of a config, each with its type, default, meaning and rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ap_detect.config_rules import (
  Rule,
  all_positive,
  between,
  field,
  import_paths,
  local_path,
  loss_name,
  not_negative,
  one_of,
  positive,
)

DATA_FORMATS = ("auto", "voc", "coco", "yolo", "csv", "cvat", "tfrecord", "shapes")
AUGMENTATIONS = ("zoom", "ssd", "none")
BOX_LOSSES = ("smooth_l1", "l1", "giou")
RANKING_SCOPES = ("replica", "global")
BOX_LOSS_NORMALIZERS = ("replica", "global")
OPTIMIZERS = ("sgd", "adam", "sgdw", "lamb")
SCHEDULES = ("constant", "step", "cosine")
HEAD_INITIALIZERS = ("normal", "he")
JIT_COMPILE = ("auto", "always", "never")
PRECISIONS = ("float32", "bfloat16")


def parse_test_scale(text: str) -> tuple[int, int]:
  """(500, 833), pixels of the shorter side and at most of the longer, of "500/833".

  Raises:
    ValueError: it is not of that form.
  """
  shorter, longer = map(int, text.split("/"))
  if not 0 < shorter <= longer:
    raise ValueError(f"the shorter side comes first, got {text!r}")
  return shorter, longer


def _are_test_scales(texts):
  try:
    return all(map(parse_test_scale, texts))
  except ValueError:
    return False


_split_name = Rule(bool, "name a split")
_network_size = Rule(
  lambda size: len(size) == 2 and all(side > 0 and side % 32 == 0 for side in size),
  "be (height, width), multiples of 32",
)
_image_size = Rule(
  lambda size: len(size) == 2 and min(size) > 0, "be (height, width), positive"
)
_factor_range = Rule(
  lambda ends: len(ends) == 2 and 0 < ends[0] <= ends[1],
  "be (low, high) with 0 < low <= high",
)
_relative_size = Rule(lambda value: 0 < value <= 1, "lie in (0, 1]")
_share = Rule(lambda value: 0 <= value < 1, "lie in [0, 1)")
_prior = Rule(lambda value: 0 < value < 1, "lie in (0, 1)")
_score = Rule(lambda value: 0 <= value < 1, "lie in [0, 1)")
_test_scales = Rule(
  _are_test_scales, "be of the form '500/833', the shorter side first"
)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The network and its anchors. Defaults: the paper's ResNet-50 (authors' release)."""

  backbone: str = field(
    "resnet50",
    "Name of the backbone: resnet50, resnet101, resnet18, csp_darknet_nano or "
    "efficientnet_lite0.",
  )
  backbone_weights: str = field(
    "imagenet",
    "Pretrained weights of the backbone: 'imagenet', the path of a weights file, or "
    "'' for random initialisation.",
    local_path,
  )
  initial_checkpoint: str = field(
    "",
    "Folder or checkpoint of another run whose weights a new run starts from; '' for "
    "none. The backbone must be the same; other layers that do not fit, such as the "
    "class head when the classes differ, are newly initialised and listed. The file of "
    "backbone_weights is not needed then, but the backbone is frozen as a pretrained "
    "one only where backbone_weights is not ''.",
    local_path,
  )
  frozen_levels: int = field(
    2,
    "Layers of a pretrained backbone up to the end of C<n> are not trained; 0 trains "
    "all of them.",
    between(0, 5),
  )
  fpn_channels: int = field(
    256, "Channels of the feature pyramid and of the heads.", positive
  )
  head_convolutions: int = field(4, "Hidden convolutions of each head.", positive)
  head_initializer: str = field(
    "normal",
    "Initialiser of the hidden convolutions of the heads; 'normal' is N(0, 0.01).",
    one_of(HEAD_INITIALIZERS),
  )
  score_prior: float = field(
    0.01,
    "Score of every class at the start, which the bias of the class head gives.",
    _prior,
  )
  anchor_base_scale: float = field(
    4.0,
    "Side of the smallest square anchor of a pyramid level, in strides of the level.",
    positive,
  )
  anchor_octave_scales: tuple[float, ...] = field(
    (1.0, 2**0.5),
    "Factors of that side; each gives an anchor per aspect ratio.",
    all_positive,
  )
  anchor_aspect_ratios: tuple[float, ...] = field(
    (0.5, 1.0, 2.0), "Aspect ratios of the anchors, height / width.", all_positive
  )
  positive_iou: float = field(
    0.5, "An anchor is positive from this IoU with an object on."
  )
  negative_iou: float = field(
    0.4,
    "An anchor is background below this IoU with every object; between the two it is "
    "ignored.",
  )
  force_match: bool = field(
    True, "Whether the best anchors of an object are positive whatever their IoU."
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """The images, and how they reach the network."""

  format: str = field(
    "auto",
    "Format of the dataset. 'auto' detects it from the folder; 'voc' are XML files, with "
    "or without VOC's lists of splits; 'cvat' is CVAT's own XML file for images; "
    "'tfrecord' is what write_tfrecords writes; "
    "'shapes' are synthetic images.",
    one_of(DATA_FORMATS),
  )
  root: str = field(
    "", "Folder of the dataset; 'shapes' needs none.", local_path, may_change=True
  )
  annotations: str = field(
    "",
    "File or folder that annotations are looked for in, relative to root or absolute; "
    "{split} in it stands for the split. '' for anywhere below root.",
    local_path,
    may_change=True,
  )
  images: str = field(
    "",
    "Folder that images are looked for in, likewise; '' for anywhere below root.",
    local_path,
    may_change=True,
  )
  train_split: str = field(
    "train",
    "Split to train on. Several are joined by '+'. Each may begin with a folder below "
    "root and end with a file that lists the images to use, as in "
    "'VOC2007/trainval+VOC2012/trainval' and 'train2014@lists/mine.txt'.",
    _split_name,
  )
  val_split: str = field(
    "val", "Split to validate on, written like train_split.", _split_name
  )
  holdout_share: float = field(
    0.2,
    "Part of the training images that is held out to validate on where there is no "
    "val_split, always the same ones; 0 for none.",
    _share,
  )
  unannotated_are_negatives: bool = field(
    False,
    "Whether images without annotation, or with an empty XML file, are images without "
    "objects. Otherwise such an image is an error where a list names it, and is not read "
    "where none does.",
  )
  class_names: tuple[str, ...] = field(
    (), "Names of the classes 1..K in order; () for all that the data has."
  )
  voc_one_based_inclusive: bool = field(
    False,
    "Whether VOC boxes count pixels from 1 and include the last one, as PASCAL's own "
    "files do. Otherwise they are plain coordinates, as most tools write them.",
  )
  drop_empty_images: bool = field(
    False,
    "Whether images without objects are left out of training, as the authors' release "
    "does; the paper does not say.",
  )
  drop_ignored_objects: bool = field(
    False,
    "Whether difficult and crowd objects count as background in training, as in the "
    "authors' release, instead of being ignored.",
  )
  image_size_px: tuple[int, int] = field(
    (512, 512), "Size of the network's input, (height, width).", _network_size
  )
  augmentation: str = field(
    "zoom",
    "Transforms of the training images. 'zoom': colour jitter, horizontal flip, and "
    "scale jitter that keeps the aspect ratio. 'ssd', the paper's: colour jitter, "
    "expansion, cropping, horizontal flip, and warping to the input size. 'none': images "
    "as in evaluation, without flip and jitter.",
    one_of(AUGMENTATIONS),
  )
  horizontal_flip: float = field(
    0.5, "Probability that a training image is flipped.", between(0, 1)
  )
  zoom_range: tuple[float, float] = field(
    (1.0, 1.0),
    "Scale jitter of 'zoom': training images are scaled about a random point by a "
    "factor drawn from this range; (1.0, 1.0) for none.",
    _factor_range,
  )
  # Contrast is 1 plus or minus half of the strength.
  color_jitter: float = field(
    0.0,
    "Strength of the colour jitter; 0 for none, 1 for the paper's ranges (SSD's). 'zoom' "
    "changes brightness, contrast and saturation; 'ssd' hue and lighting too.",
    between(0, 2),
  )
  check_images: bool = field(
    True, "Whether every image file is decoded once before training.", may_change=True
  )
  exif_orientation: bool = field(
    True,
    "Whether photos are turned as their EXIF data says, in training and wherever the "
    "run's network is used. Otherwise images are as stored, and boxes must be too.",
  )
  max_image_pixels: int = field(
    50_000_000, "Larger images are invalid.", positive, may_change=True
  )
  skip_faulty: bool = field(
    False,
    "Whether invalid images and annotations are skipped, counted and reported, "
    "instead of being an error. Where an invalid object is known to be is ignored; its "
    "image is left out where that is not known.",
    may_change=True,
  )
  service_address: str = field(
    "",
    "Address of a tf.data service, 'grpc://host:port', whose workers read and "
    "transform the training images; they must see data.root. '' for none.",
    may_change=True,
  )
  shapes_train_images: int = field(
    2000, "Number of 'shapes' images to train on.", positive
  )
  shapes_val_images: int = field(
    200, "Number of 'shapes' images to validate on, and to test on.", positive
  )
  shapes_size_px: tuple[int, int] = field(
    (128, 128), "Size of a 'shapes' image, (height, width).", _image_size
  )
  shapes_relative_size: float = field(
    1.0,
    "Factor of the sizes of all that is drawn on 'shapes' images; below 1 the same images "
    "have more background.",
    _relative_size,
  )
  shapes_seed: int = field(0, "Random seed of the 'shapes' images.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Losses, optimiser and schedule of the training. Defaults: the paper's."""

  batch_size: int = field(
    8, "Images per replica (GPU) and step.", positive, may_change=True
  )
  accumulate_steps: int = field(
    1,
    "Batches of batch_size images that a replica takes to each step, one after another. "
    "All are ranked together, as one batch of all their images: each is run forward, "
    "their logits are kept, and each is then run forward and backward. It takes the "
    "memory of one batch and the time of another forward pass.",
    positive,
    may_change=True,
  )
  epochs: int = field(160, "Passes over the training split.", positive, may_change=True)
  classification_loss: str = field(
    "ap_loss",
    "Loss of the class scores: one that ap_detect.losses has, such as 'ap_loss', "
    "'auc_loss', 'focal_loss' or 'ohem_cross_entropy_loss', or the import path of "
    "another, which is called like those.",
    loss_name,
  )
  loss_options: Mapping[str, Any] = field(
    {},
    "Options of classification_loss, its function's keyword arguments, such as delta, "
    "interpolated and images_per_ranking of ap_loss; what is left out has the function's "
    "own default. The fields delta, interpolated and images_per_ranking that 'train' had "
    "earlier are still taken for these. On the command line one by one, --config.train.loss_options.delta=0.5, "
    "or all: --config.train.loss_options=\"{'delta': 0.5}\".",
  )
  ranking_scope: str = field(
    "replica",
    "Which images a ranking loss ranks together. 'replica': those of a replica's own "
    "step, as in the authors' release. 'global': those of all replicas; "
    "images_per_ranking then counts among them.",
    one_of(RANKING_SCOPES),
  )
  box_loss: str = field(
    "smooth_l1",
    "Loss of the boxes: 'smooth_l1' and 'l1' of the encoded offsets, a mean over four, "
    "or 'giou' of the boxes.",
    one_of(BOX_LOSSES),
  )
  box_loss_weight: float = field(
    1.0, "Weight of the box loss, relative to the classification loss.", not_negative
  )
  balance_box_loss: bool = field(
    False,
    "Whether the box loss is scaled to the value that the classification loss has at the "
    'step, before box_loss_weight is on it, as in Rank & Sort loss ("self-balancing").',
  )
  box_loss_normalizer: str = field(
    "replica",
    "What the box loss is divided by. 'replica': the positives of the replica's own "
    "batch, as in the authors' release. 'global': the mean over replicas of their "
    "positives, so that the whole global batch counts.",
    one_of(BOX_LOSS_NORMALIZERS),
  )
  optimizer: str = field(
    "sgd",
    "Optimiser; 'sgd' has momentum, 'sgdw' and 'lamb' are tensorflow-addons'.",
    one_of(OPTIMIZERS),
  )
  learning_rate: float = field(
    1e-3, "Learning rate after warm-up.", positive, may_change=True
  )
  reference_batch_size: int = field(
    0,
    "Images per step, over all replicas, that learning_rate is for: with another number "
    "the rate is scaled linearly. 0: it is not scaled.",
    not_negative,
    may_change=True,
  )
  momentum: float = field(0.9, "Momentum of sgd and sgdw.", between(0, 1))
  weight_decay: float = field(
    1e-4,
    "Weight decay: L2 in the gradient for sgd and adam, decoupled for sgdw and lamb.",
    not_negative,
  )
  decay_all_weights: bool = field(
    True,
    "Whether weight decay is on all trained weights, as in the paper; otherwise it is not "
    "on biases and on scales and offsets of normalisation.",
  )
  ema_decay: float = field(
    0.0,
    "Decay of an exponential moving average of the trained weights, such as 0.999: "
    "validation, evaluation, export and prediction then use the average. 0: none is "
    "kept.",
    _share,
  )
  clip_norm: float = field(
    0.0,
    "Upper bound of the gradient's global norm; 0 for none.",
    not_negative,
    may_change=True,
  )
  schedule: str = field(
    "step",
    "Learning-rate schedule, by epochs done: 'step' multiplies the rate by "
    "decay_factor at decay_epochs, 'cosine' falls to 0 at the end of the last epoch.",
    one_of(SCHEDULES),
  )
  decay_epochs: tuple[int, ...] = field(
    (110, 140), "Epochs after which 'step' lowers the learning rate."
  )
  decay_factor: float = field(
    0.1, "Factor of the learning rate at each of decay_epochs.", positive
  )
  warmup_steps: int = field(
    500,
    "Steps of linear warm-up; counted in images, at the batch size of the first start.",
    not_negative,
  )
  warmup_start_factor: float = field(
    1 / 3,
    "Learning rate of the first step, as a share of learning_rate.",
    between(0, 1),
  )
  seed: int = field(
    0,
    "Random seed of initialisation, data order and transforms.",
    between(0, 2**31 - 1),
  )
  validate_every_epochs: int = field(
    1,
    "Epochs between evaluations of the validation split; the last epoch always ends "
    "with one.",
    positive,
    may_change=True,
  )
  patience: int = field(
    0,
    "Training ends after so many validations without a better AP; 0: it never ends early.",
    not_negative,
    may_change=True,
  )
  log_every_steps: int = field(
    10,
    "Steps between readings of the metrics from the device, which are then written.",
    positive,
    may_change=True,
  )
  checkpoint_every_minutes: float = field(
    10.0,
    "Minutes between checkpoints within an epoch; each epoch also ends with one.",
    positive,
    may_change=True,
  )
  keep_checkpoints: int = field(
    2,
    "How many of the latest checkpoints are kept beside the best.",
    positive,
    may_change=True,
  )
  steps_per_execution: int = field(
    1, "Training steps per call of the compiled graph.", positive, may_change=True
  )
  jit_compile: str = field(
    "auto",
    "What XLA compiles. 'auto': forward, ranking and backward pass on GPUs, only the "
    "ranking loss on CPUs. 'always': all of it everywhere. 'never': nothing of the "
    "step.",
    one_of(JIT_COMPILE),
    may_change=True,
  )
  precision: str = field(
    "float32",
    "What the hidden layers compute in while training, and validation in it. With "
    "'bfloat16', which takes half the memory and suits GPUs from Ampere on, weights, "
    "statistics of normalisation, the normalised input, scores, box offsets, targets and "
    "losses stay float32, and so does all that uses the trained network.",
    one_of(PRECISIONS),
  )
  deterministic: bool = field(
    False,
    "Whether TensorFlow's operations are deterministic. On one CPU device a resumed "
    "run then equals an uninterrupted one to the bit. Slower.",
    may_change=True,
  )
  callbacks: tuple[str, ...] = field(
    (),
    "Keras callbacks to train with, as import paths 'package.module.Name' of classes "
    "or functions that are called without arguments. They may watch a training and stop "
    "it, but not set its learning rate.",
    import_paths,
    may_change=True,
  )

  @property
  def images_per_replica(self) -> int:
    """Images that a replica takes to a step."""
    return self.batch_size * self.accumulate_steps


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Post-processing and evaluation. Defaults: the authors' release."""

  batch_size: int = field(8, "Images per replica.", positive, may_change=True)
  score_threshold: float = field(
    0.01, "Detections have a score above this.", _score, may_change=True
  )
  candidates_per_level: int = field(
    1000,
    "Anchor-class pairs per pyramid level that enter non-maximum suppression, those "
    "with the highest scores.",
    positive,
    may_change=True,
  )
  nms_iou: float = field(
    0.5,
    "Non-maximum suppression removes the lower-scored of two boxes of a class with an "
    "IoU above this.",
    between(0, 1),
    may_change=True,
  )
  max_detections: int = field(
    100,
    "Detections per image. COCO's metrics count the best 100 of them, VOC's all.",
    positive,
    may_change=True,
  )
  test_scales: tuple[str, ...] = field(
    (),
    "Test-time augmentation: sizes that images are scaled to, aspect ratio kept. "
    "'500/833' is a shorter side of 500 px, or a longer side of 833 px where it would "
    "pass that. Detections at several scales are merged before non-maximum "
    "suppression. () for data.image_size_px.",
    _test_scales,
    may_change=True,
  )
  horizontal_flip: bool = field(
    False,
    "Test-time augmentation: whether flipped images are tested too, and merged.",
    may_change=True,
  )
  num_pictures: int = field(
    12, "Images with boxes that an evaluation writes.", not_negative, may_change=True
  )
