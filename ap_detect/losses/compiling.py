"""Functions of tensors that XLA compiles once for all who call them."""

from __future__ import annotations

import atexit
import functools
import gc

import tensorflow as tf


@functools.lru_cache(64)
def compiled(function):
  """The function, compiled by XLA and traced once for each shape.

  Args:
    function: of tensors, the same object every time.

  Returns:
    A tf.function.
  """
  return tf.function(function, jit_compile=True, autograph=False)


# Compiled functions that outlive TensorFlow's modules print errors at exit.
@atexit.register
def _release(cached=compiled):
  cached.cache_clear()
  gc.collect()
