"""The export in TensorFlow's C runtime, in a process without tensorflow.

The runtime is the one inside TensorFlow Serving, and behaves as it does on what it is
given. Not proven here: the server's own batching, and its reading of messages.
"""

import os
import statistics
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving import c_api, files

from ap_detect.serving import graph, warm_up

SIGNATURES = sorted(files.requests([], 0))


@pytest.fixture(scope="module")
def process(exported):
  with c_api.Process(exported) as process:
    yield process


def assert_same(one, other, places=slice(None)):
  assert set(one) == set(other)
  for name, value in one.items():
    np.testing.assert_array_equal(value[places], other[name][places], name)


@pytest.mark.parametrize("size", [0, 1, 8])
@pytest.mark.parametrize("signature", SIGNATURES)
def test_answers_as_python_does(signature, size, process, loaded, images):
  inputs = files.requests(images, size)[signature]
  answer = process.run(signature, **inputs)
  assert_same(answer, files.ask(loaded, signature, **inputs))
  assert all(len(value) == size for value in answer.values())
  if size and signature != "raw":
    assert answer["num_detections"].min() > 0


def test_warm_up_requests(process, exported):
  for _, signature, arrays in files.warm_up_requests(exported):
    answer = process.run(signature, **arrays)
    assert np.all(answer.get("valid", True))
    assert len(answer[next(iter(answer))]) in warm_up.BATCH_SIZES


