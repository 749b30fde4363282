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
  # Set first: of a variable that was not there, the undoing would leave what is set now.
  monkeypatch.setenv("TF_USE_LEGACY_KERAS", "")
  monkeypatch.delenv("TF_USE_LEGACY_KERAS")
  # It asks a TensorFlow that is loaded which Keras it has.
  monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
  monkeypatch.setattr(legacy_keras, "_tensorflow_version", lambda: version)
  legacy_keras.select()
  assert os.environ.get("TF_USE_LEGACY_KERAS") == expected


# What a process finds in Keras' configuration of a loss of ours.
SAVED = {
  "module": "ap_detect.losses.keras_losses",
  "class_name": "APLoss",
  "config": {"name": "ap_loss", "delta": 0.5},
  "registered_name": "ap_detect>APLoss",
}


def test_losses_select_no_keras_and_networks_select_keras_2():
  done = run_python(
    "import os, sys\n"
    "before = dict(os.environ)\n"
    "import tensorflow as tf\n"
    "loaded = {name for name in sys.modules if 'keras' in name}\n"
    "import ap_detect.losses, ap_detect.data.pipeline, ap_detect.matching\n"
    "loaded = {name for name in sys.modules if 'keras' in name} - loaded\n"
    "assert loaded <= {'ap_detect.losses.keras_losses'}, loaded\n"
    "changed = {name for name, value in os.environ.items() if before.get(name) != value}\n"
    "assert not any('KERAS' in name for name in changed), changed\n"
    "loss = ap_detect.losses.APLoss()\n"
    "import keras\n"
    "assert isinstance(loss, keras.losses.Loss)\n"
    f"loss = keras.losses.deserialize({SAVED})\n"
    "assert isinstance(loss, ap_detect.losses.APLoss)\n"
    "import ap_detect.models\n"
    "loss = ap_detect.losses.APLoss()\n"
    "assert isinstance(loss, keras.losses.Loss)\n"
    "assert isinstance(loss, tf.keras.losses.Loss)\n"
    "print(tf.keras.Model.__module__, os.environ.get('TF_USE_LEGACY_KERAS'))\n"
  )
  assert done.returncode == 0, done.stderr[-2000:]
  module, variable = done.stdout.split()
  # Keras 3 has no "engine".
  assert module.endswith("keras.src.engine.training")
  assert variable == ("1" if IS_KERAS_3_DEFAULT else "None")


@pytest.mark.skipif(
  not IS_KERAS_3_DEFAULT, reason="this TensorFlow has no Keras 3 as tf.keras"
)
def test_where_keras_3_is_in_use_losses_are_of_it_and_networks_are_refused():
  done = run_python(
    "import os, keras, tensorflow as tf\n"
    "assert tf.keras.Model is keras.Model\n"
    "from ap_detect.losses import APLoss\n"
    "assert isinstance(APLoss(), keras.losses.Loss)\n"
    "before = dict(os.environ)\n"
    "try:\n"
    "  import ap_detect.training\n"
    "except ImportError as error:\n"
    "  print(error)\n"
    "assert os.environ == before\n"
  )
  assert done.returncode == 0, done.stderr[-2000:]
  (line,) = done.stdout.splitlines()
  assert "require Keras 2, but this process already uses Keras 3" in line
  assert "TF_USE_LEGACY_KERAS=1" in line


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
    "from ap_detect.models import backbones\n"
    "import tensorflow as tf\n"
    "from ap_detect.losses import APLoss\n"
    "assert isinstance(APLoss(), tf.keras.losses.Loss)\n"
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
  code = "import tensorflow as tf\ntf.keras.Model\nimport ap_detect.models\n"
  environment = {"TF_USE_LEGACY_KERAS": "1"} if IS_KERAS_3_DEFAULT else {}
  done = run_python(code, KERAS_HOME=str(tmp_path), **environment)
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == (
    "ImportError: ap_detect requires Keras' image_data_format to be channels_last, but "
    "this process uses channels_first; import ap_detect.models before the first use of "
    "tf.keras, or change it by tf.keras.backend.set_image_data_format"
  )
