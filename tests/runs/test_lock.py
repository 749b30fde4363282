"""The lock on a run's folder: who is refused, and what never stands in the way."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from ap_detect.runs import lock

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from ap_detect.runs import lock
with lock.lock(sys.argv[1]):
  print("locked", flush=True)
  time.sleep(600)
"""


@pytest.fixture
def hold():
  """Function of a folder to a process that holds its lock."""
  processes = []

  def start(folder):
    process = subprocess.Popen(
      [sys.executable, "-c", HOLD, str(folder)],
      cwd=REPOSITORY,
      stdout=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
    assert process.stdout.readline() == "locked\n"
    return process

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_is_killed(hold, tmp_path):
  folder = tmp_path / "run"
  process = hold(folder)
  with pytest.raises(ValueError) as caught, lock.lock(str(folder)):
    pytest.fail("locked twice")
  assert f"process {process.pid} is training in {folder}" in str(caught.value)
  assert "another --model_dir" in str(caught.value)
  # Under another name too.
  (tmp_path / "link").symlink_to(folder)
  with (
    pytest.raises(ValueError, match=f"process {process.pid} "),
    lock.lock(str(tmp_path / "link")),
  ):
    pytest.fail("locked twice")

  process.send_signal(signal.SIGKILL)
  process.wait()
  assert (folder / lock.NAME).read_text() == f"{process.pid}\n"
  with lock.lock(str(folder)):
    # The next one that is refused hears of this process.
    assert (folder / lock.NAME).read_text() == f"{os.getpid()}\n"


def test_it_is_free_after_an_error(hold, tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  with pytest.raises(KeyError), lock.lock(str(folder)):
    raise KeyError
  hold(folder)


def test_a_process_may_lock_what_it_holds(hold, tmp_path):
  folder = tmp_path / "run"
  with lock.lock(str(folder)), lock.lock(f"{folder}/."):
    (folder / "config.json").write_text("{}")
  hold(folder)  # freed at the end of the outer one


def test_the_inner_end_frees_nothing(tmp_path):
  with lock.lock(str(tmp_path)):
    with lock.lock(str(tmp_path)):
      pass
    done = subprocess.run(
      [sys.executable, "-c", HOLD, str(tmp_path)],
      cwd=REPOSITORY,
      capture_output=True,
      text=True,
    )
  assert done.returncode == 1
  assert f"process {os.getpid()} is training in {tmp_path}" in done.stderr


class TestFolder:
  def test_it_is_made_and_removed_again_if_nothing_was_written(self, tmp_path):
    folder = tmp_path / "new" / "run"
    with pytest.raises(KeyError), lock.lock(str(folder)):
      assert folder.is_dir()
      raise KeyError
    assert not folder.exists()

  def test_what_was_written_stays(self, tmp_path):
    with lock.lock(str(tmp_path / "run")):
      (tmp_path / "run" / "config.json").write_text("{}")
    assert sorted(os.listdir(tmp_path / "run")) == [lock.NAME, "config.json"]

  def test_an_empty_one_of_before_stays(self, tmp_path):
    with lock.lock(str(tmp_path)):
      pass
    assert os.listdir(tmp_path) == [lock.NAME]

  def test_a_lock_file_of_before_is_no_obstacle(self, tmp_path):
    (tmp_path / lock.NAME).write_text("1\nof another time")
    with lock.lock(str(tmp_path)):
      assert (tmp_path / lock.NAME).read_text() == f"{os.getpid()}\n"

  @pytest.mark.parametrize("character", "[]*?\\")
  def test_names_that_tensorflow_cannot_restore_from(self, character, tmp_path):
    for folder in (tmp_path / f"run{character}1", tmp_path / f"{character}" / "run"):
      with pytest.raises(ValueError) as caught, lock.lock(str(folder)):
        pytest.fail("was not refused")
      assert str(folder) in str(caught.value)
      assert str(caught.value).endswith(f"has {character}")
    assert not list(tmp_path.iterdir())

  def test_a_link_is_known_by_its_own_name(self, tmp_path):
    for target, link in (("[1]", "good"), ("run", "link[1]")):
      (tmp_path / target).mkdir()
      (tmp_path / link).symlink_to(tmp_path / target)
    with lock.lock(str(tmp_path / "good")):
      assert (tmp_path / "[1]" / lock.NAME).exists()
    message = r"link\[1\].* this one has \[ \]$"
    with pytest.raises(ValueError, match=message), lock.lock(str(tmp_path / "link[1]")):
      pytest.fail("was not refused")
