"""Drawing for the synthetic "shapes" images: signed distances, fills, backgrounds.

Distances are in pixels, negative inside. Pixels are computed with additions, products,
divisions, square roots, floors and comparisons only, which IEEE 754 rounds exactly (and
numbers from NumPy's generators), so that an image is the same bits on every machine and
every NumPy. Scalars stay Python floats, which never promote the float32 arrays.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Callable, NamedTuple

import numpy as np

# Proportions of the shapes, in units of their half size.
SQUARE_HALF_SIDE = 0.85
TRIANGLE_RADIUS = 1.15
STAR_RADIUS = 1.25
CROSS_HALF_ARM = 0.34
CRESCENT_BITE_RADIUS, CRESCENT_BITE_OFFSET, CRESCENT_CENTER = 0.85, 0.55, 0.24

# Backgrounds, light and camera.
BACKGROUND_CONTRAST = (0.25, 0.85)  # between the noise's two colours, fraction of it
PATTERNED_BACKGROUNDS, PATTERN_STRENGTH = 0.6, 0.5
BRIGHTNESS, MAX_LIGHT_SLOPE = (0.8, 1.15), 0.3
BLURRED_IMAGES = 0.3
GRAIN = (4, 30)  # whole range of the uniform noise, of 255


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
  """A number in [low, high); many times faster than the generator's own method."""
  return low + (high - low) * rng.random()


def integer(rng: np.random.Generator, low: int, high: int) -> int:
  """An integer from low to high, both included."""
  return low + int(rng.random() * (high - low + 1))


def clip_to_unit(values: np.ndarray) -> np.ndarray:
  """The values, those outside [0, 1] taken to its ends."""
  return np.minimum(np.maximum(values, 0), 1)


class Frame(NamedTuple):
  """Pixel centres of a window, in the rotated axes of what is drawn there.

  Attributes:
    u: [H, W] float32, pixels from the centre along the first axis.
    v: [H, W] float32, pixels from the centre along the second axis.
    top: row of the window's first pixel; may be outside the image.
    left: column of the window's first pixel; may be outside the image.
  """

  u: np.ndarray
  v: np.ndarray
  top: int
  left: int


def make_frame(center_yx: tuple[float, float], half_size: float, angle: float) -> Frame:
  """The axes, turned by `angle` radians, of a square window around a centre."""
  top, left = (math.floor(c - half_size) - 1 for c in center_yx)
  side = math.ceil(2 * half_size) + 3
  offsets = np.arange(side, dtype=np.float32)
  y = (offsets + (top + 0.5 - center_yx[0]))[:, np.newaxis]
  x = (offsets + (left + 0.5 - center_yx[1]))[np.newaxis, :]
  cosine, sine = math.cos(angle), math.sin(angle)
  return Frame(x * cosine + y * sine, y * cosine - x * sine, top, left)


@dataclasses.dataclass(frozen=True, eq=False)
class Stamp:
  """Something to draw: a window of pixels, and its part inside the image.

  Attributes:
    frame: axes of the whole window.
    coverage: [h, w] float32 in [0, 1], of the whole window.
    crop: slices of the window, the part inside the image.
    place: slices of the image, where that part goes.
    border: [h, w] float32, how much of the second colour each pixel of the window
      takes; None for what has no border.
  """

  frame: Frame
  coverage: np.ndarray
  crop: tuple[slice, slice]
  place: tuple[slice, slice]
  border: np.ndarray | None = None


def make_stamp(
  frame: Frame, distance: np.ndarray, image_shape: tuple[int, ...]
) -> Stamp:
  """What lies inside by `distance`, [h, w] of the frame's window, for an image."""
  crop, place = [], []
  for first, size, limit in zip((frame.top, frame.left), distance.shape, image_shape):
    begin, end = max(first, 0), min(first + size, limit)
    crop.append(slice(begin - first, end - first))
    place.append(slice(begin, end))
  coverage = clip_to_unit(0.5 - distance)
  return Stamp(frame, coverage, (crop[0], crop[1]), (place[0], place[1]))


def _half_plane(u, v, half_u, half_v, angle, offset):
  """Distance to the half plane with this normal and offset, in units of half size."""
  a, b = math.cos(angle) / half_u, math.sin(angle) / half_v
  scale = 1 / math.hypot(a, b)
  return u * (a * scale) + v * (b * scale) - offset * scale


def _box(u, v, half_u, half_v):
  return np.maximum(np.abs(u) - half_u, np.abs(v) - half_v)


def circle(u, v, half_u, half_v):
  """Distance to an ellipse; to first order where the two half sizes differ."""
  u, v = u / half_u, v / half_v
  return (np.sqrt(u * u + v * v) - 1) * min(half_u, half_v)


def square(u, v, half_u, half_v):
  """Distance to an upright rectangle."""
  return _box(u, v, SQUARE_HALF_SIDE * half_u, SQUARE_HALF_SIDE * half_v)


