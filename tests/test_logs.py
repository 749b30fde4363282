"""Log lines: their look, what is shown of libraries, and what a run keeps of them."""

import logging
import os
import re
import subprocess
import sys
import sysconfig

import absl.logging
import pytest
import terminals

from ap_detect import logs

LIBRARY = os.path.join(sysconfig.get_path("purelib"), "library.py")
SCRIPT = f"""
import logging, warnings
from absl import logging as absl_logging
from ap_detect import command_line

def main(_):
  absl_logging.debug("debugging")
  absl_logging.info("hello %d", 1)
  absl_logging.warning("take care")
  absl_logging.error("too late")
  warnings.warn("by Python", stacklevel=1)
  for level, text in ((10, "chat"), (20, "chatter"), (30, "a library's warning")):
    record = logging.makeLogRecord(
      dict(name="x", levelno=level, levelname=logging.getLevelName(level), msg=text,
           pathname={LIBRARY!r}, filename="library.py", lineno=7)
    )
    if logging.getLogger().isEnabledFor(level):
      logging.getLogger().handle(record)
  print("done")

command_line.run(main)
"""


@pytest.fixture
def script(tmp_path):
  path = tmp_path / "script.py"
  path.write_text(SCRIPT)
  return str(path)


def run(*arguments, **env):
  return subprocess.run(
    [sys.executable, *arguments],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, **env},
  )


class TestLines:
  def test_time_and_message(self, script):
    done = run(script)
    assert done.stdout == "done\n"
    lines = done.stderr.splitlines()
    assert all(
      re.match(r"\d\d:\d\d:\d\d [^ ]", line) for line in lines if line[0] != " "
    )
    assert [line[9:] for line in lines[:3]] == [
      "hello 1",
      "WARNING: take care",
      "ERROR: too late",
    ]
    assert lines[3][9:] == f"WARNING: {script}:11: UserWarning: by Python"
    assert lines[-1][9:] == "WARNING: a library's warning"
    assert "chat" not in done.stderr and "debugging" not in done.stderr

  @pytest.mark.parametrize("flag", [["--verbosity=1"], ["-v", "1"]])
  def test_verbosity_shows_everything_else(self, script, flag):
    said = run(script, *flag).stderr
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert re.search(rf"^{when} DEBUG MainThread script\.py:7\] debugging$", said, re.M)
    assert re.search(rf"^{when} INFO MainThread script\.py:8\] hello 1$", said, re.M)
    assert re.search(rf"^{when} INFO .* library\.py:7\] chatter$", said, re.M)
    assert "] chat\n" not in said
    assert "] chat\n" in run(script, "--verbosity=2").stderr

  def test_fewer(self, script):
    said = run(script, "--verbosity=-2").stderr
    assert [line[9:] for line in said.splitlines()] == ["ERROR: too late"]

  def test_colors_in_a_terminal(self, script):
    status, said = terminals.run([sys.executable, script])
    assert status == 0
    assert " \033[33mWARNING: take care\033[0m\r\n" in said
    assert " \033[1;31mERROR: too late\033[0m\r\n" in said
    assert " hello 1\r\n" in said

  @pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
  def test_no_colors(self, script, env):
    _, said = terminals.run([sys.executable, script], env={**os.environ, **env})
    assert "\033" not in said


CHATTER = (
  "WARNING: All log messages before absl::InitializeLog() is called are written\n"
  "I0000 00:00:1795668258.006297   29823 cudart_stub.cc:31] Could not find cuda\n"
  "2026-11-26 04:43:01.123456: I tensorflow/core/util/port.cc:113] oneDNN\n"
  "To enable the following instructions: AVX2, rebuild TensorFlow\n"
)


