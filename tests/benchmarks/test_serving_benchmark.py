"""The benchmark of what is served runs, and its batcher gives everybody his answer."""

import json
import pathlib
import subprocess
import sys
import threading
import time
from concurrent import futures

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_NAME = "serving_benchmark"


@pytest.fixture
def benchmark(load_script):
  return load_script(f"benchmarks/{_NAME}.py")


def run(path, *arguments):
  """The figures of the benchmark with a small network, and what it prints."""
  command = [sys.executable, _ROOT / f"benchmarks/{_NAME}.py", f"--json={path}"]
  small = ["--backbone=csp_darknet_nano", "--image_size=64", "--rounds=2"]
  done = subprocess.run(
    [*command, *small, *arguments], cwd=_ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return json.loads(path.read_text()), done.stdout


def test_two_scripts_with_flags_of_one_name_in_a_process(load_script):
  assert load_script("benchmarks/step_benchmark.py").main
  assert load_script(f"benchmarks/{_NAME}.py").main


@pytest.mark.slow
def test_requests_clients_and_first_requests(tmp_path):
  arguments = ("--batch_size=2", "--clients=3", "--requests=4", "--client_rounds=1")
  found, printed = run(tmp_path / "figures.json", *arguments, "--loads=1")
  (latency,) = found["latencies"]
  assert latency["batch_size"] == 2 and "csp_darknet_nano at 64 px" in found["network"]
  seconds = {name: min(rounds) for name, rounds in latency["seconds"].items()}
  assert set(seconds) > {"saved_model", "c_api", "network", "post-processing"}
  # Of two photos, which no processor decodes in less; a busy one takes any time.
  assert min(seconds[name] for name in ("saved_model", "c_api", "decoding")) > 1e-3
  rows = [(row["runtime"], row["batched"]) for row in found["throughputs"]]
  runtimes = ("saved_model", "c_api")
  assert rows == [(name, batched) for name in runtimes for batched in (False, True)]
  # As many requests of every client.
  assert all(
    (row["clients"], row["requests"]) == (3, 6) for row in found["throughputs"]
  )
  (load,) = found["first_requests"]
  assert load["cold"] > load["first"] > 0 and len(load["later"]) > 1
  row = next(row for row in found["throughputs"] if row["runtime"] == "c_api")
  assert f"| c_api, one by one | {6 / row['seconds'][0]:.2f} |" in printed


@pytest.mark.slow
def test_peer(tmp_path):
  pytest.importorskip("keras_hub")
  arguments = ("--peer=keras_hub", "--client_rounds=0", "--loads=0")
  found, printed = run(tmp_path / "figures.json", *arguments)
  for latency in found["latencies"]:
    assert min(latency["seconds"]["KerasHub, predict of files"]) > 0
    assert min(latency["seconds"]["KerasHub, predict of pixels"]) > 0
  assert [latency["batch_size"] for latency in found["latencies"]] == [1, 8]
  assert "KerasHub" in printed and found["versions"]["keras-hub"]


def wait_until(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end
    time.sleep(1e-3)


def test_batcher_gives_everybody_the_own_answer(benchmark):
  asked, gate = [], threading.Semaphore(0)

  def answer(files):
    asked.append(list(files))
    gate.acquire()
    if "broken" in files:
      raise ValueError("broken")
    return {"length": np.array([len(file) for file in files])}

  files = ["x" * number for number in range(1, 8)]
  with benchmark.Batcher(answer) as batcher, futures.ThreadPoolExecutor(9) as pool:
    # Both threads are at work; what comes meanwhile is one batch.
    first = [pool.submit(batcher.ask, "abc")]
    wait_until(lambda: len(asked) == 1)
    first.append(pool.submit(batcher.ask, "abcd"))
    wait_until(lambda: len(asked) == 2)
    rest = [pool.submit(batcher.ask, file) for file in files]
    wait_until(lambda: batcher._waiting.qsize() == 7)
    for _ in range(3):
      gate.release()
    assert [future.result()["length"] for future in first] == [3, 4]
    assert [future.result()["length"] for future in rest] == list(range(1, 8))
    assert asked[:2] == [["abc"], ["abcd"]]
    # Filled up to 8, as the versions of an export are warmed up for.
    (batch,) = asked[2:]
    assert sorted(set(batch)) == files and len(batch) == 8
    gate.release()
    with pytest.raises(ValueError, match="broken"):
      batcher.ask("broken")
