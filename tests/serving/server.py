"""A server for the tests of clients: gRPC and REST on loopback, over a SavedModel.

It takes TensorFlow Serving's official messages, and JSON as its REST API documents it
(https://www.tensorflow.org/tfx/serving/api_rest), and answers in the same forms, with the
error codes of its source. TensorFlow runs the model in this process.

So it proves what clients send and what they can read. It does not prove TensorFlow Serving
itself: its merging of requests into batches and its limits on them, its own reading and
writing of JSON, the words of its errors, its limits of size and time, encryption, and how
it finds, loads, warms up and changes versions. tests/serving/test_c_api.py has the runtime
in it.
"""

import base64
import contextlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from ap_detect import errors

_FIELDS = {"float32": "float_val", "int32": "int_val", "object": "string_val"}
_FIELDS["bool"] = "bool_val"

_PATH = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict")

_HTTP_STATUSES = {
  "INVALID_ARGUMENT": 400,
  "FAILED_PRECONDITION": 412,
  "NOT_FOUND": 404,
  "UNAVAILABLE": 503,
}


class Refused(Exception):
  """An error by its code's name, and a message."""

  def __init__(self, code, message):
    super().__init__(code, message)
    self.code, self.message = code, message


class Server:
  """A server of one model; a context manager.

  Attributes:
    grpc: host:port of gRPC.
    rest: host:port of REST.
    received: requests in their order: PredictRequests and what JSON stands for.
    faults: what befalls the next requests, first one first: a Refused, or seconds to wait.

  Args:
    loaded: what tf.saved_model.load gave.
    model_name: that clients ask for.
    grpc_port: 0 for a free one.
  """

  def __init__(self, loaded, model_name, grpc_port=0):
    self._signatures = loaded.signatures
    self._model_name = model_name
    self._pool = futures.ThreadPoolExecutor(8)
    self.received, self.faults = [], []
    self._lock = threading.Lock()
    self._grpc = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
      _Servicer(self), self._grpc
    )
    self.grpc = f"127.0.0.1:{self._grpc.add_insecure_port(f'127.0.0.1:{grpc_port}')}"
    self._http = _HttpServer(("127.0.0.1", 0), _Handler)
    self._http.served = self
    self.rest = f"127.0.0.1:{self._http.server_port}"
    self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))

  def __enter__(self):
    self._grpc.start()
    self._thread.start()
    return self

  def __exit__(self, *_):
    self._grpc.stop(None).wait()
    self._http.shutdown()
    self._http.server_close()
    self._thread.join()
    self._pool.shutdown()

  def receive(self, request):
    """Keeps a request, and has happen to it what is due."""
    with self._lock:
      self.received.append(request)
      fault = self.faults.pop(0) if self.faults else 0
    if isinstance(fault, Refused):
      raise fault
    time.sleep(fault)

  def find(self, model_name, signature):
    """The function of a signature."""
    if model_name != self._model_name:
      message = f"Servable not found for request: Latest({model_name})"
      raise Refused("NOT_FOUND", message)
    return self._signatures.get(signature or "serving_default")

  def answer(self, function, arrays):
    """{output: array} of a signature for {input: array}."""
    specs = function.structured_input_signature[1]
    if set(arrays) != set(specs):
      message = f"inputs are {sorted(arrays)}, required are {sorted(specs)}"
      raise Refused("INVALID_ARGUMENT", message)
    try:
      tensors = {name: tf.constant(array) for name, array in arrays.items()}
      found = function(**tensors)
    except tf.errors.OpError as error:
      # Of what TensorFlow says in Python, what it says without; there on two lines.
      message = f"{errors.first_line(error)}\n\t [[{{{{node}}}}]]"
      raise Refused("INVALID_ARGUMENT", message) from error
    except (TypeError, ValueError) as error:
      raise Refused("INVALID_ARGUMENT", str(error)) from error
    return {name: value.numpy() for name, value in found.items()}


