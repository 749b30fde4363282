"""The two clients over the wire; see server.py for what its server does not prove."""

import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures

import numpy as np
import pytest
from PIL import Image
from serving import files

from ap_detect import drawing

pytest.importorskip("grpc")
pytest.importorskip("tensorflow_serving.apis")

EXPORT = pathlib.Path(__file__).parents[2] / "export"
sys.path.append(str(EXPORT))

import client_grpc  # noqa: E402
import client_images  # noqa: E402
import client_rest  # noqa: E402
from serving.server import Refused, Server  # noqa: E402

KINDS = ("grpc", "rest", "rest by columns")


@pytest.fixture(scope="module")
def server(loaded):
  with Server(loaded, "shapes") as server:
    yield server


@pytest.fixture(autouse=True)
def forget(server):
  server.received.clear()
  server.faults.clear()


@pytest.fixture(scope="module")
def channel(server):
  with client_grpc.connect(server.grpc) as channel:
    yield channel


@pytest.fixture(params=KINDS)
def predict(request, server, channel):
  """A client's function of (signature, inputs), of a kind."""
  options = {"model_name": "shapes", "timeout_s": 30.0}

  def ask(signature, inputs, **changes):
    given = {**options, **changes}
    if request.param == "grpc":
      return client_grpc.predict(channel, signature, inputs, **given)
    by_rows = request.param == "rest"
    url = client_rest.connect(server.rest)
    return client_rest.predict(url, signature, inputs, by_rows=by_rows, **given)

  return ask


def assert_same(answer, expected):
  """JSON has no types, and text where messages have bytes."""
  assert set(answer) == set(expected)
  for name, value in answer.items():
    if name == "detection_names":
      value = [
        [getattr(text, "encode", lambda t=text: t)() for text in row] for row in value
      ]
    value = np.array(value).astype(expected[name].dtype)
    np.testing.assert_array_equal(value, expected[name], name)


@pytest.mark.parametrize("signature", sorted(files.requests([], 0)))
def test_signatures(signature, predict, loaded, images):
  """Two images of two sizes, or pixels, or the network's own input."""
  inputs = files.requests(images, 2)[signature]
  expected = files.ask(loaded, signature, **inputs)
  assert_same(predict(signature, inputs), expected)


def test_eight_of_mixed_sizes(predict, loaded, images):
  inputs = {"image_bytes": images * 2}
  expected = files.ask(loaded, "image_bytes", **inputs)
  assert expected["num_detections"].min() > 0
  assert_same(predict("image_bytes", inputs), expected)


def test_one_broken_among_good_ones(predict, loaded, images):
  good, broken = images[0], images[0][:-20]
  answer = predict("image_bytes", {"image_bytes": [good, broken, b"", good]})
  assert np.array(answer["valid"]).tolist() == [True, False, False, True]
  expected = files.ask(loaded, "image_bytes", image_bytes=[good, broken, b"", good])
  assert_same(answer, expected)
  assert expected["num_detections"].tolist() == [100, 0, 0, 100]


def test_no_images(server, channel):
  inputs, options = {"image_bytes": []}, {"model_name": "shapes", "timeout_s": 30.0}
  url = client_rest.connect(server.rest)
  for answer in (
    client_grpc.predict(channel, "image_bytes", inputs, **options),
    client_rest.predict(url, "image_bytes", inputs, by_rows=False, **options),
  ):
    assert {len(value) for value in answer.values()} == {0}
  with pytest.raises(client_images.ServerError, match="400: No values in 'instances'"):
    client_rest.predict(url, "image_bytes", inputs, **options)


def test_fifty_at_once(predict, loaded, images):
  expected = [files.ask(loaded, "image_bytes", image_bytes=[image]) for image in images]
  with futures.ThreadPoolExecutor(50) as pool:
    asked = [
      pool.submit(predict, "image_bytes", {"image_bytes": [images[i % 4]]})
      for i in range(50)
    ]
  for i, answer in enumerate(asked):
    assert_same(answer.result(), expected[i % 4])


