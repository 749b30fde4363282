"""SavedModels in TensorFlow's C runtime, which TensorFlow Serving runs them in too.

A Session works in a process that never imports tensorflow. Run as a program, this answers
requests: argv is the path of TensorFlow's library and the model's folder; stdin has
pickled requests, and stdout gets their pickled answers, each at once. A request is
(signature, {input: array}, whether memory is measured); strings are arrays of objects.
"""

import ctypes
import importlib.util
import os
import pickle
import subprocess
import sys

import numpy as np

# TF_DataType
STRING = 7
TYPES = {1: np.float32, 3: np.int32, 4: np.uint8, STRING: np.object_, 9: np.int64}
TYPES[10] = np.bool_
NUMBERS = {np.dtype(dtype): number for number, dtype in TYPES.items()}

# TF_Code
OK, INVALID_ARGUMENT, NOT_FOUND = 0, 3, 5

pointer = ctypes.c_void_p


class Output(ctypes.Structure):
  _fields_ = [("oper", pointer), ("index", ctypes.c_int)]


class Buffer(ctypes.Structure):
  _fields_ = [("data", pointer), ("length", ctypes.c_size_t), ("free", pointer)]


class TString(ctypes.Structure):
  _fields_ = [("bytes", ctypes.c_byte * 24)]


class Refused(Exception):
  """The runtime's error: TF_Code and message."""

  def __init__(self, code, message):
    super().__init__(code, message)
    self.code, self.message = code, message


def library_path():
  """Path of the library in the installed TensorFlow, which is not imported."""
  package = os.path.dirname(importlib.util.find_spec("tensorflow").origin)
  return os.path.join(package, "libtensorflow_cc.so.2")


class Session:
  """A SavedModel, loaded.

  Attributes:
    signatures: {name: (method, {input: tensor}, {output: tensor})}, a tensor being
      (name, TF_DataType, dimensions).
  """

  def __init__(self, library, folder):
    self._lib = lib = ctypes.CDLL(library)
    for name in (
      *("NewStatus", "Message", "NewGraph", "NewSessionOptions", "NewBuffer"),
      *("LoadSessionFromSavedModel", "GraphOperationByName", "AllocateTensor"),
      *("TensorData", "StringGetDataPointer"),
    ):
      getattr(lib, f"TF_{name}").restype = pointer
    for name in ("TensorByteSize", "StringGetSize"):
      getattr(lib, f"TF_{name}").restype = ctypes.c_size_t
    lib.TF_Dim.restype = ctypes.c_int64
    status = pointer(lib.TF_NewStatus())
    self._graph = pointer(lib.TF_NewGraph())
    meta = pointer(lib.TF_NewBuffer())
    tags = (ctypes.c_char_p * 1)(b"serve")
    self._session = pointer(
      lib.TF_LoadSessionFromSavedModel(
        *(pointer(lib.TF_NewSessionOptions()), None, folder.encode(), tags, 1),
        *(self._graph, meta, status),
      )
    )
    self._check(status)
    buffer = ctypes.cast(meta, ctypes.POINTER(Buffer)).contents
    self.signatures = signatures(ctypes.string_at(buffer.data, buffer.length))

  def run(self, signature, inputs):
    """{output: array} of a signature for {input: array}; or raises Refused.

    Threads may run it at once.
    """
    _, given, wanted = self.signatures[signature]
    lib, names = self._lib, sorted(wanted)
    feeds = (Output * len(inputs))(*(self._output(given[name]) for name in inputs))
    fetches = (Output * len(names))(*(self._output(wanted[name]) for name in names))
    fed = (pointer * len(inputs))(*map(self._to_tensor, inputs.values()))
    found = (pointer * len(names))()
    status = pointer(lib.TF_NewStatus())
    lib.TF_SessionRun(
      *(self._session, None, feeds, fed, len(inputs), fetches, found, len(names)),
      *(None, 0, None, status),
    )
    for tensor in fed:
      lib.TF_DeleteTensor(pointer(tensor))
    self._check(status)
    answer = {name: self._to_array(tensor) for name, tensor in zip(names, found)}
    for tensor in found:
      lib.TF_DeleteTensor(pointer(tensor))
    return answer

  def _check(self, status):
    """Frees a status; raises Refused where it is an error."""
    code, message = self._lib.TF_GetCode(status), self._lib.TF_Message(status)
    message = ctypes.string_at(message).decode(errors="replace")
    self._lib.TF_DeleteStatus(status)
    if code != OK:
      raise Refused(code, message)

  def _output(self, tensor):
    name, index = tensor[0].split(":")
    operation = self._lib.TF_GraphOperationByName(self._graph, name.encode())
    assert operation, name
    return Output(operation, int(index))

  def _to_tensor(self, array):
    lib, number = self._lib, NUMBERS[array.dtype]
    itemsize = 24 if number == STRING else array.itemsize
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    size = ctypes.c_size_t(array.size * itemsize)
    tensor = pointer(lib.TF_AllocateTensor(number, shape, array.ndim, size))
    data = lib.TF_TensorData(tensor)
    if number != STRING:
      if array.size:
        ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, array.nbytes)
      return tensor
    for place, value in enumerate(array.flat):
      string = pointer(data + 24 * place)
      lib.TF_StringInit(string)
      lib.TF_StringCopy(string, value, ctypes.c_size_t(len(value)))
    return tensor

  def _to_array(self, tensor):
    lib, tensor = self._lib, pointer(tensor)
    number = lib.TF_TensorType(tensor)
    shape = [lib.TF_Dim(tensor, axis) for axis in range(lib.TF_NumDims(tensor))]
    array = np.empty(shape, TYPES[number])
    data = lib.TF_TensorData(tensor)
    if number != STRING:
      if array.size:
        ctypes.memmove(array.ctypes.data, data, array.nbytes)
      return array
    for place in range(array.size):
      string = pointer(data + 24 * place)
      array.flat[place] = ctypes.string_at(
        lib.TF_StringGetDataPointer(string), lib.TF_StringGetSize(string)
      )
    return array


