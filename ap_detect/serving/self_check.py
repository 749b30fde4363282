"""Whether a written SavedModel loads and answers as the graph that it was made of."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from ap_detect.serving import graph


def check(path, module, requests):
  """Has a SavedModel answer requests, and judges the answers.

  Args:
    path: of its folder.
    module: the ServingModule that it was made of; its answers of signature raw must be
      the same. (Of detections, the order may hang on a rounding.)
    requests: list of warm_up.Request, of valid images.

  Raises:
    ValueError: an answer is wrong; says which and how.
  """
  loaded = tf.saved_model.load(path)
  for signature, protos in requests:
    inputs = {
      name: tf.constant(tf.make_ndarray(proto)) for name, proto in protos.items()
    }
    size = len(next(iter(inputs.values())))
    answer = _numpy(loaded.signatures[signature](**inputs))
    problem = _find_problem(answer, size)
    if not problem and signature == "raw":
      expected = _numpy(module.functions[signature](**inputs))
      problem = _find_difference(answer, expected)
    if problem:
      raise ValueError(
        f"the exported model does not answer as it should: signature {signature}, batch "
        f"of {size}: {problem}"
      )


def _numpy(answer):
  return {name: value.numpy() for name, value in answer.items()}


def _find_problem(answer, size):
  """What is wrong with an answer, or None."""
  if set(answer) not in (set(graph.DETECTIONS), set(graph.RAW)):
    return f"its outputs are {sorted(answer)}"
  for name, value in answer.items():
    if len(value) != size:
      return f"{name} has shape {value.shape}"
    if value.dtype == np.float32 and not np.all(np.isfinite(value)):
      return f"{name} is not finite everywhere"
  if not np.all(answer.get("valid", True)):
    return f"valid is {answer['valid'].tolist()}"
  return None


def _find_difference(answer, expected):
  """Which output is not that of the network, or None."""
  for name, value in answer.items():
    if not np.allclose(value, expected[name], rtol=1e-3, atol=1e-3):
      return f"{name} is not that of the network"
  return None