class TestContract:
  def test_signatures(self, process):
    found = dict(process.signatures)
    found.pop("__saved_model_init_op")
    assert sorted(found) == SIGNATURES
    for name, (method, inputs, outputs) in found.items():
      assert method == "tensorflow/serving/predict"
      assert set(inputs) == set(files.requests([], 0)[name])
      assert set(outputs) == set(graph.RAW if name == "raw" else graph.DETECTIONS)
      for _, _, dimensions in (*inputs.values(), *outputs.values()):
        assert dimensions[0] == -1
    dimensions = {
      name: (c_api.TYPES[number], sizes)
      for name, (_, number, sizes) in found["image_bytes"][2].items()
    }
    assert dimensions == {
      "detection_boxes": (np.float32, (-1, 100, 4)),
      "detection_scores": (np.float32, (-1, 100)),
      "detection_classes": (np.int32, (-1, 100)),
      "detection_names": (np.object_, (-1, 100)),
      "num_detections": (np.int32, (-1,)),
      "valid": (np.bool_, (-1,)),
    }

  def test_graph(self, exported):
    """One set of tags, no devices, and TensorFlow's own operations without Python."""
    with open(os.path.join(exported, "saved_model.pb"), "rb") as file:
      (meta_graph,) = (
        value for number, value in c_api.fields(file.read()) if number == 2
      )
    model = tf.compat.v1.MetaGraphDef.FromString(meta_graph)
    assert model.meta_info_def.tags == ["serve"]
    functions = [
      function
      for function in model.graph_def.library.function
      # Files are read and written on CPUs.
      if "__inference__traced_" not in function.signature.name
    ]
    nodes = [node for function in functions for node in function.node_def]
    assert len(nodes) > 1000
    assert {node.device for node in nodes} == {""}
    used = {node.op for node in (*nodes, *model.graph_def.node)}
    assert not used & {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
    for name in used:
      assert hasattr(tf.raw_ops, name), name  # others have names as Addons>Name


class TestBrokenImages:
  @pytest.mark.parametrize(
    "broken",
    [
      b"",
      b"no image",
      files.encode(np.zeros([90, 90, 3], np.uint8), "JPEG")[:-2],
      files.encode(Image.new("P", (90, 90)), "GIF"),
      files.make_png(8000, 8000),
    ],
    ids=["empty", "text", "cut", "GIF", "64 megapixels"],
  )
  def test_harms_nobody(self, broken, process, images):
    good = images[0]
    expected = process.run("image_bytes", image_bytes=[good, good, good])
    assert expected["valid"].tolist() == [True, True, True]
    assert expected["num_detections"].min() > 0
    answer, _, kilobytes = process.measure(
      "image_bytes", image_bytes=[good, broken, good]
    )
    assert answer["valid"].tolist() == [True, False, True]
    assert_same(answer, expected, [0, 2])
    for name in graph.DETECTIONS:
      assert not np.any(answer[name][1] != (b"" if name == "detection_names" else 0))
    assert kilobytes <= 20_000

  @pytest.mark.parametrize("size", [(1, 900_000), (900_000, 1)])
  def test_a_strip_takes_little_memory(self, size, process, images):
    """Rows of its width, for the whole input, would be 1.4 GB."""
    request = [images[0], files.make_png(*size), images[0]]
    answer, _, kilobytes = process.measure("image_bytes", image_bytes=request)
    assert answer["valid"].tolist() == [True, True, True]
    assert kilobytes <= 40_000

  @pytest.mark.parametrize(
    "broken", [b"\xff", files.endless_example()], ids=["no message", "endless"]
  )
  def test_examples(self, broken, process, images):
    good = files.example(images[0])
    answer = process.run("tf_example", tf_example=[good, broken, good])
    assert answer["valid"].tolist() == [True, False, True]
    assert_same(answer, process.run("tf_example", tf_example=[good] * 3), [0, 2])


PIXELS = np.zeros([2, 50, 60, 3], np.uint8)
FLOATS = np.zeros([2, 128, 128, 3], np.float32)
THRESHOLDS = np.zeros([2, 6], np.float32)


class TestBadInputs:
  """They are refused by their error code, and the next request is answered."""

  @pytest.mark.parametrize(
    ("signature", "inputs", "said"),
    [
      *(
        ("serving_default", {"inputs": np.zeros(shape, np.uint8)}, "1, 3 or 4 channels")
        for shape in ((2, 50, 60, 2), (2, 50, 60, 0), (2, 50, 60, 5), (2, 0, 60, 3))
      ),
      ("serving_default", {"inputs": PIXELS[0]}, "[50,60,3] is not compatible with"),
      ("serving_default", {"inputs": PIXELS.astype(np.float32)}, "uint8"),
      ("raw", {"inputs": FLOATS[:, :64]}, "with expected shape [?,128,128,3]"),
      ("raw", {"inputs": FLOATS[..., :1]}, "with expected shape [?,128,128,3]"),
      ("raw", {"inputs": FLOATS[0]}, "with expected shape [?,128,128,3]"),
      ("raw", {"inputs": FLOATS.astype(np.uint8)}, "float"),
      ("image_bytes", {"image_bytes": FLOATS[:, 0, 0, 0]}, "string"),
      (
        "image_bytes",
        {"image_bytes": np.array([[b"a"], [b"b"]], object)},
        "[2,1] is not compatible with expected shape [?]",
      ),
      (
        "image_bytes_with_thresholds",
        {"image_bytes": [b"", b""], "score_thresholds": THRESHOLDS[:, :5]},
        "[2,5] is not compatible with expected shape [?,6]",
      ),
      (
        "image_bytes_with_thresholds",
        {"image_bytes": [b"", b""], "score_thresholds": THRESHOLDS[:1]},
        "as many rows of score_thresholds as images are required, got",
      ),
      ("image_bytes_with_thresholds", {"image_bytes": [b""]}, "score_thresholds"),
    ],
  )
  def test_are_refused(self, signature, inputs, said, process, images):
    with pytest.raises(c_api.Refused) as raised:
      process.run(signature, **inputs)
    assert raised.value.code == c_api.INVALID_ARGUMENT
    assert said in raised.value.message
    assert process.run("image_bytes", image_bytes=images[:1])["valid"].all()

  @pytest.mark.parametrize("channels", [1, 4])
  def test_other_channels_that_are_taken(self, channels, process):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [2, 50, 60, channels], dtype=np.uint8)
    rgb = np.repeat(pixels, 3, -1) if channels == 1 else pixels[..., :3]
    assert_same(
      process.run("serving_default", inputs=pixels),
      process.run("serving_default", inputs=np.ascontiguousarray(rgb)),
    )

  def test_thresholds_that_are_no_numbers(self, process, images):
    thresholds = np.full([1, 6], np.nan, np.float32)
    answer = process.run(
      "image_bytes_with_thresholds",
      image_bytes=images[:1],
      score_thresholds=thresholds,
    )
    assert answer["num_detections"].tolist() == [0]

  def test_no_model(self, tmp_path):
    with pytest.raises(c_api.Refused) as raised:
      c_api.Process(str(tmp_path))
    assert raised.value.code == c_api.NOT_FOUND


