"""Charts: what is drawn where, whole and inside the picture, for 1 to 80 classes."""

import subprocess
import sys

import numpy as np
import pytest

from ap_detect import charts

# A class name that mathematics' notation would break, and one too long.
NAMES = ["US$ bill $x^", "a very long name of a class", "cat"]


def named(count):
  return [f"{NAMES[k % 3][:-1]}{k}" for k in range(count)]


def blue(picture):
  """[N, 2] (y, x) of pixels that are clearly blue."""
  red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
  return np.argwhere((blue > red + 60) & (blue >= green + 20))


def falling_curve(points=50):
  return np.linspace(0, 1, points), np.linspace(1, 0, points), 0.5


def assert_whole(picture):
  """Nothing touches the border, where it would be cut."""
  assert picture.dtype == np.uint8
  assert picture.ndim == 3 and picture.shape[-1] == 3
  border = [picture[0], picture[-1], picture[:, 0], picture[:, -1]]
  assert all((pixels == 255).all() for pixels in border)
  assert (picture < 100).any()


class TestPrecisionRecall:
  @pytest.mark.parametrize("count", [1, 3, 80])
  def test_any_number_of_classes(self, count):
    curves = {name: falling_curve() for name in named(count)}
    picture = charts.precision_recall_picture(curves)
    assert_whole(picture)
    assert max(picture.shape) < 2000
    # A diagonal line a class; a pixel wide at the least, in panels of 150 or more.
    assert len(blue(picture)) > 150 * count

  def test_curve_lies_where_its_points_say(self):
    left_only = (np.array([0.0, 0.25]), np.array([1.0, 1.0]), 0.25)
    picture = charts.precision_recall_picture({"cat": left_only})
    y, x = blue(picture).T
    full = charts.precision_recall_picture({"cat": falling_curve()})
    full_y, full_x = blue(full).T
    width, height = np.ptp(full_x), np.ptp(full_y)
    assert abs(x.min() - full_x.min()) <= 2
    assert np.ptp(x) == pytest.approx(width / 4, abs=4)
    assert y.max() < full_y.min() + 0.05 * height

  def test_long_and_empty_curves(self):
    rng = np.random.default_rng(0)
    precision = np.clip(np.linspace(1, 0, 200_000) + rng.normal(0, 0.1, 200_000), 0, 1)
    empty = (np.zeros(0), np.zeros(0), 0.0)
    curves = {"cat": (np.linspace(0, 1, 200_000), precision, 0.5), "dog": empty}
    picture = charts.precision_recall_picture(curves)
    _, x = blue(picture).T
    assert len(x) > 1000
    assert x.max() < picture.shape[1] / 2 + 30  # nothing in the second panel

  def test_no_curves(self):
    with pytest.raises(ValueError, match="at least one curve"):
      charts.precision_recall_picture({})


class TestReliability:
  def test_curves_lie_where_their_points_say(self):
    scores = np.linspace(0.25, 0.75, 5)
    curves = {
      "raw": (scores, np.full(5, 0.5), 0.125),
      "none": (scores[:0], scores[:0], None),
    }
    picture = charts.reliability_picture(curves)
    assert_whole(picture)
    full = charts.reliability_picture(
      {"raw": (np.array([0, 1]), np.array([0, 1]), 0.0)}
    )
    (y, x), (full_y, full_x) = blue(picture).T, blue(full).T
    middle, width = full_y.min() + np.ptp(full_y) / 2, np.ptp(full_x)
    on_curve = x[np.abs(y - middle) < 5]  # not in the legend
    assert np.ptp(on_curve) == pytest.approx(width / 2, abs=8)
    assert on_curve.mean() == pytest.approx(full_x.min() + width / 2, abs=5)

  def test_no_curves(self):
    with pytest.raises(ValueError, match="at least one curve"):
      charts.reliability_picture({})


class TestConfusion:
  @pytest.mark.parametrize("count", [1, 20, 80])
  def test_any_number_of_classes(self, count):
    matrix = 100 * np.eye(count + 1, dtype=int)
    picture = charts.confusion_picture(matrix, named(count))
    assert_whole(picture)
    assert max(picture.shape) < 2000

  def cell_center(self, row, column):
    """(y, x) of a cell in the picture of two classes."""
    matrix = np.zeros((3, 3), int)
    matrix[row, column] = 5
    return blue(charts.confusion_picture(matrix, ["cat", "dog"])).mean(0)

  def test_rows_go_down_and_columns_right(self):
    corner, last = self.cell_center(0, 0), self.cell_center(2, 2)
    assert (last > corner + 50).all()
    for row, column in [(0, 2), (1, 0)]:
      expected = corner + (last - corner) * np.array([row, column]) / 2
      np.testing.assert_allclose(self.cell_center(row, column), expected, atol=2)

  def test_shade_goes_by_the_share_of_the_row(self):
    matrix = np.array([[9, 1, 0], [90, 900, 10], [0, 0, 0]])
    picture = charts.confusion_picture(matrix, ["cat", "dog"]).astype(int)
    corner, last = self.cell_center(0, 0), self.cell_center(2, 2)

    def brightness(row, column):
      place = corner + (last - corner) * np.array([row, column]) / 2
      y, x = (place + 15).astype(int)  # beside the number
      return picture[y, x].sum()

    assert brightness(0, 0) == pytest.approx(brightness(1, 1), abs=3)
    order = [(1, 1), (1, 0), (1, 2), (2, 2)]  # 90%, 9%, 1%, none
    assert np.all(np.diff([brightness(*cell) for cell in order]) > 20)

  def test_counts_are_written(self):
    matrix = np.diag([5, 5, 0])
    other = np.diag([6, 6, 0])
    first, second, again = (
      charts.confusion_picture(m, ["cat", "dog"]) for m in (matrix, other, matrix)
    )
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)

  @pytest.mark.parametrize("shape", [(2, 2), (3, 4), (9,)])
  def test_matrix_must_fit_the_names(self, shape):
    with pytest.raises(ValueError, match=r"matrix \[3, 3\] for 2 class names"):
      charts.confusion_picture(np.zeros(shape, int), ["cat", "dog"])


