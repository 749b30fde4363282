import colorsys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ap_detect import images as image_ops
from ap_detect.data import augment
from ap_detect.data.augment import colors, ssd

OUTPUT = (96, 128)
SIZE = (80, 110)
BOX = (20, 30, 50, 70)


def example_with(boxes=(BOX,), seed=0, image=None, ignored=None):
  """Red rectangles on blue, one object each."""
  if image is None:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[..., 2] = 255
    for ymin, xmin, ymax, xmax in np.asarray(boxes, int).reshape(-1, 4):
      image[ymin:ymax, xmin:xmax] = (255, 0, 0)
  return {
    "image": tf.constant(image),
    "boxes": tf.constant(np.reshape(boxes, (-1, 4)), tf.float32),
    "classes": tf.range(1, len(boxes) + 1),
    "ignored": tf.zeros(len(boxes), tf.bool)
    if ignored is None
    else tf.constant(ignored),
    "seed": tf.constant([1, seed]),
  }


def run_steps(example, steps):
  for step in steps:
    example = step(example)
  return example


def over_seeds(steps, count, **options):
  """What the steps make of one example under many seeds; a dict of NumPy arrays each."""
  example = example_with(**options)

  def make(number):
    return run_steps(
      {**example, "seed": tf.stack([1, tf.cast(number, tf.int32)])}, steps
    )

  return list(tf.data.Dataset.range(count).map(make).as_numpy_iterator())


def red_rectangle(image):
  image = np.asarray(image, np.float32)
  rows, columns = np.nonzero(image[..., 0] - image[..., 2] > 60)
  if not len(rows):
    return None
  return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


@pytest.mark.parametrize("in_map", [False, True])
def test_boxes_follow_the_pixels(in_map):
  steps = augment.ssd_steps(OUTPUT, color_strength=0.0)
  if in_map:
    results = over_seeds(steps, 150)
  else:
    results = [run_steps(example_with(seed=seed), steps) for seed in range(15)]
  for result in results:
    assert result["image"].shape == (*OUTPUT, 3)
    # The one object is in every crop.
    (box,) = np.asarray(result["boxes"])
    # A pixel of the output or, where it grows, half one of the picture's.
    np.testing.assert_allclose(red_rectangle(result["image"]), box, atol=2.0)


def test_eager_mode_gives_what_a_dataset_map_gives():
  steps = augment.ssd_steps(OUTPUT)
  in_map = over_seeds(steps, 4)
  for seed in range(4):
    eager = run_steps(example_with(seed=seed), steps)
    assert eager.keys() == in_map[seed].keys() == example_with().keys()
    for key in eager:
      np.testing.assert_allclose(in_map[seed][key], eager[key], atol=1e-2)


def test_the_same_seed_gives_the_same_again():
  steps = augment.ssd_steps(OUTPUT)
  images = [
    run_steps(example_with(seed=seed), steps)["image"].numpy() for seed in (3, 3, 4)
  ]
  np.testing.assert_array_equal(images[0], images[1])
  assert np.abs(images[0] - images[2]).max() > 1


class TestExpansion:
  def test_windows(self):
    windows = np.stack(
      [r["window"] for r in over_seeds([augment.random_expansion()], 800)]
    )
    sides = windows[:, 2:] - windows[:, :2]
    whole = (windows == [0, 0, *SIZE]).all(axis=1)
    # Half of the time: 400 of 800, standard deviation 14.
    assert 330 < whole.sum() < 470
    assert (windows[:, :2] <= 0).all() and (windows[:, 2:] >= SIZE).all()
    np.testing.assert_array_equal(windows, np.round(windows))
    ratios = (sides / SIZE)[~whole]
    # The aspect stays but for rounding, and ratios are U(1, 4).
    np.testing.assert_allclose(ratios[:, 0], ratios[:, 1], atol=1 / 80)
    assert ratios.min() >= 1 and ratios.max() <= 4
    assert abs(ratios[:, 0].mean() - 2.5) < 4 * 0.866 / 400**0.5
    # Places are uniform in what is free.
    free = (sides - SIZE)[~whole]
    places = -windows[~whole, :2][free.min(axis=1) > 40] / free[free.min(axis=1) > 40]
    np.testing.assert_allclose(places.mean(axis=0), 0.5, atol=0.08)
    np.testing.assert_allclose(places.std(axis=0), 0.289, atol=0.04)


def windows_of(boxes, count=400, **options):
  steps = [augment.random_expansion(probability=0.0), augment.random_crop()]
  results = over_seeds(steps, count, boxes=boxes, **options)
  return results, np.stack([result["window"] for result in results])


def iou(a, b):
  sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)
  areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
  return np.prod(sides) / (sum(areas) - np.prod(sides))


