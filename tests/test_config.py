"""The configuration: defaults, types, faults, files, and what a restart may change."""

import dataclasses
import json
import os

import pytest

from ap_detect import config as config_lib
from ap_detect import losses
from ap_detect.models import backbones, heads

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
      ("train.deterministic", 1, "bool"),
      ("model.backbone", 50, "str"),
      ("model.backbone", None, "str"),
      ("data.image_size_px", 128, "tuple of int"),
      ("data.image_size_px", "128", "tuple of int"),
      ("data.image_size_px", (128.0, 128.0), "tuple of int"),
      ("data.zoom_range", ("a", 1.0), "tuple of float"),
      ("data.class_names", (1, 2), "tuple of str"),
      ("model.anchor_octave_scales", ("a",), "tuple of float"),
      ("train.loss_options", 0.5, "mapping"),
      ("train.loss_options", ("delta", 0.5), "mapping"),
      ("train.loss_options", {"delta": {0.5}}, "mapping"),
      ("train.loss_options", {1: 0.5}, "mapping"),
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
    message = fault_of(
      {"train.epochs": 0, "train.decay_factor": -1.0, "data.format": "zip"}
    )
    for part in ("train.epochs must be", "train.decay_factor must", "data.format must"):
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
      ("data.train_split", "", "must name a split, got ''"),
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
      ("train.classification_loss", "my loss", "be a name or an import path"),
      ("train.classification_loss", "package.", "'package.module.function', got"),
      ("train.box_loss", "iou", "('smooth_l1', 'l1', 'giou'), got 'iou'"),
      ("eval.score_threshold", 1.0, "[0, 1)"),
      ("eval.batch_size", 0, "must be positive"),
      ("eval.test_scales", ("500",), "'500/833'"),
      ("eval.test_scales", ("500/833", "833/500"), "shorter side first"),
      ("eval.test_scales", ("0/10",), "'500/833'"),
      ("data.augmentation", "mosaic", "'ssd'"),
      ("train.seed", -1, "train.seed must be 0 to 2147483647, got -1"),
      ("train.seed", 2**31, "must be 0 to 2147483647, got 2147483648"),
      ("train.box_loss_normalizer", "batch", "('replica', 'global'), got 'batch'"),
      ("train.jit_compile", "sometimes", "('auto', 'always', 'never')"),
      ("train.log_every_steps", 0, "must be positive, got 0"),
      ("train.steps_per_execution", 0, "must be positive, got 0"),
      ("train.checkpoint_every_minutes", 0.0, "must be positive, got 0.0"),
      ("train.callbacks", ("Name",), "'package.module.Name', got ('Name',)"),
      ("train.callbacks", ("a.b", "a..b"), "must be import paths"),
      ("train.callbacks", ("a.b()",), "must be import paths"),
    ],
  )
  def test_value_out_of_range(self, name, value, said):
    message = fault_of({name: value})
    assert name.split(".")[1] in message or name == "data.format"
    assert said in message

  def test_head_initializers_are_those_there_are(self):
    assert config_lib.HEAD_INITIALIZERS == heads.INITIALIZERS

  def test_box_losses_are_those_there_are(self):
    assert (*losses.OFFSET_LOSSES, *losses.BOX_LOSSES) == config_lib.BOX_LOSSES

  def test_every_backbone_is_named(self):
    (backbone,) = (
      item for item in config_lib.describe("model") if item.name == "model.backbone"
    )
    assert all(name in backbone.meaning for name in backbones.BACKBONES)

  @pytest.mark.parametrize(
    "changes",
    [
      {"train.seed": 0},
      {"train.seed": 2**31 - 1},
      {"train.callbacks": ("package.module.Name", "package.name")},
      {"train.box_loss_normalizer": "global"},
      {"train.classification_loss": "hinge_loss"},  # which training looks for
      {"train.classification_loss": "package.module.function"},
      {"model.frozen_levels": 0},
      {"model.frozen_levels": 5},
    ],
  )
  def test_value_at_the_end_of_its_range(self, changes):
    config = resolve(changes)
    for name, value in changes.items():
      section, field = name.split(".")
      assert getattr(getattr(config, section), field) == value

  def test_value_too_large_for_a_float(self):
    message = fault_of({"train.learning_rate": 10**400})
    assert "train.learning_rate must be of type float" in message

  def test_ssd_does_not_zoom(self):
    message = fault_of({"data.augmentation": "ssd", "data.zoom_range": (0.5, 2.0)})
    assert "data.zoom_range must be (1.0, 1.0) with augmentation 'ssd'" in message


