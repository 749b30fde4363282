"""Charts as pictures: precision, confusion, histograms, and a training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from matplotlib.figure import Figure

# Places on the x axis, and as many values.
Curve = tuple[Sequence[float], Sequence[float]]

_PIXELS_PER_INCH = 100
_FONT_POINTS = 8.0

# Longer names are cut, so that they leave room for what they name.
_LONGEST_NAME = 18

# Longer names of series stand below each other.
_LONGEST_OF_TWO_NAMES = 38

# More points of a curve than its panel has pixels would not be seen.
_MOST_POINTS = 2000

# With more classes the confusion's numbers would not fit into cells that fit a screen.
_MOST_NUMBERED_CLASSES = 30


def precision_recall_picture(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
  title: str = "Precision over recall at IoU 0.5, and average precision",
) -> np.ndarray:
  """A panel a class, of precision over recall, with the average precision above.

  Panels rather than one, for the curves of many classes hide each other.

  Args:
    curves: class name -> (recall [N], precision [N], average precision), in the order
      to show; at least one. metrics.PrecisionRecall is such a tuple.
    title: above all panels.

  Returns:
    [H, W, 3] uint8 RGB.

  Raises:
    ValueError: there are no curves.
  """
  if not curves:
    raise ValueError("need at least one curve, got none")
  columns = math.ceil(math.sqrt(len(curves)))
  rows = math.ceil(len(curves) / columns)
  # In inches. Few panels are larger ones.
  side = 3.4 if columns <= 2 else 2.2 if columns <= 5 else 1.5
  left, bottom, gap, name_height = 0.6, 0.6, 0.2, 0.25
  width = max(left + columns * (side + gap), 4.0)
  height = bottom + rows * (side + name_height) + 0.4
  figure = _new_figure(width, height, title)
  for i, (name, curve) in enumerate(curves.items()):
    row, column = divmod(i, columns)
    x = left + column * (side + gap)
    y = bottom + (rows - 1 - row) * (side + name_height)
    panel = figure.add_axes((x / width, y / height, side / width, side / height))
    nothing_below = i + columns >= len(curves)
    panel.tick_params(
      labelsize=_FONT_POINTS, labelbottom=nothing_below, labelleft=column == 0
    )
    _draw_curve(panel, name, *curve)
  figure.supxlabel("recall", fontsize=_FONT_POINTS, y=0.08 / height)
  figure.supylabel("precision", fontsize=_FONT_POINTS, x=0.08 / width)
  return _pixels(figure)


def confusion_picture(
  matrix: np.ndarray,
  class_names: Sequence[str],
  title: str = "What the objects (rows) are found as (columns)",
) -> np.ndarray:
  """A matrix of confusion; a cell is darker, the larger its share of its row is.

  Args:
    matrix: [K + 1, K + 1] integer, as metrics.confusion returns it: row K is the
      background, column K what was missed.
    class_names: [K] names; K >= 1.
    title: above the matrix.

  Returns:
    [H, W, 3] uint8 RGB. Counts stand in the cells of up to 30 classes.

  Raises:
    ValueError: matrix is not [K + 1, K + 1] for K >= 1 class names.
  """
  matrix, cells = np.asarray(matrix), len(class_names) + 1
  if matrix.shape != (cells, cells) or cells < 2:
    raise ValueError(
      f"need a matrix [{cells}, {cells}] for {cells - 1} class names, at least one, "
      f"got {matrix.shape}"
    )
  numbered = len(class_names) <= _MOST_NUMBERED_CLASSES
  side = max(cells * (0.42 if numbered else 0.17), 2.0)
  width, height = side + 1.8, side + 2.0
  figure = _new_figure(width, height, title)
  panel = figure.add_axes((1.6 / width, 0.2 / height, side / width, side / height))
  # Of the share the root, in which rare confusions can be seen.
  shades = np.sqrt(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))
  panel.imshow(shades, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
  names = [_short(name) for name in class_names]
  style: dict[str, Any] = {"parse_math": False, "fontsize": _FONT_POINTS}
  panel.set_xticks(range(cells), [*names, "missed"], rotation=90, **style)
  panel.set_yticks(range(cells), [*names, "background"], **style)
  panel.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
  # The classes' own square, apart from what was missed and what is background.
  for draw_line in (panel.axvline, panel.axhline):
    draw_line(cells - 1.5, color="0.5", linewidth=0.8)
  if numbered:
    _write_counts(panel, matrix, shades)
  return _pixels(figure)


def reliability_picture(
  curves: Mapping[str, tuple[np.ndarray, np.ndarray, float | None]],
  title: str = "Precision at IoU 0.5 over score, and calibration error",
) -> np.ndarray:
  """Precision over score, which lie on the diagonal where scores mean precision.

  Args:
    curves: name -> (mean scores [N], precisions [N], error); at least one.
      metrics.Reliability is such a tuple.
    title: above the panel.

  Returns:
    [H, W, 3] uint8 RGB.

  Raises:
    ValueError: there are no curves.
  """
  if not curves:
    raise ValueError("need at least one curve, got none")
  figure = _new_figure(4.2, 4.3, title)
  panel = figure.add_axes((0.13, 0.12, 0.82, 0.8))
  panel.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
  for i, (name, (scores, precisions, error)) in enumerate(curves.items()):
    label = name if error is None else f"{name}  {error:.4f}"
    panel.plot(
      *(scores, precisions), color=f"C{i}", marker="o", ms=3.5, lw=1.2, label=label
    )
  panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
  panel.set_xlabel("score", fontsize=_FONT_POINTS)
  panel.set_ylabel("precision", fontsize=_FONT_POINTS)
  panel.tick_params(labelsize=_FONT_POINTS)
  panel.grid(color="0.88", linewidth=0.6)
  panel.legend(fontsize=_FONT_POINTS, frameon=False)
  return _pixels(figure)


def _draw_curve(panel, name, recall, precision, average_precision) -> None:
  recall, precision = np.asarray(recall), np.asarray(precision)
  if len(recall) > _MOST_POINTS:
    kept = np.linspace(0, len(recall) - 1, _MOST_POINTS).astype(int)
    recall, precision = recall[kept], precision[kept]
  panel.plot(recall, precision, color="tab:blue", linewidth=1.2)
  label = f"{_short(name)}  {average_precision:.3f}"
  panel.set_title(label, fontsize=_FONT_POINTS, pad=3, parse_math=False)
  panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
  panel.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
  panel.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
  panel.grid(color="0.88", linewidth=0.6)


def _write_counts(panel, matrix, shades) -> None:
  for row, column in np.argwhere(matrix):
    panel.text(
      column,
      row,
      str(matrix[row, column]),
      ha="center",
      va="center",
      fontsize=_FONT_POINTS - 1,
      color="white" if shades[row, column] > 0.55 else "black",
    )


def _short(name: str) -> str:
  return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _new_figure(width: float, height: float, title: str) -> Figure:
  """A white figure of a size in inches, whose title does not parse mathematics."""
  # Late, for it takes a second, and at the first time on a machine lists the fonts.
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=_PIXELS_PER_INCH, facecolor="white")
  size = _FONT_POINTS + 2
  figure.suptitle(title, fontsize=size, y=1 - 0.1 / height, va="top", parse_math=False)
  return figure


def _pixels(figure: Figure) -> np.ndarray:
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.array(canvas.buffer_rgba())[..., :3].copy()


def histogram_picture(
  series: Mapping[str, np.ndarray],
  edges: Sequence[float] | np.ndarray,
  title: str,
  x_label: str,
  *,
  ticks: Sequence[float] | np.ndarray,
  log_scale: bool = False,
  marks: Sequence[float] = (),
) -> np.ndarray:
  """Histograms of several sets on the same bins, each as shares of its own set.

  Args:
    series: name -> [N] values; at least one. What lies outside of the bins counts in
      the first or last one. A set may be empty.
    edges: [M + 1] bins, ascending.
    title: above the panel.
    x_label: of what is counted, with its unit.
    ticks: values to number on the axis.
    log_scale: whether the axis is logarithmic.
    marks: values to mark by dotted lines.

  Returns:
    [H, W, 3] uint8 RGB.

  Raises:
    ValueError: there is no series.
  """
  if not series:
    raise ValueError("need at least one set of values, got none")
  figure = _new_figure(5.2, 2.8, title)
  panel = figure.add_axes((0.11, 0.17, 0.85, 0.69))
  for i, (name, values) in enumerate(series.items()):
    inside = np.clip(values, edges[0], edges[-1])
    counts, _ = np.histogram(inside, edges)
    shares = 100 * counts / max(len(inside), 1)
    # The first set is an area, so that the others' lines stay visible on it.
    style: dict[str, Any] = {"fill": True, "alpha": 0.45} if i == 0 else {}
    panel.stairs(shares, edges, label=name, color=f"C{i}", **style)
  for mark in marks:
    panel.axvline(mark, color="0.35", linewidth=0.9, linestyle=":")
  if log_scale:
    panel.set_xscale("log")
  panel.minorticks_off()
  panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
  panel.set_xlim(edges[0], edges[-1])
  panel.set_ylim(bottom=0)
  panel.tick_params(labelsize=_FONT_POINTS)
  panel.set_xlabel(x_label, fontsize=_FONT_POINTS, parse_math=False)
  panel.set_ylabel("% of the set", fontsize=_FONT_POINTS)
  panel.grid(color="0.88", linewidth=0.6)
  panel.set_axisbelow(True)
  legend = panel.legend(fontsize=_FONT_POINTS, frameon=False)
  for text in legend.get_texts():
    text.set_parse_math(False)
  return _pixels(figure)


def training_picture(
  losses: Mapping[str, Curve],
  learning_rate: Curve,
  validations: Mapping[str, Curve],
  title: str = "Training, and metrics on the validation split",
) -> np.ndarray:
  """Losses, learning rate and validation metrics over epochs, below each other.

  Args:
    losses: name -> (epochs [N], values [N]).
    learning_rate: (epochs [N], values [N]).
    validations: metric -> (epochs [M], values [M]); a value may be None.
    title: above all panels.

  Returns:
    [H, W, 3] uint8 RGB. What is empty is an empty panel.
  """
  width, height = 7.2, 7.4
  figure = _new_figure(width, height, title)
  heights = {"loss": 2.9, "learning rate": 1.0, "validation": 2.0}
  top = height - 0.45
  panels: dict[str, Any] = {}
  for name, panel_height in heights.items():
    place = (0.11, (top - panel_height) / height, 0.86, panel_height / height)
    panels[name] = figure.add_axes(place, sharex=panels.get("loss"))
    panels[name].set_ylabel(name, fontsize=_FONT_POINTS)
    panels[name].yaxis.set_label_coords(-0.095, 0.5)
    panels[name].tick_params(labelsize=_FONT_POINTS, labelbottom=name == "validation")
    panels[name].grid(color="0.88", linewidth=0.6)
    top -= panel_height + 0.2
  for i, (name, (epochs, values)) in enumerate(losses.items()):
    # Losses of single batches scatter; a mean over neighbours shows where they go.
    panels["loss"].plot(*_thinned(epochs, values), color=f"C{i}", alpha=0.3, lw=0.7)
    panels["loss"].plot(*_smoothed(epochs, values), color=f"C{i}", lw=1.4, label=name)
  panels["learning rate"].plot(*_thinned(*learning_rate), color="0.35", lw=1.2)
  for i, (name, (epochs, values)) in enumerate(validations.items()):
    panels["validation"].plot(
      epochs,
      np.array(values, np.float64),  # None becomes NaN, which is not drawn
      color=f"C{i}",
      marker="o",
      ms=3.5,
      lw=1.2,
      label=name,
    )
  panels["learning rate"].set_ylim(bottom=0)
  panels["validation"].set_ylim(bottom=0)
  panels["validation"].set_xlim(left=0)
  panels["validation"].set_xlabel("epochs", fontsize=_FONT_POINTS)
  for name in ("loss", "validation"):
    if panels[name].lines:
      panels[name].legend(fontsize=_FONT_POINTS, frameon=False)
  return _pixels(figure)


def series_picture(
  series: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
  title: str,
  x_label: str,
  y_label: str,
  *,
  log_scale: bool = False,
  log_x: bool = False,
) -> np.ndarray:
  """Means over something, each in a band of its standard deviation, in one panel.

  Args:
    series: name -> (places [N], means [N], standard deviations [N]); at least one.
    title: above the panel.
    x_label: of the places, with their unit.
    y_label: of the values.
    log_scale: whether values are on a logarithmic axis.
    log_x: whether places are.

  Returns:
    [H, W, 3] uint8 RGB.

  Raises:
    ValueError: there is no series.
  """
  if not series:
    raise ValueError("need at least one series, got none")
  columns = 2 if max(map(len, series)) <= _LONGEST_OF_TWO_NAMES else 1
  names_height = 0.18 * math.ceil(len(series) / columns)
  width, height = 6.4, 4.0 + names_height
  figure = _new_figure(width, height, title)
  bottom = 0.55 + names_height
  panel = figure.add_axes(
    (0.11, bottom / height, 0.86, (height - bottom - 0.4) / height)
  )
  for i, (name, (places, means, deviations)) in enumerate(series.items()):
    low, high = np.subtract(means, deviations), np.add(means, deviations)
    style: dict[str, Any] = {"color": f"C{i % 10}"}
    dashes = ("-", "--", ":")[i // 10 % 3]
    panel.fill_between(places, low, high, alpha=0.15, linewidth=0, **style)
    panel.plot(places, means, dashes, marker="o", ms=2.5, lw=1.2, label=name, **style)
  if log_scale:
    panel.set_yscale("log")
  if log_x:
    panel.set_xscale("log")
  panel.set_xlabel(x_label, fontsize=_FONT_POINTS, parse_math=False)
  panel.set_ylabel(y_label, fontsize=_FONT_POINTS, parse_math=False)
  panel.tick_params(labelsize=_FONT_POINTS)
  panel.grid(color="0.88", linewidth=0.6)
  legend = figure.legend(
    loc="lower center", ncols=columns, fontsize=_FONT_POINTS, frameon=False
  )
  for text in legend.get_texts():
    text.set_parse_math(False)
  return _pixels(figure)


def _thinned(epochs, values):
  """Every so manieth point, of more than a panel can show."""
  step = 1 + len(epochs) // _MOST_POINTS
  return epochs[::step], values[::step]


def _smoothed(epochs, values):
  """Means of up to 100 groups of neighbours, at the middle of each."""
  groups = min(100, max(1, len(epochs) // 3))
  if not len(epochs):
    return epochs, values
  return tuple(
    [np.mean(part) for part in np.array_split(each, groups)]
    for each in (epochs, values)
  )
