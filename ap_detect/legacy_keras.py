"""Selects the Keras 2 API, with its own defaults, before anything loads Keras."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib import metadata

# What the networks, weights files and losses of the package are written for.
_SETTINGS = {"floatx": "float32", "epsilon": 1e-7, "image_data_format": "channels_last"}


def select() -> None:
  """Makes `tf.keras` the Keras 2 API, whatever the TensorFlow version.

  The packages that need it call this when they are imported, before they import
  TensorFlow. Keras 3, imported as `keras`, may be in use beside it.

  TensorFlow up to 2.15 has Keras 2 built in and must not see the variable: without
  `tf_keras` installed it would fail to import. From 2.16 on `tf.keras` is Keras 3
  unless TF_USE_LEGACY_KERAS is set before `tf.keras` is used for the first time.

  Keras' own settings are its defaults in this process, whatever KERAS_BACKEND and
  keras.json say: another backend, type of floats or order of axes fits nothing here.

  Raises:
    ImportError: `tf.keras` is already in use as Keras 3, or with other settings. Nothing
      was changed.
  """
  version = _tensorflow_version()
  if version is None:
    return
  tensorflow = sys.modules.get("tensorflow")
  if version >= (2, 16) and tensorflow is not None:
    _refuse_keras_3(tensorflow)
  _refuse_other_settings("keras" if version < (2, 16) else "tf_keras")
  os.environ["KERAS_BACKEND"] = "tensorflow"
  # A folder that has no keras.json, and in which Keras cannot write one.
  os.environ["KERAS_HOME"] = os.devnull
  if version < (2, 16):
    if importlib.util.find_spec("tf_keras") is None:
      os.environ.pop("TF_USE_LEGACY_KERAS", None)
    return
  os.environ["TF_USE_LEGACY_KERAS"] = "1"
  if tensorflow is not None and not getattr(tensorflow, "_tf_uses_legacy_keras", True):
    _redirect_imports(tensorflow)


def _refuse_keras_3(tensorflow) -> None:
  """Raises ImportError where `tf.keras` was used and is Keras 3."""
  # Before that it is a loader, which any use would have choose; so look, don't ask.
  keras = vars(tensorflow).get("keras")
  version = vars(keras).get("__version__", "") if keras else ""
  if version.startswith("3."):
    raise ImportError(
      "ap_detect's networks and training require Keras 2, but this process already uses "
      f"Keras {version} as tf.keras; import them before the first use of tf.keras, use "
      "Keras 3 as `import keras`, or set TF_USE_LEGACY_KERAS=1 (ap_detect.losses works "
      "with either)"
    )


def _refuse_other_settings(package) -> None:
  """Raises ImportError where Keras 2, of some package, is loaded with other settings."""
  backend = sys.modules.get(f"{package}.src.backend")
  if backend is None:
    return
  for setting, needed in _SETTINGS.items():
    found = getattr(backend, setting)()
    if found != needed:
      raise ImportError(
        f"ap_detect requires Keras' {setting} to be {needed}, but this process uses "
        f"{found}; import ap_detect.models before the first use of tf.keras, or change "
        f"it by tf.keras.backend.set_{setting}"
      )


def _redirect_imports(tensorflow) -> None:
  """Makes `from tensorflow.keras import ...` find Keras 2, as TensorFlow itself does.

  It decides that when it is imported, by the variable, which was not set then.
  """
  import tf_keras

  folder = os.path.join(os.path.dirname(tf_keras.__file__), "api", "_v2")
  if folder not in tensorflow.__path__:
    tensorflow.__path__.insert(0, folder)


def _tensorflow_version() -> tuple[int, int] | None:
  for distribution in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
    try:
      major, minor = metadata.version(distribution).split(".")[:2]
      return int(major), int(minor)
    except metadata.PackageNotFoundError:
      continue
  return None