def mutate(data, rng):
  """Bytes of a file, damaged in one of several ways."""
  data = bytearray(data)
  for _ in range(rng.integers(1, 4)):
    # Most of what can go wrong stands at the beginning.
    end = len(data) if rng.random() < 0.5 else min(len(data), 64)
    place = int(rng.integers(0, max(end, 1)))
    kind = rng.integers(0, 5)
    if kind == 0:
      del data[place:]
    elif kind == 1:
      data[place : place + 4] = rng.bytes(4)
    elif kind == 2:
      data[place:place] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == 3:
      del data[place : place + int(rng.integers(1, 40))]
    elif data:
      data[place % len(data)] ^= 1 << int(rng.integers(0, 8))
  return bytes(data)


def check_mutations(process, signature, good, sources, count, seconds):
  """Damaged inputs between two good ones: no crash, and the good ones' own answers."""
  rng = np.random.default_rng(0)
  expected = process.run(signature, **{signature: [good] * 8})
  deadline = time.monotonic() + seconds
  invalid, done = 0, 0
  while done < count and time.monotonic() < deadline:
    damaged = [mutate(sources[int(i)], rng) for i in rng.integers(0, len(sources), 6)]
    answer = process.run(signature, **{signature: [good, *damaged, good]})
    assert_same(answer, expected, [0, 7])
    assert np.all(np.isfinite(answer["detection_boxes"]))
    invalid += int(np.sum(~answer["valid"]))
    done += 6
  assert 0 < invalid < done
  return done


@pytest.fixture(scope="module")
def sources(records, images):
  exif = Image.Exif()
  exif[0x0112] = 6
  pixels = records[3].image
  return [
    *images,
    files.encode(pixels, "JPEG", exif=exif),
    files.encode(pixels, "JPEG", progressive=True),
    files.encode(pixels[..., 0].astype(np.uint16) * 200, "PNG"),
    files.encode(Image.fromarray(pixels).convert("P"), "PNG"),
    files.encode(Image.fromarray(pixels).convert("P"), "GIF"),
    files.encode(Image.fromarray(pixels).convert("RGBA"), "BMP"),
  ]


def test_mutated_images(process, images, sources):
  assert check_mutations(process, "image_bytes", images[0], sources, 504, 20) > 100


def test_mutated_examples(process, images, sources):
  examples = [files.example(source) for source in sources]
  good = files.example(images[0])
  assert check_mutations(process, "tf_example", good, examples, 120, 10) > 24


def test_mutated_requests(process, images):
  """Other types, shapes and inputs than a signature has."""
  rng = np.random.default_rng(0)
  values = [
    *(
      np.zeros(shape, np.uint8) for shape in ((2, 9, 9, 3), (0, 0, 0, 0), (1, 1, 1, 3))
    ),
    *(np.zeros(shape, np.float32) for shape in ((2, 6), (2, 128, 128, 3), (), (0, 6))),
    *(c_api.strings(value) for value in ([], [b""], images[:2])),
    c_api.strings(images[:2]).reshape(2, 1),
    np.zeros(2, np.int64),
  ]
  refused, deadline = 0, time.monotonic() + 10
  for number in range(100):
    if time.monotonic() > deadline:
      assert number > 20
      break
    signature = SIGNATURES[rng.integers(len(SIGNATURES))]
    _, inputs, _ = process.signatures[signature]
    chosen = {name: values[rng.integers(len(values))] for name in inputs}
    try:
      answer = process.run(signature, **chosen)
    except c_api.Refused as error:
      refused += 1
      assert error.code == c_api.INVALID_ARGUMENT, error.message
    else:
      # What is answered has the batch of what was given.
      (size,) = {len(value) for value in chosen.values()}
      assert {len(value) for value in answer.values()} == {size}
  assert refused > 10
  expected = process.run("image_bytes", image_bytes=images)
  assert expected["valid"].all()


@pytest.mark.slow
def test_many_mutations(process, images, sources):
  assert check_mutations(process, "image_bytes", images[0], sources, 9996, 120) > 1000
  examples = [files.example(source) for source in sources]
  good = files.example(images[0])
  assert check_mutations(process, "tf_example", good, examples, 996, 60) > 200


@pytest.mark.slow
def test_first_request_after_warm_up(exported, images):
  """At a size that was warmed up, as a server answers it before it serves a version."""
  request = [images[0]] * 4
  first, steady = [], []
  for _ in range(5):
    with c_api.Process(exported) as process:
      for _, signature, inputs in files.warm_up_requests(exported):
        process.run(signature, **inputs)
      first.append(process.measure("image_bytes", image_bytes=request)[1])
      steady += [
        process.measure("image_bytes", image_bytes=request)[1] for _ in range(20)
      ]
  assert statistics.median(first) <= 3 * statistics.median(steady)
