import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ap_detect import config as config_lib
from ap_detect.data.records import ImageRecord
from ap_detect.models import retinanet
from ap_detect.runs import model as model_lib
from ap_detect.training import evaluation, views


def config_with(**fields):
  config = config_lib.Config(
    data=config_lib.DataConfig(root="given", image_size_px=(128, 128)),
    eval=config_lib.EvalConfig(batch_size=2, score_threshold=0.0, **fields),
  )
  return config_lib.resolve(dataclasses.asdict(config))


class TestViewsOf:
  @pytest.mark.parametrize(
    "size, canvas, fit",
    [
      # 500 / 375 = 1.333 makes it 500 x 666.7; canvases are multiples of 128 long.
      ((375, 500), (512, 768), (500, 833)),
      ((500, 375), (768, 512), (833, 500)),
      ((300, 300), (512, 512), (500, 833)),
      # 833 / 1000 makes it 83.3 x 833: the longer side decides.
      ((100, 1000), (512, 864), (500, 833)),
      ((1000, 100), (864, 512), (833, 500)),
    ],
  )
  def test_by_hand(self, size, canvas, fit):
    config = config_with(test_scales=("500/833",))
    assert views.views_of(*size, config) == ((canvas, fit, False),)

  @pytest.mark.parametrize("scale", ["500/833", "600/1000", "33/47", "64/64"])
  def test_every_picture_fits_its_canvas(self, scale):
    config = config_with(test_scales=(scale,))
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, [500, 2]):
      ((canvas, fit, _),) = views.views_of(int(height), int(width), config)
      factor = min(fit[0] / height, fit[1] / width)
      shorter, longer = config_lib.parse_test_scale(scale)
      assert factor == min(shorter / min(height, width), longer / max(height, width))
      assert round(height * factor) <= canvas[0]
      assert round(width * factor) <= canvas[1]
      assert canvas[0] % 32 == canvas[1] % 32 == 0

  def test_the_training_size_by_default(self):
    assert views.views_of(375, 500, config_with()) == (((128, 128), (128, 128), False),)

  def test_scales_and_mirroring(self):
    config = config_with(test_scales=("64/96", "96/160"), horizontal_flip=True)
    assert views.views_of(50, 60, config) == (
      ((64, 96), (64, 96), False),
      ((64, 96), (64, 96), True),
      ((96, 128), (96, 160), False),
      ((96, 128), (96, 160), True),
    )


class BrightAnchors(tf.keras.Model):
  """Finds what is red: an anchor's score is the redness of the pixel at its centre.

  Box outputs are 0, so that what is found are the anchors themselves.
  """

  def __init__(self, config):
    super().__init__()
    self._config = config
    self.sizes = []

  def call(self, images, training=False):
    size = tuple(images.shape[1:3])
    self.sizes.append(size)
    anchors = model_lib.make_anchors(self._config, size)
    centers = ((anchors[:, :2] + anchors[:, 2:]) / 2).astype(int)
    centers = np.minimum(centers, np.array(size) - 1)
    redness = tf.gather_nd(
      images[..., 0], tf.tile(centers[None], [images.shape[0], 1, 1]), batch_dims=1
    )
    # One class for anchors of the first shape; the others stay far below.
    first = np.arange(len(anchors)) % 6 == 0
    logits = tf.where(first, redness / 100 - 1.0, -50.0)[..., tf.newaxis]
    return retinanet.Outputs(logits, tf.zeros([images.shape[0], len(anchors), 4]))


def picture(height, width, spot):
  """A record with a red spot, (ymin, xmin, ymax, xmax), on black."""
  pixels = np.zeros((height, width, 3), np.uint8)
  ymin, xmin, ymax, xmax = spot
  pixels[ymin:ymax, xmin:xmax, 0] = 255
  return ImageRecord(
    image_id="a",
    image=pixels,
    height=height,
    width=width,
    boxes=np.zeros([0, 4], np.float32),
    classes=np.zeros([0], np.int32),
    ignored=np.zeros([0], bool),
    areas=np.zeros([0], np.float32),
  )


def detect(config, records):
  network = BrightAnchors(config)
  strategy = tf.distribute.MirroredStrategy(["CPU:0"])
  return evaluation.Evaluator(network, config, strategy).detect(records), network


class TestDetect:
  SPOT = (60, 100, 84, 124)

  def best_center(self, found):
    box = found.boxes[0]
    return (box[:2] + box[2:]) / 2

  @pytest.mark.parametrize(
    "fields",
    [
      {"test_scales": ("128/256",)},
      {"test_scales": ("200/400",)},
      {"horizontal_flip": True},
      {"test_scales": ("96/160", "200/320"), "horizontal_flip": True},
    ],
  )
  def test_boxes_are_in_pixels_of_the_original(self, fields):
    config = config_with(**fields)
    (found,), network = detect(config, [picture(160, 200, self.SPOT)])
    # Centres of cells are up to half a stride of 8 input pixels off.
    np.testing.assert_allclose(self.best_center(found), [72, 112], atol=16)
    mirrored = 2 if config.eval.horizontal_flip else 1
    assert len(network.sizes) == mirrored * max(1, len(config.eval.test_scales))

  def test_a_mirrored_view_finds_the_mirrored_boxes(self):
    # Of a symmetric network on a mirrored picture: the same boxes, mirrored.
    config = config_with(test_scales=("128/256",))
    view = views.views_of(160, 200, config)[0]
    record = picture(160, 200, self.SPOT)
    both = []
    for mirrored in (False, True):
      batches = evaluation.pipeline.evaluation_batches(
        [record], views=[view._replace(mirrored=mirrored)], batch_size=1
      )
      function = views.make_detect(
        BrightAnchors(config), (view._replace(mirrored=mirrored),), config
      )
      both.append(function(next(iter(batches))))
    # 160 x 200 is scaled by 0.8 to 128 x 160: a multiple of the stride, so that the
    # mirrored grid of anchors is the grid itself.
    best = [result.boxes[0, 0].numpy() for result in both]
    assert abs(best[0] - best[1]).max() < 10 / 0.8
    assert both[0].scores[0, 0].numpy() == pytest.approx(both[1].scores[0, 0].numpy())

  def test_records_of_all_shapes_come_back_in_order(self, tmp_path):
    config = config_with(test_scales=("64/128",))
    spots = [(5, 5, 20, 20), (60, 30, 75, 45), (10, 60, 25, 75), (40, 40, 55, 55)]
    shapes = [(64, 80), (120, 64), (64, 100), (70, 64)]
    records = []
    for number, (shape, spot) in enumerate(zip(shapes, spots)):
      record, path = picture(*shape, spot), str(tmp_path / f"{number}.png")
      Image.fromarray(record.image).save(path)
      records.append(dataclasses.replace(record, image=path))
    found, _ = detect(config, records)
    for image, spot in zip(found, spots):
      middle = (np.array(spot[:2]) + spot[2:]) / 2
      np.testing.assert_allclose(self.best_center(image), middle, atol=12)

  def test_suppression_is_over_all_views(self):
    config = config_with(test_scales=("128/256", "136/256"), horizontal_flip=True)
    (found,), _ = detect(config, [picture(160, 200, self.SPOT)])
    boxes = found.boxes[found.scores > 0.5]
    for i, box in enumerate(boxes):
      for other in boxes[:i]:
        sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        overlap = np.prod(np.maximum(sides, 0))
        areas = [np.prod(b[2:] - b[:2]) for b in (box, other)]
        assert overlap / (sum(areas) - overlap) <= 0.5 + 1e-5
