"""Anchor coverage: the nearest cells are enough, and the search says what is true."""

import numpy as np
import pytest
from oracles import anchors as anchor_oracle
from oracles import boxes as box_oracle

from ap_detect import anchor_coverage
from ap_detect.anchor_coverage import AnchorSetting, Coverage

RELEASE = AnchorSetting(4.0, (1.0, 2**0.5), (0.5, 1.0, 2.0))
SQUARE = AnchorSetting(1.0, (1.0,), (1.0,))


def make_boxes(count, image_size, seed=0):
  """Boxes from 2 px to twice the image, in and around it; some on whole pixels."""
  rng = np.random.default_rng(seed)
  centers = rng.uniform(-0.1, 1.1, [count, 2]) * image_size
  sizes = np.exp(rng.uniform(np.log(2), np.log(2 * max(image_size)), [count, 2]))
  boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)
  # Of whole numbers some centres lie on the border between two cells.
  boxes[::2] = np.round(boxes[::2] / 4) * 4 + [0, 0, 4, 4]
  return boxes.astype(np.float32)


class TestBestIou:
  def test_hand_case(self):
    # Stride 8: anchors [0, 0, 8, 8], [0, 8, 8, 16], [8, 0, 16, 8], [8, 8, 16, 16].
    # [2, 2, 10, 10] has its centre (6, 6) in the first cell: 6 * 6 = 36 shared, of
    # 64 + 64 - 36 = 92. [8, 8, 24, 24] has its centre (16, 16) below and right of all
    # cells, of which the last is nearest: 64 of 256. The anchors reach no pixel of
    # [40, 40, 48, 48].
    boxes = [[2, 2, 10, 10], [8, 8, 24, 24], [40, 40, 48, 48]]
    found = anchor_coverage.best_iou(boxes, (16, 16), SQUARE, levels=(3,))
    np.testing.assert_allclose(found, [36 / 92, 64 / 256, 0], rtol=1e-6)

  @pytest.mark.parametrize(
    ("image_size", "setting", "levels"),
    [
      ((96, 128), RELEASE, (3, 4, 5, 6, 7)),
      ((100, 131), RELEASE, (3, 4, 5)),  # no multiples of any stride
      ((64, 64), AnchorSetting(3.0, (0.7, 1.9), (0.2, 5.0)), (4, 5)),
      ((64, 96), SQUARE, (3,)),  # gaps: objects far larger and smaller than any
    ],
  )
  def test_equals_the_best_of_all_anchors(self, image_size, setting, levels):
    boxes = make_boxes(60, image_size)
    anchors = [
      entry[-1]
      for entry in anchor_oracle.generate_anchors(image_size, levels, *setting)
    ]
    expected = [max(box_oracle.iou(box, a) for a in anchors) for box in boxes.tolist()]
    found = anchor_coverage.best_iou(boxes, image_size, setting, levels=levels)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert 0.05 < np.mean(expected) < 0.8

  def test_chunks_change_nothing(self, monkeypatch):
    boxes = make_boxes(20, (64, 64))
    whole = anchor_coverage.best_iou(boxes, (64, 64), RELEASE)
    monkeypatch.setattr(anchor_coverage, "_CHUNK", 7)
    np.testing.assert_array_equal(
      anchor_coverage.best_iou(boxes, (64, 64), RELEASE), whole
    )

  def test_no_object(self):
    found = anchor_coverage.best_iou(np.zeros((0, 4)), (64, 64), RELEASE)
    assert found.shape == (0,)


