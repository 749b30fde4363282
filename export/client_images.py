"""What client_grpc.py and client_rest.py share: image files, errors, drawing.

Of ap_detect this needs the drawing alone, which loads no TensorFlow. On a machine without
TensorFlow, in a clone: pip install --no-deps . && pip install absl-py numpy Pillow
"""

from __future__ import annotations

import functools
import os
import random
import sys
import time

import numpy as np
from absl import app, flags, logging
from PIL import Image, ImageOps

from ap_detect import drawing

# Flags belong to the client.
flags.disclaim_key_flags()


class ServerError(Exception):
  """What came instead of an answer, in one line.

  Args:
    message: from where, and what; of any lines.
    may_pass: whether the same request may succeed later.
  """

  def __init__(self, message, *, may_pass):
    super().__init__(" ".join(message.split()))
    self.may_pass = may_pass


def with_retries(call, retries, *, first_wait_s=0.5):
  """What a function returns, called again where it raises a ServerError that may pass.

  Detecting changes nothing on a server, so that requests can be sent twice.

  Args:
    call: function of no arguments.
    retries: calls after the first one, >= 0.
    first_wait_s: seconds before the second call; half to all of it, by chance, so that
      clients do not return together. Doubles each time.

  Raises:
    ServerError: of the last call.
  """
  for attempt in range(retries + 1):
    try:
      return call()
    except ServerError as error:
      if not error.may_pass or attempt == retries:
        raise
      wait_s = first_wait_s * 2**attempt * random.uniform(0.5, 1.0)
      logging.warning("%s; trying again in %.1f s", error, wait_s)
      time.sleep(wait_s)


def run(connect, predict, *, default_server):
  """Runs a client: reads its flags, asks about images and draws what is found.

  Args:
    connect: function of host:port to a connection.
    predict: function (connection, signature, {input: list of bytes, or array}, *,
      model_name, timeout_s) -> {output: array}; raises ServerError.
    default_server: host:port.
  """
  holders = _define_flags(default_server)

  def main(argv):
    given = {name: holder.value for name, holder in holders.items()}
    try:
      connection = connect(given.pop("server"))
      num_invalid = _detect(functools.partial(predict, connection), argv[1:], **given)
    except (ServerError, ValueError, OSError, Image.DecompressionBombError) as error:
      sys.exit(f"error: {error}")
    if num_invalid:
      sys.exit(f"{num_invalid} of {len(argv) - 1} images are invalid, see above")

  app.run(main)


def draw(path, answer, index):
  """An image with what a server found in it.

  Args:
    path: of the image.
    answer: {output: array} of any signature but raw.
    index: of the image in its request.

  Returns:
    [H, W, 3] uint8.
  """
  pixels = _load_pixels(path)
  boxes, scores, classes, names = _found(answer, index)
  size = np.array(pixels.shape[:2] * 2)
  return drawing.draw_detections(
    pixels, boxes * size, names, classes=classes, scores=scores
  )


def _found(answer, index):
  """Boxes, scores, classes and names of one image, without padding."""
  count = int(answer["num_detections"][index])
  boxes, scores, classes, names = (
    answer[f"detection_{name}"][index][:count]
    for name in ("boxes", "scores", "classes", "names")
  )
  # Strings are bytes in gRPC's messages.
  names = [name.decode() if isinstance(name, bytes) else name for name in names]
  return np.reshape(boxes, [-1, 4]), scores, classes, names


