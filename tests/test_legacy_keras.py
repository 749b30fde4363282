"""Which Keras a process gets, in fresh processes."""

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from ap_detect import legacy_keras

VERSION = tuple(int(part) for part in metadata.version("tensorflow").split(".")[:2])
IS_KERAS_3_DEFAULT = VERSION >= (2, 16)


# The process of the tests has set these.
SET = ("TF_USE_LEGACY_KERAS", "KERAS_BACKEND", "KERAS_HOME")


def run_python(code, **more):
  environment = {name: value for name, value in os.environ.items() if name not in SET}
  return subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    env={**environment, **more},
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


FOREIGN = {
  "floatx": "float16",
  "epsilon": 0.01,
  "backend": "torch",
  "image_data_format": "channels_first",
}


def test_foreign_settings_do_not_matter(tmp_path, monkeypatch):
  path = tmp_path / ".keras" / "keras.json"
  path.parent.mkdir()
  path.write_text(json.dumps(FOREIGN))
  monkeypatch.setenv("HOME", str(tmp_path))
  done = run_python(
    "import ap_detect\n"
    "from ap_detect.models import backbones\n"
    "import tensorflow as tf\n"
    # Of keras-cv, which has a look at the backend too.
    "backbones.build_backbone('csp_darknet_nano')\n"
    "keras = tf.keras.backend\n"
    "print(keras.floatx(), keras.epsilon(), keras.image_data_format())\n",
    TF_USE_LEGACY_KERAS="1",
    KERAS_BACKEND="jax",
  )
  assert done.stdout == "float32 1e-07 channels_last\n", done.stderr[-2000:]
  assert json.loads(path.read_text()) == FOREIGN


def test_foreign_settings_of_a_keras_that_is_loaded(tmp_path):
  (tmp_path / "keras.json").write_text(
    json.dumps({"image_data_format": "channels_first"})
  )
  code = "import tensorflow as tf\ntf.keras.Model\nimport ap_detect\n"
  environment = {"TF_USE_LEGACY_KERAS": "1"} if IS_KERAS_3_DEFAULT else {}
  done = run_python(code, KERAS_HOME=str(tmp_path), **environment)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == (
    "ImportError: ap_detect requires Keras' image_data_format to be channels_last, but "
    "this process uses channels_first; import ap_detect before the first use of "
    "tf.keras, or change it by tf.keras.backend.set_image_data_format"
  )
