"""Configs by name and by path."""

import os
import pathlib
import runpy

import pytest

from ap_detect import config_files

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"


def test_all_that_come_with_the_package_are_found_by_name():
  assert config_files.names() == sorted(path.stem for path in CONFIGS.glob("*.py"))
  for name in config_files.names():
    path = config_files.find(name)
    assert os.path.samefile(path, CONFIGS / f"{name}.py")
    assert "get_config" in runpy.run_path(path)


@pytest.mark.parametrize(
  "path", ["mine.py", "../shapes.py", "/x/shapes.py", "a.py:large"]
)
def test_paths_stay_as_they_are(path):
  assert config_files.find(path) == path


@pytest.mark.parametrize("value", ["", "shape", "configs/shapes", "../configs/shapes"])
def test_anything_else_is_refused_with_the_names(value):
  with pytest.raises(ValueError, match=r"or the name of a config .*own_data, shapes"):
    config_files.find(value)


def test_an_installed_wheel_has_them_in_the_package(tmp_path, monkeypatch):
  inside = tmp_path / "ap_detect" / "configs"
  inside.mkdir(parents=True)
  (inside / "one.py").touch()
  beside = config_files._FOLDERS[1]
  monkeypatch.setattr(config_files, "_FOLDERS", (str(inside), beside))
  assert config_files.names() == ["one"]
  assert config_files.find("one") == str(inside / "one.py")
