"""What every reader returns: records of images and objects, and one class mapping."""

from __future__ import annotations

import dataclasses

import numpy as np


class DataError(ValueError):
  """Faults in a dataset. The message lists all of them, one a line."""

  def __init__(self, faults: list[str] | tuple[str, ...]):
    self.faults = tuple(faults)
    noun = "fault" if len(self.faults) == 1 else "faults"
    super().__init__("\n  ".join([f"{len(self.faults)} {noun} in the data:", *faults]))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRecord:
  """One image and its objects.

  Attributes:
    image_id: the dataset's own id: COCO's integer, VOC's file stem.
    image: path of a JPEG or PNG file, or the pixels themselves, [H, W, 3] uint8 RGB.
    height: of the image, in pixels.
    width: of the image, in pixels.
    boxes: [G, 4] float32, yxyx, pixels of the image.
    classes: [G] int32, 1..K.
    ignored: [G] bool; VOC's difficult or COCO's crowd objects, which neither training
      nor evaluation counts for or against a detector.
    areas: [G] float32, squared pixels, for COCO's small/medium/large: the
      annotation's own area (of the mask) in COCO, the box's area elsewhere.
  """

  image_id: int | str
  image: str | np.ndarray
  height: int
  width: int
  boxes: np.ndarray
  classes: np.ndarray
  ignored: np.ndarray
  areas: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionDataset:
  """One split of a dataset.

  Attributes:
    records: the images, in the split's order.
    class_names: names of the classes 1..K, in that order.
    category_ids: [K] ids of the classes in the dataset's own files (COCO's category
      ids; 1..K elsewhere).
    ignored_are_crowds: whether `ignored` objects are COCO crowds, whose overlap with a
      detection is intersection over the detection's area, or VOC difficult objects,
      whose overlap is IoU.
    skipped: what was left out, one line each; empty unless skipping was asked for.
  """

  records: tuple[ImageRecord, ...]
  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  ignored_are_crowds: bool
  skipped: tuple[str, ...] = ()
