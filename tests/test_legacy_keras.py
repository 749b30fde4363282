"""Which Keras a process gets, in fresh processes."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from ap_detect import legacy_keras

VERSION = tuple(int(part) for part in metadata.version("tensorflow").split(".")[:2])
IS_KERAS_3_DEFAULT = VERSION >= (2, 16)


def run_python(code):
  environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env=environment,
    timeout=300,
    check=False,
  )


@pytest.mark.parametrize(
  ("version", "expected"),
  [((2, 15), None), ((2, 16), "1"), ((2, 21), "1"), ((3, 0), "1"), (None, None)],
)
def test_variable_is_set_for_new_versions_only(version, expected, monkeypatch):
  monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
  # It asks a TensorFlow that is loaded which Keras it has.
  monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
  monkeypatch.setattr(legacy_keras, "_tensorflow_version", lambda: version)
  legacy_keras.select()
  assert os.environ.get("TF_USE_LEGACY_KERAS") == expected


def test_keras_2_whichever_is_imported_first():
  done = run_python(
    "import tensorflow as tf, ap_detect, os\n"
    "print(tf.keras.Model.__module__, os.environ.get('TF_USE_LEGACY_KERAS'))\n"
  )
  module, variable = done.stdout.split()
  # Keras 3 has no "engine".
  assert module.endswith("keras.src.engine.training"), done.stderr
  assert variable == ("1" if IS_KERAS_3_DEFAULT else "None")


@pytest.mark.skipif(
  not IS_KERAS_3_DEFAULT, reason="this TensorFlow has no Keras 3 as tf.keras"
)
def test_keras_3_in_use_is_an_error():
  done = run_python("import tensorflow as tf\ntf.keras.Model\nimport ap_detect\n")
  assert done.returncode != 0
  assert "ImportError: ap_detect requires the Keras 2 API" in done.stderr
  assert "TF_USE_LEGACY_KERAS=1" in done.stderr