def fields(message):
  """(number, value) of every field of a serialized message, in order."""
  position = 0

  def varint():
    nonlocal position
    value, shift = 0, 0
    while True:
      byte = message[position]
      position += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while position < len(message):
    key = varint()
    kind = key & 7
    if kind == 0:
      value = varint()
    else:
      size = {1: 8, 5: 4}.get(kind) or varint()
      value = message[position : position + size]
      position += size
    yield key >> 3, value


def signatures(meta_graph):
  """As Session.signatures, of a serialized MetaGraphDef."""

  def tensor(info):
    found = dict(fields(info))
    sizes = [dict(fields(dim)).get(1, 0) for n, dim in fields(found[3]) if n == 2]
    # Varints hold 64 bits without a sign.
    # Of 0, as the operation that initialises has it, there is nothing in the message.
    number = found.get(2, 0)
    return found[1].decode(), number, tuple(size - (size >> 63 << 64) for size in sizes)

  def entries(message, number):
    for n, entry in fields(message):
      if n == number:
        found = dict(fields(entry))
        yield found[1].decode(), found[2]

  return {
    name: (
      dict(fields(signature)).get(3, b"").decode(),
      {key: tensor(info) for key, info in entries(signature, 1)},
      {key: tensor(info) for key, info in entries(signature, 2)},
    )
    for name, signature in entries(meta_graph, 5)
  }


def warm_up_requests(folder):
  """(model, signature, {input: serialized TensorProto}) of a version's file of them."""
  path = os.path.join(folder, "assets.extra/tf_serving_warmup_requests")
  with open(path, "rb") as file:
    content = file.read()
  # TFRecord: length, its checksum, the record and its checksum.
  while content:
    length = int.from_bytes(content[:8], "little")
    record, content = content[12 : 12 + length], content[16 + length :]
    # PredictionLog, PredictLog, PredictRequest.
    (_, predict_log), *_ = fields(record)
    (_, request), *_ = fields(predict_log)
    parts = list(fields(request))
    spec = dict(fields(parts[0][1]))
    entries = [dict(fields(part)) for number, part in parts if number == 2]
    inputs = {entry[1].decode(): entry[2] for entry in entries}
    yield spec[1].decode(), spec[3].decode(), inputs


def memory(key):
  """Kilobytes of this process: VmRSS, or VmHWM, its highest."""
  with open("/proc/self/status", encoding="ascii") as file:
    lines = dict(line.split(":") for line in file)
  return int(lines[key].split()[0])


class Process:
  """A Session in a process of its own, which has no tensorflow; a context manager.

  Attributes:
    signatures: as Session's.
  """

  def __init__(self, folder):
    self._process = subprocess.Popen(
      [sys.executable, __file__, library_path(), folder],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    self.signatures = self._receive()

  def run(self, signature, **inputs):
    """{output: array}; raises Refused as the runtime says. Lists are of strings."""
    return self.measure(signature, **inputs)[0]

  def measure(self, signature, **inputs):
    """({output: array}, seconds, kilobytes that were needed beyond those before)."""
    arrays = {name: strings(value) for name, value in inputs.items()}
    pickle.dump((signature, arrays), self._process.stdin)
    self._process.stdin.flush()
    return self._receive()

  def _receive(self):
    try:
      answer = pickle.load(self._process.stdout)
    except EOFError:
      raise AssertionError(f"the process ended: {self._process.wait()}") from None
    # No exception is sent: in that process the class has another name.
    if answer[0] == "refused":
      raise Refused(*answer[1:])
    return answer[1]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait(60)


def strings(value):
  """A list of bytes as an array; anything else as it is."""
  if not isinstance(value, list):
    return value
  array = np.empty(len(value), object)
  array[:] = value
  return array


def main(library, folder):
  import time

  sys.modules["tensorflow"] = None
  answers = sys.stdout.buffer

  def answer(*value):
    pickle.dump(value, answers)
    answers.flush()

  try:
    session = Session(library, folder)
  except Refused as error:
    answer("refused", error.code, error.message)
    return
  answer("signatures", session.signatures)
  while True:
    try:
      signature, inputs = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
      file.write("5")  # VmHWM begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    try:
      found = session.run(signature, inputs)
    except Refused as error:
      answer("refused", error.code, error.message)
      continue
    seconds = time.perf_counter() - start
    answer("found", (found, seconds, memory("VmHWM") - before))


if __name__ == "__main__":
  main(*sys.argv[1:])
