"""The command line: overrides, paths, errors, and help."""

import ast
import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest

from ap_detect import config as config_lib
from ap_detect import errors
from ap_detect.commands import config_reference
from ap_detect.data.readers import tfrecords

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def run_python(*arguments, cwd=REPOSITORY):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


class TestConfigFlag:
  @pytest.mark.parametrize(
    ("argument", "said"),
    [
      ("--config.modle.x=1", ["'modle.x'", "train.learning_rate"]),
      ("--config.train.learing_rate=1", ["did you mean 'train.learning_rate'?"]),
      ("-config.train.x.y=1", ["'train.x.y'", "train.learning_rate"]),
      ("--noconfig.train.determinstic", ["did you mean 'train.deterministic'?"]),
      ("--config.train.loss_options=0.5", ["must be a mapping, as in", "got 0.5"]),
      ("--config.train.loss_options.a.b=1", ["'train.loss_options.a.b'"]),
      ("--config.train=3", ["no config field 'train'"]),
      ("--config.train.learning_rate=abc", ["--config.train.learning_rate", "'abc'"]),
      ("--config.train.epochs=1.5", ["--config.train.epochs", "'1.5'"]),
      ("--config.data.image_size_px=(100,100)", ["multiples of", "(100, 100)"]),
      ("--config.data.image_size_px=(12", ["image_size_px"]),
      ("--config=missing.py", ["missing.py", "No such file"]),
      ("stray", ["unexpected argument 'stray'"]),
      ("--nosuchflag=1", ["nosuchflag"]),
    ],
  )
  def test_errors(self, argument, said, tmp_path):
    model_dir = tmp_path / "run"
    done = run_python("train.py", argument, f"--model_dir={model_dir}")
    assert done.returncode == 1
    assert done.stderr.count("error: ") >= 1
    assert "Traceback" not in done.stderr
    assert all(part in done.stderr for part in said), done.stderr
    assert not model_dir.exists()

  def test_overrides(self, tmp_path):
    script = tmp_path / "show.py"
    script.write_text(
      "import dataclasses, json\n"
      "from ap_detect import command_line, config\n"
      "flag = command_line.define_config('shapes')\n"
      "fields = lambda: dataclasses.asdict(config.resolve(flag.value))\n"
      "command_line.run(lambda _: print(json.dumps(fields())))\n"
    )
    done = run_python(
      str(script),
      "--config.data.image_size_px=(128, 256)",
      "--config.data.zoom_range=(1, 2)",
      "--config.train.learning_rate=1",
      "--config.train.decay_epochs=(1, 2)",
      "--config.train.decay_epochs=(3,)",
      "--config.train.epochs=4",
      "--config.train.epochs=5",
      "--config.model.backbone_weights=some/file.h5",
      "--noconfig.data.check_images",
      "--config.train.loss_options={'delta': 0.25, 'class_weights': (1.0, 2.0)}",
      "--config.train.loss_options.form=gpu",
      "--config.train.loss_options.delta",
      "0.5",
      "--noconfig.train.interpolated",
      "--config.train.images_per_ranking=2",
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["data"]["image_size_px"] == [128, 256]
    assert values["data"]["zoom_range"] == [1.0, 2.0]
    assert values["train"]["learning_rate"] == 1.0
    assert values["train"]["decay_epochs"] == [3]
    assert values["train"]["epochs"] == 5
    assert values["data"]["check_images"] is False
    assert values["train"]["loss_options"] == {
      "delta": 0.5,
      "class_weights": [1.0, 2.0],
      "form": "gpu",
      "interpolated": False,  # by its old name
      "images_per_ranking": 2,
    }
    assert "train.loss_options.images_per_ranking" in done.stderr
    assert values["model"]["backbone_weights"] == "some/file.h5"

  def test_overrides_of_a_saved_eval_section(self, tmp_path):
    script = tmp_path / "show.py"
    script.write_text(
      "from ap_detect import command_line\n"
      "given = command_line.define_eval_overrides()\n"
      "command_line.run(lambda _: print(given()))\n"
    )
    # A value that is the default counts too: the saved one may be another.
    done = run_python(
      str(script),
      "--eval.test_scales=('400/667', '500/833')",
      "--eval.nms_iou=0.5",
    )
    assert done.returncode == 0, done.stderr
    given = {"test_scales": ("400/667", "500/833"), "nms_iou": 0.5}
    assert ast.literal_eval(done.stdout) == given
    done = run_python(str(script), "--eval.test_scale=('400/667',)")
    assert done.returncode == 1
    assert "did you mean 'eval.test_scales'?" in done.stderr

  @pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
      ("ValueError('a reason')", 1, "error: a reason\n"),
      ("FileNotFoundError(2, 'gone', 'x')", 1, "error: x: gone\n"),
      ("MemoryError('3 TiB')", 1, "error: not enough memory: 3 TiB\n"),
      ("KeyboardInterrupt", 130, ""),
      ("ImportError('x') from KeyboardInterrupt()", 130, ""),
      ("BrokenPipeError(32, 'Broken pipe')", 141, ""),
    ],
  )
  def test_what_a_user_can_mend_has_no_traceback(self, raised, code, message, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
      "from ap_detect import command_line\n"
      f"def main(_):\n  raise {raised}\n"
      "command_line.run(main)\n"
    )
    done = run_python(str(script))
    assert (done.returncode, done.stderr) == (code, message)

  def test_where_it_was_raised_is_there_to_see(self, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
      "from ap_detect import command_line\n"
      "def culprit(_):\n  raise ValueError('a reason')\n"
      "command_line.run(culprit)\n"
    )
    done = run_python(str(script), "--verbosity=1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "in culprit" in done.stderr
    assert done.stderr.endswith("error: a reason\n")

  def test_tensorflow_s_errors(self, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
      "from ap_detect import command_line\n"
      "def main(_):\n"
      "  import tensorflow as tf\n"
      "  message = '{{node A}} a.png; Permission denied [Op:ReadFile]'\n"
      "  raise tf.errors.PermissionDeniedError(None, None, message)\n"
      "command_line.run(main)\n"
    )
    done = run_python(str(script))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
      "error: a.png: Permission denied; change its permissions, or give another path"
    )
    assert "Traceback" not in done.stderr

  @pytest.mark.parametrize(
    "raised", ["KeyboardInterrupt", "ImportError('x') from KeyboardInterrupt()"]
  )
  def test_ctrl_c_while_a_command_is_imported(self, raised, tmp_path):
    (tmp_path / "tensorflow.py").write_text(f"raise {raised}\n")
    script = tmp_path / "command.py"  # in whose folder that tensorflow is found
    script.write_text(
      "from ap_detect import command_line\ncommand_line.load_tensorflow()\n"
    )
    done = run_python(str(script))
    assert (done.returncode, done.stderr) == (130, "")

  @pytest.mark.parametrize("lines", [1, 10**5])
  def test_a_reader_that_has_gone(self, lines, tmp_path):
    script = tmp_path / "print.py"
    script.write_text(
      "from ap_detect import command_line\n"
      f"command_line.run(lambda _: [print('a line') for _ in range({lines})])\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
      [sys.executable, str(script)],
      stdout=writer,
      stderr=subprocess.PIPE,
      cwd=REPOSITORY,
      check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")

  def test_a_fault_of_ours_has_one(self, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
      "from ap_detect import command_line\ncommand_line.run(lambda _: [].pop())\n"
    )
    done = run_python(str(script))
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def show(tmp_path, expression, *arguments, cwd=REPOSITORY):
  """Runs a script that prints an expression of its flags."""
  script = tmp_path / "show.py"
  script.write_text(
    "from ap_detect import command_line, config\n"
    "config_flag = command_line.define_config('shapes')\n"
    "model_dir = command_line.define_model_dir()\n"
    "checkpoint = command_line.define_checkpoint()\n"
    "replicas = command_line.define_replicas()\n"
    f"command_line.run(lambda _: print({expression}))\n"
  )
  return run_python(str(script), *arguments, cwd=cwd)


CLASS_NAMES = "--config.data.class_names"


class TestListsOfNames:
  @pytest.mark.parametrize(
    ("arguments", "names"),
    [
      ([f"{CLASS_NAMES}=cat,dog"], ("cat", "dog")),
      ([CLASS_NAMES, "cat,dog"], ("cat", "dog")),
      ([f"{CLASS_NAMES}=traffic light, dog"], ("traffic light", "dog")),
      ([f"{CLASS_NAMES}=cat"], ("cat",)),
      ([f"{CLASS_NAMES}="], ()),
      ([f"{CLASS_NAMES}=('cat', 'dog')"], ("cat", "dog")),
      ([f"{CLASS_NAMES}=('cat, tabby',)"], ("cat, tabby",)),
      ([f"{CLASS_NAMES}=0,1,2"], ("0", "1", "2")),
      ([f"{CLASS_NAMES}=7"], ("7",)),
      ([f"{CLASS_NAMES}=cow", f"{CLASS_NAMES}=cat,dog"], ("cat", "dog")),
    ],
  )
  def test_commas_separate_names(self, arguments, names, tmp_path):
    done = show(tmp_path, "config_flag.value.data.class_names", *arguments)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == names

  def test_of_other_fields(self, tmp_path):
    done = show(
      tmp_path,
      "(config_flag.value.train.callbacks, config_flag.value.eval.test_scales)",
      "--config.train.callbacks=a.b,c.d.E",
      "--config.eval.test_scales=400/667,500/833",
    )
    assert ast.literal_eval(done.stdout) == (
      ("a.b", "c.d.E"),
      ("400/667", "500/833"),
    ), done.stderr

  @pytest.mark.parametrize("value", ["(cat, dog)", "['cat', dog]", "'cat"])
  def test_half_quoted_names_are_refused(self, value, tmp_path):
    done = show(tmp_path, "1", f"{CLASS_NAMES}={value}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {CLASS_NAMES}={value} is no list of names")
    assert f"write {CLASS_NAMES}=cat,dog" in done.stderr


class TestConfigsByName:
  @pytest.mark.parametrize("flag", [["--config=own_data"], ["--config", "own_data"]])
  def test_from_any_folder(self, flag, tmp_path):
    shown = "(config_flag.value.model.backbone, config_flag.value.train.epochs)"
    done = show(tmp_path, shown, *flag, "--config.train.epochs=7", cwd=tmp_path)
    assert ast.literal_eval(done.stdout) == ("efficientnet_lite0", 7), done.stderr

  def test_unknown_name(self, tmp_path):
    done = show(tmp_path, "1", "--config=own_dat")
    assert done.returncode == 1
    assert done.stderr.startswith(
      "error: flag --config=own_dat: must be the path of a "
    )
    assert ", own_data, shapes, " in done.stderr


class TestPaths:
  def test_home_folder_is_expanded(self, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(
      "from ap_detect import config\n"
      "def get_config():\n"
      "  values = config.default_config()\n"
      "  values.train.epochs = 77\n"
      "  return values\n"
    )
    done = show(
      tmp_path,
      "(config_flag.value.train.epochs, model_dir.value, checkpoint.value)",
      *("--config=~/mine.py", "--model_dir=~/runs/a", "--checkpoint=~/ckpt-1"),
    )
    assert ast.literal_eval(done.stdout) == (
      77,
      f"{tmp_path}/runs/a",
      f"{tmp_path}/ckpt-1",
    ), done.stderr

  @pytest.mark.parametrize("name", ["config", "model_dir", "checkpoint"])
  def test_addresses_are_refused(self, name, tmp_path):
    done = show(tmp_path, "1", f"--{name}=gs://bucket/x")
    assert done.returncode == 1
    message = f"error: flag --{name}=gs://bucket/x: must be a local path\n"
    assert done.stderr == message

  @pytest.mark.parametrize(
    ("program", "name"),
    [
      ("train.py", "model_dir"),
      *(("evaluate.py", name) for name in ("model_dir", "output_dir", "data_root")),
      *(("evaluate.py", name) for name in ("checkpoint",)),
      ("export/export_saved_model.py", "export_dir"),
    ],
  )
  def test_of_the_scripts(self, program, name):
    done = run_python(program, f"--{name}=s3://bucket/x")
    assert done.returncode == 1
    assert done.stderr == f"error: flag --{name}=s3://bucket/x: must be a local path\n"


class TestReplicas:
  @pytest.mark.parametrize(("arguments", "value"), [([], "0"), (["--replicas=3"], "3")])
  def test_value(self, arguments, value, tmp_path):
    done = show(tmp_path, "replicas.value", *arguments)
    assert done.stdout == f"{value}\n", done.stderr

  @pytest.mark.parametrize("value", ["-1", "all"])
  def test_wrong_value(self, value, tmp_path):
    done = show(tmp_path, "1", f"--replicas={value}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: flag --replicas={value}: ")


def test_another_worker_is_gone(tmp_path):
  """One line, and a status of its own."""
  script = tmp_path / "script.py"
  script.write_text(
    "from ap_detect import command_line, errors\n"
    "def main(_):\n"
    "  raise errors.LostWorkerError('worker 1 of 2 has ended')\n"
    "command_line.run(main)\n"
  )
  done = run_python(str(script))
  assert done.returncode == errors.LOST_WORKER_STATUS == 75
  assert done.stderr == "error: worker 1 of 2 has ended\n"


RUN_FLAGS = ("model_dir", "checkpoint", "averaged_weights")
SCORE_FLAGS = ("score_threshold", "min_precision", "min_recall", "calibrate")
# Every command and flags that it has.
COMMANDS = {
  "train": ("config", "model_dir", "replicas", "profile_steps", "debug", "overfit"),
  "evaluate": (
    *(*RUN_FLAGS, "split", "data_root", "output_dir", "replicas"),
    *("skip_faulty", "max_image_pixels", "saved_model"),
    *(item.name for item in config_lib.describe("eval")),
  ),
  "export": (
    *(*RUN_FLAGS, "export_dir", "format", "model_name", "version"),
    *("max_image_pixels", *SCORE_FLAGS),
  ),
  "predict": (*(*RUN_FLAGS, "output_dir", "max_image_pixels", *SCORE_FLAGS),),
  "check": ("config", "output_dir"),
  "preview": ("config", "output", "num_pictures"),
  "write_tfrecords": ("config", "split", "output_dir", "name", "shard_mib"),
  "debug_batch": (),
}
SCRIPTS = {
  "train.py": "train",
  "evaluate.py": "evaluate",
  "export/export_saved_model.py": "export",
}


def run_command(*arguments, cwd=REPOSITORY):
  return run_python("-X", "importtime", "-m", "ap_detect", *arguments, cwd=cwd)


def assert_at_once(done):
  imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
  assert "ap_detect.command_line" in imported
  assert not imported & {"tensorflow", "tf_keras", "matplotlib"}


class TestCommands:
  @pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), ([], 1)])
  def test_are_listed_at_once(self, arguments, status):
    done = run_command(*arguments)
    assert done.returncode == status
    assert_at_once(done)
    said = (done.stderr if status else done.stdout).splitlines()
    listed = [line.split()[0] for line in said if line.startswith("  ")]
    assert listed == list(COMMANDS)
    summary = "Trains a detector, or continues a run."
    assert f"  train            {summary}" in said
    assert max(len(line) for line in said if line.startswith("  ")) <= 80

  def test_unknown_one(self):
    done = run_python("-m", "ap_detect", "trian", "--config=shapes")
    assert done.returncode == 1
    assert done.stderr.startswith(
      "error: there is no command 'trian'; did you mean 'train'? The commands are train, "
    )

  @pytest.mark.parametrize("script", SCRIPTS)
  def test_scripts_are_the_same(self, script):
    done = run_python(script, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout == run_command(SCRIPTS[script], "--help").stdout

  def test_flags_reach_the_command(self, tmp_path):
    done = run_command("evaluate", f"--model_dir={tmp_path}/none", cwd=tmp_path)
    assert done.returncode == 1
    assert f"error: --model_dir={tmp_path}/none holds no run" in done.stderr


class TestHelp:
  @pytest.mark.parametrize("command", COMMANDS)
  def test_lists_flags_and_fields_at_once(self, command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_command(command, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time: other tests may run beside this one.
    assert after.ru_utime - before.ru_utime < 2
    assert_at_once(done)

    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    named = {line.split()[0] for line in lines if line.startswith("  --")}
    expected = {f"--{name}" for name in COMMANDS[command]}
    if "config" in COMMANDS[command]:
      expected |= {f"--config.{name}" for name in config_lib.field_names()}
    assert named == expected

  def test_says_meanings_and_defaults(self):
    said = " ".join(run_command("train", "-h").stdout.split())
    assert said.startswith("Trains a detector, or continues a run")
    assert "--model_dir (default 'runs/shapes') Folder of the run." in said
    for section in config_lib.SECTIONS:
      for item in config_lib.describe(section):
        assert f"{item.name} ({item.type_name}, default {item.default!r})" in said
        assert item.meaning in said

  def test_required_and_optional_flags(self):
    said = run_command("write_tfrecords", "--help").stdout
    assert "--split (required)" in said
    assert "--name (default '')" in said
    said = run_command("predict", "--help").stdout
    assert "--score_threshold (optional)" in said

  @pytest.mark.parametrize(
    "arguments",
    [
      ["-h"],
      ["-help"],
      ["--helpshort"],
      ["--config.no.such=1", "--help"],
      ["--config=missing.py", "--config.train.epochs=3", "--help"],
      ["--help", "--nosuchflag"],
    ],
  )
  def test_whatever_else_is_there(self, arguments, tmp_path):
    # From a folder without configs/.
    done = run_command("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == run_command("train", "--help").stdout

  def test_after_two_dashes_there_are_no_flags(self):
    done = run_python("train.py", "--", "--help")
    assert done.returncode == 1
    assert done.stderr.startswith("error: unexpected argument '--help'")

  # Less and more than the output's buffer holds.
  @pytest.mark.parametrize("program", ["evaluate.py", "train.py"])
  def test_reader_that_has_gone(self, program):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
      [sys.executable, program, "--help"],
      cwd=REPOSITORY,
      stdout=writer,
      stderr=subprocess.PIPE,
      check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_reference_is_up_to_date():
  written = (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8")
  assert written == config_reference.to_markdown()


def test_the_size_of_a_shard_is_the_library_s():
  said = run_command("write_tfrecords", "--help").stdout
  assert f"--shard_mib (default {tfrecords.SHARD_BYTES // 2**20})" in said
