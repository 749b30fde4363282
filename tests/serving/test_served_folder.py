"""What an export leaves in its folder, and what it leaves where it fails."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import tensorflow as tf
from serving import files

from ap_detect.models import retinanet
from ap_detect.runs import scores
from ap_detect.serving import folder, from_run, graph, self_check, warm_up


@pytest.fixture
def hollow(monkeypatch):
  """Exports have an empty graph and are not tried out, which takes longest."""

  def save(module, path, signatures):
    os.makedirs(path)
    pathlib.Path(path, "saved_model.pb").touch()

  monkeypatch.setattr(tf.saved_model, "save", save)
  monkeypatch.setattr(self_check, "check", lambda *_: None)


def export(opened, export_dir, **options):
  return folder.export(opened[0], str(export_dir), model_name="shapes", **options)


class TestVersion:
  def test_one_above_those_that_are_there(self, opened, tmp_path, hollow):
    for name in ("7", "notes", "12x", "²"):
      (tmp_path / name).mkdir()
    assert export(opened, tmp_path) == str(tmp_path / "8")
    beside = {"batching.config", "models.config", "README.md"}
    assert set(os.listdir(tmp_path)) == {"7", "8", "notes", "12x", "²", *beside}

  def test_given(self, opened, tmp_path, hollow):
    assert export(opened, tmp_path / "new", version=20) == str(tmp_path / "new" / "20")

  @pytest.mark.parametrize("name", ["3", "003"])
  def test_that_is_there_already(self, name, opened, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / "5").mkdir()
    with pytest.raises(ValueError, match=r"has a version 3 already.*for version 6"):
      export(opened, tmp_path, version=3)
    assert sorted(os.listdir(tmp_path)) == [name, "5"]

  def test_that_appears_meanwhile(self, opened, tmp_path, hollow, monkeypatch):
    def write_config(export_dir, *_):
      os.makedirs(os.path.join(export_dir, "1", "variables"))

    monkeypatch.setattr(folder.server_files, "write", write_config)
    with pytest.raises(OSError, match="not empty"):
      export(opened, tmp_path)
    assert os.listdir(tmp_path) == ["1"]
    assert os.listdir(tmp_path / "1") == ["variables"]


class TestFailure:
  def test_leaves_nothing(self, opened, tmp_path, monkeypatch):
    def half_written(module, path, signatures):
      os.makedirs(path)
      with open(os.path.join(path, "saved_model.pb"), "w") as file:
        file.write("half")
      raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
      export(opened, tmp_path)
    assert os.listdir(tmp_path) == []

  def test_leaves_nothing_of_a_wrong_answer(
    self, opened, tmp_path, hollow, monkeypatch
  ):
    def find_wrong(path, module, requests):
      assert os.path.exists(os.path.join(path, warm_up.FILE))
      raise ValueError("wrong")

    monkeypatch.setattr(self_check, "check", find_wrong)
    with pytest.raises(ValueError, match="wrong"):
      export(opened, tmp_path)
    assert os.listdir(tmp_path) == []

  def test_of_a_folder_of_someone_else(self, opened, hollow):
    with tempfile.TemporaryDirectory() as export_dir:
      if os.getuid() == 0:
        os.chmod(export_dir, 0o755)
        os.seteuid(65534)
      else:
        os.chmod(export_dir, 0o555)
      try:
        with pytest.raises(PermissionError, match=re.escape(export_dir)):
          export(opened, export_dir)
      finally:
        if os.getuid() == 0:
          os.seteuid(0)
      assert os.listdir(export_dir) == []


class TestSelfCheck:
  @pytest.fixture
  def requests(self, opened):
    requests = warm_up.make_requests((128, 128), 6)
    return [request for request in requests if request.signature == "raw"][:1]

  def test_other_weights(self, opened, exported, requests):
    detector = opened[0]

    def network(images, training):
      logits, boxes = detector.network(images, training=training)
      return retinanet.Outputs(logits + 0.01, boxes)

    network.variables = detector.network.variables
    module = graph.ServingModule(detector._replace(network=network))
    message = "signature raw, batch of 1: logits is not that of the network"
    with pytest.raises(ValueError, match=message):
      self_check.check(exported, module, requests)

  @pytest.mark.parametrize(
    ("answer", "problem"),
    [
      ({"valid": np.ones(2)}, r"its outputs are \['valid'\]"),
      ({"boxes": np.ones([2, 3, 4]), "logits": np.ones([1, 3])}, "logits has shape"),
      (
        {"boxes": np.float32([[0], [np.nan]]), "logits": np.ones(2)},
        "boxes is not finite everywhere",
      ),
      (
        {**{name: np.ones(2) for name in graph.DETECTIONS}, "valid": np.array([1, 0])},
        r"valid is \[1, 0\]",
      ),
    ],
  )
  def test_wrong_answers(self, answer, problem):
    assert re.match(problem, self_check._find_problem(answer, 2))


class TestContents:
  def test_of_a_version(self, exported):
    names = {
      str(path.relative_to(exported))
      for path in pathlib.Path(exported).rglob("*")
      if path.is_file()
    }
    assert names - {"fingerprint.pb"} == {
      "saved_model.pb",
      "variables/variables.index",
      "variables/variables.data-00000-of-00001",
      "assets/labels.txt",
      "assets.extra/ap_detect.json",
      "assets.extra/tf_serving_warmup_requests",
    }

  def test_labels(self, exported, opened):
    with open(os.path.join(exported, "assets/labels.txt"), encoding="utf-8") as file:
      assert file.read().splitlines() == list(opened[0].class_names)

  def test_description(self, exported, restored_run):
    path = os.path.join(exported, "assets.extra/ap_detect.json")
    with open(path, encoding="utf-8") as file:
      said = json.load(file)
    names = restored_run.classes.names
    assert said["classes"] == list(names)
    assert said["score_thresholds"] == dict.fromkeys(names, 0.0)
    assert said["calibration"] is None
    assert said["input_size"] == [128, 128]
    assert said["max_image_pixels"] == 1_000_000
    assert said["checkpoint"] == os.path.basename(restored_run.checkpoint)
    assert said["run"] == "trained"
    assert 0 <= said["metrics"]["AP"] <= 1
    assert said["versions"]["tensorflow"] == tf.__version__

  def test_settings_of_the_server(self, exported):
    beside = pathlib.Path(exported).parent
    batching = (beside / "batching.config").read_text()
    assert "max_batch_size { value: 8 }" in batching
    sizes = re.findall(r"^allowed_batch_sizes: (\d+)$", batching, re.MULTILINE)
    assert tuple(map(int, sizes)) == warm_up.BATCH_SIZES
    assert "pad_variable_length_inputs: false" in batching
    assert 'base_path: "/models/shapes"' in (beside / "models.config").read_text()
    readme = (beside / "README.md").read_text()
    for part in ("docker run", "tensorflow_model_server", "/v1/models/shapes:predict"):
      assert part in readme


def test_warm_up_requests(exported):
  """Every signature, at every batch size."""
  asked = []
  for name, signature, arrays in files.warm_up_requests(exported):
    assert name == "shapes"
    given = files.requests([b""], len(next(iter(arrays.values()))))[signature]
    assert {key: len(value) for key, value in arrays.items()} == {
      key: len(value) for key, value in given.items()
    }
    asked.append((signature, len(next(iter(arrays.values())))))
  signatures = files.requests([], 0)
  assert sorted(asked) == sorted(
    (signature, size) for signature in signatures for size in (1, 2, 4, 8)
  )
  assert os.path.getsize(os.path.join(exported, warm_up.FILE)) < 1_000_000


def test_a_run_is_opened_with_its_calibration(trained_run):
  detector, _ = from_run.open_run(trained_run, score_threshold=0.25)
  assert detector.calibration == scores.load_judgement(trained_run).calibration
  assert detector.class_thresholds == (0.25,) * 6


@pytest.mark.parametrize(
  ("export_dir", "name"),
  [
    ("runs/mine/export", "mine"),
    ("served/dogs/", "dogs"),
    ("runs/mine", "mine"),
    ("served/my dogs", "my_dogs"),
    ("served/chiots à moi", "chiots_moi"),
  ],
)
def test_name_of_the_model(export_dir, name):
  assert from_run.default_model_name("runs/mine/", export_dir) == name


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path, trained_run):
  script = """
import sys
sys.path.insert(0, sys.argv[3])
import conftest
conftest.small_backbone.__wrapped__().__next__()
from ap_detect.models import retinanet
from ap_detect.runs import scores
from ap_detect.serving import folder, from_run
detector, _ = from_run.open_run(sys.argv[1])
print("begins", flush=True)
folder.export(detector, sys.argv[2], model_name="shapes")
"""
  tests = os.path.dirname(os.path.dirname(__file__))
  for seconds in (0.3, 2.0, 4.0):
    process = subprocess.Popen(
      [sys.executable, "-c", script, trained_run, str(tmp_path), tests],
      stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"begins\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    # A version that is there is whole.
    for name in os.listdir(tmp_path):
      if name.isdigit():
        tf.saved_model.load(str(tmp_path / name))
        assert os.path.exists(tmp_path / name / warm_up.FILE)
      else:
        assert name.startswith(".unfinished-") or "." in name
