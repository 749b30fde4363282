"""The configuration: defaults, types, faults, files, and the command line."""

import ast
import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from ap_detect import config as config_lib
from ap_detect.models import heads

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
SHAPES = {"data": {"format": "shapes"}}


def resolve(changes):
  """A config of shapes with {"section.field": value} changed."""
  values = {"data": {"format": "shapes"}}
  for name, value in changes.items():
    section, field = name.split(".")
    values.setdefault(section, {})[field] = value
  return config_lib.resolve(values)


def fault_of(changes):
  with pytest.raises(ValueError) as caught:
    resolve(changes)
  return str(caught.value)


class TestResolve:
  def test_defaults_are_the_paper_s(self):
    config = config_lib.resolve(SHAPES)
    assert config.data.format == "shapes"
    assert config == config_lib.Config(data=config_lib.DataConfig(format="shapes"))
    assert (config.model.backbone, config.train.optimizer) == ("resnet50", "sgd")
    assert (config.train.learning_rate, config.train.momentum) == (1e-3, 0.9)
    assert config.train.weight_decay == 1e-4
    assert config.train.decay_epochs == (110, 140)

  def test_default_config_holds_the_same_values(self):
    values = config_lib.default_config()
    values.data.format = "shapes"
    assert config_lib.resolve(values) == config_lib.resolve(SHAPES)

  def test_integers_pass_for_floats_and_lists_for_tuples(self):
    config = resolve(
      {
        "train.learning_rate": 1,
        "data.zoom_range": [1, 2],
        "data.image_size_px": [128, 256],
      }
    )
    assert type(config.train.learning_rate) is float
    assert config.train.learning_rate == 1.0
    assert config.data.zoom_range == (1.0, 2.0)
    assert [type(zoom) for zoom in config.data.zoom_range] == [float, float]
    assert config.data.image_size_px == (128, 256)

  @pytest.mark.parametrize(
    ("name", "value", "type_name"),
    [
      ("train.learning_rate", "0.1", "float"),
      ("train.learning_rate", True, "float"),
      ("train.epochs", 1.5, "int"),
      ("train.epochs", True, "int"),
      ("train.interpolated", 1, "bool"),
      ("model.backbone", 50, "str"),
      ("model.backbone", None, "str"),
      ("data.image_size_px", 128, "tuple of int"),
      ("data.image_size_px", "128", "tuple of int"),
      ("data.image_size_px", (128.0, 128.0), "tuple of int"),
      ("data.zoom_range", ("a", 1.0), "tuple of float"),
      ("data.class_names", (1, 2), "tuple of str"),
      ("model.anchor_octave_scales", ("a",), "tuple of float"),
    ],
  )
  def test_wrong_type(self, name, value, type_name):
    message = fault_of({name: value})
    assert f"{name} must be of type {type_name}, got {value!r}" in message

  def test_unknown_field_lists_the_valid_ones(self):
    message = fault_of({"train.learing_rate": 0.1})
    assert "no config field 'train.learing_rate'" in message
    assert "did you mean 'train.learning_rate'?" in message
    for section in dataclasses.fields(config_lib.Config):
      for field in dataclasses.fields(section.default_factory):
        assert f"\n    {section.name}.{field.name}" in message

  def test_unknown_section(self):
    message = fault_of({"zzz.depth": 50})
    assert "no config field 'zzz'. The fields are:" in message
    assert "model.backbone" in message

  @pytest.mark.parametrize("values", [[], "a", {"model": 3}, {"model": ["backbone"]}])
  def test_what_is_no_mapping(self, values):
    with pytest.raises(ValueError, match="must be a mapping"):
      config_lib.resolve(values)

  def test_all_faults_at_once(self):
    message = fault_of({"train.epochs": "x", "model.bone": 1, "data.root": 3})
    for part in ("train.epochs must be", "'model.bone'", "data.root must be"):
      assert part in message
    message = fault_of({"train.epochs": 0, "train.delta": -1.0, "data.format": "zip"})
    for part in ("train.epochs must be", "train.delta must be", "data.format must be"):
      assert part in message

  @pytest.mark.parametrize(
    ("name", "value", "said"),
    [
      ("data.image_size_px", (100, 128), "multiples of"),
      ("data.image_size_px", (128,), "(height, width)"),
      ("data.image_size_px", (0, 128), "multiples of"),
      ("data.zoom_range", (2.0, 1.0), "low <= high"),
      ("data.horizontal_flip", 1.5, "must be 0 to 1, got 1.5"),
      ("data.color_jitter", -1.0, "must be 0 to 2, got -1.0"),
      ("data.shapes_size_px", (0, 9), "(height, width), positive"),
      ("data.shapes_size_px", (9,), "(height, width), positive"),
      ("data.train_split", "", "must name splits, got '' and 'val'"),
      ("model.head_initializer", "xavier", "'he'"),
      ("model.frozen_levels", 6, "must be 0 to 5, got 6"),
      ("train.momentum", -3.0, "must be 0 to 1"),
      ("train.decay_factor", -1.0, "must be positive"),
      ("train.warmup_start_factor", 2.0, "must be 0 to 1"),
      ("eval.nms_iou", 1.5, "must be 0 to 1, got 1.5"),
      ("eval.num_pictures", -1, "must not be negative"),
      ("data.format", "voc", "--config.data.root="),
      ("model.negative_iou", 0.6, "negative_iou <= model.positive_iou"),
      ("model.anchor_aspect_ratios", (), "anchor_aspect_ratios"),
      ("train.learning_rate", float("nan"), "must be positive, got nan"),
      ("train.weight_decay", -0.1, "must not be negative"),
      ("train.optimizer", "rmsprop", "'sgdw'"),
      ("train.schedule", "linear", "'cosine'"),
      ("train.classification_loss", "hinge", "'focal_loss'"),
      ("eval.score_threshold", 1.0, "[0, 1)"),
      ("eval.batch_size", 0, "must be positive"),
      ("eval.test_scales", ("500",), "'500/833'"),
      ("eval.test_scales", ("500/833", "833/500"), "shorter side first"),
      ("eval.test_scales", ("0/10",), "'500/833'"),
      ("train.images_per_ranking", 3, "must divide train.batch_size, got 3 and 8"),
      ("train.images_per_ranking", -1, "must divide"),
      ("data.augmentation", "mosaic", "'ssd'"),
    ],
  )
  def test_value_out_of_range(self, name, value, said):
    message = fault_of({name: value})
    assert name.split(".")[1] in message or name == "data.format"
    assert said in message

  def test_head_initializers_are_those_there_are(self):
    assert config_lib.HEAD_INITIALIZERS == heads.INITIALIZERS

  def test_ssd_does_not_zoom(self):
    message = fault_of({"data.augmentation": "ssd", "data.zoom_range": (0.5, 2.0)})
    assert "data.zoom_range must be (1.0, 1.0) with augmentation 'ssd'" in message