class TestChatter:
  """Of code that writes to descriptor 2 by itself."""

  @pytest.mark.parametrize(
    ("end", "shown"),
    [
      ("pass", "our own\n"),
      ("raise SystemExit(3)", f"{CHATTER}our own\n"),
      ("os.abort()", f"{CHATTER}our own\n"),
    ],
  )
  def test_is_shown_where_it_may_matter(self, end, shown):
    done = run(
      "-c",
      "import os\nfrom ap_detect import logs\n"
      "with logs._without_chatter():\n"
      f"  os.write(2, {(CHATTER + 'our own').encode()!r} + b'\\n')\n"
      f"  {end}\n"
      "os.write(2, b'after\\n')\n",
    )
    assert done.stderr == (f"{shown}after\n" if end == "pass" else shown)

  @pytest.mark.parametrize(("verbosity", "level"), [(1, "3"), (0, "0"), (0, "2")])
  def test_is_shown_to_who_wants_it(self, verbosity, level):
    done = run(
      "-c",
      f"import os\nfrom ap_detect import logs\nlogs.set_up({verbosity})\n"
      "with logs._without_chatter(): os.write(2, b'I0000 00:00:00 x\\n')",
      TF_CPP_MIN_LOG_LEVEL=level,
    )
    assert done.stderr == "I0000 00:00:00 x\n"

  def test_tensorflow_loads_and_compiles_without_a_word(self):
    done = run(
      "-c",
      "import ap_detect\nfrom ap_detect import logs\nlogs.set_up()\n"
      "logs.load_tensorflow()\nlogs.start_xla()\nimport tensorflow as tf\n"
      "print(int(tf.function(lambda x: x * 3, jit_compile=True)(2)))",
    )
    assert (done.stdout, done.stderr) == ("6\n", "")


@pytest.mark.usefixtures("at_info")
class TestKept:
  def test_over_starts(self, tmp_path):
    for start in (1, 2):
      with logs.kept(str(tmp_path)):
        absl.logging.info("before %d", start)
        with logs.kept(f"{tmp_path}/../{tmp_path.name}"):  # the same folder
          logs.begin(str(tmp_path))
          absl.logging.warning("take care %d", start)
      absl.logging.info("not of the run")
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[20:] for line in lines] == [
      *("before 1", "WARNING: take care 1", "before 2", "WARNING: take care 2")
    ]

  @pytest.mark.parametrize(
    ("error", "line"),
    [
      (ValueError("a reason"), "ERROR: a reason"),
      (OSError(20, "Not a directory", "a/b"), "ERROR: a/b: Not a directory; a file"),
      (KeyboardInterrupt(), "WARNING: ended by Ctrl-C"),
      (SystemExit(143), "WARNING: ended with status 143"),
    ],
  )
  def test_the_error_that_ends_it(self, error, line, tmp_path):
    with pytest.raises(type(error)), logs.kept(str(tmp_path)):
      logs.begin(str(tmp_path))
      with logs.kept(str(tmp_path)):
        raise error
    [written] = (tmp_path / "train.log").read_text().splitlines()
    assert written[20:].startswith(line)

  def test_a_fault_of_ours_has_a_traceback(self, tmp_path):
    with pytest.raises(ZeroDivisionError), logs.kept(str(tmp_path)):
      logs.begin(str(tmp_path))
      print(1 / 0)
    said = (tmp_path / "train.log").read_text()
    assert said[20:].startswith("ERROR: Traceback")
    assert said.endswith("ZeroDivisionError: division by zero\n")

  def test_a_refused_start_leaves_nothing(self, tmp_path):
    with pytest.raises(ValueError, match="no"), logs.kept(str(tmp_path)):
      absl.logging.info("reading")
      raise ValueError("no")
    assert not list(tmp_path.iterdir())

  def test_a_full_disk_ends_nothing(self, tmp_path, caplog):
    (tmp_path / "train.log").symlink_to("/dev/full")
    with logs.kept(str(tmp_path)):
      logs.begin(str(tmp_path))
      absl.logging.info("one")
      absl.logging.info("two")
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "train.log is not written any more: [Errno 28]" in warnings[0]