class TestLossOptions:
  def test_mapping_with_tuples_for_lists(self):
    values = config_lib.default_config()
    values.data.format = "shapes"
    values.train.loss_options = {"delta": 0.5, "form": None}
    values.train.loss_options.class_weights = [1, 2.0]
    config = config_lib.resolve(values)
    expected = {"delta": 0.5, "form": None, "class_weights": (1, 2.0)}
    assert config.train.loss_options == expected
    assert config_lib.resolve(SHAPES).train.loss_options == {}
    saved = json.loads(json.dumps(dataclasses.asdict(config)))
    assert config_lib.resolve(saved) == config

  @pytest.mark.parametrize("values", [[], {"train": 3}, {"train": {"loss_options": 3}}])
  def test_what_is_no_mapping_is_left_for_resolve(self, values):
    overrides = [("train.loss_options.delta", 0.5)]
    assert config_lib.override_loss_options(values, overrides) is values

  def test_defaults_are_not_shared(self):
    config_lib.TrainConfig().loss_options["delta"] = 0.5
    assert config_lib.TrainConfig().loss_options == {}

  def test_overrides_in_their_order(self):
    values = {"train": {"loss_options": {"delta": 2.0}}, **SHAPES}

    def options(*overrides):
      return config_lib.override_loss_options(values, list(overrides))["train"]

    assert options(("train.loss_options.beta", 1)) == {
      "loss_options": {"delta": 2.0, "beta": 1}
    }
    one_and_all = [("train.loss_options.delta", 0.5), ("train.loss_options", {"a": 1})]
    assert options(*one_and_all) == {"loss_options": {"a": 1}}
    assert options(*one_and_all[::-1]) == {"loss_options": {"a": 1, "delta": 0.5}}
    assert options(("train.delta", 1.0)) == {"loss_options": {"delta": 1.0}}
    assert values["train"] == {"loss_options": {"delta": 2.0}}


@pytest.fixture
def said(hear):
  config_lib._say_once.cache_clear()
  return hear("info")


OLD = {"delta": 0.5, "interpolated": False, "images_per_ranking": 2}


class TestOldNames:
  """train.delta, interpolated and images_per_ranking of earlier versions."""

  def test_are_moved_and_said_once(self, said):
    old = {f"train.{name}": value for name, value in OLD.items()}
    for _ in range(2):
      assert resolve(old) == resolve({"train.loss_options": OLD})
    (line,) = said
    for name in OLD:
      assert f"train.{name}" in line and f"train.loss_options.{name}" in line

  def test_in_a_config_file(self, said):
    values = config_lib.default_config()
    values.data.format = "shapes"
    values.train.delta = 0.5
    assert config_lib.resolve(values).train.loss_options == {"delta": 0.5}
    assert len(said) == 1

  def test_all_images_together_was_0(self, said):
    config = resolve({"train.images_per_ranking": 0})
    assert config.train.loss_options == {"images_per_ranking": None}

  def test_what_a_loss_ignored_is_left_out(self, said):
    loss = {"train.classification_loss": "focal_loss"}
    saved = {"train.delta": 1.0, "train.interpolated": True, **loss}
    assert resolve(saved).train.loss_options == {}
    assert not said  # an earlier version wrote the defaults for every loss
    assert resolve({**loss, "train.delta": 0.5}).train.loss_options == {}
    assert said == ["train.delta is left out, for focal_loss has no such option"]
    loss = {"train.classification_loss": "auc_loss", "train.interpolated": False}
    assert resolve({**loss, "train.delta": 0.5}).train.loss_options == {"delta": 0.5}

  def test_two_values_of_one_option(self, said):
    both = {"train.delta": 0.5, "train.loss_options": {"delta": 0.5}}
    assert resolve(both).train.loss_options == {"delta": 0.5}
    message = fault_of({"train.delta": 1.0, "train.loss_options": {"delta": 0.5}})
    assert "train.loss_options.delta, is given by both names, as 1.0 and 0.5" in message

  def test_their_types_are_the_loss_s_to_check(self, said):
    assert resolve({"train.delta": "a"}).train.loss_options == {"delta": "a"}


class TestFile:
  def test_round_trip(self, tmp_path):
    config = resolve({"data.zoom_range": (0.5, 2), "train.learning_rate": 1e-5})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dataclasses.asdict(config)))
    assert config_lib.load(str(path)) == config
    assert config != config_lib.resolve(SHAPES)

  def test_fields_that_an_older_version_lacks_have_their_defaults(self, tmp_path):
    config = resolve({"train.epochs": 7})
    saved = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in ("callbacks", "deterministic", "log_every_steps"):
      del saved["train"][name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(saved))
    assert config_lib.load(os.fspath(path)) == config

  def test_damaged_file_is_named(self, tmp_path):
    path = tmp_path / "config.json"
    for content in ('{"model": ', json.dumps({"modle": {}})):
      path.write_text(content)
      with pytest.raises(ValueError, match=r"config\.json: "):
        config_lib.load(str(path))


