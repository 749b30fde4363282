"""Pictures: what is drawn where, in which colour, and all of it inside the picture."""

import numpy as np
import pytest

from ap_detect.drawing import (
  MIN_SIDE_PX,
  PALETTE,
  class_color,
  contact_sheet,
  draw_detections,
  draw_targets,
  side_by_side,
  with_caption,
)

GREY = np.full((400, 600, 3), 128, np.uint8)
# Channels that differ tell whether they are swapped.
TINTED = np.full((400, 600, 3), (200, 30, 90), np.uint8)


def pixels_of(picture, color):
  """[N, 2] (y, x) of the pixels of exactly this colour."""
  return np.argwhere((picture == np.array(color, np.uint8)).all(-1))


class TestDrawDetections:
  def test_box_lies_where_its_coordinates_say(self):
    picture = draw_detections(GREY, [[100, 200, 300, 500]], ["dog"], classes=[1])
    color = list(class_color(1))
    # Middles of the four sides; the label stands on the upper left corner.
    for y, x in [(100, 350), (299, 350), (200, 200), (200, 499)]:
      assert picture[y, x].tolist() == color, (y, x)
    assert picture[200, 350].tolist() == [128] * 3
    rows, columns = pixels_of(picture, color).T
    assert rows.max() == 299
    assert (columns.min(), columns.max()) == (200, 499)
    assert 60 < rows.min() < 100

  def test_image_is_copied_and_keeps_its_colors(self):
    image = TINTED.copy()
    picture = draw_detections(image, np.zeros((0, 4)), [], classes=[])
    assert np.array_equal(picture, TINTED)
    draw_detections(image, [[100, 200, 300, 500]], ["dog"], classes=[1])
    assert np.array_equal(image, TINTED)

  def test_small_image_is_enlarged_with_its_boxes(self):
    image = np.full((64, 128, 3), 128, np.uint8)
    picture = draw_detections(image, [[32, 64, 64, 128]], ["dog"], classes=[1])
    assert picture.shape == (MIN_SIDE_PX, 2 * MIN_SIDE_PX, 3)
    assert picture[240, 320].tolist() == list(class_color(1))
    assert picture[319, 480].tolist() == list(class_color(1))

  @pytest.mark.parametrize(
    "box",
    [
      [0, 0, 40, 40],  # no room above
      [360, 560, 400, 600],  # no room below or to the right
      [0, 0, 400, 600],  # the whole picture
      [-50, -50, 900, 900],  # outside
      [500, 700, 600, 800],  # wholly outside
      [100, 100, 100, 100],  # of no size
    ],
  )
  def test_label_stays_in_the_picture(self, box):
    alone = draw_detections(GREY, [box], [""], classes=[1])
    labelled = draw_detections(GREY, [box], ["a long name"], classes=[1], scores=[0.5])
    assert labelled.shape == GREY.shape
    # The whole label: its plate of at least 80 x 14 px, less the letters.
    added = len(pixels_of(labelled, class_color(1))) - len(
      pixels_of(alone, class_color(1))
    )
    assert added > 500

  def test_labels_do_not_cover_each_other(self):
    boxes = [[100, 100, 200, 200]] * 2
    picture = draw_detections(GREY, boxes, ["aa", "bb"], classes=[1, 2])
    one, two = (pixels_of(picture, class_color(k))[:, 0] for k in (1, 2))
    # The second box hides the first; both labels are there, the second above the box.
    assert len(one) > 200
    assert two.min() < 100 <= one.min()

  def test_best_score_lies_on_top(self):
    boxes = [[100, 100, 300, 300]] * 2
    for scores, top in [([0.9, 0.1], 1), ([0.1, 0.9], 2)]:
      picture = draw_detections(GREY, boxes, ["", ""], classes=[1, 2], scores=scores)
      assert picture[100, 250].tolist() == list(class_color(top))

  def test_scores_are_written(self):
    def draw(scores):
      return draw_detections(
        GREY, [[100, 100, 300, 300]], ["a"], classes=[1], scores=scores
      )

    assert not np.array_equal(draw([0.25]), draw([0.75]))
    # Small scores differ too.
    assert not np.array_equal(draw([0.001]), draw([0.002]))

  def test_lines_grow_with_the_picture(self):
    large = np.full((2000, 2000, 3), 128, np.uint8)
    picture = draw_detections(large, [[500, 500, 1500, 1500]], ["a"], classes=[1])
    column = picture[1200:1800, 1000]
    assert (column == class_color(1)).all(-1).sum() >= 8

  def test_image_lower_than_a_label(self):
    image = np.full((8, 4000, 3), 128, np.uint8)
    picture = draw_detections(image, [[0, 0, 8, 8]], ["a"], classes=[1])
    assert picture.shape[0] == MIN_SIDE_PX

  @pytest.mark.parametrize(
    ("changes", "message"),
    [
      ({"image": GREY.astype(np.float32)}, "uint8"),
      ({"image": GREY[..., 0]}, r"\(400, 600\)"),
      ({"labels": []}, r"boxes \[D, 4\]"),
      ({"classes": [1, 2]}, r"classes \[D\]"),
      ({"scores": [0.1, 0.2]}, "need 1 scores, got 2"),
      ({"boxes": [[0, 0, np.nan, 5]]}, "finite"),
    ],
  )
  def test_errors(self, changes, message):
    arguments = {"image": GREY, "boxes": [[0, 0, 9, 9]], "labels": ["a"]}
    arguments = {**arguments, "classes": [1], "scores": None, **changes}
    with pytest.raises(ValueError, match=message):
      draw_detections(**arguments)


