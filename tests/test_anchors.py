import numpy as np
import pytest
import tensorflow as tf
from oracles import anchors as oracle

from ap_detect import anchors
from ap_detect.models import retinanet

RELEASE = {
  "levels": (3, 4, 5, 6, 7),
  "base_scale": 4.0,
  "octave_scales": (1.0, 2**0.5),
  "aspect_ratios": (0.5, 1.0, 2.0),
}


def test_hand_case_of_the_first_cell():
  # Level 3, cell (0, 0): centre (4, 4); 4 * 8 = 32 px and 32 * sqrt(2) = 45.25 px.
  # Ratio 1/2 is height / width: 32 / sqrt(2) = 22.63 high and 45.25 wide.
  first = anchors.generate_anchors((128, 128))[:6]
  height, width = first[:, 2] - first[:, 0], first[:, 3] - first[:, 1]
  np.testing.assert_allclose((first[:, :2] + first[:, 2:]) / 2, 4.0, atol=1e-4)
  expected_height = [22.627, 32, 45.255, 32, 45.255, 64]
  expected_width = [45.255, 32, 22.627, 64, 45.255, 32]
  np.testing.assert_allclose(height, expected_height, atol=1e-3)
  np.testing.assert_allclose(width, expected_width, atol=1e-3)


def test_release_defaults():
  # 64^2 + 32^2 + 16^2 + 8^2 + 4^2 = 5,456 cells of 6; the largest square anchor is
  # 4 * 128 * sqrt(2) = 724 px.
  found = anchors.generate_anchors((512, 512))
  assert found.shape == (32_736, 4)
  assert found.dtype == np.float32
  areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
  np.testing.assert_allclose(np.sqrt(areas.min()), 32, rtol=1e-5)
  np.testing.assert_allclose(np.sqrt(areas.max()), 512 * 2**0.5, rtol=1e-5)


@pytest.mark.parametrize(
  "image_size, options",
  [
    ((128, 128), {}),
    ((256, 128), {}),
    ((100, 131), {}),  # no multiples of any stride: rounded up
    ((64, 96), {"levels": (2, 4), "aspect_ratios": (1.0, 3.0)}),
    ((64, 96), {"base_scale": 3.0, "octave_scales": (0.7,)}),
  ],
)
def test_anchors_equal_the_oracle(image_size, options):
  options = {**RELEASE, **options}
  expected = oracle.generate_anchors(image_size, **options)
  found = anchors.generate_anchors(image_size, **options)
  np.testing.assert_allclose(found, [entry[-1] for entry in expected], atol=1e-3)

  shapes = len(options["octave_scales"]) * len(options["aspect_ratios"])
  sizes = anchors.anchors_per_level(
    image_size, levels=options["levels"], anchors_per_cell=shapes
  )
  expected_levels = [entry[0] for entry in expected]
  assert sizes == [expected_levels.count(level) for level in options["levels"]]


def test_odd_sizes_round_up():
  # 130 / 8 = 16.25 -> 17, 9, 5, 3, 2; 100 / 8 = 12.5 -> 13, 7, 4, 2, 1
  cells = [17 * 13, 9 * 7, 5 * 4, 3 * 2, 2 * 1]
  assert anchors.anchors_per_level((130, 100), anchors_per_cell=1) == cells


def pooling_backbone(image_size):
  """Means of the cells of strides 8, 16 and 32 in place of a backbone."""
  pixels = tf.keras.Input((*image_size, 3))
  cells = [tf.keras.layers.AveragePooling2D(2**level)(pixels) for level in (3, 4, 5)]
  return tf.keras.Model(pixels, cells)


def test_the_networks_outputs_are_in_the_anchors_order():
  # What the shared head puts into channel a * K + k of cell (row, column) of a level
  # must be class k of that level's, cell's and shape's anchor.
  classes, image_size = 2, (128, 256)
  network = retinanet.build_retinanet(
    pooling_backbone(image_size),
    num_classes=classes,
    fpn_channels=4,
    head_convolutions=1,
    head_initializer="he",
  )
  output_layer = network.get_layer("class_head_output")
  maps = [output_layer.get_output_at(position) for position in range(5)]
  both = tf.keras.Model(network.inputs, [network.outputs[0], *maps])
  pixels = np.random.default_rng(0).uniform(0, 255, (1, *image_size, 3))
  logits, *maps = (value[0] for value in both(pixels.astype(np.float32)))
  maps = {3 + position: level.numpy() for position, level in enumerate(maps)}

  entries = oracle.generate_anchors(image_size, **RELEASE)
  found = anchors.generate_anchors(image_size)
  assert len(entries) == len(logits)
  for index, (level, row, column, position, _) in enumerate(entries):
    channels = slice(position * classes, (position + 1) * classes)
    np.testing.assert_array_equal(logits[index], maps[level][row, column, channels])
    center = (found[index, :2] + found[index, 2:]) / 2
    np.testing.assert_allclose(
      center, ((row + 0.5) * 2**level, (column + 0.5) * 2**level), atol=1e-3
    )


@pytest.mark.parametrize("level", [3, 4, 5])
def test_a_bright_cell_answers_at_its_own_anchors(level):
  image_size, row, column = (128, 256), 1, 2
  network = retinanet.build_retinanet(
    pooling_backbone(image_size), num_classes=1, fpn_channels=3, head_convolutions=0
  )
  _pass_one_level_through(network, level)
  pixels = np.zeros((1, *image_size, 3), np.float32)
  stride = 2**level
  rows, columns = (slice(i * stride, (i + 1) * stride) for i in (row, column))
  pixels[:, rows, columns] = 1.0
  answers = network(pixels).class_logits.numpy()[0, :, 0]

  sizes = anchors.anchors_per_level(image_size)
  start = sum(sizes[: level - 3])
  answering = start + np.flatnonzero(answers[start : start + sizes[level - 3]] > 0.5)
  found = anchors.generate_anchors(image_size)[answering]
  assert len(found) == 6
  expected = ((row + 0.5) * stride, (column + 0.5) * stride)
  np.testing.assert_allclose(
    (found[:, :2] + found[:, 2:]) / 2, np.tile(expected, (6, 1)), atol=1e-3
  )


def _pass_one_level_through(network, level):
  """Sets the kernels so that C<level> alone reaches the class outputs, unchanged."""
  for layer in network.layers:
    if not layer.weights:
      continue
    kernel = np.zeros(layer.kernel.shape, np.float32)
    middle = kernel.shape[0] // 2
    if layer.name in (f"fpn_lateral{level}", f"fpn_output{level}"):
      kernel[middle, middle] = np.eye(3)
    if layer.name == "class_head_output":
      kernel[middle, middle] = 1 / 3
    layer.set_weights([kernel, np.zeros(layer.bias.shape, np.float32)])