class TestRefused:
  """By the server; the error says why, and the request is not sent again."""

  @pytest.mark.parametrize(
    ("signature", "inputs", "changes", "said"),
    [
      ("image_byte", {"image_bytes": [b""]}, {}, 'image_byte".* not found'),
      (
        "image_bytes",
        {"image_bytes": [b""]},
        {"model_name": "a b/c"},
        r"Latest\(a b/c",
      ),
      (
        "image_bytes_with_thresholds",
        {"image_bytes": [b""], "score_thresholds": np.zeros([1, 5], np.float32)},
        {},
        r"\[1,5\] is not compatible with expected shape \[\?,6\]",
      ),
      ("serving_default", {"inputs": np.zeros([1, 9, 9, 2], np.uint8)}, {}, "channels"),
    ],
  )
  def test_requests(self, signature, inputs, changes, said, predict, server):
    with pytest.raises(client_images.ServerError, match=said):
      client_images.with_retries(
        lambda: predict(signature, inputs, **changes), retries=3, first_wait_s=0.01
      )
    assert len(server.received) == 1


class TestRetries:
  REQUEST = ("image_bytes", {"image_bytes": [b"no image"]})
  BUSY = Refused("UNAVAILABLE", "The batch scheduling queue is full")

  def test_a_busy_server(self, predict, server):
    server.faults += [self.BUSY, self.BUSY]
    start = time.monotonic()
    answer = client_images.with_retries(
      lambda: predict(*self.REQUEST), 2, first_wait_s=0.2
    )
    assert time.monotonic() - start >= 0.1 + 0.2
    assert answer["num_detections"].tolist() == [0]
    assert len(server.received) == 3

  def test_are_not_endless(self, predict, server):
    server.faults += [self.BUSY] * 5
    with pytest.raises(client_images.ServerError, match="queue is full"):
      client_images.with_retries(lambda: predict(*self.REQUEST), 2, first_wait_s=0.01)
    assert len(server.received) == 3

  def test_an_answer_that_takes_too_long(self, predict, server):
    server.faults += [1.0]
    start = time.monotonic()
    with pytest.raises(client_images.ServerError, match=r"DEADLINE_EXCEEDED|timed out"):
      predict(*self.REQUEST, timeout_s=0.2)
    assert time.monotonic() - start < 0.9
    server.faults[:] = [1.0]
    client_images.with_retries(
      lambda: predict(*self.REQUEST, timeout_s=0.2 if server.faults else 30.0), 1
    )
    assert len(server.received) == 3

  def test_no_server(self):
    options = {"model_name": "shapes", "timeout_s": 5.0}
    address = f"127.0.0.1:{free_port()}"
    with (
      client_grpc.connect(address) as channel,
      pytest.raises(
        client_images.ServerError, match=f"UNAVAILABLE.*{address}.*refused"
      ) as raised,
    ):
      client_grpc.predict(channel, *self.REQUEST, **options)
    assert raised.value.may_pass
    with pytest.raises(
      client_images.ServerError, match=f"http://{address}: .*refused"
    ) as raised:
      client_rest.predict(client_rest.connect(address), *self.REQUEST, **options)
    assert raised.value.may_pass

  def test_a_server_that_comes_later(self, loaded):
    """Within the second that gRPC would wait by default before it connects again."""
    port = free_port()
    options = {"model_name": "shapes", "timeout_s": 30.0}
    with client_grpc.connect(f"127.0.0.1:{port}") as channel:
      with pytest.raises(client_images.ServerError):
        client_grpc.predict(channel, *self.REQUEST, **options)
      with Server(loaded, "shapes", grpc_port=port):
        time.sleep(0.3)
        client_grpc.predict(channel, *self.REQUEST, **options)