class TestCrop:
  BOXES = np.array([(5, 5, 30, 40), (40, 60, 75, 105)])

  def test_windows_lie_in_the_picture_and_hold_a_centre(self):
    results, windows = windows_of(self.BOXES)
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] <= SIZE).all()
    np.testing.assert_array_equal(windows, np.round(windows))
    sides = windows[:, 2:] - windows[:, :2]
    assert (sides >= np.floor(0.3 * np.array(SIZE))).all()
    aspect = sides[:, 0] / sides[:, 1]
    assert aspect.min() >= 0.5 and aspect.max() <= 2
    assert aspect.min() < 0.6 and aspect.max() > 1.2
    centers = (self.BOXES[:, :2] + self.BOXES[:, 2:]) / 2
    for result, window in zip(results, windows):
      held = ((centers >= window[:2]) & (centers < window[2:])).all(axis=1)
      assert held.any()
      assert result["classes"].tolist() == (np.flatnonzero(held) + 1).tolist()
      cut = np.clip(self.BOXES[held], np.tile(window[:2], 2), np.tile(window[2:], 2))
      np.testing.assert_array_equal(result["boxes"], cut)

  def test_a_sampler_may_leave_the_picture_whole(self):
    _, windows = windows_of(self.BOXES, 1200)
    whole = (windows == [0, 0, *SIZE]).all(axis=1).mean()
    # One sampler of six; those whose 50 trials fail give way to a new draw. Of these
    # boxes, 0.7 is hard and 0.9 harder to reach: between 1/6 and 1/3.
    assert 1 / 6 - 0.03 < whole < 1 / 3 + 0.03

  @pytest.mark.parametrize("min_iou", [0.1, 0.3, 0.7])
  def test_windows_overlap_an_object_enough(self, min_iou, monkeypatch):
    monkeypatch.setattr(ssd, "CROP_MIN_IOUS", (min_iou,))
    boxes = np.array([(10, 10, 70, 95), (2, 2, 8, 8)])
    _, windows = windows_of(boxes, 150)
    is_whole = (windows == [0, 0, *SIZE]).all(axis=1)
    best = np.array([max(iou(w, box) for box in boxes) for w in windows])
    assert (best >= min_iou - 1e-6)[~is_whole].all()
    assert 20 < (~is_whole).sum() < 130
    assert best[~is_whole].min() < min_iou + 0.15

  def test_ignored_objects_have_no_say(self):
    ignored = np.array([False, True])
    results, _ = windows_of(self.BOXES, 200, ignored=ignored)
    assert all(1 in result["classes"] for result in results)
    kept = [result["classes"].tolist() for result in results]
    assert [1] in kept and [1, 2] in kept
    for result in results:
      assert result["ignored"].tolist() == ignored[result["classes"] - 1].tolist()

  @pytest.mark.parametrize("ignored", [None, [True]])
  def test_without_objects_the_middle_counts(self, ignored):
    boxes = [(0, 0, 6, 6)] if ignored else []
    _, windows = windows_of(boxes, 200, ignored=ignored)
    middle = np.array(SIZE) / 2
    assert ((windows[:, :2] <= middle) & (middle < windows[:, 2:])).all()
    assert len(np.unique(windows, axis=0)) > 50


class TestWarp:
  def test_by_hand(self):
    # A window of 40 x 60 that passes a picture of 20 x 30 above by 20 and left by 30, at
    # twice the size: the picture is the lower right quarter.
    image = np.full((20, 30, 3), 200, np.uint8)
    example = example_with(boxes=[(5.0, 6.0, 10.0, 12.0)], image=image)
    example["window"] = tf.constant([-20.0, -30.0, 20.0, 30.0])
    result = augment.warp_window((80, 120))(example)
    assert "window" not in result
    pixels = result["image"].numpy()
    np.testing.assert_allclose(pixels[40:, 60:], 200, atol=1e-3)
    for quarter in (pixels[:40, :60], pixels[40:, :60], pixels[:40, 60:]):
      expected = np.broadcast_to(image_ops.FILL_RGB, quarter.shape)
      np.testing.assert_allclose(quarter, expected, atol=1e-4)
    assert result["boxes"].numpy().tolist() == [[50, 72, 60, 84]]

  def test_the_aspect_is_not_kept(self):
    result = run_steps(
      example_with(), [augment.random_expansion(0.0), augment.warp_window(OUTPUT)]
    )
    scale = np.array(OUTPUT) / SIZE
    np.testing.assert_allclose(result["boxes"][0], np.array(BOX) * np.tile(scale, 2))

  def test_all_interpolations_come(self):
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    steps = [augment.random_expansion(0.0), augment.warp_window((32, 64))]
    results = over_seeds(steps, 150, image=image, boxes=[(1, 1, 4, 4)])
    expected = {
      name: np.clip(tf.image.resize(image, (32, 64), name), 0, 255)
      for name in ("bilinear", "nearest", "area", "bicubic", "lanczos3")
    }
    found = [
      [name for name in expected if np.allclose(r["image"], expected[name], atol=1e-2)]
      for r in results
    ]
    assert all(len(names) == 1 for names in found)
    for name in expected:  # 30 of 150, standard deviation 4.9
      assert 10 <= found.count([name]) <= 50