class _Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
  def __init__(self, server):
    self._server = server

  def Predict(self, request, context):
    spec = request.model_spec
    try:
      self._server.receive(request)
      function = self._server.find(spec.name, spec.signature_name)
      if function is None:
        message = f'Serving signature key "{spec.signature_name}" not found.'
        raise Refused("FAILED_PRECONDITION", message)
      arrays = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
      arrays = {name: _typed(array) for name, array in arrays.items()}
      answer = self._server.answer(function, arrays)
    except Refused as error:
      context.abort(getattr(grpc.StatusCode, error.code), error.message)
    response = predict_pb2.PredictResponse(model_spec=spec)
    for name, value in answer.items():
      # As TensorFlow Serving writes them: numbers in fields of their type.
      proto = response.outputs[name]
      proto.dtype = tf.as_dtype(value.dtype).as_datatype_enum
      proto.tensor_shape.CopyFrom(tf.TensorShape(value.shape).as_proto())
      getattr(proto, _FIELDS[value.dtype.name]).extend(value.ravel().tolist())
    return response


class _HttpServer(http.server.ThreadingHTTPServer):
  request_queue_size = 64
  daemon_threads = True


class _Handler(http.server.BaseHTTPRequestHandler):
  def do_POST(self):
    content = self.rfile.read(int(self.headers["Content-Length"]))
    try:
      status, answer = 200, self._answer(json.loads(content))
    except Refused as error:
      status, answer = _HTTP_STATUSES[error.code], {"error": error.message}
    encoded = json.dumps(answer).encode()
    # Of a client that has given up.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      self.send_response(status)
      self.send_header("Content-Type", "application/json")
      self.send_header("Content-Length", str(len(encoded)))
      self.end_headers()
      self.wfile.write(encoded)

  def _answer(self, body):
    server = self.server.served
    server.receive(body)
    path = _PATH.fullmatch(self.path)
    if not path:
      raise Refused("NOT_FOUND", f"Malformed request: POST {self.path}")
    signature = body.get("signature_name", "")
    function = server.find(urllib.parse.unquote(path[1]), signature)
    if function is None:
      message = f'Serving signature name: "{signature}" not found in signature def'
      raise Refused("INVALID_ARGUMENT", message)
    specs = function.structured_input_signature[1]
    by_rows = "instances" in body
    columns = _columns(body, by_rows, list(specs))
    arrays = {
      name: _to_array(value, specs[name].dtype)
      for name, value in columns.items()
      if name in specs
    }
    found = server.answer(function, arrays)
    outputs = {name: _to_json(value) for name, value in found.items()}
    if not by_rows:
      return {"outputs": outputs}
    rows = [dict(zip(outputs, row)) for row in zip(*outputs.values())]
    return {"predictions": rows}

  def log_message(self, *_):
    """Says nothing."""


def _columns(body, by_rows, names):
  """{input: values of all images} of a request in either format."""
  if not by_rows:
    inputs = body["inputs"]
    return inputs if isinstance(inputs, dict) else {names[0]: inputs}
  rows = body["instances"]
  if not rows:
    raise Refused("INVALID_ARGUMENT", "No values in 'instances' array")
  # Rows may be the values themselves where there is a single input.
  rows = [
    row if isinstance(row, dict) and "b64" not in row else {names[0]: row}
    for row in rows
  ]
  return {name: [row[name] for row in rows] for name in rows[0]}


def _to_array(value, dtype):
  if dtype != tf.string:
    return np.array(value, dtype.as_numpy_dtype)
  return _typed(
    np.array([base64.b64decode(item["b64"], validate=True) for item in value], object)
  )


def _typed(array):
  """The array; where it is of strings, as what TensorFlow takes for strings if empty."""
  return array.astype(np.bytes_) if array.dtype == object and not array.size else array


def _to_json(array):
  values = array.tolist()
  if array.dtype != object:
    return values
  return [[text.decode() for text in row] for row in values]