def _define_flags(default_server):
  """Defines the flags; {name: what has the value once they are parsed}."""
  return {
    "server": flags.DEFINE_string("server", default_server, "Host and port."),
    "model_name": flags.DEFINE_string(
      "model_name", None, "Name that the server has the model under.", required=True
    ),
    "output_dir": flags.DEFINE_string(
      "output_dir", None, "Where <file>.png goes, for every image.", required=True
    ),
    "signature": flags.DEFINE_enum(
      "signature",
      "image_bytes",
      ["image_bytes", "serving_default"],
      "Whether files are sent, or pixels, an image a request: of what Pillow reads and "
      "the server does not, such as WebP.",
    ),
    "score_thresholds": flags.DEFINE_list(
      "score_thresholds",
      None,
      "A score for each class, in the order of assets/labels.txt, from which on its "
      "detections are wanted; by default those that the model was exported with.",
    ),
    "batch_size": flags.DEFINE_integer(
      "batch_size",
      8,
      "Images a request, at most; no more than max_batch_size of batching.config.",
      lower_bound=1,
    ),
    "timeout_s": flags.DEFINE_float(
      "timeout_s", 10.0, "Seconds that a request may take.", lower_bound=1e-3
    ),
    "retries": flags.DEFINE_integer(
      "retries",
      3,
      "How often a request is sent again that did not arrive or took too long.",
      lower_bound=0,
    ),
  }


def _detect(
  predict,
  paths,
  *,
  model_name,
  output_dir,
  signature,
  score_thresholds,
  batch_size,
  timeout_s,
  retries,
):
  """Asks about files, batch by batch; returns how many of them are invalid."""
  drawn_paths = _drawn_paths(paths, output_dir)
  thresholds = _parse_thresholds(score_thresholds)
  os.makedirs(output_dir, exist_ok=True)
  num_invalid = 0
  if signature == "serving_default":
    batch_size = 1  # the images of a request have one size
  for start in range(0, len(paths), batch_size):
    batch = paths[start : start + batch_size]
    request = functools.partial(
      predict,
      *_make_request(signature, batch, thresholds),
      model_name=model_name,
      timeout_s=timeout_s,
    )
    answer = with_retries(request, retries)
    if not {"valid", "num_detections"} <= set(answer):
      raise ValueError(
        f"{model_name} answers with {', '.join(sorted(answer))}: it is no model that "
        "ap_detect exported"
      )
    for index, path in enumerate(batch):
      if answer["valid"][index]:
        _report(path, answer, index, drawn_paths[start + index])
      else:
        num_invalid += 1
        print(f"{path}: invalid: no image, a GIF, or too many pixels for this model")
  return num_invalid


def _make_request(signature, paths, thresholds):
  """(signature, its inputs) for files."""
  if signature == "serving_default":
    if thresholds is not None:
      raise ValueError("--score_thresholds takes --signature=image_bytes")
    return signature, {"inputs": np.stack([_load_pixels(path) for path in paths])}
  files = []
  for path in paths:
    with open(path, "rb") as file:
      files.append(file.read())
  if thresholds is None:
    return signature, {"image_bytes": files}
  rows = np.tile(thresholds, [len(files), 1])
  inputs = {"image_bytes": files, "score_thresholds": rows}
  return "image_bytes_with_thresholds", inputs


def _report(path, answer, index, drawn_path):
  """Draws one image, and prints what is found in it."""
  Image.fromarray(draw(path, answer, index)).save(drawn_path)
  _, scores, _, names = _found(answer, index)
  print(f"{path}: {len(names)} found, see {drawn_path}")
  for name, score in zip(names, scores):
    print(f"  {name} {score:.2f}")


def _drawn_paths(paths, output_dir):
  """Where each image is drawn."""
  if not paths:
    raise ValueError("name at least one image")
  names = [os.path.basename(path) for path in paths]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"{names.count(name)} of the images are named {name}")
  return [os.path.join(output_dir, f"{name}.png") for name in names]


def _parse_thresholds(texts):
  """[K] float32, or None."""
  if texts is None:
    return None
  try:
    return np.array([float(text) for text in texts], np.float32)
  except ValueError:
    raise ValueError(
      f"--score_thresholds must be numbers, got {','.join(texts)}"
    ) from None


def _load_pixels(path):
  """[H, W, 3] uint8 of an image, turned as its EXIF data says."""
  with Image.open(path) as image:
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
