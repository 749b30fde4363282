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

  TensorFlow up to 2.15 has Keras 2 built in and must not see the variable: without
  `tf_keras` installed it would fail to import. From 2.16 on `tf.keras` is Keras 3
  unless TF_USE_LEGACY_KERAS is set before `tf.keras` is used for the first time.

  Keras' own settings are its defaults in this process, whatever KERAS_BACKEND and
  keras.json say: another backend, type of floats or order of axes fits nothing here.

  Raises:
    ImportError: Keras 3, or Keras with other settings, is already in use in this process.
  """
  version = _tensorflow_version()
  if version is None:
    return
  _refuse_other_settings("keras" if version < (2, 16) else "tf_keras")
  os.environ["KERAS_BACKEND"] = "tensorflow"
  # A folder that has no keras.json, and in which Keras cannot write one.
  os.environ["KERAS_HOME"] = os.devnull
  if version < (2, 16):
    if importlib.util.find_spec("tf_keras") is None:
      os.environ.pop("TF_USE_LEGACY_KERAS", None)
    return
  os.environ["TF_USE_LEGACY_KERAS"] = "1"
  tensorflow = sys.modules.get("tensorflow")
  keras_version = getattr(getattr(tensorflow, "keras", None), "__version__", "2")
  if keras_version.startswith("3."):
    raise ImportError(
      "ap_detect requires the Keras 2 API, but this process already uses Keras "
      f"{keras_version} as tf.keras; import ap_detect before the first "
      "use of tf.keras, or set TF_USE_LEGACY_KERAS=1"
    )
  if tensorflow is not None and not getattr(tensorflow, "_tf_uses_legacy_keras", True):
    _redirect_imports(tensorflow)


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
        f"{found}; import ap_detect before the first use of tf.keras, or change it by "
        f"tf.keras.backend.set_{setting}"
      )


def _redirect_imports(tensorflow) -> None:
  """Makes `from tensorflow.keras import ...` find Keras 2, as TensorFlow itself does.

  It decides that when it is imported, by the variable, which was not set then.
  """
  import tf_keras

  folder = os.path.dirname(tf_keras.__file__)
  tensorflow.__path__.insert(0, os.path.join(folder, "api", "_v2"))


def _tensorflow_version() -> tuple[int, int] | None:
  for distribution in ("tensorflow", "tensorflow-cpu", "tf-nightly"):
    try:
      major, minor = metadata.version(distribution).split(".")[:2]
      return int(major), int(minor)
    except metadata.PackageNotFoundError:
      continue
  return None
