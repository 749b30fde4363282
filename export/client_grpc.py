"""Detects objects in image files by a server, over gRPC, and draws them.

  pip install -e '.[serving]'
  python export/client_grpc.py --model_name=shapes --output_dir=found photo.jpg ...

The messages are those of tensorflow-serving-api, which loads TensorFlow; client_rest.py
needs neither.
"""

from __future__ import annotations

from ap_detect import logs

if __name__ == "__main__":
  # Before the imports below, which need TensorFlow: without its chatter.
  logs.load_tensorflow()

import client_images
import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

_MAY_PASS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

_OPTIONS = (
  # Answers of signature raw are larger than the 4 MB that are the default.
  ("grpc.max_receive_message_length", -1),
  # So that a retry connects again, instead of repeating what the last attempt found.
  ("grpc.initial_reconnect_backoff_ms", 100),
  ("grpc.max_reconnect_backoff_ms", 1000),
)


def connect(server):
  """A channel to a server, host:port; not encrypted. To be closed."""
  return grpc.insecure_channel(server, _OPTIONS)


def predict(channel, signature, inputs, *, model_name, timeout_s):
  """Has a server answer one request.

  Args:
    channel: grpc.Channel; threads may share it.
    signature: its name.
    inputs: {name: list of bytes, or array of numbers}, the batch first.
    model_name: that the server has the model under.
    timeout_s: seconds until the request is given up.

  Returns:
    {output: array}, of bytes where it is text.

  Raises:
    client_images.ServerError: the server refuses the request, or does not answer.
  """
  request = predict_pb2.PredictRequest()
  request.model_spec.name = model_name
  request.model_spec.signature_name = signature
  for name, value in inputs.items():
    # An empty list says nothing of its type.
    dtype = tf.string if isinstance(value, list) else None
    request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
  stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
  try:
    response = stub.Predict(request, timeout=timeout_s)
  except grpc.RpcError as error:
    raise client_images.ServerError(
      f"{model_name}, {signature}: {error.code().name}: {error.details()}",
      may_pass=error.code() in _MAY_PASS,
    ) from error
  return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


if __name__ == "__main__":
  client_images.run(connect, predict, default_server="localhost:8500")