class TestDrawTargets:
  def draw(self, image=GREY, **changes):
    arguments = {
      "boxes": [[100, 200, 300, 500]],
      "labels": ["dog"],
      "classes": [1],
      "ignored": [False],
      "anchors": np.zeros((0, 4)),
      "anchor_classes": [],
      **changes,
    }
    return draw_targets(image, **arguments)

  def test_an_object_is_drawn_as_detections_are(self):
    detected = draw_detections(GREY, [[100, 200, 300, 500]], ["dog"], classes=[1])
    assert np.array_equal(self.draw(), detected)

  def test_an_ignored_object_is_dashed_and_has_no_class_color(self):
    picture = self.draw(ignored=[True])
    assert not len(pixels_of(picture, class_color(1)))
    for line in (picture[299, 200:500], picture[100:300, 200], picture[100:300, 499]):
      dark = (line < 60).all(-1)
      assert 0.3 < dark.mean() < 0.7
      # More than one gap; the left and top ends are dashes.
      assert np.count_nonzero(np.diff(dark.astype(int))) >= 4
    assert picture[200, 350].tolist() == [128] * 3

  def test_anchors_are_dots_at_their_centers(self):
    # Centres (200, 350) and (50, 30); the second anchor leaves the picture.
    anchors = [[150, 250, 250, 450], [-50, -30, 150, 90]]
    picture = self.draw(anchors=anchors, anchor_classes=[2, 3])
    for class_id, center in ((2, (200, 350)), (3, (50, 30))):
      found = pixels_of(picture, class_color(class_id))
      np.testing.assert_allclose(found.mean(0), center, atol=0.5)
      assert 2 <= np.ptp(found, axis=0).max() <= 12

  def test_small_image_is_enlarged_with_boxes_and_anchors(self):
    image = np.full((64, 128, 3), 128, np.uint8)
    picture = self.draw(
      image, boxes=[[32, 64, 64, 128]], anchors=[[0, 0, 64, 64]], anchor_classes=[2]
    )
    assert picture.shape == (MIN_SIDE_PX, 2 * MIN_SIDE_PX, 3)
    assert picture[240, 320].tolist() == list(class_color(1))
    assert picture[160, 160].tolist() == list(class_color(2))

  @pytest.mark.parametrize(
    "changes",
    [{"ignored": []}, {"anchors": [[0, 0, 9, 9]]}, {"anchor_classes": [1]}],
  )
  def test_lengths_must_agree(self, changes):
    with pytest.raises(ValueError, match=r"ignored \[1\], anchors \[P, 4\]"):
      self.draw(**changes)


class TestWithCaption:
  def test_text_stands_above_the_picture(self):
    one, two = with_caption(TINTED, "first"), with_caption(TINTED, "first\nsecond")
    for picture in (one, two):
      assert np.array_equal(picture[-400:], TINTED)
      assert picture[:-400].max() > 200  # letters
    line = two.shape[0] - one.shape[0]
    assert 10 < line < 40
    assert two[-400 - line : -400].max() > 200

  def test_a_long_line_is_cut(self):
    picture = with_caption(TINTED, "x" * 1000)
    assert picture.shape[1] == 600
    strip = picture[:-400]
    letters = np.argwhere((strip > 200).all(-1))[:, 1]
    assert 500 < letters.max() < 595
    assert np.array_equal(picture, with_caption(TINTED, "x" * 999))


class TestClassColor:
  def test_distinct(self):
    colors = np.array([class_color(k) for k in range(1, 3 * len(PALETTE) + 1)], float)
    apart = np.abs(colors[:, None] - colors).sum(-1) + 999 * np.eye(len(colors))
    assert apart.min() >= 20

  def test_recurs(self):
    assert class_color(1) == class_color(3 * len(PALETTE) + 1)


class TestSideBySide:
  def test_order_and_title_strip(self):
    picture = side_by_side(TINTED, GREY)
    strip = picture.shape[0] - 400
    assert 10 < strip < 40
    assert np.array_equal(picture[strip:, :600], TINTED)
    assert np.array_equal(picture[strip:, -600:], GREY)
    assert picture[:strip].max() > 200  # letters

  def test_heights_may_differ(self):
    picture = side_by_side(TINTED, GREY[:200])
    assert picture[-200:, -1200:].reshape(-1, 3).std(0).max() == 0
    assert picture.shape[1] > 600 + 1200


class TestContactSheet:
  def test_rows_and_columns(self):
    tiles = [np.full((100, 150, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = contact_sheet(tiles, columns=2)
    gap = 4
    assert sheet.shape == (3 * 100 + 4 * gap, 2 * 150 + 3 * gap, 3)
    for i in range(5):
      y, x = gap + (i // 2) * (100 + gap), gap + (i % 2) * (150 + gap)
      assert np.array_equal(sheet[y : y + 100, x : x + 150], tiles[i])

  def test_sizes_may_differ(self):
    sheet = contact_sheet([GREY, GREY, GREY[:, :100], GREY[:10, :10]], columns=9)
    # Median of the widths 600, 600, 100, 10 and of the heights 400, 400, 400, 10.
    gap = 7
    assert sheet.shape == (400 + 2 * gap, 4 * 350 + 5 * gap, 3)

  def test_nothing(self):
    with pytest.raises(ValueError, match="0 and 3"):
      contact_sheet([], columns=3)
