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
  first_branches     {"kernels", "unknown_loops"} where every condition takes its first
                     branch: the kernels that run, those of a loop of known length as
                     often as it goes round; and the loops of unknown length
  library_calls      {name: number} of the calls of libraries, cuDNN's convolutions say
  largest_float64    elements of the largest float64 array in memory: what a kernel has
                     inside it takes none
  float_scatter      largest number of floats that one scatter adds or writes
  float32_guards     [float32 subtractions that lead, within its kernel, to a comparison
                     of a float32 with 0] of every such comparison that has any
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
_INSTRUCTION = re.compile(r"%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*?)\)")
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


def read_computations(text):
  """{name: [lines]} of an optimised module's text, and the entry's name."""
  computations, entry, lines = {}, "", []
  for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
    if head := _COMPUTATION.match(line):
      lines = computations[head[1]] = []
      entry = head[1] if line.startswith("ENTRY") else entry
    else:
      lines.append(line)
  return computations, entry


def count_kernels(text):
  """Instructions of an optimised module's text that start kernels."""
  computations, _ = read_computations(text)
  inner = {name for lines in computations.values() for name in _inner(lines)}
  return sum(
    _opcode(line) in _LAUNCHING
    for name, lines in computations.items()
    if name not in inner
    for line in lines
  )


def follow_first_branches(text):
  """What runs of a module where each condition takes its first branch.

  Args:
    text: of an optimised module.

  Returns:
    (kernels that are started, loops of unknown length), the latter's kernels once.
  """
  computations, entry = read_computations(text)

  def follow(name):
    kernels, loops = 0, 0
    for line in computations[name]:
      code, times = _opcode(line), 1
      called = None
      if code in _LAUNCHING:
        kernels += 1
      elif code == "call":
        called = re.search(r"to_apply=%([\w.\-]+)", line)
      elif code == "conditional":
        called = re.search(
          r"(?:true_computation=|branch_computations=\{)%([\w.\-]+)", line
        )
      elif code == "while":
        called = re.search(r"body=%([\w.\-]+)", line)
        trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
        times = int(trips[1]) if trips else 1
        loops += not trips
      if called:
        more, more_loops = follow(called[1])
        kernels += times * more
        loops += more_loops
    return kernels, loops

  return follow(entry)


def largest_float_scatter(text):
  """The largest number of floats that one scatter of a module adds or writes."""
  largest = 0
  for lines in read_computations(text)[0].values():
    found = _instructions(lines)
    for _, code, operands in found.values():
      if code == "scatter":
        # Operands, indices, updates: as many updates as operands.
        updates = (found[name][0] for name in operands[len(operands) // 2 + 1 :])
        largest = max(largest, *(largest_array(shape, r"b?f\d+") for shape in updates))
  return largest


def guarding_subtractions(text):
  """float32 subtractions that lead to a comparison of a float32 with 0, of each."""
  counts = []
  for lines in read_computations(text)[0].values():
    found = _instructions(lines)
    zeros = re.findall(r"%([\w.\-]+) = f32\[\]\S* constant\(0\)", "\n".join(lines))
    zeros += [
      name
      for name, (_, code, operands) in found.items()
      if code == "broadcast" and operands[0] in zeros
    ]
    for _, code, operands in found.values():
      if code == "compare" and operands[1] in zeros:
        counts.append(_count_above(found, operands[0], "subtract"))
  return sorted(count for count in counts if count)


def _count_above(found, name, code):
  seen, left = set(), [name]
  while left:
    if (name := left.pop()) not in seen:
      seen.add(name)
      left += found[name][2]
  return sum(
    found[name][1] == code and found[name][0].startswith("f32") for name in seen
  )


def _opcode(line):
  found = _OPCODE.search(line)
  return found[1] if found else ""


def _instructions(lines):
  """{name: (shape, opcode, names of operands)} of a computation."""
  found = (_INSTRUCTION.search(line) for line in lines)
  return {
    one[1]: (one[2], one[3], re.findall(r"%([\w.\-]+)", one[4])) for one in found if one
  }


def _inner(lines):
  return _INNER.findall("\n".join(lines))


def text_outside_kernels(text):
  """Lines of an optimised module's text but those of what kernels compute."""
  computations, _ = read_computations(text)
  inner = {name for lines in computations.values() for name in _inner(lines)}
  return "\n".join(
    line for name, lines in computations.items() if name not in inner for line in lines
  )


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
  kernels, unknown_loops = follow_first_branches(text)
  calls = re.findall(r'custom_call_target="([^"]*)"', text)
  figures = {
    "seconds": round(seconds, 1),
    "temporary_bytes": memory.temp_size_in_bytes,
    "argument_bytes": memory.argument_size_in_bytes,
    "kernels": count_kernels(text),
    "first_branches": {"kernels": kernels, "unknown_loops": unknown_loops},
    "library_calls": dict(collections.Counter(calls)),
    "largest_float64": largest_array(text_outside_kernels(text), "f64"),
    "float_scatter": largest_float_scatter(text),
    "float32_guards": guarding_subtractions(text),
  }
  print(json.dumps(figures))


if __name__ == "__main__":
  main(*sys.argv[1:])
