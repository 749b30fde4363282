"""Detects objects in image files by a server, over REST, and draws them.

  python export/client_rest.py --model_name=shapes --output_dir=found photo.jpg ...

Needs no TensorFlow, see client_images.py.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request

import client_images
import numpy as np

_MAY_PASS = (503, 504)  # UNAVAILABLE and DEADLINE_EXCEEDED


def connect(server):
  """The URL of a server: host:port, or what begins with http:// or https:// already."""
  return server if "://" in server else f"http://{server}"


def predict(url, signature, inputs, *, model_name, timeout_s, by_rows=True):
  """Has a server answer one request.

  Args:
    url: of the server.
    signature: its name.
    inputs: {name: list of bytes, or array of numbers}, the batch first.
    model_name: that the server has the model under.
    timeout_s: seconds that connecting, and each wait for data, may take.
    by_rows: whether the request has an object an image ("instances"; at least one), or a
      list an input ("inputs"). The answers are the same.

  Returns:
    {output: array}.

  Raises:
    client_images.ServerError: the server refuses the request, or does not answer.
  """
  request = urllib.request.Request(
    f"{url}/v1/models/{urllib.parse.quote(model_name, safe='')}:predict",
    json.dumps(make_body(signature, inputs, by_rows=by_rows)).encode(),
    {"Content-Type": "application/json"},
  )
  try:
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
      return _to_arrays(json.load(response))
  except urllib.error.HTTPError as error:
    raise client_images.ServerError(
      f"{model_name}, {signature}: {error.code}: {_reason(error)}",
      may_pass=error.code in _MAY_PASS,
    ) from error
  except (OSError, http.client.HTTPException) as error:
    reason = getattr(error, "reason", None) or error
    raise client_images.ServerError(f"{url}: {reason}", may_pass=True) from error
  except (ValueError, TypeError, AttributeError, LookupError) as error:
    raise client_images.ServerError(
      f"{url}: not an answer of TensorFlow Serving: {error!r}", may_pass=False
    ) from error


def make_body(signature, inputs, *, by_rows=True):
  """The JSON object of a request, see `predict`."""
  columns = {name: _to_json(value) for name, value in inputs.items()}
  if not by_rows:
    return {"signature_name": signature, "inputs": columns}
  rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
  return {"signature_name": signature, "instances": rows}


def _to_json(value):
  if isinstance(value, np.ndarray):
    return value.tolist()
  return [{"b64": base64.b64encode(item).decode()} for item in value]


def _to_arrays(answer):
  columns = answer.get("outputs")
  if columns is None:
    rows = answer["predictions"]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
  return {name: np.array(values) for name, values in columns.items()}


def _reason(error):
  """What a server says of an error: {"error": ...}, or another program's page."""
  content = error.read()
  try:
    return json.loads(content)["error"]
  except (ValueError, KeyError, TypeError):
    return error.reason


if __name__ == "__main__":
  client_images.run(connect, predict, default_server="localhost:8501")
