"""Functions of tensors that XLA compiles once for all who call them."""

from __future__ import annotations

import atexit
import functools
import gc

import tensorflow as tf

_caches: list = []


def cached(function):
  """Decorator: the function's results are kept, as by functools.lru_cache, until the exit.

  For functions whose results hold compiled ones: those that outlive TensorFlow's modules
  print errors at exit.
  """
  _caches.append(functools.lru_cache(64)(function))
  return _caches[-1]


@cached
def compiled(function):
  """The function, compiled by XLA and traced once for each shape.

  Args:
    function: of tensors, the same object every time.

  Returns:
    A tf.function.
  """
  return tf.function(function, jit_compile=True, autograph=False)


# What it needs as arguments, for modules lose their names at exit.
@atexit.register
def _release(caches=_caches, collect=gc.collect):
  for cache in caches:
    cache.cache_clear()
  collect()