PATHS = ("data.root", "model.backbone_weights", "model.initial_checkpoint")


class TestPaths:
  @pytest.mark.parametrize("name", PATHS)
  def test_home_folder_is_expanded(self, name, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    section, field = name.split(".")
    config = resolve({name: "~/some/path"})
    assert getattr(getattr(config, section), field) == "/home/someone/some/path"

  @pytest.mark.parametrize("name", PATHS)
  def test_addresses_are_refused(self, name):
    message = fault_of({name: "gs://bucket/path"})
    assert f"{name} must be a local path, got 'gs://bucket/path'" in message

  def test_what_is_no_path_stays(self):
    config = resolve(
      {"model.backbone_weights": "imagenet", "data.service_address": "grpc://host:1"}
    )
    assert config.model.backbone_weights == "imagenet"
    assert config.data.service_address == "grpc://host:1"


class TestDescribe:
  def test_describes_every_field(self):
    for section in dataclasses.fields(config_lib.Config):
      described = config_lib.describe(section.name)
      default = section.default_factory()
      assert {item.name: item.default for item in described} == {
        f"{section.name}.{name}": value
        for name, value in dataclasses.asdict(default).items()
      }
      assert all(item.meaning.endswith(".") for item in described)

  @pytest.mark.parametrize(
    ("name", "type_name", "said"),
    [
      ("train.decay_factor", "float", "decay_epochs. Must be positive."),
      ("train.loss_options", "mapping", "--config.train.loss_options.delta=0.5"),
      ("train.callbacks", "tuple of str", "without arguments."),
      (
        "data.image_size_px",
        "tuple of int",
        "Must be (height, width), multiples of 32",
      ),
      ("data.drop_empty_images", "bool", "Whether images without objects are"),
    ],
  )
  def test_type_meaning_and_rule(self, name, type_name, said):
    (found,) = (
      item for item in config_lib.describe(name.split(".")[0]) if item.name == name
    )
    assert found.type_name == type_name
    assert said in found.meaning


MAY_CHANGE = {
  *("data.root", "data.annotations", "data.images", "data.check_images"),
  *("data.service_address", "data.skip_faulty"),
  *("train.accumulate_steps", "train.patience", "train.reference_batch_size"),
  *("data.max_image_pixels", "train.epochs", "train.learning_rate", "train.clip_norm"),
  *("train.batch_size", "train.validate_every_epochs", "train.keep_checkpoints"),
  *("train.jit_compile", "train.log_every_steps", "train.steps_per_execution"),
  *("train.checkpoint_every_minutes", "train.deterministic", "train.callbacks"),
  *("eval.batch_size", "eval.score_threshold", "eval.candidates_per_level"),
  *("eval.nms_iou", "eval.max_detections", "eval.test_scales"),
  *("eval.horizontal_flip", "eval.num_pictures"),
}


class TestChanges:
  def test_names_both_values_in_the_order_of_the_fields(self):
    changed = {"train.epochs": 3, "model.fpn_channels": 16, "eval.nms_iou": 0.6}
    assert config_lib.changes(resolve({}), resolve(changed)) == [
      ("model.fpn_channels", 256, 16, False),
      ("train.epochs", 160, 3, True),
      ("eval.nms_iou", 0.5, 0.6, True),
    ]

  def test_each_option_of_a_loss(self):
    one = resolve({"train.loss_options": {"delta": 0.5, "beta": None}})
    other = resolve({"train.loss_options": {"alpha": 1, "delta": 2}})
    assert config_lib.changes(one, other) == [
      ("train.loss_options.delta", 0.5, 2, False),
      ("train.loss_options.alpha", None, 1, False),
    ]

  def test_there_are_none(self):
    assert config_lib.changes(resolve({}), resolve({})) == []

  @pytest.mark.parametrize("name", config_lib.field_names())
  def test_what_may_change_between_two_starts(self, name):
    section, field = name.split(".")
    config = config_lib.Config()
    before = getattr(config, section)
    changed = dataclasses.replace(before, **{field: "another"})
    found = config_lib.changes(
      config, dataclasses.replace(config, **{section: changed})
    )
    assert found == [(name, getattr(before, field), "another", name in MAY_CHANGE)]

  def test_can_be_written_as_json(self):
    (change,) = config_lib.changes(resolve({}), resolve({"train.callbacks": ("a.b",)}))
    assert json.loads(json.dumps(change._asdict())) == {
      "name": "train.callbacks",
      "before": [],
      "after": ["a.b"],
      "is_allowed": True,
    }