class TestColor:
  def values_of(self, color, strength=1.0, count=600):
    image = np.full((1, 1, 3), color, np.uint8)
    steps = [augment.random_ssd_color(strength)]
    results = over_seeds(steps, count, image=image)
    return np.stack([r["image"][0, 0] for r in results])

  def test_at_strength_0_nothing_changes(self):
    np.testing.assert_allclose(
      self.values_of((10, 200, 90), 0.0, 20), [[10, 200, 90]] * 20
    )

  def test_hue_turns_by_up_to_18_degrees_half_of_the_time(self, monkeypatch):
    monkeypatch.setattr(colors, "LIGHTING_DEVIATION", 0.0)
    monkeypatch.setattr(colors, "MAX_BRIGHTNESS", 0.0)
    values = self.values_of((120, 60, 60))
    hues = np.array([colorsys.rgb_to_hsv(*(v / 255))[0] for v in values.astype(float)])
    degrees = (hues * 360 + 180) % 360 - 180
    assert -18.01 < degrees.min() < -16 and 16 < degrees.max() < 18.01
    assert 0.4 < np.mean(np.abs(degrees) < 1e-3) < 0.6
    saturations = np.array([1 - v.min() / v.max() for v in values])
    # Saturation 0.5 times 0.5 to 1.5, half of the time.
    assert 0.249 < saturations.min() < 0.28 and 0.72 < saturations.max() < 0.751
    assert 0.4 < np.mean(np.abs(saturations - 0.5) < 1e-3) < 0.6

  def test_brightness_and_contrast(self, monkeypatch):
    # Of a grey, which has no hue or saturation: (100 + b) * c.
    monkeypatch.setattr(colors, "LIGHTING_DEVIATION", 0.0)
    greys = self.values_of((100, 100, 100))
    np.testing.assert_allclose(greys.std(axis=1), 0, atol=1e-3)
    assert 68 * 0.5 - 0.01 < greys.min() < 68 * 0.6
    assert 132 * 1.3 < greys.max() < 132 * 1.5 + 0.01
    # Both left alone a quarter of the time: 150 of 600, standard deviation 10.6.
    assert 105 < np.sum(np.abs(greys[:, 0] - 100) < 1e-3) < 195

  def test_lighting(self, monkeypatch):
    for name in ("MAX_BRIGHTNESS", "MAX_CONTRAST", "MAX_SATURATION", "MAX_HUE_DEGREES"):
      monkeypatch.setattr(colors, name, 0.0)
    shifts = self.values_of((100, 100, 100)) - 100
    changed = np.abs(shifts).max(axis=1) > 1e-3
    assert 0.4 < changed.mean() < 0.6
    # Independent weights N(0, 0.1) of three components: the covariance of the channels.
    deviations = 0.1 * 255 * np.array(colors._COMPONENT_DEVIATIONS)
    components = np.array(colors._COMPONENTS)
    expected = components.T @ np.diag(deviations**2) @ components
    np.testing.assert_allclose(
      np.cov(shifts[changed].T), expected, atol=0.25 * expected.max()
    )

  def test_values_stay_in_range(self):
    for color in ((250, 5, 128), (255, 255, 255), (0, 0, 0)):
      values = self.values_of(color, count=100)
      assert values.min() >= 0 and values.max() <= 255


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_boxes_are_never_outside_and_never_empty(seed):
  rng = np.random.default_rng(seed)
  number = rng.integers(0, 12)
  corners = rng.uniform(0, (78, 108), (number, 2))
  ends = np.minimum(corners + rng.uniform(0.5, 60, (number, 2)), SIZE)
  boxes = np.concatenate([corners, ends], -1)
  example = example_with(boxes, seed=seed, image=np.zeros((*SIZE, 3), np.uint8))
  example["ignored"] = tf.constant(rng.random(number) < 0.2)
  result = run_steps(example, augment.ssd_steps(OUTPUT))
  found = result["boxes"].numpy()
  assert (found[:, :2] >= 0).all() and (found[:, 2:] <= OUTPUT).all()
  assert (found[:, 2:] > found[:, :2]).all()
  kept = result["classes"].numpy() - 1
  np.testing.assert_array_equal(result["ignored"], example["ignored"].numpy()[kept])
  assert len(found) == len(kept)
