"""The graphs for other runtimes, and what an export of them leaves in its folder."""

import os

import numpy as np
import pytest
import tensorflow as tf

from ap_detect.metrics import ScoreCalibration
from ap_detect.runs import files as run_files
from ap_detect.serving import decoding, exported, graph, portable

CALIBRATION = ScoreCalibration((1e-3, 0.02, 0.5, 0.95), (1e-4, 0.1, 0.6, 0.999))


@pytest.fixture(scope="module")
def calibrated(opened):
  return opened[0]._replace(calibration=CALIBRATION)


@pytest.fixture(scope="module", params=[None, 1], ids=["any batch", "one image"])
def graphs(request, calibrated):
  return portable.make_graphs(calibrated, request.param)


def to_numpy(answer):
  return {name: value.numpy() for name, value in answer.items()}


def test_raw_is_what_is_served(graphs, calibrated):
  inputs = np.random.default_rng(0).uniform(0, 255, [1, 128, 128, 3])
  inputs = inputs.astype(np.float32)
  served = graph.ServingModule(calibrated).functions["raw"](inputs)
  answer = graphs["raw"](inputs)
  assert set(answer) == set(served)
  for name, value in answer.items():
    np.testing.assert_allclose(value, served[name], atol=1e-4)


def test_detections_are_what_evaluation_finds(graphs, pngs, found):
  for png, expected in zip(pngs, found):
    fitted = decoding.fit_encoded(np.array([png]), (128, 128), max_image_pixels=10**6)
    content_sizes = fitted.sizes * fitted.scales
    answer = to_numpy(
      graphs["detections"](fitted.images, content_sizes, np.zeros([1, 6], np.float32))
    )
    assert answer["num_detections"] == [len(expected.scores)]
    boxes = answer["detection_boxes"][0] / fitted.scales.numpy()
    np.testing.assert_allclose(boxes, expected.boxes, atol=1e-3)
    calibrated = CALIBRATION(expected.scores)
    np.testing.assert_allclose(answer["detection_scores"][0], calibrated, atol=1e-5)
    np.testing.assert_array_equal(answer["detection_classes"][0], expected.classes)


def test_thresholds_are_of_calibrated_scores(graphs, pngs, found):
  fitted = decoding.fit_encoded(np.array(pngs[:1]), (128, 128), max_image_pixels=10**6)
  scores = np.sort(CALIBRATION(found[0].scores))
  threshold = (scores[-3] + scores[-4]) / 2
  thresholds = np.full([1, 6], threshold, np.float32)
  answer = graphs["detections"](fitted.images, [[128.0, 128.0]], thresholds)
  assert answer["num_detections"].numpy() == [3]


class TestDifference:
  RAW = {"boxes": np.ones([1, 5, 4]), "logits": np.ones([1, 5, 2])}  # noqa: RUF012

  def test_none(self):
    answer = {name: value + 1e-4 for name, value in self.RAW.items()}
    assert portable.find_difference(answer, self.RAW, 1e-3) is None

  @pytest.mark.parametrize("wrong", [1.01, np.nan])
  def test_of_an_output(self, wrong):
    answer = {**self.RAW, "logits": np.full([1, 5, 2], wrong)}
    problem = portable.find_difference(answer, self.RAW, 1e-3)
    assert problem.startswith("the norm of logits's difference is")

  def test_of_shapes(self):
    answer = {**self.RAW, "logits": np.ones([1, 5, 3])}
    assert "(1, 5, 3)" in portable.find_difference(answer, self.RAW, 1e-3)

  def test_of_detections(self):
    places = np.arange(10, dtype=np.float32)[:, np.newaxis] * 10 + [0, 0, 5, 5]
    expected = {
      "detection_boxes": places[np.newaxis].astype(np.float32),
      "detection_scores": np.linspace(0.9, 0.5, 10)[np.newaxis],
      "detection_classes": np.full([1, 10], 2),
      "num_detections": np.array([10]),
    }
    # In another order.
    answer = {**expected, "detection_boxes": expected["detection_boxes"][:, ::-1]}
    assert portable.find_difference(answer, expected, 1e-3) is None
    for name, value in [("boxes", 1000.0), ("classes", 1)]:
      moved = expected[f"detection_{name}"].copy()
      moved[0, :3] += np.array(value, moved.dtype)
      answer = {**expected, f"detection_{name}": moved}
      problem = portable.find_difference(answer, expected, 1e-3)
      assert problem == "of its detections 70% are found again"


