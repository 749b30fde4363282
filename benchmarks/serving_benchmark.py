"""Times the served graph: its parts, its runtimes, and many clients at once.

  python benchmarks/serving_benchmark.py                    # ours, on any Python
  python benchmarks/serving_benchmark.py --peer=keras_hub   # and KerasHub's, from 3.12 on

Bars: decoding of boxes and NMS take at most 10 % of the network's time; ours, from files
to detections, is faster than KerasHub's predict; the first request after a load takes at
most 3 times as long as later ones. On a CPU, with ResNet-50 at 512 px.

The weights are random, and every box-class pair may be detected, in ours and the peer's,
so that NMS has all the work that it can have. The images are JPEG files of 480 x 640 and
640 x 480 px, with as much detail as photos; a request is the signature image_bytes.

1. A request of each batch size: in every --runtime as a whole, and in its parts alone:
   decoding, decoding with resizing, the network, and post-processing with calibration.
   Beside them KerasHub's RetinaNet with its decoder, on the same ResNet-50, anchors and
   size of heads: `predict` of pixels of the network's size that are in memory, and of
   the same files, decoded in a graph with KerasHub's image converter; not compiled by
   XLA, as ours, unless --peer_jit_compile.
   Runtimes that decode no files get images from TensorFlow, and LiteRT one at a time.
2. The requests a second of 1 to 16 clients. A client is a thread of this process that
   sends one image after another, so that nothing is measured of a network or of messages.
   Unbatched, it runs the model itself. Batched, requests wait for a Batcher, which stands
   in for TensorFlow Serving's own with the settings that the export writes.
3. The first request of a batch of one in a new process that has loaded the model and
   answered the warm-up requests of this signature; and before these, the very first.

Rounds of all alternate, so that a busy machine slows them alike; figures are medians.
--rounds=0, --client_rounds=0 and --loads=0 leave out the first, second and third of these.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import pathlib
import queue
import statistics
import sys
import tempfile
import threading
import time
from concurrent import futures

import numpy as np
import render_results
from absl import flags

from ap_detect import command_line, provenance

_CLASSES = 20
_SIGNATURE = "image_bytes"
# Of batching.config, as serving/server_files.py writes it.
_MAX_DELAY_SECONDS = 0.002
_BATCH_THREADS = 2
# Requests after the first one of a process.
_LATER_REQUESTS = 5

_BACKBONE = flags.DEFINE_string("backbone", "resnet50", "Of our network.")
_SIZE = flags.DEFINE_integer("image_size", 512, "Side of its input, pixels.")
_BATCH_SIZES = flags.DEFINE_multi_integer("batch_size", [1, 8], "Images a request.")
_RUNTIMES = flags.DEFINE_multi_enum(
  "runtime",
  ["saved_model", "c_api"],
  ["saved_model", "c_api", "onnx", "tflite"],
  "What runs the model: TensorFlow from Python or by its C API, ONNX Runtime, LiteRT.",
)
_PEER = flags.DEFINE_enum("peer", "", ["", "keras_hub"], "Whose to compare with.")
_PEER_JIT = flags.DEFINE_bool(
  "peer_jit_compile", False, "Whether XLA compiles the peer's network and decoder."
)
_CLIENTS = flags.DEFINE_multi_integer("clients", [1, 2, 4, 8, 16], "Clients at once.")
_REQUESTS = flags.DEFINE_integer("requests", 16, "Of all clients together, at least.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds to take medians of.", 0)
_CLIENT_ROUNDS = flags.DEFINE_integer("client_rounds", 3, "The same of clients.", 0)
_LOADS = flags.DEFINE_integer("loads", 5, "New processes, for first requests.", 0)
_report = provenance.define_flags()


def main(_):
  if _PEER.value and importlib.util.find_spec("keras_hub") is None:
    raise ValueError("--peer=keras_hub needs keras-hub: pip install keras-hub")
  import tensorflow as tf

  from ap_detect.serving import graph

  detector = _make_detector()
  files = _make_files(max(_BATCH_SIZES.value))
  with tempfile.TemporaryDirectory() as path:
    module = graph.ServingModule(detector)
    tf.saved_model.save(module, path, {_SIGNATURE: module.functions[_SIGNATURE]})
    runtimes = {name: _load(name, detector, path) for name in _RUNTIMES.value}
    peer = _make_peer() if _PEER.value else None
    results = {
      "network": f"{_BACKBONE.value} at {_SIZE.value} px, {_CLASSES} classes",
      "mean_file_bytes": round(statistics.mean(map(len, files))),
      "latencies": [
        _time_requests(detector, runtimes, peer, files[:size])
        for size in (_BATCH_SIZES.value if _ROUNDS.value else ())
      ],
      "throughputs": _time_clients(runtimes, files) if _CLIENT_ROUNDS.value else [],
      "first_requests": [_time_first(path, files[0]) for _ in range(_LOADS.value)],
    }
  print(render_results.serving_tables(results))
  _report(results, ["keras-hub"] if _PEER.value else [])


def _make_detector():
  from ap_detect import config as config_lib
  from ap_detect.metrics import ScoreCalibration
  from ap_detect.runs import model as model_lib
  from ap_detect.serving import graph

  size = (_SIZE.value, _SIZE.value)
  values = config_lib.default_config()
  values.data.root = "not read"
  values.data.image_size_px = size
  values.model.backbone = _BACKBONE.value
  values.model.backbone_weights = ""
  values.model.frozen_levels = 0
  values.eval.score_threshold = 0.0
  config = config_lib.resolve(values)
  network = model_lib.build_network(config, _CLASSES, pretrained=False)
  _spread(network, np.random.default_rng(0).uniform(0, 255, [1, *size, 3]))
  points = tuple(np.linspace(0.001, 0.999, 12))
  return graph.Detector(
    network=network,
    anchors=model_lib.make_anchors(config),
    post_process=model_lib.make_detect(config),
    image_size=size,
    class_names=tuple(f"class {number}" for number in range(_CLASSES)),
    class_thresholds=(0.0,) * _CLASSES,
    calibration=ScoreCalibration(points, points),
  )


def _spread(network, images):
  """Gives a network logits and boxes as far apart as a trained one's."""
  outputs = network(images.astype(np.float32), training=False)
  for name, values, deviation in (
    ("class_head_output", outputs.class_logits, 2.0),
    ("box_head_output", outputs.box_outputs, 0.3),
  ):
    kernel = network.get_layer(name).kernel
    kernel.assign(kernel * deviation / np.std(values))


