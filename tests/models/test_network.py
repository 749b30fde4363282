import numpy as np
import pytest
import tensorflow as tf

from ap_detect.models import backbones, fpn, heads, retinanet


def noise(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (2, 3, 5, 4), (2, 8, 8, 16)])
def test_upsampling_equals_keras_own_bit_for_bit(shape):
  features = noise(*shape)
  expected = tf.keras.layers.UpSampling2D(interpolation="nearest")(features)
  np.testing.assert_array_equal(fpn.Upsample2x()(features), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_gradient_of_upsampling(jit_compile):
  features, weights = tf.constant(noise(2, 3, 5, 4)), noise(2, 6, 10, 4, seed=1)

  def broadcast(values):
    cells = values[:, :, tf.newaxis, :, tf.newaxis]
    return tf.reshape(tf.broadcast_to(cells, [2, 3, 2, 5, 2, 4]), [2, 6, 10, 4])

  @tf.function(jit_compile=jit_compile)
  def gradient(upsample, values):
    with tf.GradientTape() as tape:
      tape.watch(values)
      total = tf.reduce_sum(weights * upsample(values))
    return tape.gradient(total, values)

  found = gradient(fpn.Upsample2x(), features)
  np.testing.assert_array_equal(found, gradient(broadcast, features))
  # Every cell is copied to 2 x 2 places, whose weights add up.
  expected = weights.reshape(2, 3, 2, 5, 2, 4).sum(axis=(2, 4))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_upsampling_knows_the_sizes_it_can_know():
  layer = fpn.Upsample2x()
  for known, doubled in [((None, 3), (None, 6)), ((None, None), (None, None))]:
    output = layer(tf.keras.Input((*known, 4)))
    assert output.shape.as_list() == [None, *doubled, 4]


def test_upsampling_is_made_of_tensorflow_lites_own_operations():
  inputs = tf.keras.Input((3, 5, 4))
  model = tf.keras.Model(inputs, fpn.Upsample2x()(inputs))
  # Fails where an operation is not among them.
  converted = tf.lite.TFLiteConverter.from_keras_model(model).convert()
  interpreter = tf.lite.Interpreter(model_content=converted)
  run = interpreter.get_signature_runner()
  features = noise(1, 3, 5, 4)
  (output,) = run(**{run.get_input_details().popitem()[0]: features}).values()
  np.testing.assert_array_equal(output, model(features))


def build_pyramid(channels=8):
  inputs = [tf.keras.Input((side, side, c)) for side, c in ((16, 4), (8, 5), (4, 6))]
  return tf.keras.Model(inputs, fpn.build_fpn(inputs, channels=channels))


def test_the_pyramid_is_what_its_description_says():
  model = build_pyramid()
  c3, c4, c5 = noise(2, 16, 16, 4), noise(2, 8, 8, 5), noise(2, 4, 4, 6)
  for variable in model.variables:  # the biases, too
    variable.assign(tf.random.stateless_normal(variable.shape, (1, len(variable.name))))

  def convolved(name, values, stride=1):
    layer = model.get_layer(name)
    return tf.nn.conv2d(values, layer.kernel, stride, "SAME") + layer.bias

  def doubled(values):
    return np.repeat(np.repeat(values, 2, axis=1), 2, axis=2)

  merged5 = convolved("fpn_lateral5", c5)
  merged4 = convolved("fpn_lateral4", c4) + doubled(merged5)
  merged3 = convolved("fpn_lateral3", c3) + doubled(merged4)
  p6 = convolved("fpn_output6", c5, stride=2)
  expected = [
    convolved("fpn_output3", merged3),
    convolved("fpn_output4", merged4),
    convolved("fpn_output5", merged5),
    p6,
    convolved("fpn_output7", tf.nn.relu(p6), stride=2),
  ]
  pyramid = model([c3, c4, c5])
  assert [level.shape[1] for level in pyramid] == [16, 8, 4, 2, 1]
  for a, b in zip(pyramid, expected):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def build_heads(**options):
  inputs = [tf.keras.Input((side, side, 64)) for side in (8, 4)]
  outputs = heads.build_head(inputs, num_outputs=12, channels=64, name="h", **options)
  return tf.keras.Model(inputs, outputs)


def test_heads_are_shared_by_the_levels():
  model = build_heads(num_convolutions=2, initializer="he")
  names = [layer.name for layer in model.layers if layer.weights]
  assert names == ["h_conv0", "h_conv1", "h_output"]
  features = noise(1, 8, 8, 64)
  # Apart from the border, the same patch has the same answer on both levels.
  large, small = model([features, features[:, 2:6, 2:6]])
  values = features[:, 2:6, 2:6]
  for name in names[:-1]:
    layer = model.get_layer(name)
    values = tf.nn.relu(tf.nn.conv2d(values, layer.kernel, 1, "SAME") + layer.bias)
  layer = model.get_layer("h_output")
  expected = tf.nn.conv2d(values, layer.kernel, 1, "SAME") + layer.bias
  np.testing.assert_allclose(small, expected, rtol=1e-4, atol=1e-5)
  assert large.shape == (1, 8, 8, 12)


@pytest.mark.parametrize(
  # He: the root of 2 over the 3 * 3 * 64 inputs
  "initializer, stddev",
  [("normal", 0.01), ("he", (2 / (9 * 64)) ** 0.5)],
)
def test_initial_weights(initializer, stddev):
  model = build_heads(initializer=initializer, output_stddev=0.02, output_bias=-1.5)
  for position in range(4):
    layer = model.get_layer(f"h_conv{position}")
    assert np.std(layer.kernel) == pytest.approx(stddev, rel=0.05)
    assert not np.any(layer.bias)
  output = model.get_layer("h_output")
  assert np.std(output.kernel) == pytest.approx(0.02, rel=0.05)
  np.testing.assert_array_equal(output.bias, np.full(12, -1.5, np.float32))


def test_an_unknown_initializer_is_named():
  with pytest.raises(ValueError, match=r"'normal', 'he'.* got 'zeros'"):
    build_heads(initializer="zeros")


@pytest.fixture(scope="module")
def network():
  backbone = backbones.build_backbone("csp_darknet_nano")
  return retinanet.build_retinanet(backbone, num_classes=3, fpn_channels=32)


def test_a_fresh_network_says_one_percent_everywhere(network):
  # sigmoid(-ln 99) = 1 / 100
  outputs = network(np.full((1, 128, 128, 3), 120, np.float32) + noise(1, 128, 128, 3))
  assert isinstance(outputs, retinanet.Outputs)
  assert outputs.class_logits.shape == (1, 2046, 3)  # 341 cells of 6
  assert outputs.box_outputs.shape == (1, 2046, 4)
  np.testing.assert_allclose(tf.sigmoid(outputs.class_logits), 0.01, atol=1e-3)
  np.testing.assert_allclose(outputs.box_outputs, 0, atol=0.05)
  class_output = network.get_layer("class_head_output")
  np.testing.assert_allclose(class_output.bias, -np.log(99), rtol=1e-6)
  assert np.std(class_output.kernel) == pytest.approx(0.01, rel=0.05)
  backbone = backbones.build_backbone("csp_darknet_nano")
  even = retinanet.build_retinanet(backbone, num_classes=3, score_prior=0.5)
  assert not np.any(even.get_layer("class_head_output").bias)
  box_output = network.get_layer("box_head_output")
  assert not np.any(box_output.bias)
  assert np.std(box_output.kernel) == pytest.approx(0.001, rel=0.05)


def test_images_of_a_batch_do_not_touch_each_other(network):
  images = np.random.default_rng(0).uniform(0, 255, (3, 128, 128, 3)).astype(np.float32)
  together = network(images)
  alone = network(images[1:2])
  for a, b in zip(together, alone):
    np.testing.assert_allclose(a[1:2], b, atol=1e-4)


@pytest.mark.slow
def test_the_whole_network_runs_under_xla():
  tf.keras.utils.set_random_seed(0)
  backbone = backbones.build_backbone("csp_darknet_nano")
  network = retinanet.build_retinanet(
    backbone,
    num_classes=2,
    fpn_channels=16,
    head_convolutions=1,
    head_initializer="he",
  )
  images = np.random.default_rng(0).uniform(0, 255, (2, 128, 128, 3)).astype(np.float32)
  weights = (noise(2, 2046, 2, seed=1), noise(2, 2046, 4, seed=2))

  def step(pixels):
    with tf.GradientTape() as tape:
      outputs = network(pixels, training=True)
      total = tf.add_n([tf.reduce_sum(w * o) for w, o in zip(weights, outputs)])
    return tuple(outputs), tape.gradient(total, network.trainable_variables)

  statistics = network.non_trainable_variables
  start = [variable.numpy() for variable in statistics]
  results = []
  for jit_compile in (False, True):
    for variable, value in zip(statistics, start):
      variable.assign(value)
    results.append(tf.function(step, jit_compile=jit_compile)(images))
    results[-1] += ([variable.numpy() for variable in statistics],)
  (outputs, gradients, moved), (xla_outputs, xla_gradients, xla_moved) = results
  assert all(gradient is not None for gradient in gradients)
  for a, b in zip(
    [*outputs, *gradients, *moved], [*xla_outputs, *xla_gradients, *xla_moved]
  ):
    # As a whole: single entries hang on activations that round to either side of 0.
    assert np.linalg.norm(np.subtract(b, a)) <= 0.01 * np.linalg.norm(a) + 1e-4
