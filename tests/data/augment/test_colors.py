import colorsys

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.data.augment import colors


def make_image():
  image = np.random.default_rng(0).uniform(0, 255, (20, 30, 3)).astype(np.float32)
  image[0, :10] = 100  # grey
  image[1, :5] = 0
  image[2, :5, 1] = image[2, :5, 0]  # two channels share the maximum or the minimum
  return image


def oracle(image, factor=1.0, degrees=0.0):
  """Through HSV and back, pixel by pixel."""
  result = np.empty(image.shape)
  for index in np.ndindex(image.shape[:2]):
    hue, saturation, value = colorsys.rgb_to_hsv(*image[index].astype(float))
    hue = (hue + degrees / 360) % 1
    result[index] = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)
  return result


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.3, 20.0])
def test_saturation_is_that_of_hsv(factor):
  image = make_image()
  found = colors.scale_saturation(tf.constant(image), factor)
  np.testing.assert_allclose(found, oracle(image, factor=factor), atol=1e-3)


@pytest.mark.parametrize("degrees", [-18.0, 0.0, 5.0, 18.0, 130.0, 360.0])
def test_hue_is_that_of_hsv(degrees):
  image = make_image()
  found = colors.rotate_hue(tf.constant(image), degrees)
  np.testing.assert_allclose(found, oracle(image, degrees=degrees), atol=1e-3)


def test_by_hand():
  # Red, a third of the circle on, is green; half the saturation of (200, 100, 0) halves
  # the distances from its value, 200.
  red = tf.constant([[[200.0, 0.0, 0.0]]])
  np.testing.assert_allclose(colors.rotate_hue(red, 120.0), [[[0, 200, 0]]], atol=1e-4)
  orange = tf.constant([[[200.0, 100.0, 0.0]]])
  found = colors.scale_saturation(orange, 0.5)
  np.testing.assert_allclose(found, [[[200, 150, 100]]], atol=1e-4)


def test_lighting_by_hand():
  # The first component has nearly equal parts of all channels: 0.2175 * 255 * 0.5675.
  found = colors.lighting_shift(tf.constant([1.0, 0.0, 0.0]))
  np.testing.assert_allclose(found, [-31.475, -32.213, -32.368], atol=1e-2)
  found = colors.lighting_shift(tf.constant([0.0, 2.0, 0.0]))
  np.testing.assert_allclose(found, [6.896, -0.043, -6.662], atol=1e-2)
