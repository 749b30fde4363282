"""The benchmark of the losses runs, and writes what it is asked to write."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import tensorflow as tf

from ap_detect import losses

_ROOT = pathlib.Path(__file__).parents[2]
_GPU_COMPILER = _ROOT / "tests/training/compile_for_gpu.py"
_JAX_PYTHON = os.environ.get("AP_DETECT_JAX_PYTHON", "")


def run(*arguments, status=0):
  """What the benchmark prints with the smallest size; its error where it fails."""
  command = [sys.executable, _ROOT / "benchmarks/loss_benchmark.py", "--sizes=8k"]
  done = subprocess.run(
    [*command, *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == status, done.stderr
  return done.stderr if status else done.stdout


def test_table_and_json(tmp_path):
  path = tmp_path / "figures.json"
  arguments = ("--losses=focal_loss", "--regimes=late", "--repeats=2")
  printed = run(*arguments, f"--json={path}", "--note=the machine was shared")
  found = json.loads(path.read_text())
  assert str(tmp_path) not in path.read_text() and str(_ROOT) not in path.read_text()
  assert found["command"].startswith("python benchmarks/loss_benchmark.py --sizes=8k")
  assert found["command"].endswith(
    "--json=figures.json '--note=the machine was shared'"
  )
  assert found["machine"]["cores"] == os.cpu_count()
  assert found["machine"]["memory_gib"] > 0 and found["machine"]["processor"]
  assert found["versions"]["tensorflow"] == tf.__version__
  assert found["note"] == "the machine was shared"
  assert found["device"] == found["form"] == "cpu"
  focal, limit = found["rows"]
  assert (focal["loss"], limit["loss"]) == ("focal_loss", "read and write")
  for row in (focal, limit):
    assert (row["logits"], row["positives"], row["regime"]) == (8000, 10, "late")
    assert len(row["seconds"]) == 2
  # Differences of two runs, which a busy machine can turn round at this size.
  assert max(focal["seconds"]) > 0
  assert focal["compile_seconds"] > 0
  milliseconds = 1e3 * sum(focal["seconds"]) / 2
  assert re.search(rf"8k +late +focal_loss +{milliseconds:.2f} +1\.00", printed)


@functools.lru_cache
def numbers(form):
  """Of loops and of parameters in AP-loss at the size of `run`, as lowered here."""

  def compute(logits, labels):
    return losses.ap_loss_and_gradient(logits, labels, form=form)

  function = tf.function(compute, jit_compile=True, autograph=False)
  lower = function.experimental_get_compiler_ir(
    tf.zeros([100, 80]), tf.zeros([100], tf.int32)
  )
  text = lower(stage="hlo")
  return text.count(" while("), text.count(" parameter(")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["cpu", "gpu"])
def test_hlo_is_of_the_form_asked_for(form, tmp_path):
  run("--losses=ap_loss", f"--form={form}", f"--hlo_dir={tmp_path}")
  (path,) = tmp_path.iterdir()
  assert path.name == "ap_loss-8k.hlo"

  # In the serialized form, an instruction's opcode is its second field.
  module = path.read_bytes()
  found = module.count(b"\x12\x05while"), module.count(b"\x12\x09parameter")
  assert found == numbers(form)
  assert numbers("cpu") != numbers("gpu")


@pytest.mark.slow
def test_ranking_losses_and_qualities(tmp_path):
  path = tmp_path / "figures.json"
  arguments = ("--losses=ap_loss,rank_and_sort_loss", "--regimes=clustered")
  run(*arguments, "--form=gpu", "--repeats=1", f"--json={path}")
  found = json.loads(path.read_text())
  assert found["form"] == "gpu"
  names = [row["loss"] for row in found["rows"]]
  assert names == ["ap_loss", "rank_and_sort_loss", "read and write", "plain loop"]
  assert "unknown ['focal']" in run("--losses=focal", status=1)


def lower_evaluations(function, number, stage, path):
  """Writes the graph in which a function is evaluated over and over, [100, 80]."""
  code = f"""
import loss_benchmark, tensorflow as tf
from absl import flags

flags.FLAGS([""])
inputs = tf.zeros([100, 80]), tf.zeros([100], tf.int32), tf.zeros([100])
function = loss_benchmark._repeated(loss_benchmark.{function})
lower = function.experimental_get_compiler_ir({number}, tf.constant(0.0), *inputs)
found = lower(stage={stage!r})
open({str(path)!r}, "wb").write(found if isinstance(found, bytes) else found.encode())
"""
  folders = os.pathsep.join(map(str, [_ROOT / "benchmarks", _ROOT]))
  environment = {**os.environ, "PYTHONPATH": folders}
  subprocess.run([sys.executable, "-c", code], env=environment, check=True)


FOCAL = "_value_and_gradient('focal_loss')"


@pytest.mark.slow
@pytest.mark.parametrize("function", [FOCAL, "_read_and_write"])
def test_nothing_is_evaluated_once_for_all(function, tmp_path):
  path = tmp_path / "module.txt"
  lower_evaluations(function, "tf.constant(3)", "optimized_hlo", path)
  (carried,) = re.findall(r" = \((.*)\) while\(", path.read_text())
  # Logits and gradient, and nothing that was computed before the loop.
  assert len(re.findall(r"\[100,80\]", carried)) == 2
  # Nor are the logits copied in order to be changed, but once before it.
  assert len(re.findall(r"\[100,80\]\S* copy\(", path.read_text())) == 1


@pytest.mark.slow
@pytest.mark.skipif(not _JAX_PYTHON, reason="AP_DETECT_JAX_PYTHON is not set")
def test_a_gpu_is_not_waited_for_between_evaluations(tmp_path):
  path, number = tmp_path / "module.hlo", 48
  lower_evaluations(FOCAL, number, "hlo_serialized", path)
  done = subprocess.run(
    [_JAX_PYTHON, _GPU_COMPILER, path, _GPU_COMPILER.with_name("h100.txtpb")],
    env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout.splitlines()[-1])["first_branches"]
  assert found["unknown_loops"] == 0
  assert found["kernels"] > 2 * number
