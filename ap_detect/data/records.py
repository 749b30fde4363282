"""What every reader returns: records of images and objects, and one class mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ap_detect.data import encoded, image_headers

# More lines than that bury the first ones, which say what is wrong.
LISTED_FAULTS = 50


# What refuse_faults advises, where it is true.
SKIP = "data.skip_faulty=True leaves out what is invalid, and reports it"


def printable(line: str) -> str:
  """A line that UTF-8 can hold, whatever the names of files in it."""
  return line.encode("utf-8", "backslashreplace").decode("utf-8")


class DataError(ValueError):
  """Faults in a dataset, one a line.

  Args:
    faults: lines; the first 50 are in the message.
    advice: lines on what to do about them, such as which field lets them pass.
  """

  def __init__(self, faults: Sequence[str], advice: Sequence[str] = ()):
    self.faults = tuple(map(printable, faults))
    self.advice = tuple(advice)
    super().__init__(self.describe(LISTED_FAULTS))

  def describe(self, listed: int | None = None) -> str:
    """The message with so many of the faults; None for all."""
    count = len(self.faults)
    lines = [f"{count} {'fault' if count == 1 else 'faults'} in the data:"]
    lines += self.faults[:listed]
    if listed is not None and count > listed:
      lines.append(f"... and {count - listed} more")
    return "\n".join(["\n  ".join(lines), *self.advice])

  @classmethod
  def join(cls, parts: Sequence[tuple[str, DataError]]) -> DataError:
    """One error of several, each with what its faults begin with; each line once."""
    faults = [f"{start}{fault}" for start, error in parts for fault in error.faults]
    advice = [line for _, error in parts for line in error.advice]
    return cls(list(dict.fromkeys(faults)), list(dict.fromkeys(advice)))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRecord:
  """One image and its objects.

  Attributes:
    image_id: the dataset's own id: COCO's integer, VOC's file stem. Where datasets are
      joined, see splits.join.
    image: path of an image file, encoded.ShardedImage, or the pixels themselves,
      [H, W, 3] uint8 RGB.
    height: of the image as it is decoded, in pixels.
    width: likewise.
    boxes: [G, 4] float64, yxyx, pixels of the image.
    classes: [G] int32, 1..K; 0 for the place of an invalid object that was skipped,
      which is ignored for all classes.
    ignored: [G] bool; VOC's difficult or COCO's crowd objects, and the places of invalid
      ones, which neither training nor evaluation counts for or against a detector.
    areas: [G] float64, squared pixels, for COCO's small/medium/large: the
      annotation's own area (of the mask) in COCO, the box's area elsewhere.
    header: the image file's; None for pixels in memory.
    exif_orientation: whether the image is turned as its EXIF data says; the same for
      all records of a dataset.
    boxes_were_turned: whether the annotation was of the image as stored, and the boxes
      were turned with it.
    num_clipped: how many boxes were clipped to the image by more than a pixel.
    boxes_xywh: [G, 4] float64, (x, y, width, height) as the annotation has them, by which
      COCO's metrics judge: a box from its corners may differ in the last bit, and an
      overlap of exactly a threshold with it. None for those of `boxes`.
  """

  image_id: int | str
  image: str | encoded.ShardedImage | np.ndarray
  height: int
  width: int
  boxes: np.ndarray
  classes: np.ndarray
  ignored: np.ndarray
  areas: np.ndarray
  header: image_headers.Header | None = None
  exif_orientation: bool = True
  boxes_were_turned: bool = False
  num_clipped: int = 0
  boxes_xywh: np.ndarray | None = None


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
    has_labels: whether the images are annotated. If not, as in a public test split,
      records without objects say nothing, and can be neither trained nor scored on.
    notes: what was read otherwise than it is written, a line for each kind.
  """

  records: tuple[ImageRecord, ...]
  class_names: tuple[str, ...]
  category_ids: tuple[int, ...]
  ignored_are_crowds: bool
  skipped: tuple[str, ...] = ()
  has_labels: bool = True
  notes: tuple[str, ...] = ()


def for_training(dataset, *, drop_empty=False, drop_ignored=False):
  """A split without what training is not to see.

  Args:
    dataset: DetectionDataset.
    drop_empty: whether images without objects go.
    drop_ignored: whether difficult and crowd objects go, which makes background of
      them. Images that have no others are then empty. What was skipped as invalid stays
      ignored.

  Returns:
    DetectionDataset; the rest is as it was, in the same order.
  """
  records = dataset.records
  if drop_ignored:
    records = [_without_ignored(record) for record in records]
  if drop_empty:
    records = [record for record in records if len(record.boxes)]
  return dataclasses.replace(dataset, records=tuple(records))


def _without_ignored(record):
  kept = ~record.ignored | (record.classes == 0)
  if kept.all():
    return record
  fields = ("boxes", "classes", "ignored", "areas")
  return dataclasses.replace(
    record, boxes_xywh=None, **{name: getattr(record, name)[kept] for name in fields}
  )
