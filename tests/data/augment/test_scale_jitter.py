import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ap_detect.data import augment, pipeline
from ap_detect.data.augment import colors, draws

CANVAS = (96, 128)
BOX = (20, 30, 50, 70)


def example_with(boxes=(BOX,), seed=0, size=(80, 110), image=None):
  """Red rectangles on blue, one object each."""
  if image is None:
    image = np.zeros((*size, 3), np.uint8)
    image[..., 2] = 255
    for ymin, xmin, ymax, xmax in boxes:
      image[ymin:ymax, xmin:xmax] = (255, 0, 0)
  return {
    "image": tf.constant(image),
    "boxes": tf.constant(np.reshape(boxes, (-1, 4)), tf.float32),
    "classes": tf.range(1, len(boxes) + 1),
    "ignored": tf.zeros(len(boxes), tf.bool),
    "seed": tf.constant([1, seed]),
  }


def red_rectangle(image):
  """[ymin, xmin, ymax, xmax] of what is more red than blue, or None.

  However wide an edge was blurred, half of its way is where the edge lies. Colour steps
  keep the order of a pixel's channels. Neither red nor blue is the canvas's fill colour,
  whose green exceeds its blue.
  """
  red, green, blue = np.moveaxis(np.asarray(image, np.float32), -1, 0)
  rows, columns = np.nonzero((red > blue) & (green <= blue + 1e-3))
  if not len(rows):
    return None
  return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


def chain(*steps):
  def run(example):
    for step in steps:
      example = step(example)
    return example

  return run