@pytest.fixture
def export(calibrated, tmp_path, monkeypatch):
  """Function of what runs a file, in place of a runtime, to the export's path."""

  def raw(inputs):
    return {"boxes": inputs[:, :, 0], "logits": inputs[:, :, 1]}

  def detections(inputs, content_sizes, score_thresholds):
    return {"num_detections": content_sizes[:, 0]}

  graphs = {"raw": tf.function(raw), "detections": tf.function(detections)}
  monkeypatch.setattr(portable, "make_graphs", lambda *_: graphs)

  def convert(function, path):
    with open(path, "w", encoding="utf-8") as file:
      file.write(function.python_function.__name__)

  def load(path):
    with open(path, encoding="utf-8") as file:
      function = graphs[file.read()]
    return lambda inputs: run(function, inputs)

  model_files = [
    portable.ModelFile(f"{name}.onnx", name, convert, 1e-3) for name in portable.GRAPHS
  ]

  def call(answer, **options):
    nonlocal run
    run = answer
    return portable.export(
      *(calibrated, str(tmp_path), model_files, load),
      versions={"converter": "1"},
      model_name="shapes",
      description={"run": "trained", "versions": {"python": "3"}},
      **options,
    )

  run = answer_right
  return call


def answer_right(function, inputs):
  return to_numpy(function(**inputs))


def test_a_version_is_complete(export, calibrated):
  path = export(answer_right)
  assert os.path.basename(path) == "1"
  names = {"raw.onnx", "detections.onnx", "labels.txt", "ap_detect.json"}
  assert set(os.listdir(path)) == names
  said = run_files.read_json(os.path.join(path, "ap_detect.json"))
  assert said["classes"] == list(calibrated.class_names)
  assert said["calibration"] == CALIBRATION.to_json()
  assert said["files"] == {
    "raw.onnx": {
      "graph": "raw",
      "largest_differences": {"boxes": 0.0, "logits": 0.0},
    },
    "detections.onnx": {"graph": "detections", "largest_differences": {}},
  }
  assert said["batch_size"] is None
  assert said["versions"] == {"python": "3", "converter": "1"}
  with open(os.path.join(path, "labels.txt"), encoding="utf-8") as file:
    assert file.read().splitlines() == list(calibrated.class_names)
  assert os.path.basename(export(answer_right)) == "2"
  with pytest.raises(ValueError, match="has a version 2 already"):
    export(answer_right, version=2)


def fail(function, inputs):
  raise RuntimeError("no operation Log1p\nat some place")


def answer_wrong(function, inputs):
  return {name: 1.1 * value for name, value in answer_right(function, inputs).items()}


@pytest.mark.parametrize(
  ("run", "message"),
  [
    (fail, "cannot be converted to raw.onnx: no operation Log1p$"),
    (answer_wrong, "^raw.onnx does not answer as the network does: the norm of"),
  ],
)
def test_a_failure_leaves_nothing(run, message, export, tmp_path):
  with pytest.raises(ValueError, match=message):
    export(run)
  assert os.listdir(tmp_path) == []


def test_a_full_disk_is_no_fault_of_the_converter(export, tmp_path):
  def run(function, inputs):
    raise OSError(28, "No space left on device")

  with pytest.raises(OSError, match="No space"):
    export(run)
  assert os.listdir(tmp_path) == []


def test_only_detections_are_opened_again(export):
  path = export(answer_right)
  with pytest.raises(ValueError, match=r"raw.onnx: .*detections.*required"):
    exported.open_exported(os.path.join(path, "raw.onnx"))
