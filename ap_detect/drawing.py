"""Pictures of detections: boxes with labels, ground truth beside detections, sheets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

# Okabe and Ito's colours, then ones of Tol's "muted" kind that differ from them:
# neighbours stay apart for the common kinds of colour blindness.
PALETTE: tuple[Color, ...] = (
  (230, 159, 0),  # orange
  (86, 180, 233),  # sky blue
  (0, 158, 115),  # bluish green
  (240, 228, 66),  # yellow
  (204, 121, 167),  # reddish purple
  (213, 94, 0),  # vermillion
  (0, 114, 178),  # blue
  (136, 34, 85),  # wine
  (170, 221, 204),  # pale teal
  (153, 153, 51),  # olive
  (238, 136, 153),  # rose
  (51, 34, 136),  # indigo
  (17, 119, 51),  # green
  (221, 204, 119),  # sand
)

# Pictures of a shorter side than this are enlarged, so that labels can be read.
MIN_SIDE_PX = 320

_DARK = (24, 24, 27)
_LIGHT = (250, 250, 250)
_GREY = (170, 170, 175)


@dataclasses.dataclass(frozen=True)
class _Style:
  """Sizes in pixels that suit one picture, of (width, height) `picture`."""

  picture: tuple[int, int]
  line: int
  font: ImageFont.FreeTypeFont
  padding: int

  @classmethod
  def of(cls, width: int, height: int) -> _Style:
    side = min(width, height)
    font_px = max(13, round(0.026 * side))
    # With a size, the default font is never the bitmap one.
    font = cast(ImageFont.FreeTypeFont, ImageFont.load_default(font_px))
    line = max(2, round(0.0055 * side))
    return cls((width, height), line, font, max(2, font_px // 5))


def class_color(class_id: int) -> Color:
  """The colour of class 1..K, as RGB; 42 of them, then they recur.

  Example:
    >>> class_color(1)
    (230, 159, 0)
  """
  tint, index = divmod(int(class_id) - 1, len(PALETTE))
  white, share = ((0, 0.0), (255, 0.45), (0, 0.4))[tint % 3]
  red, green, blue = (round(c + (white - c) * share) for c in PALETTE[index])
  return red, green, blue


def draw_detections(
  image: np.ndarray,
  boxes: np.ndarray,
  labels: Sequence[str],
  *,
  classes: Sequence[int],
  scores: Sequence[float] | None = None,
) -> np.ndarray:
  """The picture with a box and a label for every object.

  The best-scored box lies on top. Small pictures are enlarged to MIN_SIDE_PX. A label
  goes above its box, or inside or below where there is no room, always in the picture.

  Args:
    image: [H, W, 3] uint8 RGB.
    boxes: [D, 4] float, yxyx, pixels of `image`; cut to it.
    labels: [D] names.
    classes: [D] integer, 1..K; choose the colours.
    scores: [D] float, shown behind the names; None shows names alone.

  Returns:
    [H', W', 3] uint8; H' x W' is H x W unless enlarged.

  Raises:
    ValueError: the image is not [H, W, 3] uint8, lengths differ or a box is not finite.
  """
  boxes = np.asarray(boxes, np.float64)
  _check(image, boxes, labels, classes, scores)
  picture, scale = _enlarged(image)
  style = _Style.of(*picture.size)
  draw = ImageDraw.Draw(picture)
  order = range(len(boxes)) if scores is None else np.argsort(scores, kind="stable")
  corners = [_corners(box * scale, picture.size) for box in boxes]
  for i in order:
    _draw_box(draw, corners[i], class_color(classes[i]), style)
  taken: list[tuple[int, int, int, int]] = []
  # The best-scored label has the first choice of a place.
  for i in reversed(order):
    text = labels[i] if scores is None else f"{labels[i]} {_score(scores[i])}"
    _draw_label(draw, corners[i], text, class_color(classes[i]), style, taken)
  return np.asarray(picture)


def draw_targets(
  image: np.ndarray,
  boxes: np.ndarray,
  labels: Sequence[str],
  *,
  classes: Sequence[int],
  ignored: Sequence[bool],
  anchors: np.ndarray,
  anchor_classes: Sequence[int],
) -> np.ndarray:
  """The picture with its objects and the anchors that are positive for them.

  Boxes and labels as `draw_detections` draws them, ignored objects in dashed grey. A
  positive anchor is a dot at its centre, in the colour of the class it is to find.

  Args:
    image: [H, W, 3] uint8 RGB.
    boxes: [G, 4] float, yxyx, pixels of `image`; cut to it.
    labels: [G] names.
    classes: [G] integer, 1..K; choose the colours.
    ignored: [G] bool.
    anchors: [P, 4] float, yxyx, pixels of `image`; may leave it.
    anchor_classes: [P] integer, 1..K.

  Returns:
    [H', W', 3] uint8; H' x W' is H x W unless enlarged to MIN_SIDE_PX.

  Raises:
    ValueError: the image is not [H, W, 3] uint8, lengths differ or a box is not finite.
  """
  boxes, anchors = np.asarray(boxes, np.float64), np.asarray(anchors, np.float64)
  _check(image, boxes, labels, classes, None)
  if len(ignored) != len(labels) or anchors.shape != (len(anchor_classes), 4):
    raise ValueError(
      f"need ignored [{len(labels)}], anchors [P, 4], anchor_classes [P], "
      f"got [{len(ignored)}], {anchors.shape}, [{len(anchor_classes)}]"
    )
  picture, scale = _enlarged(image)
  style = _Style.of(*picture.size)
  draw = ImageDraw.Draw(picture)
  corners = [_corners(box * scale, picture.size) for box in boxes]
  colors = [_GREY if skip else class_color(k) for k, skip in zip(classes, ignored)]
  for corner, color, skip in zip(corners, colors, ignored):
    (_draw_dashed_box if skip else _draw_box)(draw, corner, color, style)
  centers = (anchors[:, :2] + anchors[:, 2:]) / 2 * scale[:2]
  for (y, x), class_id in zip(centers, anchor_classes):
    _draw_dot(draw, y, x, class_color(class_id), style)
  taken: list[tuple[int, int, int, int]] = []
  for corner, text, color in zip(corners, labels, colors):
    _draw_label(draw, corner, text, color, style, taken)
  return np.asarray(picture)


def with_caption(image: np.ndarray, caption: str) -> np.ndarray:
  """The picture with a strip of text above it.

  Args:
    image: [H, W, 3] uint8.
    caption: lines of text; each is cut where it is wider than the picture.

  Returns:
    [H', W, 3] uint8, the picture at the bottom.

  Raises:
    ValueError: the image is not [H, W, 3] uint8.
  """
  picture = _picture(image)
  style = _Style.of(*picture.size)
  lines = caption.split("\n")
  line_height = sum(style.font.getmetrics())
  strip = line_height * len(lines) + 2 * style.padding
  canvas = Image.new("RGB", (picture.width, strip + picture.height), _DARK)
  canvas.paste(picture, (0, strip))
  draw = ImageDraw.Draw(canvas)
  for i, line in enumerate(lines):
    text = _shortened(line, picture.width - 4 * style.padding, style.font)
    place = (2 * style.padding, style.padding + line_height * i)
    draw.text(place, text, fill=_LIGHT, font=style.font)
  return np.asarray(canvas)


def side_by_side(
  truth: np.ndarray,
  detections: np.ndarray,
  titles: tuple[str, str] = ("Ground truth", "Detections"),
) -> np.ndarray:
  """Two pictures beside each other, a title above each.

  Args:
    truth: [H, W, 3] uint8, on the left.
    detections: [H2, W2, 3] uint8, on the right; scaled to the height H.
    titles: of the left and of the right one.

  Returns:
    [H', W', 3] uint8.

  Raises:
    ValueError: an image is not [H, W, 3] uint8.
  """
  left, right = _picture(truth), _picture(detections)
  if right.height != left.height:
    width = max(1, round(right.width * left.height / right.height))
    right = right.resize((width, left.height), Image.Resampling.LANCZOS)
  style = _Style.of(*left.size)
  gap = 2 * style.padding
  ascent, descent = style.font.getmetrics()
  strip = ascent + descent + 2 * style.padding
  size = (left.width + gap + right.width, strip + left.height)
  canvas = Image.new("RGB", size, _DARK)
  draw = ImageDraw.Draw(canvas)
  for x, picture, title in (
    (0, left, titles[0]),
    (left.width + gap, right, titles[1]),
  ):
    canvas.paste(picture, (x, strip))
    place = (x + 2 * style.padding, strip // 2)
    draw.text(place, title, fill=_LIGHT, font=style.font, anchor="lm")
  return np.asarray(canvas)


def contact_sheet(images: Sequence[np.ndarray], columns: int) -> np.ndarray:
  """Pictures in rows of `columns`, each fitted into a cell of the median size.

  Args:
    images: of [H, W, 3] uint8 each; sizes may differ; at least one.
    columns: pictures in a row; >= 1.

  Returns:
    [H', W', 3] uint8. Fewer images than columns make a narrower sheet.

  Raises:
    ValueError: there are no images or no columns, or one is not [H, W, 3] uint8.
  """
  if not images or columns < 1:
    raise ValueError(f"need images and columns, got {len(images)} and {columns}")
  pictures = [_picture(image) for image in images]
  columns = min(columns, len(pictures))
  rows = -(-len(pictures) // columns)
  width, height = (int(side) for side in np.median([p.size for p in pictures], axis=0))
  gap = max(4, min(width, height) // 50)
  size = (columns * (width + gap) + gap, rows * (height + gap) + gap)
  sheet = Image.new("RGB", size, _LIGHT)
  for i, picture in enumerate(pictures):
    row, column = divmod(i, columns)
    fitted = _fitted(picture, width, height)
    x = gap + column * (width + gap) + (width - fitted.width) // 2
    y = gap + row * (height + gap) + (height - fitted.height) // 2
    sheet.paste(fitted, (x, y))
  return np.asarray(sheet)


def _check(image, boxes, labels, classes, scores) -> None:
  if boxes.shape != (len(labels), 4) or len(classes) != len(labels):
    raise ValueError(
      "need boxes [D, 4], labels [D], classes [D], "
      f"got {boxes.shape}, [{len(labels)}], [{len(classes)}]"
    )
  if scores is not None and len(scores) != len(labels):
    raise ValueError(f"need {len(labels)} scores, got {len(scores)}")
  if not np.isfinite(boxes).all():
    raise ValueError(f"boxes must be finite, got {boxes}")


def _picture(image: np.ndarray) -> Image.Image:
  image = np.asarray(image)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
    raise ValueError(f"need [H, W, 3] uint8, got {image.shape} {image.dtype}")
  return Image.fromarray(np.ascontiguousarray(image))


def _enlarged(image: np.ndarray) -> tuple[Image.Image, np.ndarray]:
  """The picture, at least MIN_SIDE_PX on a side, and [4] factors for its boxes."""
  picture = _picture(image)
  factor = max(1.0, MIN_SIDE_PX / min(picture.size))
  if factor == 1:
    return picture.copy(), np.ones(4)
  width, height = (round(side * factor) for side in picture.size)
  scale = np.tile([height / picture.height, width / picture.width], 2)
  return picture.resize((width, height), Image.Resampling.BICUBIC), scale


def _fitted(picture: Image.Image, width: int, height: int) -> Image.Image:
  factor = min(width / picture.width, height / picture.height)
  if factor == 1:
    return picture
  size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
  return picture.resize(size, Image.Resampling.LANCZOS)


def _corners(box: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
  """xyxy of the first and last pixel of a box, inside the picture."""
  width, height = size
  ymin, xmin, ymax, xmax = box
  left = int(np.clip(round(xmin), 0, width - 1))
  top = int(np.clip(round(ymin), 0, height - 1))
  right = int(np.clip(round(xmax) - 1, left, width - 1))
  bottom = int(np.clip(round(ymax) - 1, top, height - 1))
  return left, top, right, bottom


def _draw_box(draw, corners, color: Color, style: _Style) -> None:
  left, top, right, bottom = corners
  # A dark rim keeps every colour apart from every background.
  draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_DARK)
  inner = style.line
  if right - left > 2 * inner and bottom - top > 2 * inner:
    rim = (left + inner, top + inner, right - inner, bottom - inner)
    draw.rectangle(rim, outline=_DARK)
  draw.rectangle(corners, outline=color, width=style.line)


def _draw_dashed_box(draw, corners, color: Color, style: _Style) -> None:
  left, top, right, bottom = corners
  dash = 4 * style.line
  draw.rectangle(corners, outline=_DARK, width=style.line)
  for x in range(left, right + 1, 2 * dash):
    end = min(x + dash - 1, right)
    draw.rectangle((x, top, end, min(top + style.line - 1, bottom)), fill=color)
    draw.rectangle((x, max(bottom - style.line + 1, top), end, bottom), fill=color)
  for y in range(top, bottom + 1, 2 * dash):
    end = min(y + dash - 1, bottom)
    draw.rectangle((left, y, min(left + style.line - 1, right), end), fill=color)
    draw.rectangle((max(right - style.line + 1, left), y, right, end), fill=color)


def _draw_dot(draw, y: float, x: float, color: Color, style: _Style) -> None:
  for radius, fill in ((style.line + 1, _DARK), (style.line, color)):
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _shortened(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
  """The text, cut so far that it is at most so many pixels wide."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(f"{text}...") > width:
    text = text[:-1]
  return f"{text}..."


def _draw_label(draw, corners, text: str, color: Color, style: _Style, taken) -> None:
  ascent, descent = style.font.getmetrics()
  width = round(draw.textlength(text, style.font)) + 2 * style.padding
  height = ascent + descent + style.padding
  place = _label_place(corners, (width, height), style.picture, taken)
  taken.append(place)
  draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
  left, middle = place[0] + style.padding, (place[1] + place[3]) / 2
  ink = _DARK if _luminance(color) > 0.36 else _LIGHT
  draw.text((left, middle), text, fill=ink, font=style.font, anchor="lm")


def _label_place(corners, label, picture, taken) -> tuple[int, int, int, int]:
  """xyxy of a label: the first place that fits and covers no other label, if any."""
  left, top, right, bottom = corners
  width, height = label
  x_end = right + 1 - width
  within = [(left, top), (x_end, bottom + 1 - height)]
  # A label would hide what is in a small box.
  roomy = right - left > 1.5 * width and bottom - top > 3 * height
  candidates = [
    (left, top - height),
    *(within if roomy else []),
    (left, bottom + 1),
    (x_end, top - height),
    (x_end, bottom + 1),
    *(within if not roomy else []),
  ]
  inside = []
  for x, y in candidates:
    if 0 <= y <= picture[1] - height:
      x = max(0, min(x, picture[0] - width))
      inside.append((x, y, x + width, y + height))
  # The picture may be lower than the label is high.
  inside = inside or [(max(0, min(left, picture[0] - width)), 0, left + width, height)]
  free = [place for place in inside if not any(_overlap(place, t) for t in taken)]
  return (free or inside)[0]


def _overlap(a, b) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _luminance(color: Color) -> float:
  """Relative luminance in [0, 1], without gamma's exact curve."""
  red, green, blue = ((c / 255) ** 2.2 for c in color)
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _score(score: float) -> str:
  """Two decimals, or one digit where that would say 0: the scale is not fixed."""
  return f"{score:.2f}" if score >= 0.005 else f"{score:.1g}"