STEPS = {
  "flip": augment.random_horizontal_flip(1.0),
  "no flip": augment.random_horizontal_flip(0.0),
  "fit": augment.zoom_onto_canvas(CANVAS),
  "none": augment.fit_steps(CANVAS)[0],
  "zoom out": augment.zoom_onto_canvas(CANVAS, (0.4, 0.9)),
  "zoom in": augment.zoom_onto_canvas(CANVAS, (1.1, 2.5)),
  "color": augment.random_color(1.0),
  "all": chain(
    augment.random_horizontal_flip(0.5),
    augment.zoom_onto_canvas(CANVAS, (0.5, 2.0)),
    augment.random_color(1.0),
  ),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("in_map", [False, True])
def test_boxes_follow_the_pixels(name, in_map):
  seeds = range(12)
  if in_map:
    examples = [example_with(seed=seed) for seed in seeds]
    stacked = {key: tf.stack([e[key] for e in examples]) for key in examples[0]}
    results = list(tf.data.Dataset.from_tensor_slices(stacked).map(STEPS[name]))
  else:
    results = [STEPS[name](example_with(seed=seed)) for seed in seeds]
  num_seen = 0
  for result in results:
    seen = red_rectangle(result["image"])
    if len(result["boxes"]) == 0:
      assert seen is None
      continue
    box = result["boxes"][0].numpy()
    if seen is None:  # a sliver of less than a pixel
      assert min(box[2] - box[0], box[3] - box[1]) < 1
      continue
    num_seen += 1
    # The pixels whose centres lie in the box are red.
    np.testing.assert_allclose(seen, box, atol=0.51)
  assert num_seen >= 8


@pytest.mark.parametrize("name", ["zoom out", "zoom in", "all"])
def test_boxes_are_not_shifted_against_the_pixels(name):
  def measured(number):
    example = example_with()
    result = STEPS[name]({**example, "seed": tf.stack([1, tf.cast(number, tf.int32)])})
    return result["image"], result["boxes"]

  errors = []
  for image, boxes in tf.data.Dataset.range(300).map(measured):
    seen = red_rectangle(image)
    if len(boxes) and seen is not None:
      box = boxes[0].numpy()
      cut = np.isin(box, (0, *CANVAS))  # an edge of the canvas, without any error
      errors.append(np.where(cut, np.nan, seen - box))
  # Edges fall anywhere between two pixels: the error is uniform in +-0.5 px, of
  # deviation 0.289, and that of a mean over at least 150 edges 0.024.
  counts = np.isfinite(errors).sum(axis=0)
  assert counts.min() > 150
  np.testing.assert_array_less(
    np.abs(np.nanmean(errors, axis=0)), 4.5 * 0.289 / counts**0.5
  )
  np.testing.assert_allclose(np.nanstd(errors, axis=0), 0.289, atol=0.03)


@pytest.mark.parametrize("name", STEPS)
def test_a_dataset_map_gives_what_eager_mode_gives(name):
  example = example_with(seed=5)
  in_map = next(iter(tf.data.Dataset.from_tensors(example).map(STEPS[name])))
  eager = STEPS[name](example)
  assert in_map.keys() == eager.keys()
  for key in eager:
    np.testing.assert_allclose(in_map[key], eager[key], atol=1e-2)


def test_hand_case_of_the_flip():
  # Width 110: x 30..70 becomes 40..80. y stays.
  result = STEPS["flip"](example_with())
  assert result["boxes"].numpy().tolist() == [[20, 40, 50, 80]]
  twice = STEPS["flip"](result)
  np.testing.assert_array_equal(twice["image"], example_with()["image"])
  assert twice["boxes"].numpy().tolist() == [list(BOX)]


def test_a_picture_of_the_canvas_size_stays_as_it_is():
  pixels = np.random.default_rng(0).integers(0, 256, (*CANVAS, 3), dtype=np.uint8)
  result = STEPS["fit"](example_with(image=pixels))
  np.testing.assert_array_equal(result["image"], pixels)
  assert result["boxes"].numpy().tolist() == [list(BOX)]


def test_without_augmentation_images_are_those_of_evaluation(monkeypatch):
  """80 x 110 pixels in 96 x 128: in the corner, where zooming draws a place."""
  example = example_with()
  found = STEPS["none"](example)
  shown = pipeline.show(example["image"], pipeline.View(CANVAS, CANVAS))
  np.testing.assert_array_equal(found["image"], shown["image"])
  np.testing.assert_allclose(found["boxes"], [np.array(BOX) * 128 / 110], rtol=1e-6)
  assert names_of_draws([STEPS["none"]], monkeypatch) == []


def test_the_same_seed_gives_the_same_again():
  images = [STEPS["all"](example_with(seed=seed))["image"] for seed in (3, 3, 4)]
  np.testing.assert_array_equal(images[0], images[1])
  assert np.abs(images[0] - images[2]).max() > 1


CHAINS = {
  "zoom": augment.zoom_steps(CANVAS, zoom_range=(0.5, 2.0), color_strength=1.0),
  "ssd": augment.ssd_steps(CANVAS),
}


def names_of_draws(steps, monkeypatch):
  """The name of every draw of some steps, as often as it occurs."""
  names = []
  original = draws._seed

  def record(example, name):
    names.append(name)
    return original(example, name)

  with monkeypatch.context() as patch:
    patch.setattr(draws, "_seed", record)
    # A graph has all branches.
    tf.data.Dataset.from_tensors(example_with()).map(chain(*steps))
  return names


@pytest.mark.parametrize("name", CHAINS)
def test_no_two_draws_of_a_chain_are_of_one_stream(name, monkeypatch):
  names = names_of_draws(CHAINS[name], monkeypatch)
  assert len(names) >= 10 and {"flip", "brightness", "brightness?"} <= set(names)
  assert len(set(names)) == len(names)
  drawn = [draws.uniform(example_with(), each, shape=(4,)).numpy() for each in names]
  assert len(np.unique(drawn)) == 4 * len(names)


def test_names_of_one_ending_have_streams_of_their_own():
  example = example_with()
  names = ("brightness", "sharpness", "ness", "s")
  drawn = np.stack([draws.uniform(example, name, shape=(500,)) for name in names])
  # The correlation of 500 independent pairs has the deviation 0.045.
  assert np.abs(np.corrcoef(drawn) - np.eye(4)).max() < 5 * 0.045


def test_streams_stay_what_they_are():
  # A run that starts again with a later version goes on with the same pictures. The
  # first bytes of `printf flip | sha256sum`, 4e448897, the last of them first, below 2^31.
  assert draws.stream_key("flip") == 0x1788444E


def test_flips_come_with_the_given_probability():
  flip = augment.random_horizontal_flip(0.3)
  flips = _over_seeds(flip, lambda e: e["boxes"][0, 1] != 30)
  # 600 draws: 180 expected, standard deviation 11.2
  assert 180 - 45 < sum(flips) < 180 + 45


def test_zooms_are_uniform_and_independent_of_the_place():
  # The picture has the canvas's aspect, so that a box as high as 10 px becomes
  # 10 * zoom px high, and is never cut as long as the zoom is below 1.
  step = augment.zoom_onto_canvas(CANVAS, (0.5, 1.0))
  pixels = np.zeros((*CANVAS, 3), np.uint8)

  def zoom_and_places(example):
    box = example["boxes"][0]
    zoom = (box[2] - box[0]) / 10
    free = tf.constant(CANVAS, tf.float32) * (1 - zoom)
    return tf.stack([zoom, *tf.unstack((box[:2] - 40 * zoom) / free)])

  values = np.array(
    _over_seeds(step, zoom_and_places, boxes=[(40, 40, 50, 50)], image=pixels)
  )
  zoom, places = values[:, 0], values[:, 1:]
  assert zoom.min() > 0.499 and zoom.max() < 1.001
  # Uniform: mean 0.75 and 0.5, standard deviation 0.144 and 0.289, over sqrt(600)
  assert abs(zoom.mean() - 0.75) < 4 * 0.144 / 600**0.5
  assert abs(zoom.std() - 0.144) < 0.02
  far = places[zoom < 0.98]  # nearer to 1 there is no room to measure a place in
  assert far.min() > -0.01 and far.max() < 1.01
  np.testing.assert_allclose(far.mean(axis=0), 0.5, atol=4 * 0.289 / 580**0.5)
  np.testing.assert_allclose(far.std(axis=0), 0.289, atol=0.03)
  correlations = np.corrcoef(np.c_[zoom[zoom < 0.98], far].T)
  assert np.abs(correlations - np.eye(3)).max() < 0.2


def test_flips_and_zooms_are_independent():
  step = chain(
    augment.random_horizontal_flip(0.5), augment.zoom_onto_canvas(CANVAS, (0.5, 1.0))
  )
  pixels = np.zeros((*CANVAS, 3), np.uint8)
  # Flipped, a box at the left edge of the picture is at its right edge.
  boxes = [(40, 0, 50, 10), (40, 118, 50, 128)]

  def flip_and_zoom(example):
    first, second = example["boxes"][0], example["boxes"][1]
    return tf.stack([tf.cast(first[1] > second[1], tf.float32), first[2] - first[0]])

  values = np.array(_over_seeds(step, flip_and_zoom, boxes=boxes, image=pixels))
  assert 0.4 < values[:, 0].mean() < 0.6
  assert abs(np.corrcoef(values.T)[0, 1]) < 0.2


def _over_seeds(step, measure, count=600, **options):
  example = example_with(**options)

  def measured(number):
    seed = tf.stack([1, tf.cast(number, tf.int32)])
    return measure(step({**example, "seed": seed}))

  return [value.numpy() for value in tf.data.Dataset.range(count).map(measured)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_boxes_stay_on_the_canvas(seed):
  rng = np.random.default_rng(seed)
  corners = rng.integers(0, (70, 100), (12, 2))
  ends = np.minimum(corners + rng.integers(1, 60, (12, 2)), (80, 110))
  boxes = np.concatenate([corners, ends], -1)
  example = example_with(boxes, seed=seed)
  example["ignored"] = tf.constant(rng.random(12) < 0.2)
  result = augment.zoom_onto_canvas(CANVAS, (0.5, 4.0))(example)
  found = result["boxes"].numpy()
  assert (found[:, :2] >= 0).all() and (found[:, 2:] <= CANVAS).all()
  assert (found[:, 2:] > found[:, :2]).all()
  # Class g belongs to box g: what stays keeps its class and an ignored one its flag.
  kept = result["classes"].numpy() - 1
  assert len(kept) == len(found) == len(result["ignored"])
  was_ignored = example["ignored"].numpy()[kept]
  is_ignored = result["ignored"].numpy()
  assert (is_ignored | ~was_ignored).all()
  # Scale and place, recovered from an uncut box, tell where the others' centres went.
  sizes = boxes[kept, 2:] - boxes[kept, :2]
  factors = (found[:, 2:] - found[:, :2]) / sizes
  if not len(found) or np.ptp(factors, axis=1).min() > 1e-4:
    return
  reference = np.ptp(factors, axis=1).argmin()
  scale = factors[reference].mean()
  if abs(factors.max() - scale) > 1e-3:
    return
  translation = found[reference, :2] - boxes[kept[reference], :2] * scale
  centers = (boxes[kept, :2] + boxes[kept, 2:]) / 2 * scale + translation
  inside = ((centers > 0.1) & (centers < np.subtract(CANVAS, 0.1))).all(axis=1)
  outside = ((centers < -0.1) | (centers > np.add(CANVAS, 0.1))).any(axis=1)
  assert is_ignored[outside].all()
  np.testing.assert_array_equal(is_ignored[inside], was_ignored[inside])


def test_an_object_whose_centre_leaves_is_ignored():
  # At zoom 2 the picture, as large as the canvas, is 192 x 256 and moves by 0..-96 and
  # 0..-128 px: a band of small boxes shows what stays.
  pixels = np.zeros((*CANVAS, 3), np.uint8)
  boxes = [(y, 0, y + 8, 128) for y in range(0, 96, 8)]
  counts = set()
  for seed in range(6):
    result = augment.zoom_onto_canvas(CANVAS, (2.0, 2.0))(
      example_with(boxes, seed=seed, image=pixels)
    )
    heights = (result["boxes"][:, 2] - result["boxes"][:, 0]).numpy()
    widths = (result["boxes"][:, 3] - result["boxes"][:, 1]).numpy()
    np.testing.assert_allclose(widths, 128)
    # 96 px of the canvas are 6 boxes of 16 px, the outermost two of them cut; of a box
    # of which less than half is left the centre is gone.
    np.testing.assert_allclose(heights.sum(), 96, atol=1e-3)
    np.testing.assert_array_equal(result["ignored"].numpy(), heights < 8)
    counts.add(len(heights))
  assert counts <= {6, 7} and 7 in counts


def test_an_image_without_objects_passes_through_every_step():
  result = STEPS["all"](example_with(boxes=()))
  assert result["boxes"].shape == (0, 4)
  assert result["image"].shape == (*CANVAS, 3)


def test_color_at_strength_0_changes_nothing():
  pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
  for seed in range(5):
    result = augment.random_color(0.0)(example_with(image=pixels, seed=seed))
    np.testing.assert_allclose(result["image"], pixels, atol=1e-3)
    assert result["boxes"].numpy().tolist() == [list(BOX)]


def test_color_stays_in_range_and_within_its_bounds():
  # A grey pixel has no saturation to change: value' = (value + b) * c, |b| <= 32 and
  # 0.5 <= c <= 1.5, each left alone half of the time.
  pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
  pixels[0, 0], pixels[0, 1] = 100, 50
  values = np.array(
    _over_seeds(
      augment.random_color(1.0), lambda e: e["image"], count=400, image=pixels
    )
  )
  assert values.min() >= 0 and values.max() <= 255
  # (100 - 50) * c and 100 + b, recovered from two greys
  contrast = (values[:, 0, 0, 0] - values[:, 0, 1, 0]) / 50
  brightness = values[:, 0, 0, 0] / contrast - 100
  assert 0.499 < contrast.min() < 0.55 and 1.45 < contrast.max() < 1.501
  assert -32.01 < brightness.min() < -29 and 29 < brightness.max() < 32.01
  for value, neutral in ((contrast, 1), (brightness, 0)):
    untouched = np.mean(np.abs(value - neutral) < 1e-3)
    assert 0.4 < untouched < 0.6


def test_saturation_moves_colours_from_and_to_their_grey():
  # Dark enough never to be cut at 255. Brightness moves all channels alike; contrast
  # and saturation scale their distances from the grey, 0.299 * 100 + 0.587 * 75 +
  # 0.114 * 60 = 80.765, by one factor.
  pixels = np.full((1, 1, 3), (100, 75, 60), np.uint8)
  values = np.array(
    _over_seeds(augment.random_color(1.0), lambda e: e["image"][0, 0], image=pixels)
  )
  distances = values - (values @ np.array(colors.LUMA))[:, np.newaxis]
  factors = distances / (np.array([100, 75, 60]) - 80.765)
  np.testing.assert_allclose(factors.std(axis=1), 0, atol=1e-3)
  # 0.5 * 0.5 to 1.5 * 1.5; contrast alone would end at 0.5 and 1.5. Both change a
  # quarter of the time, and of products of two U(0.5, 1.5) 6.45 % are below 0.45 and
  # 12.2 % above 1.55: none of 600 with a probability of 6e-5.
  assert 0.249 < factors.min() < 0.45 and 1.55 < factors.max() < 2.251
