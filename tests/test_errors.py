"""Errors that a user can mend: one line that names the file, and what to do."""

import contextlib
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ap_detect import errors
from ap_detect.commands import predict
from ap_detect.data import encoded, pipeline
from ap_detect.data.records import DataError, ImageRecord
from ap_detect.runs import data as data_lib
from ap_detect.runs import files, folder, lock, replicas
from ap_detect.runs import model as model_lib
from ap_detect.training import evaluation, evaluation_files, monitoring, state, trainer

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
NOBODY = 65534
FREE_SPACE = "free some space there, and give the same command again"


@contextlib.contextmanager
def as_nobody():
  """Within it, files are open to this process only as to any other user."""
  if os.geteuid() != 0:
    pytest.skip("only root can become another user")
  os.seteuid(NOBODY)
  try:
    yield
  finally:
    os.seteuid(0)


@contextlib.contextmanager
def files_up_to(size):
  """Within it, writing more bytes to a file fails, as on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestDescription:
  @pytest.mark.parametrize(
    ("error", "line"),
    [
      (
        FileNotFoundError(2, "No such file or directory", "a"),
        "a: No such file or directory",
      ),
      (
        PermissionError(13, "Permission denied", "a"),
        "a: Permission denied; change its permissions, or give another path",
      ),
      (
        FileExistsError(17, "File exists", "a"),
        "a: File exists; a file is where a folder should be",
      ),
      (
        OSError(28, "No space left on device", "a"),
        f"a: No space left on device; {FREE_SPACE}",
      ),
      (
        OSError(28, "No space left on device"),
        f"No space left on device; {FREE_SPACE}",
      ),
      (
        OSError(18, "Invalid cross-device link", "a", None, "b"),
        "a -> b: Invalid cross-device link",
      ),
      (OSError("encoder error -2"), "encoder error -2"),
      (ValueError("a reason"), "a reason"),
      (
        MemoryError("Unable to allocate 3 TiB"),
        "not enough memory: Unable to allocate 3 TiB",
      ),
    ],
  )
  def test_of_the_system_and_ours(self, error, line):
    assert errors.is_for_the_user(error)
    assert errors.describe(error) == line

  @pytest.mark.parametrize(
    ("message", "line"),
    [
      (
        "{{function_node __wrapped__SaveV2_device_/job:localhost/replica:0/task:0/device:"
        "CPU:0}} /r/step-1_temp/part-00000-of-00001.data-00000-of-00001.tempstate394995; "
        "No space left on device [Op:SaveV2]",
        f"/r/step-1: No space left on device; {FREE_SPACE}",
      ),
      (
        "{{function_node __inference_f_47}} OOM when allocating tensor with shape[7] and "
        "type float on /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0\n"
        "\t [[{{node Fill}}]]\nHint: add report_tensor\n [Op:__inference_<lambda>_47]",
        "OOM when allocating tensor with shape[7] and type float on GPU:0 by allocator "
        "GPU_0",
      ),
      (
        "Graph execution error:\n\nDetected at node zeros defined at (most recent call "
        'last):\n  File "/x.py", line 10, in <module>\n\n  File "/y.py", line 6, in g\n\n'
        "Cannot parse tensor from proto: dtype: DT_FLOAT\n\t [[{{node zeros}}]]",
        "Cannot parse tensor from proto: dtype: DT_FLOAT",
      ),
      (
        "2 root error(s) found.\n  (0) INVALID_ARGUMENT: jpeg::Uncompress failed.\n"
        "\t [[{{node d}}]]\n  (1) CANCELLED: x",
        "jpeg::Uncompress failed.",
      ),
      ("", "UnknownError"),
    ],
  )
  def test_of_tensorflow(self, message, line):
    error = tf.errors.UnknownError(None, None, message)
    assert errors.is_for_the_user(error)
    assert errors.describe(error) == line

  def test_real_ones(self, tmp_path):
    with pytest.raises(tf.errors.OpError) as caught:
      tf.io.read_file(f"{tmp_path}/none.jpg")
    assert (
      errors.describe(caught.value) == f"{tmp_path}/none.jpg: No such file or directory"
    )
    variable = tf.Variable(tf.zeros([10_000]))
    with files_up_to(1000), pytest.raises(tf.errors.OpError) as caught:
      tf.train.Checkpoint(v=variable).write(f"{tmp_path}/step-7")
    assert errors.describe(caught.value) == (
      f"{tmp_path}/step-7: File too large; larger files are not allowed to this process, "
      "see ulimit -f"
    )

  @pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), RuntimeError("x")])
  def test_faults_of_ours_are_none(self, error):
    assert not errors.is_for_the_user(error)


def run_out_of_memory(*_):
  raise tf.errors.ResourceExhaustedError(
    None,
    None,
    "{{function_node __inference_f_47}} OOM when allocating tensor with shape[7] and type "
    "float on /job:localhost/replica:0/task:0/device:GPU:0\n\t [[{{node Fill}}]]\n"
    "Hint: If you want to see a list of allocated tensors [Op:__inference_f_47]",
  )


class TestMemory:
  @pytest.mark.parametrize(
    ("error", "reason"),
    [
      (
        tf.errors.ResourceExhaustedError(
          None, None, "OOM when allocating on /device:x"
        ),
        "OOM when allocating on /device:x",
      ),
      # XLA's.
      (
        tf.errors.ResourceExhaustedError(
          None,
          None,
          "Out of memory while trying to allocate 4 bytes. [Op:__inference_f]",
        ),
        "Out of memory while trying to allocate 4 bytes.",
      ),
      # cuDNN's.
      (
        tf.errors.InternalError(None, None, "CUDNN_STATUS_ALLOC_FAILED"),
        "CUDNN_STATUS_ALLOC_FAILED",
      ),
    ],
  )
  def test_a_batch_that_is_too_large(self, error, reason):
    with pytest.raises(ValueError) as caught, errors.blaming_memory_on("a.field"):
      raise error
    assert str(caught.value) == (
      f"a batch does not fit into the device's memory ({reason}); give the same command "
      "with a lower a.field"
    )

  def test_other_errors_pass(self):
    full_disk = tf.errors.ResourceExhaustedError(
      None, None, "a; No space left on device"
    )
    for error in (full_disk, RuntimeError("out of memory")):
      with pytest.raises(type(error)), errors.blaming_memory_on("a.field"):
        raise error

  def test_in_training(self, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "make_step", lambda *_, **__: run_out_of_memory)
    with pytest.raises(ValueError, match=r"a lower train\.batch_size$"):
      trainer.train(make_config(), str(tmp_path / "run"))

  def test_in_evaluation(self, restored_run, monkeypatch):
    evaluator = evaluation.Evaluator(
      restored_run.network, restored_run.config, restored_run.strategy
    )
    monkeypatch.setattr(evaluator, "_make_function", lambda views: run_out_of_memory)
    dataset = data_lib.open_split(restored_run.config, "val")
    with pytest.raises(ValueError, match=r"a lower eval\.batch_size$"):
      evaluator.detect(dataset.records)


@pytest.fixture
def pictures(tmp_path):
  """A split of 8 images in files, with an object each, and the config data of it."""
  root = tmp_path / "data"
  root.mkdir()
  rng = np.random.default_rng(0)
  content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
  for number in range(1, 9):
    pixels = rng.integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(root / f"{number}.png")
    content["images"].append({"id": number, "file_name": f"{number}.png"})
    content["annotations"].append(
      {"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 32, 32]}
    )
  (root / "annotations").mkdir()
  for split in ("train", "val"):
    files.write_json(str(root / "annotations" / f"{split}.json"), content)
  return root


def data_of(root):
  return {"data.format": "auto", "data.root": str(root)}


def truncate(path):
  os.truncate(path, os.path.getsize(path) // 2)


class TestImagesThatAreLost:
  @pytest.mark.parametrize("num_replicas", [1, 2])
  def test_are_named(self, num_replicas, pictures, make_config, make_strategy):
    config = make_config(data_of(pictures))
    records = data_lib.open_split(config, "train").records
    os.remove(pictures / "6.png")
    truncate(pictures / "8.png")
    view = pipeline.View((64, 64), (64, 64))
    batches = pipeline.evaluation_batches(records, views=[view], batch_size=4)
    strategy = make_strategy(num_replicas)
    named = pipeline.naming_unreadable(
      strategy.experimental_distribute_dataset(batches),
      lambda number: records[4 * number : 4 * number + 4],
    )
    next(named)
    with pytest.raises(DataError) as caught:
      next(named)
    missing, damaged = caught.value.faults
    assert missing == f"{pictures}/6.png: cannot be read: No such file or directory"
    assert damaged.startswith(f"{pictures}/8.png: truncated or damaged: ")
    assert "data.skip_faulty=True with data.check_images=True" in str(caught.value)

  def test_in_a_shard(self, tmp_path):
    path = str(tmp_path / "a.tfrecord")
    with open(path, "wb") as file:
      file.write(b"no record" * 9)
    record = ImageRecord(1, encoded.ShardedImage(path, 5), 9, 9, *([np.zeros([0])] * 4))
    batches = tf.data.Dataset.range(1).map(
      lambda _: encoded.make_reader([record.image])(0)
    )
    with pytest.raises(DataError) as caught:
      list(pipeline.naming_unreadable(batches, lambda number: [record]))
    (fault,) = caught.value.faults
    assert fault.startswith(f"{path}: the record at byte 5: truncated or damaged: ")

  def test_an_error_that_images_do_not_explain_stays(self, pictures, make_config):
    records = data_lib.open_split(make_config(data_of(pictures)), "train").records
    batches = tf.data.Dataset.range(1).map(lambda _: tf.io.read_file("nowhere"))
    with pytest.raises(tf.errors.NotFoundError):
      list(pipeline.naming_unreadable(batches, lambda number: records))

  def test_while_training(self, pictures, make_config, tmp_path):
    changes = {**data_of(pictures), "data.check_images": False, "train.batch_size": 2}
    truncate(pictures / "3.png")
    with pytest.raises(DataError) as caught:
      trainer.train(make_config(changes), str(tmp_path / "run"))
    (fault,) = caught.value.faults
    assert fault.startswith(f"{pictures}/3.png: truncated or damaged: ")

  def test_while_evaluating(self, pictures, make_config, restored_run):
    config = make_config({**data_of(pictures), "data.check_images": False})
    records = data_lib.open_split(config, "val").records
    truncate(pictures / "3.png")
    evaluator = evaluation.Evaluator(
      restored_run.network, config, restored_run.strategy
    )
    with pytest.raises(DataError, match=r"/3\.png: truncated or damaged"):
      evaluator.detect(records)


class TestFullDisk:
  def test_small_files_are_named_and_stay_as_they_are(self, tmp_path):
    path = str(tmp_path / "best.json")
    files.write_json(path, {"a": 1})
    pixels = np.zeros([9, 9, 3], np.uint8)
    with files_up_to(20):
      for write, value in ((files.write_json, ["b" * 99]), (files.write_png, pixels)):
        with pytest.raises(OSError) as caught:
          write(path, value)
        assert caught.value.filename == path
        assert errors.describe(caught.value).startswith(f"{path}: File too large; ")
    assert files.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["best.json"]

  def test_metrics(self, tmp_path):
    metrics_file = monitoring.MetricsFile(str(tmp_path), 0)
    with files_up_to(3):
      for fail in (lambda: metrics_file.write({"step": 1}), metrics_file.close):
        with pytest.raises(OSError) as caught:
          fail()
        said = errors.describe(caught.value)
        assert said.startswith(f"{tmp_path}/metrics.csv: File too large; ")

  def test_a_checkpoint_leaves_nothing(self, tmp_path):
    network = tf.keras.Sequential([tf.keras.layers.Dense(100, input_shape=[100])])
    record = state.Record(state.Clock(9), {}, {}, 1)
    run_state = state.TrainingState(
      str(tmp_path), network, tf.keras.optimizers.SGD(), record, keep_checkpoints=1
    )
    before = run_state.save()
    record.clock.step = 1
    with files_up_to(10_000), pytest.raises(tf.errors.OpError) as caught:
      run_state.save()
    said = errors.describe(caught.value)
    assert said.startswith(f"{tmp_path}/checkpoints/writing/step-1: File too large; ")
    assert folder.checkpoint_paths(str(tmp_path)) == [before]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == sorted(
      os.path.basename(before) + end for end in (".data-00000-of-00001", ".index")
    )


class TestPermissions:
  @pytest.fixture(autouse=True)
  def open_to_all(self, tmp_path):
    # pytest's folders are closed to other users.
    path = tmp_path
    while path.stat().st_uid == os.getuid() and str(path) != "/tmp":
      path.chmod(0o755)
      path = path.parent

  def describe(self, function, *arguments):
    with as_nobody(), pytest.raises((ValueError, OSError)) as caught:
      function(*arguments)
    return errors.describe(caught.value)

  def test_model_dir(self, tmp_path):
    denied = "Permission denied; change its permissions, or give another path"

    def train(model_dir):
      with lock.lock(str(model_dir)):
        pytest.fail("was not refused")

    assert self.describe(train, tmp_path / "new") == f"{tmp_path}/new: {denied}"
    (tmp_path / "old").mkdir()
    said = self.describe(train, tmp_path / "old")
    assert said == f"{tmp_path}/old/.lock: {denied}"

  def test_run_of_another(self, tmp_path):
    files.write_text(str(tmp_path / "config.json"), "{}")
    (tmp_path / "config.json").chmod(0o600)
    said = self.describe(folder.load_config, str(tmp_path))
    assert said.startswith(f"{tmp_path}/config.json: Permission denied; ")

  def test_data(self, pictures, make_config):
    config = make_config(data_of(pictures))
    (pictures / "4.png").chmod(0)
    said = self.describe(data_lib.open_split, config, "train")
    assert "1 fault" in said and "4.png: " in said and "Permission denied" in said
    (pictures / "annotations" / "train.json").chmod(0)
    said = self.describe(data_lib.open_split, config, "train")
    assert "annotations/train.json: " in said and "Permission denied" in said
    pictures.chmod(0o700)
    said = self.describe(data_lib.open_split, config, "train")
    assert str(pictures) in said and "Permission denied" in said

  def test_output_dir(self, restored_run, tmp_path, monkeypatch):
    monkeypatch.setattr(model_lib, "restore", lambda *_, **__: restored_run)
    said = self.describe(
      lambda: evaluation_files.evaluate_run("a run", output_dir=f"{tmp_path}/out")
    )
    assert said.startswith(f"{tmp_path}/out: Permission denied; ")


class TestFilesAndFolders:
  def test_model_dir_is_a_file(self, tmp_path):
    path = tmp_path / "run"
    path.write_text("")
    with pytest.raises(FileExistsError) as caught, lock.lock(str(path)):
      pytest.fail("was not refused")
    said = errors.describe(caught.value)
    assert said == f"{path}: File exists; a file is where a folder should be"
    with pytest.raises(ValueError, match="holds no run"):
      folder.load_config(str(path))

  def test_data_root_is_a_file(self, tmp_path, make_config):
    path = tmp_path / "data"
    path.write_text("")
    with pytest.raises(DataError, match="data: is a file, not a folder"):
      data_lib.open_split(make_config(data_of(path)), "train")

  def test_a_folder_where_a_file_should_be(self, tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
      folder.load_config(str(tmp_path))
    said = errors.describe(caught.value)
    assert said.endswith("json: Is a directory; a folder is where a file should be")


@pytest.fixture
def run(trained_run, tmp_path):
  """Path of a copy of trained_run, without what the tests here do not need."""
  path = tmp_path / "copy"
  shutil.copytree(
    trained_run, path, ignore=shutil.ignore_patterns("tensorboard", "samples")
  )
  return path


class TestDamagedRun:
  @pytest.mark.parametrize("content", ["", '{"a": ', "[]", "{}", "[" * 100_000])
  @pytest.mark.parametrize(
    ("name", "read"),
    [("best.json", folder.load_best), ("classes.json", folder.load_classes)],
  )
  def test_json(self, name, read, content, run):
    (run / name).write_text(content)
    with pytest.raises(ValueError) as caught:
      read(str(run))
    said = errors.describe(caught.value)
    assert said.startswith(f"{run / name} is not ")
    assert said.endswith("; the training's own command, given again, writes it anew")

  def test_config(self, run):
    path = run / "config.json"
    path.write_text('{"model": ')
    with pytest.raises(ValueError) as caught:
      folder.load_config(str(run))
    assert str(caught.value).startswith(f"{path}: is not valid JSON: ")
    assert str(caught.value).endswith("given again, writes it anew")
    path.write_text('{"modle": {}}')
    with pytest.raises(ValueError, match="there is no config field 'modle'") as caught:
      folder.load_config(str(run))
    assert "writes it anew" not in str(caught.value)

  def test_a_best_checkpoint_names_the_others(self, run):
    best = folder.find_checkpoint(str(run))
    os.truncate(f"{best}.index", 0)
    with pytest.raises(ValueError) as caught:
      model_lib.restore(str(run))
    said = str(caught.value)
    assert said.startswith(
      f"checkpoint {best} is damaged or does not fit the network: "
    )
    latest, before = folder.checkpoint_paths(str(run))
    assert f"; --checkpoint may be {run}/best/" in said or (
      f"; --checkpoint may be {latest} or {before}" in said
    )
    assert said.count(best) == 1 and "\n" not in said
    assert model_lib.restore(str(run), "latest").checkpoint == latest

  def test_a_checkpoint_that_does_not_exist_names_those_that_do(self, run):
    with pytest.raises(ValueError) as caught:
      folder.find_checkpoint(str(run), f"{run}/checkpoints/step-1")
    problem, _, others = str(caught.value).partition("; --checkpoint may be ")
    assert problem == f"there is no checkpoint {run}/checkpoints/step-1"
    assert set(others.split(" or ")) == {
      *folder.checkpoint_paths(str(run)),
      *folder.checkpoint_paths(str(run), "best"),
    }

  @pytest.mark.parametrize("checkpoint", ["", "latest"])
  def test_a_folder_that_tensorflow_cannot_read_from(self, checkpoint, run):
    odd = run.rename(run.parent / "run[1]")
    with pytest.raises(ValueError, match=r"/run\[1\] must be renamed: .* has \[ \]$"):
      model_lib.restore(str(odd), checkpoint)


class TestPredictsArguments:
  def run_main(self, monkeypatch, *arguments):
    for name, value in (
      ("MODEL_DIR", "nowhere"),
      ("OUTPUT_DIR", ""),
      ("CHECKPOINT", ""),
    ):
      flag = type("Flag", (), {"value": value})
      monkeypatch.setattr(predict, name, flag, raising=False)
    predict.main(["predict", *arguments])

  def test_addresses_are_refused(self, monkeypatch):
    with pytest.raises(ValueError, match=r"^https://a/b\.jpg must be a local path$"):
      self.run_main(monkeypatch, "https://a/b.jpg")

  def test_home_folder_is_expanded(self, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=f"no such image or folder: {tmp_path}/a"):
      self.run_main(monkeypatch, "~/a.jpg")


class TestWhyNoGpu:
  @pytest.fixture(autouse=True)
  def with_cuda(self, monkeypatch):
    monkeypatch.setattr(tf.test, "is_built_with_gpu_support", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(replicas.shutil, "which", lambda name: None)
    monkeypatch.setattr(replicas.glob, "glob", lambda pattern: [])
    replicas._ask_new_process.cache_clear()

  def test_a_machine_without_any(self):
    assert replicas._why_no_gpu() == ""

  def test_a_build_without_cuda(self, monkeypatch):
    monkeypatch.setattr(tf.test, "is_built_with_gpu_support", lambda: False)
    assert "without support" in replicas._why_no_gpu()

  @pytest.mark.parametrize("value", ["", "-1"])
  def test_hidden_by_a_variable(self, value, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert replicas._why_no_gpu() == f"CUDA_VISIBLE_DEVICES={value} hides them"

  @pytest.mark.parametrize(
    "sign",
    [
      lambda patch: patch.setattr(replicas.shutil, "which", lambda name: "/x"),
      lambda patch: patch.setattr(
        replicas.glob, "glob", lambda pattern: ["/dev/nvidia0"]
      ),
      lambda patch: patch.setenv("CUDA_VISIBLE_DEVICES", "0"),
    ],
  )
  def test_tensorflow_s_own_words(self, sign, monkeypatch):
    sign(monkeypatch)
    said = (
      "WARNING: All log messages before absl::InitializeLog() is called\n"
      "I0000 00:00:1795669858.966995   18967 port.cc:153] oneDNN operations are on.\n"
      "I0000 00:00:1795669858.967346   18967 cudart_stub.cc:31] Could not find cuda "
      "drivers on your machine, GPU will not be used.\n"
      "2026-11-26 05:10:39.002365: I external/local_tsl/tsl/cuda/cudart_stub.cc:31] "
      "Could not find cuda drivers on your machine, GPU will not be used.\n"
      "2026-11-26 05:10:39.030937: E external/local_xla/xla/cuda_dnn.cc:9261] Unable to "
      "register cuDNN factory: Attempting to register factory\n"
      "2026-11-26 05:10:39.723688: W x/py_utils.cc:38] TF-TRT Warning: Could not find "
      "TensorRT\n"
      "E0000 00:00:1795669860.792261   18967 cuda_platform.cc:52] failed call to cuInit: "
      "INTERNAL: CUDA error\n"
    )
    calls = []

    def run(command, *, env, **_):
      calls.append(env["TF_CPP_MIN_LOG_LEVEL"])
      return subprocess.CompletedProcess(command, 0, "", said)

    monkeypatch.setattr(replicas.subprocess, "run", run)
    assert replicas._why_no_gpu() == (
      "TensorFlow says: Could not find cuda drivers on your machine, GPU will not be "
      "used; failed call to cuInit: INTERNAL: CUDA error"
    )
    assert calls == ["0"]

  def test_a_real_process_answers(self, monkeypatch):
    monkeypatch.setattr(replicas.sys, "executable", "/bin/echo")  # says nothing of GPUs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert replicas._why_no_gpu() == ""


def test_ctrl_c_while_tensorflow_loads():
  process = subprocess.Popen(
    [sys.executable, "-m", "ap_detect.commands.predict", "--model_dir=nowhere"],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    cwd=REPOSITORY,
  )
  deadline = time.monotonic() + 60
  while b"libtensorflow" not in pathlib.Path(f"/proc/{process.pid}/maps").read_bytes():
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  said, _ = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "Traceback" not in said and "KeyboardInterrupt" not in said