def triangle(u, v, half_u, half_v):
  """Distance to a triangle, equilateral where the half sizes agree."""
  distance = np.full_like(u, -np.inf)
  for degrees in (30, 150, 270):
    angle, offset = math.radians(degrees), TRIANGLE_RADIUS / 2
    plane = _half_plane(u, v, half_u, half_v, angle, offset)
    distance = np.maximum(distance, plane)
  return distance


def star(u, v, half_u, half_v):
  """Distance to a five-pointed star: the points inside 4 of the pentagram's 5 lines."""
  offset = STAR_RADIUS * math.cos(math.radians(72))
  largest = second = np.full_like(u, -np.inf)
  for k in range(5):
    plane = _half_plane(u, v, half_u, half_v, math.radians(90 + 72 * k), offset)
    second = np.maximum(second, np.minimum(largest, plane))
    largest = np.maximum(largest, plane)
  return second


def cross(u, v, half_u, half_v):
  """Distance to a plus sign."""
  return np.minimum(
    _box(u, v, half_u, CROSS_HALF_ARM * half_v),
    _box(u, v, CROSS_HALF_ARM * half_u, half_v),
  )


def crescent(u, v, half_u, half_v):
  """Distance to a disc out of which another has bitten a part."""
  u = u - CRESCENT_CENTER * half_u
  bite = circle(
    u - CRESCENT_BITE_OFFSET * half_u,
    v,
    CRESCENT_BITE_RADIUS * half_u,
    CRESCENT_BITE_RADIUS * half_v,
  )
  return np.maximum(circle(u, v, half_u, half_v), -bite)


SHAPES: dict[str, Callable[..., np.ndarray]] = {
  "circle": circle,
  "square": square,
  "triangle": triangle,
  "star": star,
  "cross": cross,
  "crescent": crescent,
}


def strokes(rng: np.random.Generator, u, v, half_size, thickness):
  """Distance to a chain of one to three strokes: lines, L, V, Z and the like."""
  points = rng.random((integer(rng, 2, 4), 2)) - 0.5
  points = (points * (1.5 * half_size)).tolist()
  distance = np.full_like(u, np.inf)
  for (u0, v0), (u1, v1) in zip(points[:-1], points[1:]):
    du, dv = u1 - u0, v1 - v0
    along = ((u - u0) * du + (v - v0) * dv) * (1 / max(du * du + dv * dv, 1e-6))
    along = clip_to_unit(along)
    ru, rv = u - u0 - along * du, v - v0 - along * dv
    distance = np.minimum(distance, ru * ru + rv * rv)
  return np.sqrt(distance) - thickness / 2


def arc(rng: np.random.Generator, u, v, half_size, thickness):
  """Distance to at most half of a thin ring."""
  radius = half_size - thickness / 2
  ring = np.abs(np.sqrt(u * u + v * v) - radius) - thickness / 2
  return np.maximum(ring, radius * uniform(rng, 0.0, 0.6) - u)


def fragment(rng: np.random.Generator, u, v, half_size, thickness):
  """Distance to a segment of a disc, or to a corner of a frame."""
  del thickness
  if rng.random() < 0.5:
    return np.maximum(
      circle(u, v, half_size, half_size), half_size * uniform(rng, 0.1, 0.5) - u
    )
  notch = half_size * uniform(rng, 0.4, 0.6)
  corner = _box(u, v, half_size * 0.7, half_size * 0.7)
  return np.maximum(
    corner, -_box(u - notch, v - notch, half_size * 1.2, half_size * 1.2)
  )


def blob(rng: np.random.Generator, u, v, half_size, thickness):
  """Distance to a soft-edged cloud of three discs."""
  del thickness
  distance = np.full_like(u, np.inf)
  for k in (-1, 0, 1):
    cu = half_size * (0.4 * k + uniform(rng, -0.1, 0.1))
    cv = half_size * uniform(rng, -0.4, 0.4)
    radius = half_size * uniform(rng, 0.2, 0.4)
    distance = np.minimum(distance, circle(u - cu, v - cv, radius, radius))
  return distance * (3 / half_size)


DISTRACTORS = (strokes, arc, fragment, blob)


def value_noise(
  rng: np.random.Generator, height: int, width: int, cells: int
) -> np.ndarray:
  """Smooth noise: random values on a grid of `cells` cells a side, interpolated.

  Returns:
    [height, width] float32 in [0, 1].
  """
  grid = rng.random((cells + 1, cells + 1), dtype=np.float32)

  def positions(size):
    position = np.arange(size, dtype=np.float32) * (cells / size)
    first = position.astype(np.int64)
    return first, position - first.astype(np.float32)

  row, row_part = positions(height)
  column, column_part = positions(width)
  lines = grid[:, column] + (grid[:, column + 1] - grid[:, column]) * column_part
  steps = lines[1:] - lines[:-1]
  return lines[row] + steps[row] * row_part[:, np.newaxis]


