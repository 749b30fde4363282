"""The embedded dataset "shapes": synthetic images, generated on the fly from a seed.

Six classes that differ in shape alone: any class may have any colour, texture, size,
rotation and style. Objects cover one another, are cut by the image's border, and lie
among distractors (strokes, arcs, fragments, blobs) on textured backgrounds. The
constants below set how hard that is.

A box is COCO's: the tight box of the object's visible pixels. An image depends only on
the seed, the split, its number and its size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
from PIL import Image

from ap_detect.data.records import DetectionDataset, ImageRecord
from ap_detect.data.shapes import rendering
from ap_detect.data.shapes.rendering import Stamp, integer, tight_box, uniform

CLASS_NAMES = tuple(rendering.SHAPES)
SPLITS = ("train", "val", "test")  # a split's place here is part of its images' seeds
MIN_IMAGE_SIZE_PX = 64

# Objects; sizes are fractions of the image's shorter side.
EMPTY_IMAGES = 0.03
MAX_OBJECTS = 8
MIN_SIZE, MAX_SIZE = 0.16, 0.6  # of the longer half axis, doubled; log-uniform
MAX_STRETCH = 1.5
NEAR_ANOTHER = 0.25  # share of objects placed so that they touch an earlier one
OUTLINED, BORDERED, TEXTURED = 0.15, 0.15, 0.4  # shares of the objects' styles
MIN_OUTLINED_SIZE = 0.2  # smaller ones are filled: their holes would close
LINE_WIDTH = (0.10, 0.16)  # of outlines and borders, fraction of the object's size

# What must stay visible of an object, or whatever would cover it goes elsewhere.
MIN_VISIBLE_AREA = 0.42  # of its pixels, those beyond the image's border included
MIN_VISIBLE_AREA_SMALL, SMALL_SIZE = 0.75, 0.22  # the same for small objects
MIN_VISIBLE_SIDE = 0.55  # of each side of its box
MIN_BOX_SIDE = 0.07  # each side of the visible box, fraction of the shorter side

# Clutter.
DISTRACTORS_BELOW, DISTRACTORS_ABOVE = (3, 7), (1, 3)
DISTRACTOR_SIZE = (0.08, 0.4)
DISTRACTOR_THICKNESS = (0.012, 0.03)

# Colour differences: sum over R, G and B of absolute differences, of 765 at most.
MIN_OBJECT_CONTRAST, MIN_DISTRACTOR_CONTRAST = 150, 50
LOW_CONTRAST_SHARE = 0.15  # of the pixels below, which may differ by less
COLOR_STRENGTH = (0.4, 1.0)  # how far from the colour below to a random one
SECOND_COLOR = (0.3, 0.6)  # a texture's or border's, how far to another random one

PLACEMENT_ATTEMPTS = 10
# Half a window's side, in half sizes of what it must hold at any rotation.
OBJECT_WINDOW, DISTRACTOR_WINDOW = 1.26, 1.15


@dataclasses.dataclass(frozen=True, eq=False)
class _Object:
  """What is remembered of an object that is drawn.

  Attributes:
    class_id: 1..K.
    center_yx: in pixels of the image.
    num_pixels: of the whole object, hidden ones and ones outside the image included.
    sides: height and width of the box around all of those.
  """

  class_id: int
  center_yx: tuple[float, float]
  num_pixels: int
  sides: tuple[int, int]


class _Scene:
  """An image under construction.

  Attributes:
    canvas: [3, H, W] float32, RGB in [0, 255].
    owner: [H, W] uint8, which object a pixel shows: its place in `objects`, from 1.
    objects: in drawing order.
    shorter_side: pixels that sizes are fractions of.
  """

  def __init__(
    self, rng: np.random.Generator, height: int, width: int, relative_size: float
  ):
    self.rng = rng
    self.canvas = rendering.background(rng, height, width)
    self.owner = np.zeros((height, width), np.uint8)
    self.objects: list[_Object] = []
    self.shorter_side = min(height, width) * relative_size

  def add_distractor(self):
    """Draws a distractor, unless it hides too much of an object wherever tried."""
    for _ in range(PLACEMENT_ATTEMPTS):
      stamp = self._distractor_stamp()
      if self._claim(stamp, 0):
        self._paint(stamp, MIN_DISTRACTOR_CONTRAST)
        return

  def add_object(self, class_id: int):
    """Draws an object, unless too much would be hidden wherever tried."""
    for _ in range(PLACEMENT_ATTEMPTS):
      center_yx, stamp = self._object_stamp(class_id)
      mask = stamp.coverage >= 0.5
      top, left, bottom, right = tight_box(mask)
      sides = (bottom - top, right - left)
      self.objects.append(
        _Object(class_id, center_yx, int(np.count_nonzero(mask)), sides)
      )
      if self._claim(stamp, len(self.objects)):
        self._paint(stamp, MIN_OBJECT_CONTRAST)
        return
      self.objects.pop()

  def _object_stamp(self, class_id: int) -> tuple[tuple[float, float], Stamp]:
    """A random object of a class, and its centre."""
    rng = self.rng
    size = MIN_SIZE * math.exp(uniform(rng, 0, math.log(MAX_SIZE / MIN_SIZE)))
    longer = size * self.shorter_side / 2
    shorter = longer / math.exp(uniform(rng, 0, math.log(MAX_STRETCH)))
    half_u, half_v = (longer, shorter) if rng.random() < 0.5 else (shorter, longer)
    center_yx = self._object_center(longer)
    frame = rendering.make_frame(
      center_yx, OBJECT_WINDOW * longer, uniform(rng, 0, 2 * math.pi)
    )
    shape = rendering.SHAPES[CLASS_NAMES[class_id - 1]]
    distance = shape(frame.u, frame.v, half_u, half_v)
    line = max(1.5, 2 * shorter * uniform(rng, *LINE_WIDTH))
    style = rng.random() if size >= MIN_OUTLINED_SIZE else 1.0
    if style < OUTLINED:
      distance = np.maximum(distance, -distance - line)
    stamp = rendering.make_stamp(frame, distance, self.owner.shape)
    if OUTLINED <= style < OUTLINED + BORDERED:
      border = rendering.clip_to_unit(distance + (line + 0.5))
      stamp = dataclasses.replace(stamp, border=border)
    return center_yx, stamp

  def _object_center(self, half_size: float) -> tuple[float, float]:
    """Anywhere, or beside an earlier object so that the two may overlap."""
    rng = self.rng
    height, width = self.owner.shape
    if self.objects and rng.random() < NEAR_ANOTHER:
      other = self.objects[integer(rng, 0, len(self.objects) - 1)]
      angle = uniform(rng, 0, 2 * math.pi)
      reach = max(other.sides) / 2 + half_size * uniform(rng, 0, 0.8)
      y = other.center_yx[0] + reach * math.sin(angle)
      x = other.center_yx[1] + reach * math.cos(angle)
      return min(max(y, 0.0), float(height)), min(max(x, 0.0), float(width))
    inset = 0.7 * half_size
    return uniform(rng, inset, height - inset), uniform(rng, inset, width - inset)

  def _distractor_stamp(self) -> Stamp:
    rng = self.rng
    height, width = self.owner.shape
    half_size = uniform(rng, *DISTRACTOR_SIZE) * self.shorter_side / 2
    thickness = max(1.2, uniform(rng, *DISTRACTOR_THICKNESS) * self.shorter_side)
    frame = rendering.make_frame(
      (uniform(rng, 0, height), uniform(rng, 0, width)),
      DISTRACTOR_WINDOW * half_size,
      uniform(rng, 0, 2 * math.pi),
    )
    draw = rendering.DISTRACTORS[integer(rng, 0, len(rendering.DISTRACTORS) - 1)]
    distance = draw(rng, frame.u, frame.v, half_size, thickness)
    return rendering.make_stamp(frame, distance, self.owner.shape)

  def _claim(self, stamp: Stamp, number: int) -> bool:
    """Gives the stamp's pixels to object `number`, unless too much would be hidden."""
    before = self.owner[stamp.place].copy()
    window = self.owner[stamp.place]
    mask = stamp.coverage[stamp.crop] >= 0.5
    changed = {number, *np.bincount(before[mask]).nonzero()[0].tolist()} - {0}
    window[mask] = number
    if all(self._is_visible(k) for k in changed):
      return True
    window[:] = before
    return False

  def _is_visible(self, number: int) -> bool:
    mask = self.owner == number
    whole = self.objects[number - 1]
    small = max(whole.sides) < SMALL_SIZE * self.shorter_side
    min_area = MIN_VISIBLE_AREA_SMALL if small else MIN_VISIBLE_AREA
    if np.count_nonzero(mask) < min_area * whole.num_pixels:
      return False
    top, left, bottom, right = tight_box(mask)
    least = MIN_BOX_SIDE * self.shorter_side
    return all(
      side >= max(least, MIN_VISIBLE_SIDE * whole_side)
      for side, whole_side in zip((bottom - top, right - left), whole.sides)
    )

  def _paint(self, stamp: Stamp, min_contrast: float):
    rng = self.rng
    canvas = self.canvas[(slice(None), *stamp.place)]
    color = self._color(canvas, min_contrast)
    other = rng.random((3, 1, 1), dtype=np.float32) * 255
    other = color + (other - color) * uniform(rng, *SECOND_COLOR)
    ink = color
    if stamp.border is not None:
      ink = rendering.mix(stamp.border[stamp.crop], color, other)
    elif rng.random() < TEXTURED:
      texture = rendering.texture(rng, stamp.frame)
      ink = rendering.mix(texture[stamp.crop], color, other)
    canvas[:] = rendering.mix(stamp.coverage[stamp.crop], canvas, ink)

  def _color(self, below: np.ndarray, min_contrast: float) -> np.ndarray:
    """A colour [3, 1, 1] that differs from `below`, here a little and there a lot."""
    step = 1 + below.shape[2] // 8
    samples = below[:, ::step, ::step].astype(np.int64).reshape(3, -1)
    mean = (samples.sum(axis=1) // samples.shape[1]).astype(np.float32)
    colors = self.rng.random((8, 3), dtype=np.float32) * 255
    low, high = COLOR_STRENGTH
    strengths = low + (high - low) * self.rng.random((8, 1), dtype=np.float32)
    colors = mean + (colors - mean) * strengths
    contrasts = np.abs(colors.astype(np.int64)[..., np.newaxis] - samples).sum(axis=1)
    contrasts.sort(axis=1)
    lowest = contrasts[:, int(LOW_CONTRAST_SHARE * samples.shape[1])].tolist()
    enough = [i for i, contrast in enumerate(lowest) if contrast >= min_contrast]
    chosen = enough[0] if enough else lowest.index(max(lowest))
    return colors[chosen][:, np.newaxis, np.newaxis]


def _draw_scene(
  rng: np.random.Generator, height: int, width: int, relative_size: float
) -> _Scene:
  scene = _Scene(rng, height, width, relative_size)
  for _ in range(integer(rng, *DISTRACTORS_BELOW)):
    scene.add_distractor()
  if rng.random() >= EMPTY_IMAGES:
    for _ in range(integer(rng, 1, MAX_OBJECTS)):
      scene.add_object(integer(rng, 1, len(CLASS_NAMES)))
  for _ in range(integer(rng, *DISTRACTORS_ABOVE)):
    scene.add_distractor()
  return scene


def _make_rng(seed: int, split: str, index: int) -> np.random.Generator:
  entropy = np.random.SeedSequence([seed, SPLITS.index(split), index])
  return np.random.Generator(np.random.PCG64(entropy))


def _make_record(
  rng: np.random.Generator, index: int, height: int, width: int, relative_size: float
) -> ImageRecord:
  scene = _draw_scene(rng, height, width, relative_size)
  masks = [scene.owner == k + 1 for k in range(len(scene.objects))]
  return ImageRecord(
    image_id=index,
    image=rendering.finish(rng, scene.canvas),
    height=height,
    width=width,
    boxes=np.array([tight_box(m) for m in masks], np.float64).reshape(-1, 4),
    classes=np.array([drawn.class_id for drawn in scene.objects], np.int32),
    ignored=np.zeros(len(masks), bool),
    areas=np.array([np.count_nonzero(m) for m in masks], np.float64),
  )


def _check_split(split):
  if split not in SPLITS:
    raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")


def _check_request(split, num_images, image_size_px, relative_size, seed):
  _check_split(split)
  if not isinstance(num_images, int) or num_images < 1:
    raise ValueError(f"num_images must be an integer >= 1, got {num_images!r}")
  if not isinstance(seed, int) or seed < 0:
    raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
  sizes = tuple(image_size_px) if isinstance(image_size_px, (tuple, list)) else ()
  if len(sizes) != 2 or not all(
    isinstance(size, int) and size >= MIN_IMAGE_SIZE_PX for size in sizes
  ):
    raise ValueError(
      "image_size_px must be (height, width), two integers >= "
      f"{MIN_IMAGE_SIZE_PX}, got {image_size_px!r}"
    )
  smallest = MIN_IMAGE_SIZE_PX / min(sizes)
  if not smallest <= relative_size <= 1:
    raise ValueError(
      f"relative_size must lie in [{smallest:g}, 1] for images of {sizes} px, got "
      f"{relative_size!r}"
    )


def make_shapes(
  split: str,
  *,
  num_images: int,
  image_size_px: tuple[int, int] = (128, 128),
  relative_size: float = 1.0,
  seed: int = 0,
) -> DetectionDataset:
  """Generates a split of the shapes dataset in memory.

  Image i is the same whatever `num_images`; no two splits share an image.

  Args:
    split: "train", "val" or "test".
    num_images: how many; their ids are 1..num_images.
    image_size_px: height and width; each at least 64.
    relative_size: factor of the sizes of objects and distractors, <= 1, with which they
      are as large as on an image of 64 px at least.
    seed: of all three splits; >= 0.

  Returns:
    The split; `image` of its records is [H, W, 3] uint8, boxes and areas are those of
    the objects' visible pixels, and no object is ignored.

  Raises:
    ValueError: an argument is not as above.

  Example:
    >>> dataset = make_shapes("val", num_images=2, image_size_px=(64, 96))
    >>> [(record.image_id, record.image.shape) for record in dataset.records]
    [(1, (64, 96, 3)), (2, (64, 96, 3))]
  """
  _check_request(split, num_images, image_size_px, relative_size, seed)
  height, width = image_size_px
  return DetectionDataset(
    records=tuple(
      _make_record(_make_rng(seed, split, index), index, height, width, relative_size)
      for index in range(1, num_images + 1)
    ),
    class_names=CLASS_NAMES,
    category_ids=tuple(range(1, len(CLASS_NAMES) + 1)),
    ignored_are_crowds=True,
  )


def write_shapes(dataset: DetectionDataset, root: str, split: str) -> str:
  """Writes a generated split as a COCO-format folder, images as PNG.

  The files are `<root>/annotations/instances_<split>.json` and
  `<root>/<split>/000001.png` and so on. The JSON has boxes and areas, no masks.

  Args:
    dataset: from `make_shapes`.
    root: the folder; made if need be.
    split: "train", "val" or "test"; the name in the paths above.

  Returns:
    The path of the JSON file.

  Raises:
    ValueError: the split is not one of those.
    FileExistsError: the folder holds this split already; nothing is overwritten.
  """
  _check_split(split)
  image_folder = os.path.join(root, split)
  path = os.path.join(root, "annotations", f"instances_{split}.json")
  for existing in filter(os.path.exists, (path, image_folder)):
    raise FileExistsError(f"{existing} exists; write the split to another folder")
  os.makedirs(os.path.dirname(path), exist_ok=True)
  os.makedirs(image_folder)
  for record in dataset.records:
    image = Image.fromarray(np.asarray(record.image))
    image.save(os.path.join(image_folder, f"{record.image_id:06d}.png"))
  with open(path, "w", encoding="utf-8") as file:
    json.dump(_coco_json(dataset), file)
  return path


def _coco_json(dataset: DetectionDataset) -> dict:
  images: list[dict] = []
  annotations: list[dict] = []
  for record in dataset.records:
    images.append(
      {
        "id": record.image_id,
        "file_name": f"{record.image_id:06d}.png",
        "height": record.height,
        "width": record.width,
      }
    )
    columns = (record.boxes, record.classes, record.areas)
    for box, class_id, area in zip(*(column.tolist() for column in columns)):
      ymin, xmin, ymax, xmax = box
      annotations.append(
        {
          "id": len(annotations) + 1,
          "image_id": record.image_id,
          "category_id": dataset.category_ids[class_id - 1],
          "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
          "area": area,
          "iscrowd": 0,
        }
      )
  categories = [
    {"id": category_id, "name": name, "supercategory": "shape"}
    for category_id, name in zip(dataset.category_ids, dataset.class_names)
  ]
  return {"images": images, "annotations": annotations, "categories": categories}