class TestAnotherProgram:
  @pytest.fixture
  def url(self, request):
    """Of a server that answers every request with the same content."""

    class Page(http.server.BaseHTTPRequestHandler):
      def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(request.param)

      def log_message(self, *_):
        """Says nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
      thread = threading.Thread(target=server.serve_forever, args=(0.01,))
      thread.start()
      yield f"http://127.0.0.1:{server.server_port}"
      server.shutdown()
      thread.join()

  @pytest.mark.parametrize(
    "url",
    [b"", b"<html>", b"[]", b"{}", b'{"predictions": [1, 2]}', b'{"predictions": []}'],
    indirect=True,
  )
  def test_gives_no_answer(self, url):
    with pytest.raises(client_images.ServerError, match=f"{url}: not an answer"):
      client_rest.predict(
        url, "image_bytes", {"image_bytes": [b""]}, model_name="shapes", timeout_s=5.0
      )

  def test_another_place(self, server):
    url = client_rest.connect(f"{server.rest}/elsewhere")
    with pytest.raises(client_images.ServerError, match="404: Malformed request"):
      client_rest.predict(
        url, "image_bytes", {"image_bytes": [b""]}, model_name="shapes", timeout_s=5.0
      )

  @pytest.mark.parametrize("url", [b'{"outputs": {"x": [1], "y": [2]}}'], indirect=True)
  def test_another_model(self, url, tmp_path):
    status, _, errors = run_program(
      *("rest", url, "--model_name=m", f"--output_dir={tmp_path}", __file__)
    )
    message = "m answers with x, y: it is no model that ap_detect exported"
    assert (status, errors) == (1, f"error: {message}\n")


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


class TestJson:
  """Requests as TensorFlow Serving's REST API documents them, written by hand."""

  INPUTS = {"image_bytes": [b"\x00\xff", b"b"], "score_thresholds": np.eye(2)}  # noqa: RUF012

  def test_rows(self):
    assert client_rest.make_body("two", self.INPUTS) == {
      "signature_name": "two",
      "instances": [
        {"image_bytes": {"b64": "AP8="}, "score_thresholds": [1.0, 0.0]},
        {"image_bytes": {"b64": "Yg=="}, "score_thresholds": [0.0, 1.0]},
      ],
    }

  def test_columns(self):
    assert client_rest.make_body("two", self.INPUTS, by_rows=False) == {
      "signature_name": "two",
      "inputs": {
        "image_bytes": [{"b64": "AP8="}, {"b64": "Yg=="}],
        "score_thresholds": [[1.0, 0.0], [0.0, 1.0]],
      },
    }

  @pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
  def test_what_the_readme_of_an_export_sends(self, server, exported, tmp_path):
    """An image that is longer than an argument of a program may be."""
    noise = np.random.default_rng(0).integers(0, 256, [256, 256, 3], dtype=np.uint8)
    (tmp_path / "photo.jpg").write_bytes(files.encode(noise, "PNG"))
    readme = pathlib.Path(exported).parent.joinpath("README.md").read_text()
    (command,) = [block for block in readme.split("```") if "curl" in block]
    done = subprocess.run(
      ["bash", "-c", command.replace("localhost:8501", server.rest)],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=True,
    )
    (answer,) = json.loads(done.stdout)["predictions"]
    assert answer["valid"] is True
    assert server.received[0]["signature_name"] == "image_bytes"