class TestFile:
  def test_round_trip(self, tmp_path):
    config = resolve({"data.zoom_range": (0.5, 2), "train.learning_rate": 1e-5})
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    assert config_lib.load(str(path)) == config
    assert config != config_lib.resolve(SHAPES)

  def test_damaged_file_is_named(self, tmp_path):
    path = tmp_path / "config.json"
    for content in ('{"model": ', json.dumps({"modle": {}})):
      path.write_text(content)
      with pytest.raises(ValueError, match=r"config\.json: "):
        config_lib.load(str(path))


class TestDifferences:
  def test_names_both_values(self):
    found = config_lib.differences(
      resolve({}), resolve({"train.epochs": 3, "model.fpn_channels": 16})
    )
    assert found == ["model.fpn_channels: 256 -> 16", "train.epochs: 160 -> 3"]

  def test_what_may_change_between_two_starts(self):
    changed = resolve(
      {
        "data.root": "elsewhere",
        "data.check_images": False,
        "train.keep_checkpoints": 5,
        "eval.batch_size": 1,
      }
    )
    assert config_lib.differences(resolve({}), changed) == []


def run_python(*arguments):
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


class TestCommandLine:
  @pytest.mark.parametrize(
    ("argument", "said"),
    [
      ("--config.modle.x=1", ["'modle.x'", "train.learning_rate"]),
      ("--config.train.learing_rate=1", ["did you mean 'train.learning_rate'?"]),
      ("-config.train.x.y=1", ["'train.x.y'", "train.learning_rate"]),
      ("--noconfig.train.interpolatd", ["did you mean 'train.interpolated'?"]),
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
      "from ap_detect import command_line, config\n"
      "flag = command_line.define_config('configs/shapes.py')\n"
      "command_line.run(lambda _: print(config.resolve(flag.value).to_json()))\n"
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
      "--noconfig.train.interpolated",
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["data"]["image_size_px"] == [128, 256]
    assert values["data"]["zoom_range"] == [1.0, 2.0]
    assert values["train"]["learning_rate"] == 1.0
    assert values["train"]["decay_epochs"] == [3]
    assert values["train"]["epochs"] == 5
    assert values["train"]["interpolated"] is False
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
      ("FileNotFoundError(2, 'gone', 'x')", 1, "error: [Errno 2] gone: 'x'\n"),
      ("KeyboardInterrupt", 130, ""),
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

  def test_a_fault_of_ours_has_one(self, tmp_path):
    script = tmp_path / "fail.py"
    script.write_text(
      "from ap_detect import command_line\ncommand_line.run(lambda _: [].pop())\n"
    )
    done = run_python(str(script))
    assert done.returncode != 0
    assert "Traceback" in done.stderr
