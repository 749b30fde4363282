"""A run's folder: claiming it, opening it again, and what is wrong with it."""

import json
import os
import shutil

import pytest

from ap_detect.data import dataset as dataset_lib
from ap_detect.data import shapes
from ap_detect.training import run

CLASSES = run.Classes(("cat", "dog"), (1, 2))


def pretend_checkpoint(model_dir):
  """What says that a run has started: enough for `start`, not to restore."""
  folder = model_dir / "checkpoints"
  folder.mkdir()
  (folder / "checkpoint").write_text('model_checkpoint_path: "epoch-0"\n')
  (folder / "epoch-0.index").write_text("")
  (folder / "epoch-0.data-00000-of-00001").write_text("")


class TestStart:
  def test_writes_config_and_classes(self, make_config, tmp_path):
    config = make_config()
    run.start(str(tmp_path / "run"), config, CLASSES)
    assert run.load_config(str(tmp_path / "run")) == config
    assert run.load_classes(str(tmp_path / "run")) == CLASSES

  def test_same_config_continues(self, make_config, tmp_path):
    run.start(str(tmp_path), make_config(), CLASSES)
    pretend_checkpoint(tmp_path)
    run.start(str(tmp_path), make_config({"eval.batch_size": 2}), CLASSES)

  def test_another_config_lists_what_differs(self, make_config, tmp_path):
    run.start(str(tmp_path), make_config(), CLASSES)
    pretend_checkpoint(tmp_path)
    other = make_config({"train.epochs": 9, "data.image_size_px": (256, 256)})
    with pytest.raises(ValueError) as caught:
      run.start(str(tmp_path), other, CLASSES)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "train.epochs: 3 -> 9" in message
    assert "data.image_size_px: (128, 128) -> (256, 256)" in message
    assert "learning_rate" not in message
    assert run.load_config(str(tmp_path)) == make_config()

  def test_other_classes(self, make_config, tmp_path):
    run.start(str(tmp_path), make_config(), CLASSES)
    pretend_checkpoint(tmp_path)
    others = run.Classes(("cat", "cow", "dog"), (1, 2, 3))
    with pytest.raises(ValueError, match=r"2 classes .*dog.* now has 3 classes .*cow"):
      run.start(str(tmp_path), make_config(), others)
    with pytest.raises(ValueError, match="--model_dir"):
      run.start(str(tmp_path), make_config(), run.Classes(("dog", "cat"), (1, 2)))

  def test_start_that_failed_before_its_checkpoint_binds_nobody(
    self, make_config, tmp_path
  ):
    run.start(str(tmp_path), make_config({"model.backbone": "mistyped"}), CLASSES)
    run.start(str(tmp_path), make_config(), CLASSES)
    assert run.load_config(str(tmp_path)) == make_config()


class TestErrors:
  def test_no_run(self, tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no .*config\.json"):
      run.restore(str(tmp_path))

  def test_no_checkpoint_yet(self, make_config, tmp_path):
    run.start(str(tmp_path), make_config(), CLASSES)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
      run.restore(str(tmp_path))

  def test_no_such_checkpoint(self, trained_run):
    with pytest.raises(ValueError, match="there is no checkpoint nowhere/epoch-7"):
      run.restore(trained_run, "nowhere/epoch-7")

  def test_checkpoint_of_another_network(self, trained_run, tmp_path):
    copy = str(tmp_path / "copy")
    shutil.copytree(trained_run, copy)
    path = os.path.join(copy, "config.json")
    values = run.read_json(path)
    values["model"]["head_convolutions"] = 2
    run.write_json(path, values)
    with pytest.raises(ValueError, match=r"epoch-\d does not fit the network"):
      run.restore(copy)

  def test_not_validated_yet(self, make_config, tmp_path):
    run.start(str(tmp_path), make_config(), CLASSES)
    with pytest.raises(ValueError, match=r"not validated yet.*--score_threshold"):
      run.load_thresholds(str(tmp_path))
    given = run.load_thresholds(str(tmp_path), 0.25)
    assert given.per_class == {"cat": 0.25, "dog": 0.25}


class TestOpenSplit:
  @pytest.fixture
  def make_coco_config(self, make_config, tmp_path):
    """Config of a folder with "train" and "val" of two pictures each in one/, two/."""
    for folder, seed in (("one", 0), ("two", 1)):
      for split in ("train", "val"):
        data = shapes.make_shapes(
          split, num_images=2, image_size_px=(64, 64), seed=seed
        )
        shapes.write_shapes(data, str(tmp_path / folder), split)

    def make(**changes):
      changes = {f"data.{name}": value for name, value in changes.items()}
      return make_config({"data.format": "auto", "data.root": str(tmp_path), **changes})

    return make

  def test_several_splits_as_one(self, make_coco_config, tmp_path):
    (tmp_path / "list.txt").write_text("2\n")
    data = run.open_split(make_coco_config(), "one/train+two/val@list.txt")
    assert [record.image_id for record in data.records] == [
      *(1, "one/train/2", "two/val/2"),
    ]
    assert data.class_names == shapes.CLASS_NAMES

  def test_options_reach_the_reader(self, make_coco_config, tmp_path):
    """A damaged picture, a large one, and classes in another order."""
    path = tmp_path / "one/train/000001.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(dataset_lib.DataError, match=r"one/train: .*000001\.png: trunc"):
      run.open_split(make_coco_config(), "one/train")
    data = run.open_split(make_coco_config(skip_faulty=True), "one/train")
    assert len(data.records) == len(data.skipped) == 1
    unchecked = make_coco_config(check_images=False)
    assert len(run.open_split(unchecked, "one/train").records) == 2
    with pytest.raises(dataset_lib.DataError, match="more than 4095 in all"):
      run.open_split(make_coco_config(max_image_pixels=4095), "one/train")
    names = shapes.CLASS_NAMES[::-1]
    config = make_coco_config(class_names=names)
    assert run.open_split(config, "two/val").class_names == names
    names = (*names[1:], names[0])  # those of a run go before the config's
    assert run.open_split(config, "two/val", names).class_names == names


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({}, []),
    ({"eval.test_scales": ("96/128",)}, ["test scales ('96/128',); here"]),
    ({"eval.horizontal_flip": True}, ["test scales (128, 128), mirrored too; here"]),
  ],
)
def test_serving_says_that_it_has_one_view(make_config, monkeypatch, changes, said):
  warnings = []
  monkeypatch.setattr(
    run.logging, "warning", lambda text, *parts: warnings.append(text % parts)
  )
  run.make_detect(make_config(changes))
  assert len(warnings) == len(said)
  assert all(part in warning for part, warning in zip(said, warnings))


def test_a_moved_run_is_the_same_run(trained_run, tmp_path):
  moved = str(tmp_path / "moved")
  shutil.copytree(trained_run, moved)
  assert run.restore(moved, "latest").checkpoint.startswith(moved)
  assert run.restore(moved).checkpoint.startswith(moved)


def test_json_is_replaced_whole(tmp_path):
  path = str(tmp_path / "a.json")
  run.write_json(path, {"old": 1})
  with pytest.raises(TypeError):
    run.write_json(path, {"new": [1, 2, object()]})
  assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