# A program, with all of TensorFlow out of its reach.
WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None
program = sys.argv[1]
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, program.rpartition("/")[0])
runpy.run_path(program, run_name="__main__")
"""


def run_program(kind, address, *arguments):
  """(status, what is printed, errors) of a client as a program."""
  program = [str(EXPORT / f"client_{kind}.py")]
  if kind == "rest":
    program = ["-c", WITHOUT_TENSORFLOW, *program]
  done = subprocess.run(
    [sys.executable, *program, f"--server={address}", *arguments],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "PYTHONPATH": str(EXPORT.parent)},
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def paths(images, records, tmp_path_factory):
  """A turned JPEG, a PNG and a file that is no image."""
  exif = Image.Exif()
  exif[0x0112] = 6
  contents = {
    "turned.jpg": files.encode(records[1].image, "JPEG", exif=exif),
    "plain.png": images[1],
    "text.png": b"no image",
  }
  folder = tmp_path_factory.mktemp("images")
  for name, content in contents.items():
    (folder / name).write_bytes(content)
  return [str(folder / name) for name in contents]


class TestPrograms:
  @pytest.mark.parametrize("kind", ["grpc", "rest"])
  def test_draw(self, kind, server, loaded, paths, tmp_path):
    status, said, errors = run_program(
      *(
        kind,
        getattr(server, kind),
        "--model_name=shapes",
        f"--output_dir={tmp_path}/found",
      ),
      *("--score_thresholds=0,0,0.3,0,0,0", "--batch_size=2", *paths),
    )
    assert (status, errors) == (1, "1 of 3 images are invalid, see above\n")
    assert len(server.received) == 2
    assert sorted(os.listdir(tmp_path / "found")) == ["plain.png.png", "turned.jpg.png"]
    lines = iter(said.splitlines())
    thresholds = np.float32([[0, 0, 0.3, 0, 0, 0]])
    for path in paths[:2]:
      answer = files.ask(
        *(loaded, "image_bytes_with_thresholds"),
        image_bytes=[pathlib.Path(path).read_bytes()],
        score_thresholds=thresholds,
      )
      boxes, scores, classes, names = (
        answer[f"detection_{name}"][0, : answer["num_detections"][0]]
        for name in ("boxes", "scores", "classes", "names")
      )
      names = [name.decode() for name in names]
      drawn = f"{tmp_path}/found/{os.path.basename(path)}.png"
      assert next(lines) == f"{path}: {len(names)} found, see {drawn}"
      for name, score in zip(names, scores):
        assert next(lines) == f"  {name} {score:.2f}"
      with Image.open(path) as image:
        if path.endswith("jpg"):
          assert image.size == (200, 96)
          image = image.transpose(Image.Transpose.ROTATE_270)
        pixels = np.asarray(image)
      sizes = np.array(pixels.shape[:2] * 2)
      expected = drawing.draw_detections(
        pixels, boxes * sizes, names, classes=classes, scores=scores
      )
      with Image.open(drawn) as image:
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert next(lines).startswith(f"{paths[2]}: invalid")

  def test_pixels(self, server, paths, tmp_path):
    """Of an image that the server does not read."""
    webp = str(tmp_path / "image.webp")
    with Image.open(paths[1]) as image:
      image.save(webp, lossless=True)
    arguments = ("--model_name=shapes", f"--output_dir={tmp_path}")
    status, said, _ = run_program("rest", server.rest, *arguments, webp)
    assert (status, said.split(": ")[1]) == (1, "invalid")
    status, said, _ = run_program(
      "rest", server.rest, *arguments, "--signature=serving_default", webp, paths[1]
    )
    assert status == 0
    one, other = said.split(paths[1] + ": ")
    assert one.splitlines()[1:] == other.splitlines()[1:]
    assert (tmp_path / "image.webp.png").exists()

  @pytest.mark.parametrize(
    ("arguments", "error"),
    [
      ([], "error: name at least one image"),
      (["a/x.jpg", "b/x.jpg"], "error: 2 of the images are named x.jpg"),
      (["absent.jpg"], "error: [Errno 2] No such file or directory: 'absent.jpg'"),
      (["--score_thresholds=0.5,high", "a.jpg"], "must be numbers, got 0.5,high"),
      (
        ["--score_thresholds=0.5", __file__],
        "error: shapes, image_bytes_with_thresholds: 400: ",
      ),
      (
        ["--score_thresholds=0", "--signature=serving_default", "a.jpg"],
        "error: --score_thresholds takes --signature=image_bytes",
      ),
      (["--model_name=other", __file__], "error: other, image_bytes: 404: "),
      (["--server=http://127.0.0.1:1", "--retries=0", __file__], "refused"),
    ],
  )
  def test_errors(self, arguments, error, server, tmp_path):
    """Of one line, without a trace."""
    status, said, errors = run_program(
      *("rest", server.rest, "--model_name=shapes", f"--output_dir={tmp_path}/found"),
      *arguments,
    )
    assert (status, said) == (1, "")
    assert error in errors
    assert len(errors.splitlines()) == 1


class TestDocumentation:
  """What docs/serving.md has readers type."""

  TEXT = (EXPORT.parent / "docs" / "serving.md").read_text(encoding="utf-8")

  def blocks(self, language):
    return re.findall(
      rf"^```{language}\n(.*?)^```$", self.TEXT, re.DOTALL | re.MULTILINE
    )

  def test_python(self, server, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(images[1])
    names = {}
    for block in self.blocks("python"):
      exec(block.replace("localhost:8500", server.grpc), names)
    names["channel"].close()
    asked = [request.model_spec.signature_name for request in server.received]
    assert sorted(asked) == sorted(files.requests([], 0))
    assert set(names["answer"]) == {"boxes", "logits"}

  def test_json(self):
    thresholds = np.array([[0.9, 0.9, 0.5, 0.9, 0.5, 0.9]])
    inputs = {"image_bytes": [b"x"], "score_thresholds": thresholds}
    rows, columns = (
      client_rest.make_body("image_bytes_with_thresholds", inputs, by_rows=by_rows)
      for by_rows in (True, False)
    )
    texts = [block.replace('"..."', '"eA=="') for block in self.blocks("json")]
    assert [json.loads(text) for text in texts] == [rows, columns]