class TestSearch:
  def test_rows_are_measured_as_they_say(self):
    boxes, options = make_boxes(40, (128, 128)), {"levels": (3, 4, 5)}
    found = anchor_coverage.search_settings(
      boxes, (128, 128), RELEASE, positive_iou=0.4, **options
    )
    assert found[0].setting == RELEASE
    assert len(found) == 1 + 3 * 4
    assert len({coverage.setting for coverage in found}) == len(found)
    for coverage in found:
      iou = anchor_coverage.best_iou(boxes, (128, 128), coverage.setting, **options)
      assert coverage.share == pytest.approx((iou >= 0.4).mean())
      assert coverage.mean_iou == pytest.approx(iou.mean(), rel=1e-5)
    for coverage in found[1:]:
      for base in anchor_coverage.BASE_SCALES:
        other = coverage.setting._replace(base_scale=base)
        iou = anchor_coverage.best_iou(boxes, (128, 128), other, **options)
        assert (iou >= 0.4).mean() <= coverage.share

  def test_objects_of_one_shape(self):
    # Squares of 16 px around the centres of stride 8: base scale 2 is exactly they.
    centers = 8 * np.array([[2.5, 2.5], [3.5, 9.5], [12.5, 5.5]])
    boxes = np.concatenate([centers - 8, centers + 8], axis=1)
    found = anchor_coverage.search_settings(boxes, (128, 128), RELEASE)
    best = anchor_coverage.recommend(found)
    assert best.setting == AnchorSetting(2.0, (1.0,), (1.0,))
    assert best[1:] == (1.0, pytest.approx(1.0), (1.0,))
    # All ratios are 1: no further row for the objects' own.
    assert len(found) == 1 + 3 * 3

  def test_the_objects_own_ratios_are_tried(self):
    # 128 high and 8 wide: at ratio 3 an anchor of this area shares at most
    # sqrt(3 / 16) = 0.43 of it, so 0.43 / (2 - 0.43) = 0.28; at 16 everything.
    centers = 8 * np.array([[8.5, 2.5], [9.5, 9.5]])
    half_size = np.array([64, 4])
    boxes = np.concatenate([centers - half_size, centers + half_size], axis=1)
    found = anchor_coverage.search_settings(boxes, (128, 128), RELEASE)
    covering = {
      coverage.setting.aspect_ratios for coverage in found if coverage.share == 1
    }
    assert covering == {(16.0,)}
    assert anchor_coverage.recommend(found).setting.aspect_ratios == (16.0,)

  def test_of_many_objects_some_are_drawn(self, monkeypatch):
    boxes = make_boxes(50, (64, 64))

    def search():
      return anchor_coverage.search_settings(
        boxes, (64, 64), RELEASE, positive_iou=0.3, levels=(3, 4)
      )

    whole = search()
    monkeypatch.setattr(anchor_coverage, "MAX_SEARCHED_OBJECTS", 7)
    drawn = search()
    assert drawn == search()
    assert [c.mean_iou for c in drawn] != [c.mean_iou for c in whole]
    assert all((7 * c.share) % 1 == pytest.approx(0, abs=1e-9) for c in drawn)

  def test_classes_are_measured_apart(self):
    boxes, options = make_boxes(40, (128, 128)), {"levels": (3, 4, 5)}
    classes = np.where(np.arange(40) < 35, 7, 2)
    found = anchor_coverage.search_settings(
      boxes, (128, 128), RELEASE, classes=classes, positive_iou=0.6, **options
    )
    for coverage in found:
      iou = anchor_coverage.best_iou(boxes, (128, 128), coverage.setting, **options)
      rare, frequent = (iou[35:] >= 0.6).mean(), (iou[:35] >= 0.6).mean()
      assert coverage.class_shares == pytest.approx((rare, frequent))
      assert coverage.share == pytest.approx((iou >= 0.6).mean())
      assert coverage.mean_iou == pytest.approx(iou.mean(), rel=1e-5)
      assert coverage.mean_class_share == pytest.approx((rare + frequent) / 2)

  def test_rare_classes_are_drawn_whole(self, monkeypatch):
    boxes = make_boxes(200, (64, 64))
    classes = np.where(np.arange(200) < 195, 1, 2)

    def search():
      return anchor_coverage.search_settings(
        boxes, (64, 64), RELEASE, classes=classes, positive_iou=0.3, levels=(3, 4)
      )

    whole = search()
    monkeypatch.setattr(anchor_coverage, "MAX_SEARCHED_OBJECTS", 120)
    drawn = search()
    assert drawn[0].class_shares[1] == whole[0].class_shares[1]
    assert drawn[0].class_shares[0] != whole[0].class_shares[0]
    # 60 of 195 stand for all of them.
    expected = np.dot(drawn[0].class_shares, [0.975, 0.025])
    assert drawn[0].share == pytest.approx(expected)
    assert drawn[0].share == pytest.approx(whole[0].share, abs=0.1)

  def test_no_object(self):
    with pytest.raises(ValueError, match="at least one object"):
      anchor_coverage.search_settings(np.zeros((0, 4)), (64, 64), RELEASE)


class TestRecommend:
  def coverage(self, anchors, share, mean_iou=0.5, class_shares=None):
    ratios = tuple(1.0 + i for i in range(anchors))
    class_shares = (share,) if class_shares is None else class_shares
    return Coverage(AnchorSetting(4.0, (1.0,), ratios), share, mean_iou, class_shares)

  def test_the_fewest_anchors_of_those_near_the_best(self):
    found = [
      self.coverage(n, s) for n, s in [(9, 0.9), (15, 1.0), (3, 0.97), (6, 0.985)]
    ]
    assert anchor_coverage.recommend(found, tolerance=0.02) is found[3]
    assert anchor_coverage.recommend(found, tolerance=0.05) is found[2]
    assert anchor_coverage.recommend(found, tolerance=0.0) is found[1]

  def test_ties_go_to_the_one_in_use_then_to_the_better(self):
    found = [self.coverage(3, 0.99), self.coverage(3, 1.0), self.coverage(6, 1.0)]
    assert anchor_coverage.recommend(found) is found[0]
    found[0] = self.coverage(3, 0.5)
    found.insert(1, self.coverage(3, 0.99))
    assert anchor_coverage.recommend(found) is found[2]
    found.insert(1, self.coverage(3, 1.0, mean_iou=0.6))
    assert anchor_coverage.recommend(found) is found[1]

  def test_never_less_than_the_one_in_use(self):
    """Fewer anchors that cover 97.9 % instead of 98.6 %, and a rare class worse."""
    current = self.coverage(9, 0.986, class_shares=(0.99, 0.9))
    fewest = self.coverage(1, 0.979, class_shares=(0.985, 0.81))
    assert anchor_coverage.recommend([current, fewest]) is current
    # More in all, but less of the class that is covered worst.
    uneven = self.coverage(1, 0.99, class_shares=(1.0, 0.89))
    assert anchor_coverage.recommend([current, fewest, uneven]) is current
    better = self.coverage(2, 0.993, class_shares=(0.995, 0.971))
    found = [current, fewest, uneven, better]
    assert anchor_coverage.recommend(found) is better

  def test_classes_count_alike(self):
    """A share of all that is within the tolerance may hide a rare class that is not."""
    current = self.coverage(9, 0.5, class_shares=(0.5, 0.5))
    frequent = self.coverage(1, 0.99, class_shares=(1.0, 0.7))
    both = self.coverage(3, 0.99, class_shares=(0.99, 0.98))
    assert anchor_coverage.recommend([current, frequent, both]) is both