class TestHistogram:
  EDGES = (1, 2, 4, 8, 16)

  def draw(self, *series, **options):
    values = dict(zip(["US$ bill $x^", "other"], map(np.array, series)))
    options = {"ticks": self.EDGES, "log_scale": True, **options}
    return charts.histogram_picture(values, self.EDGES, "title", "pixels", **options)

  def columns(self, picture):
    """x of the first set's area near the axis, far below the legend."""
    red, _, blue = np.moveaxis(picture.astype(int), -1, 0)
    rows, columns = np.argwhere(blue > red + 40).T
    return columns[rows > rows.max() - 20]

  def test_bins_lie_where_their_values_say(self):
    # In the logarithm all bins are of one width.
    whole = self.columns(self.draw([1.5, 3, 6, 12]))
    picture = self.draw([6.0] * 9)
    assert_whole(picture)
    found = self.columns(picture)
    bounds = whole.min() + np.ptp(whole) * np.array([2, 3]) / 4
    np.testing.assert_allclose([found.min(), found.max()], bounds, atol=3)

  def test_what_lies_outside_counts_in_the_last_bins(self):
    inside = self.draw([1.5, 1.5, 12.0])
    assert np.array_equal(self.draw([0.1, 1.5, 900.0]), inside)

  def test_sets_are_shares_of_themselves(self):
    one = self.draw([1.5, 6.0], [3.0, 6.0])
    assert np.array_equal(one, self.draw([1.5, 6.0] * 50, [3.0, 6.0]))
    assert not np.array_equal(one, self.draw([1.5, 6.0], [3.0, 3.0, 6.0]))

  def test_marks_are_drawn(self):
    plain, marked = self.draw([3.0]), self.draw([3.0], marks=(6.0,))
    rows, columns = np.argwhere((plain != marked).any(-1)).T
    assert np.ptp(columns) <= 3
    assert np.ptp(rows) > 100

  def test_an_empty_set_and_none(self):
    assert_whole(self.draw([3.0], []))
    with pytest.raises(ValueError, match="at least one set"):
      self.draw()


class TestTraining:
  def draw(self, epochs=6, rows=600, **changes):
    x = list(np.linspace(0, epochs, rows))
    validated = list(range(1, epochs + 1))
    parts = {
      "losses": {"total_loss": (x, [1.0] * rows), "box_loss": (x, [0.5] * rows)},
      "learning_rate": (x, [0.01] * rows),
      "validations": {"AP": (validated, [0.1 * epoch for epoch in validated])},
    }
    return charts.training_picture(**{**parts, **changes})

  @pytest.mark.parametrize("rows", [2, 600, 20000])
  def test_any_number_of_rows(self, rows):
    assert_whole(self.draw(rows=rows))

  def test_nothing_yet(self):
    picture = self.draw(losses={}, learning_rate=([], []), validations={"AP": ([], [])})
    assert_whole(picture)

  def test_every_epoch_counts(self):
    pictures = [self.draw(epochs=epochs) for epochs in (5, 6)]
    assert not np.array_equal(*pictures)

  def test_a_loss_is_level_where_it_stays(self):
    """The loss 1.0 is one blue line over the panel's width, at the top of its panel."""
    found = blue(self.draw())
    found = found[found[:, 0] < 330]
    rows, counts = np.unique(found[:, 0], return_counts=True)
    assert counts.max() > 500
    assert np.ptp(rows[counts > 100]) <= 3

  def test_metrics_that_are_none_are_left_out(self):
    points = ([1, 2, 3], [0.1, None, 0.3])
    assert_whole(self.draw(validations={"AP": points}))


def test_pyplot_and_its_global_state_are_left_alone():
  code = (
    "import sys, numpy as np\n"
    "from ap_detect import charts\n"
    "charts.confusion_picture(np.eye(2, dtype=int), ['cat'])\n"
    "print('matplotlib.pyplot' in sys.modules)"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == "False"


class TestSeries:
  @pytest.mark.parametrize("count", [1, 12])
  def test_any_number_of_series(self, count):
    line = ([0, 10, 20], [0.1, 0.3, 0.2], [0.0, 0.05, 0.1])
    names = [name + count // 4 * " and more" for name in named(count)]
    picture = charts.series_picture(
      dict.fromkeys(names, line), "AP $x", "images $seen", "AP", log_scale=True
    )
    assert_whole(picture)

  def test_the_mean_lies_in_the_middle_of_its_band(self):
    series = {"a": ([0, 1], [0.5, 0.5], [0.25, 0.25])}
    picture = charts.series_picture(series, "title", "x", "y")
    column = picture[:330, 300].astype(int)  # above the name below the panel
    line = np.flatnonzero(column[:, 2] > column[:, 0] + 60)
    band = np.flatnonzero(column[:, 2] > column[:, 0] + 15)
    assert np.ptp(band) > 200
    assert line.mean() == pytest.approx((band.min() + band.max()) / 2, abs=2)

  def test_none(self):
    with pytest.raises(ValueError, match="at least one series"):
      charts.series_picture({}, "t", "x", "y")
