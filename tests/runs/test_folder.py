"""A run's folder: whether one may begin there, its checkpoints."""

import os
import re
import shutil

import pytest

from ap_detect.runs import files, folder

CLASSES = folder.Classes(("cat", "dog"), (1, 2))


def pretend_checkpoints(model_dir, *names, subfolder="checkpoints"):
  """What says that there are checkpoints: enough to find, not to restore."""
  parent = model_dir / subfolder
  parent.mkdir(exist_ok=True, parents=True)
  for name in names:
    (parent / f"{name}.index").write_text("")
    (parent / f"{name}.data-00000-of-00001").write_text("")


@pytest.fixture
def said(hear):
  """Warnings."""
  return hear("warning")


class TestIsUnused:
  def test_no_folder_and_an_empty_one(self, tmp_path):
    assert folder.is_unused(str(tmp_path / "run"))
    assert folder.is_unused(str(tmp_path))

  def test_a_run(self, tmp_path):
    pretend_checkpoints(tmp_path, "step-0")
    assert not folder.is_unused(str(tmp_path))

  def test_a_trained_run(self, trained_run):
    assert not folder.is_unused(trained_run)

  def test_start_that_failed_before_its_checkpoint_binds_nobody(self, tmp_path):
    (tmp_path / ".lock").write_text("1\n")
    files.write_json(str(tmp_path / "config.json"), {"model": {"backbone": "mistyped"}})
    files.write_json(str(tmp_path / "classes.json"), CLASSES._asdict())
    for name in ("checkpoints", "best", "tensorboard"):
      (tmp_path / name).mkdir()
    assert folder.is_unused(str(tmp_path))

  @pytest.mark.parametrize(
    "path", ["writing/step-0.index", "step-0.data-00000-of-00001"]
  )
  def test_nor_does_one_that_was_killed_in_its_first_save(self, path, tmp_path):
    path = tmp_path / "checkpoints" / path
    path.parent.mkdir(parents=True)
    path.write_text("")
    assert folder.is_unused(str(tmp_path))

  @pytest.mark.parametrize(
    "name",
    [
      *("history.json", "best.json", "metrics.csv"),
      *("best/epoch-1.index", "tensorboard/events.1", "eval/val/metrics.json"),
    ],
  )
  def test_results_without_a_checkpoint(self, name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    held = name.split("/")[0]
    with pytest.raises(ValueError) as caught:
      folder.is_unused(str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} holds results of a run ({held}), but no ch")
    assert str(tmp_path / "checkpoints") in message
    assert "another --model_dir" in message

  def test_a_run_whose_checkpoints_were_removed(self, trained_run, tmp_path):
    """All that it holds is named."""
    model_dir = str(tmp_path / "run")
    shutil.copytree(trained_run, model_dir)
    shutil.rmtree(os.path.join(model_dir, "checkpoints"))
    held = r"\(history\.json, best\.json, metrics\.csv, best, tensorboard\), but no ch"
    with pytest.raises(ValueError, match=held):
      folder.is_unused(model_dir)

  def test_a_run_of_an_earlier_version(self, tmp_path):
    pretend_checkpoints(tmp_path, "epoch-1", "epoch-2")
    (tmp_path / "history.json").write_text("[]")
    with pytest.raises(ValueError) as caught:
      folder.is_unused(str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} holds a run of an earlier version")
    assert f"--config.model.initial_checkpoint={tmp_path} " in message
    assert "another --model_dir" in message
    assert "\n" not in message


class TestCheckpointPaths:
  def test_newest_first(self, tmp_path):
    names = ("step-9", "step-10", "step-10-validated", "step-2-validated")
    pretend_checkpoints(tmp_path, *names)
    found = folder.checkpoint_paths(str(tmp_path))
    assert [os.path.relpath(path, tmp_path / "checkpoints") for path in found] == [
      *("step-10-validated", "step-10", "step-9", "step-2-validated")
    ]

  def test_what_is_none(self, tmp_path):
    pretend_checkpoints(tmp_path, "step-3")
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "step-4.data-00000-of-00001").write_text("")  # without an index
    pretend_checkpoints(checkpoints, "step-5", subfolder="writing")
    pretend_checkpoints(checkpoints, "step-6", subfolder="damaged")
    (checkpoints / "step-7-copy.index").write_text("")
    assert folder.checkpoint_paths(str(tmp_path)) == [str(checkpoints / "step-3")]
    assert folder.checkpoint_paths(str(tmp_path / "nowhere")) == []


class TestFindCheckpoint:
  @pytest.fixture
  def model_dir(self, tmp_path):
    pretend_checkpoints(tmp_path, "step-3-validated", "step-6")
    pretend_checkpoints(tmp_path, "epoch-1", subfolder="best")
    best = {"checkpoint": "epoch-1", "metrics": {}, "score_thresholds": {}}
    files.write_json(str(tmp_path / "best.json"), best)
    return str(tmp_path)

  def test_the_best_and_the_latest(self, model_dir):
    assert folder.find_checkpoint(model_dir) == f"{model_dir}/best/epoch-1"
    latest = f"{model_dir}/checkpoints/step-6"
    assert folder.find_checkpoint(model_dir, "latest") == latest
    os.remove(f"{model_dir}/best.json")
    assert folder.find_checkpoint(model_dir) == latest

  def test_a_path_with_and_without_index(self, model_dir):
    path = f"{model_dir}/checkpoints/step-3-validated"
    assert folder.find_checkpoint(model_dir, path) == path
    assert folder.find_checkpoint(model_dir, f"{path}.index") == path

  @pytest.mark.parametrize("end", ["", "/"])
  def test_of_a_folder_the_newest(self, model_dir, end):
    path = f"{model_dir}/checkpoints"
    assert folder.find_checkpoint(model_dir, path + end) == f"{path}/step-6"

  def test_there_is_none(self, model_dir, tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint nowhere/epoch-7\b"):
      folder.find_checkpoint(model_dir, "nowhere/epoch-7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no checkpoint \S*/empty\b"):
      folder.find_checkpoint(model_dir, str(tmp_path / "empty"))
    for checkpoint in ("", "latest"):
      with pytest.raises(ValueError, match=r"/empty has no checkpoint yet$"):
        folder.find_checkpoint(str(tmp_path / "empty"), checkpoint)
    os.remove(f"{model_dir}/best/epoch-1.index")
    with pytest.raises(ValueError, match=r"there is no checkpoint \S*/best/epoch-1\b"):
      folder.find_checkpoint(model_dir)

  def test_a_damaged_best_json_is_named(self, model_dir):
    with open(f"{model_dir}/best.json", "w"):
      pass
    with pytest.raises(ValueError, match=r"best\.json is not valid JSON"):
      folder.find_checkpoint(model_dir)


def test_a_record_is_all_of_a_run_but_its_tensors(trained_run):
  record = folder.read_record(folder.checkpoint_paths(trained_run)[0])
  assert record["step"] == record["clock"]["step"] == 9
  for name in ("config", "classes", "history", "best"):
    path = os.path.join(trained_run, f"{name}.json")
    assert record[name] == files.read_json(path), name


def test_no_run(tmp_path):
  path = re.escape(str(tmp_path / "config.json"))
  with pytest.raises(ValueError, match=f"holds no run: there is no {path}$"):
    folder.load_config(str(tmp_path))
