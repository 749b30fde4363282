"""Small files: replaced whole or not at all, and named when they cannot be read."""

import errno
import json
import os

import pytest

from ap_detect.runs import files


def test_json_is_replaced_whole(tmp_path):
  path = str(tmp_path / "a.json")
  files.write_json(path, {"old": 1})
  with pytest.raises(TypeError):
    files.write_json(path, {"new": [1, 2, object()]})
  assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
  files.write_json(path, {"new": [1, 2]})
  assert files.read_json(path) == {"new": [1, 2]}
  assert os.listdir(tmp_path) == ["a.json"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
  path = str(tmp_path / "a.txt")
  files.write_text(path, "old")

  def crash(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(files.os, "fsync", crash)
    with pytest.raises(OSError, match="No space left"):
      files.write_text(path, "new, and longer")
  assert (tmp_path / "a.txt").read_text() == "old"
  files.write_text(path, "new")  # what the crash left is no obstacle
  assert (tmp_path / "a.txt").read_text() == "new"
  assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("text", ["", '{"best": ', "[1, 2"])
def test_a_damaged_file_is_named(text, tmp_path):
  path = tmp_path / "best.json"
  path.write_text(text)
  with pytest.raises(ValueError, match=r"best\.json is not valid JSON: "):
    files.read_json(str(path))


def test_text_with_the_name_of_any_file(tmp_path):
  path = tmp_path / "names.txt"
  files.write_text(str(path), f"ä\n{os.fsdecode(bytes([255]))}\n")
  assert path.read_text(encoding="utf-8") == "ä\n\\udcff\n"
