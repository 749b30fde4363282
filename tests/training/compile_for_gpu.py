"""Compiles an HLO module for a GPU that this machine need not have; prints figures.

  <python> compile_for_gpu.py <serialized HLO module> <GpuTargetConfigProto as text>

The compiler is the one of JAX's CUDA plugin. It is reached through private interfaces,
so the versions are fixed: Python 3.12 with

  pip install jax==0.11.2 jax-cuda12-plugin==0.11.2 jax-cuda12-pjrt==0.11.2 \
    nvidia-cuda-nvcc-cu12

Nothing runs: which of several kernels would be fastest is not tried. The last line that
is printed is a JSON object:

  seconds            that compilation took
  temporary_bytes    memory of the GPU besides arguments and results
  argument_bytes     memory of the arguments, the weights among them
  kernels            instructions that start at least one kernel, those in loops once
  library_calls      {name: number} of the calls of libraries, cuDNN's convolutions say
  largest_float64    elements of the largest float64 array
"""

import collections
import json
import math
import os
import pathlib
import re
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Trying kernels needs the GPU.
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"

from jax._src.interpreters import mlir
from jax._src.lib import _jax, xla_client
from jax._src.lib.mlir import ir
from jax.experimental import topologies

_LAUNCHING = {
  *("fusion", "custom-call", "sort", "scatter", "reduce", "convolution", "dot", "copy"),
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
_OPCODE = re.compile(r" = (?:\(.*?\)|\S+) ([a-z][\w\-]*)\(")
# A computation inside of a kernel: of a fusion, or of a reduction's operator.
_INNER = re.compile(r" (?!call\()[\w\-]+\(.*\b(?:calls|to_apply)=%([\w.\-]+)")


def compile_module(serialized, target):
  """The executable of an HLO module (bytes) for a target (text)."""
  topology = topologies.get_topology_desc(
    "gpu", "cuda", target_config=target, topology="1x1x1"
  )
  with mlir.make_ir_context():
    module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(serialized))
  return topology.devices[0].client.compile(
    module,
    xla_client.DeviceList(tuple(topology.devices)),
    xla_client.CompileOptions(),
  )


def count_kernels(text):
  """Instructions of an optimised module's text that start kernels."""
  text = re.sub(r"/\*.*?\*/", "", text)
  inner = set(_INNER.findall(text))
  total, computation = 0, None
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      computation = head[1]
    elif computation not in inner and (code := _OPCODE.search(line)):
      total += code[1] in _LAUNCHING
  return total


def largest_array(text, element_type):
  """Elements of the largest array of a type; 0 where there is none."""
  shapes = re.findall(rf"\b{element_type}\[([\d,]*)\]", text)
  sizes = [
    math.prod(int(side) for side in shape.split(",") if side) for shape in shapes
  ]
  return max(sizes, default=0)


def main(module_path, target_path):
  begin = time.monotonic()
  executable = compile_module(
    pathlib.Path(module_path).read_bytes(), pathlib.Path(target_path).read_text()
  )
  seconds = time.monotonic() - begin
  text = "\n".join(module.to_string() for module in executable.hlo_modules())
  memory = executable.get_compiled_memory_stats()
  calls = re.findall(r'custom_call_target="([^"]*)"', text)
  figures = {
    "seconds": round(seconds, 1),
    "temporary_bytes": memory.temp_size_in_bytes,
    "argument_bytes": memory.argument_size_in_bytes,
    "kernels": count_kernels(text),
    "library_calls": dict(collections.Counter(calls)),
    "largest_float64": largest_array(text, "f64"),
  }
  print(json.dumps(figures))


if __name__ == "__main__":
  main(*sys.argv[1:])