def _make_files(number):
  """JPEG files with as much detail at each scale, as photos have."""
  import tensorflow as tf

  rng = np.random.default_rng(0)

  def make(size):
    pixels = np.full([*size, 3], 128.0)
    for cell in (2**power for power in range(9)):
      cells = [-(-side // cell) for side in size]
      noise = rng.normal(0.0, 2.5 * (1 + np.log2(cell)), [*cells, 3])
      pixels += tf.image.resize(noise, size).numpy()
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return tf.io.encode_jpeg(pixels, quality=95).numpy()

  return [make([(480, 640), (640, 480)][place % 2]) for place in range(number)]


def _load(runtime, detector, path):
  """Function of image files to {output: array}; threads may call it at once."""
  if runtime == "saved_model":
    return _load_saved_model(path)
  if runtime == "c_api":
    return _load_c_api(path)
  return _load_other(runtime, detector, path)


def _load_saved_model(path):
  import tensorflow as tf

  signature = tf.saved_model.load(path).signatures[_SIGNATURE]

  def answer(files):
    found = signature(image_bytes=tf.constant(files))
    return {name: value.numpy() for name, value in found.items()}

  return answer


def _load_c_api(path):
  c_api = _import_c_api()
  session = c_api.Session(c_api.library_path(), path)
  return lambda files: session.run(_SIGNATURE, {"image_bytes": c_api.strings(files)})


def _load_other(runtime, detector, path):
  """Of a runtime that decodes no files: TensorFlow does that, and resizes."""
  from ap_detect.serving import formats

  module = formats.load(runtime)
  version = module.export(detector, path, model_name="benchmark")
  name = {"onnx": "detections.onnx", "tflite": "detections_float32.tflite"}[runtime]
  run = module.load(os.path.join(version, name))
  fit, lock = _make_fit(detector), threading.Lock()

  def run_one_by_one(inputs):
    rows = []
    for values in zip(*inputs.values()):
      with lock:
        rows.append(run({key: value[np.newaxis] for key, value in zip(inputs, values)}))
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}

  run_batch = run_one_by_one if runtime == "tflite" else run

  def answer(files):
    fitted = fit(files)
    return run_batch(
      {
        "inputs": fitted.images.numpy(),
        "content_sizes": (fitted.sizes * fitted.scales[:, np.newaxis]).numpy(),
        "score_thresholds": np.zeros([len(files), _CLASSES], np.float32),
      }
    )

  return answer


def _import_c_api():
  """The module by which the tests call TensorFlow's C runtime."""
  tests = pathlib.Path(__file__).parents[1] / "tests"
  sys.path.insert(0, os.fspath(tests))
  try:
    from serving import c_api
  finally:
    sys.path.remove(os.fspath(tests))
  return c_api


def _make_peer():
  """KerasHub's RetinaNet with its decoder; it detects at scores next to 0, as ours."""
  import keras_hub
  import kerashub_peer

  decoder = keras_hub.layers.NonMaxSuppression(
    "yxyx", from_logits=True, confidence_threshold=0.0
  )
  model = kerashub_peer.build(_CLASSES, prediction_decoder=decoder)
  model.compile(jit_compile=_PEER_JIT.value)
  return model


def _peer_lines(model, files):
  """{name: function that detects objects in as many images}."""
  import keras_hub
  import tensorflow as tf

  # One that has seen another batch size takes any, for which the decoder cannot be built.
  model.make_predict_function(force=True)
  side = _SIZE.value
  convert = keras_hub.layers.RetinaNetImageConverter(
    image_size=(side, side), pad_to_aspect_ratio=True, crop_to_aspect_ratio=False
  )
  pixels = np.random.default_rng(0).uniform(0, 255, [len(files), side, side, 3])
  pixels = pixels.astype(np.float32)

  def decode(file):
    return convert(tf.io.decode_image(file, channels=3, expand_animations=False))

  # Traced once, as a user's input pipeline is, not at each request.
  @tf.function
  def fit(files):
    images = tf.data.Dataset.from_tensor_slices(files).map(decode, tf.data.AUTOTUNE)
    return images.batch(len(files)).get_single_element()

  def predict_files():
    images = fit(tf.constant(files)).numpy()
    return model.predict(images, batch_size=len(files), verbose=0)

  def predict_pixels():
    return model.predict(pixels, batch_size=len(files), verbose=0)

  return {
    "KerasHub, predict of files": predict_files,
    "KerasHub, predict of pixels": predict_pixels,
  }


def _time_requests(detector, runtimes, peer, files):
  """The seconds of one request in each runtime, of its parts, and of the peer's."""
  lines = {name: functools.partial(answer, files) for name, answer in runtimes.items()}
  lines.update(_make_parts(detector, files))
  lines.update(_peer_lines(peer, files) if peer else {})
  for line in lines.values():
    line()  # builds its graph
  return {"batch_size": len(files), "seconds": _alternate(lines, _ROUNDS.value)}


def _make_parts(detector, files):
  """{part: function that does it alone}."""
  import tensorflow as tf

  from ap_detect import images as image_ops
  from ap_detect.serving import calibrated_scores

  @tf.function
  def decode(files):
    decoded = tf.data.Dataset.from_tensor_slices(files).map(
      lambda file: image_ops.decode_image(file)[0, 0], tf.data.AUTOTUNE
    )
    return decoded.batch(len(files)).get_single_element()

  @tf.function
  def network(images):
    return detector.network(images, training=False)

  @tf.function
  def post_process(outputs, content_sizes, thresholds):
    def calibrate(scores):
      return calibrated_scores.calibrate(scores, detector.calibration)

    found = detector.post_process(outputs, content_sizes, thresholds, calibrate)
    return found, calibrate(found.scores)

  files, fit = tf.constant(files), _make_fit(detector)
  fitted = fit(files)
  outputs = network(fitted.images)
  content_sizes = fitted.sizes * fitted.scales[:, tf.newaxis]
  thresholds = tf.zeros([len(files), _CLASSES])
  return {
    "decoding": lambda: decode(files).numpy(),
    "decoding and resizing": lambda: fit(files).scales.numpy(),
    "network": lambda: network(fitted.images).box_outputs.numpy(),
    "post-processing": lambda: post_process(outputs, content_sizes, thresholds),
  }


def _make_fit(detector):
  """decoding.fit_encoded for a detector, as a graph."""
  import tensorflow as tf

  from ap_detect.serving import decoding

  fit = functools.partial(
    decoding.fit_encoded,
    image_size=detector.image_size,
    max_image_pixels=detector.max_image_pixels,
  )
  return tf.function(fit, [tf.TensorSpec([None], tf.string)])


def _time_clients(runtimes, files):
  """A dict of each runtime, batched or not, and number of clients; see `main`."""
  from ap_detect.serving import warm_up

  lines = {}
  with contextlib.ExitStack() as stack:
    for name, answer in runtimes.items():
      for size in warm_up.BATCH_SIZES:
        answer(list(itertools.islice(itertools.cycle(files), size)))
      asks = {
        False: lambda file, answer=answer: answer([file]),
        True: stack.enter_context(Batcher(answer)).ask,
      }
      for (is_batched, ask), clients in itertools.product(asks.items(), _CLIENTS.value):
        lines[name, is_batched, clients] = functools.partial(
          _send, ask, files, clients, _count_requests(clients)
        )
    seconds = _alternate(lines, _CLIENT_ROUNDS.value)
  return [
    {
      "runtime": runtime,
      "batched": is_batched,
      "clients": clients,
      "requests": _count_requests(clients),
      "seconds": seconds[runtime, is_batched, clients],
    }
    for runtime, is_batched, clients in lines
  ]


def _count_requests(clients):
  """At least --requests, and as many of each client."""
  return -(-_REQUESTS.value // clients) * clients


def _send(ask, files, clients, requests):
  with futures.ThreadPoolExecutor(clients) as pool:
    list(pool.map(ask, itertools.islice(itertools.cycle(files), requests)))


class Batcher:
  """Merges images that are asked for at once into requests; a context manager.

  As TensorFlow Serving does with batching.config: once an image waits, others are waited
  for, for 2 ms and up to the largest batch; the batch is filled up, by repetition, to one
  of the sizes that were warmed up; and two threads run batches.

  Args:
    answer: function of a list of image files to {output: array}.
  """

  def __init__(self, answer):
    from ap_detect.serving import warm_up

    self._answer, self._sizes = answer, warm_up.BATCH_SIZES
    self._waiting, self._collecting = queue.Queue(), threading.Lock()
    self._pool = futures.ThreadPoolExecutor(_BATCH_THREADS)

  def ask(self, file):
    """{output: array} of one image."""
    future = futures.Future()
    self._waiting.put((file, future))
    return future.result()

  def _run(self):
    while True:
      with self._collecting:
        batch = self._collect()
      if not batch:
        return
      files = [file for file, _ in batch]
      size = next(size for size in self._sizes if size >= len(files))
      try:
        found = self._answer(files + files[:1] * (size - len(files)))
      except Exception as error:  # of whoever asks
        for _, future in batch:
          future.set_exception(error)
        continue
      for place, (_, future) in enumerate(batch):
        future.set_result({name: value[place] for name, value in found.items()})

  def _collect(self):
    """(file, future) of the next batch; none where there will be no more."""
    batch = [self._waiting.get()]
    end = time.monotonic() + _MAX_DELAY_SECONDS
    with contextlib.suppress(queue.Empty):
      while batch[-1] and len(batch) < self._sizes[-1]:
        batch.append(self._waiting.get(timeout=max(0.0, end - time.monotonic())))
    return [one for one in batch if one]

  def __enter__(self):
    self._threads = [self._pool.submit(self._run) for _ in range(_BATCH_THREADS)]
    return self

  def __exit__(self, *_):
    for _ in self._threads:
      self._waiting.put(None)
    self._pool.shutdown()


def _time_first(path, file):
  """Seconds of requests in a new process of the C runtime; see `main`."""
  import tensorflow as tf

  from ap_detect.serving import warm_up

  size = (_SIZE.value, _SIZE.value)
  cold = []
  with _import_c_api().Process(path) as process:
    for signature, protos in warm_up.make_requests(size, _CLASSES):
      if signature == _SIGNATURE:
        inputs = {name: tf.make_ndarray(proto) for name, proto in protos.items()}
        cold.append(process.measure(signature, **inputs)[1])
    seconds = [
      process.measure(_SIGNATURE, image_bytes=[file])[1]
      for _ in range(1 + _LATER_REQUESTS)
    ]
  return {"cold": cold[0], "first": seconds[0], "later": seconds[1:]}


def _alternate(lines, rounds):
  """{name: seconds of each round}."""
  seconds = {name: [] for name in lines}
  for _ in range(rounds):
    for name, line in lines.items():
      begin = time.perf_counter()
      line()
      seconds[name].append(time.perf_counter() - begin)
  return seconds


if __name__ == "__main__":
  command_line.run(main)