def _wave(position, period, phase, sharpness):
  """A wave between 0 and 1: triangular for sharpness 1, square for large ones."""
  cycle = position * (1 / period) + phase
  cycle = np.abs((cycle - np.floor(cycle)) * 2 - 1)
  return clip_to_unit((cycle - 0.5) * sharpness + 0.5)


def texture(rng: np.random.Generator, frame: Frame) -> np.ndarray:
  """A random texture: gradient, stripes, checks or noise.

  Returns:
    [H, W] float32 in [0, 1], how much of the second of two colours a pixel takes.
  """
  height, width = frame.u.shape
  angle = uniform(rng, 0, math.pi)
  cosine, sine = math.cos(angle), math.sin(angle)
  along = frame.u * cosine + frame.v * sine
  kind = integer(rng, 0, 3)
  if kind == 0:
    return clip_to_unit(along * (1 / width) + 0.5)
  if kind == 1:
    return value_noise(rng, height, width, integer(rng, 3, 8))
  period = max(4.0, uniform(rng, 0.08, 0.35) * width)
  sharpness = uniform(rng, 1, 4)
  stripes = _wave(along, period, rng.random(), sharpness)
  if kind == 2:
    return stripes
  across = frame.v * cosine - frame.u * sine
  other = _wave(across, period, rng.random(), sharpness)
  return (stripes - 0.5) * (other - 0.5) * 2 + 0.5


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
  """The box around a mask's true pixels.

  Args:
    mask: [H, W] bool.

  Returns:
    ymin, xmin, ymax, xmax in continuous coordinates; all 0 where no pixel is true.

  Example:
    >>> tight_box(np.array([[False, False, False], [False, True, True]]))
    (1, 1, 2, 3)
  """
  rows = np.flatnonzero(mask.any(axis=1))
  columns = np.flatnonzero(mask.any(axis=0))
  if len(rows) == 0:
    return 0, 0, 0, 0
  return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def mix(weight: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Blends two colours [3, 1, 1], or images [3, H, W], by a weight [H, W] in [0, 1]."""
  return first + weight * (second - first)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
  """A textured background: noise of several octaves, over which a second texture.

  Returns:
    [3, height, width] float32 in [0, 255].
  """
  first, second, third = rng.random((3, 3, 1, 1), dtype=np.float32) * 255
  noise = np.zeros((height, width), np.float32)
  for octave, share in enumerate((0.5, 0.3, 0.2)):
    cells = integer(rng, 2, 5) << octave
    noise += value_noise(rng, height, width, cells) * share
  contrast = uniform(rng, *BACKGROUND_CONTRAST)
  canvas = mix(noise, first, first + (second - first) * contrast)
  if rng.random() < PATTERNED_BACKGROUNDS:
    half_size = max(height, width) / 2
    frame = make_frame((height / 2, width / 2), half_size, uniform(rng, 0, math.pi))
    pattern = texture(rng, frame)[:height, :width]
    canvas = mix(pattern * (PATTERN_STRENGTH * contrast), canvas, third)
  return canvas


def finish(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
  """Light that falls off across the image, blur on some images, sensor noise.

  Args:
    rng: where the choices come from.
    canvas: [3, H, W] float32 in [0, 255].

  Returns:
    [H, W, 3] uint8.
  """
  _, height, width = canvas.shape
  slope_y = uniform(rng, -MAX_LIGHT_SLOPE, MAX_LIGHT_SLOPE)
  slope_x = uniform(rng, -MAX_LIGHT_SLOPE, MAX_LIGHT_SLOPE)
  light_y = (np.arange(height, dtype=np.float32) * (1 / height) - 0.5) * slope_y
  light_x = (np.arange(width, dtype=np.float32) * (1 / width) - 0.5) * slope_x
  light = light_y[:, np.newaxis] + (light_x + uniform(rng, *BRIGHTNESS))
  canvas = canvas * light
  if rng.random() < BLURRED_IMAGES:
    inner = canvas[:, 1:-1] * 0.5
    canvas[:, 1:-1] = inner + (canvas[:, :-2] + canvas[:, 2:]) * 0.25
    inner = canvas[..., 1:-1] * 0.5
    canvas[..., 1:-1] = inner + (canvas[..., :-2] + canvas[..., 2:]) * 0.25
  grain = np.frombuffer(rng.bytes(canvas.size), np.uint8).reshape(canvas.shape)
  canvas = canvas + (grain.astype(np.float32) - 127.5) * (uniform(rng, *GRAIN) / 255)
  pixels = np.minimum(np.maximum(canvas + 0.5, 0), 255).astype(np.uint8)
  return np.ascontiguousarray(pixels.transpose(1, 2, 0))
