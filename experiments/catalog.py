"""The experiments, as data. A run takes a config file and overrides of its fields."""

from __future__ import annotations

from plan import Dataset, Evaluation, Experiment, Row, Stage

DATASETS = {
  "shapes": Dataset(
    config="shapes",
    places={},
    overrides={"train.validate_every_epochs": 1},
    evaluations=(
      Evaluation("val", "val"),
      Evaluation("test", "test", data={"shapes_val_images": 1000}),
    ),
  ),
  "bccd": Dataset(
    config="own_data",
    places={"data.root": "bccd_dir", "model.backbone_weights": "weights"},
    # Two objects of it have no width.
    overrides={"data.skip_faulty": True, "train.validate_every_epochs": 2},
    evaluations=(Evaluation("val", "val"), Evaluation("test", "test")),
  ),
  "voc07": Dataset(
    config="voc07_lite0",
    places={"data.root": "voc_dir", "model.backbone_weights": "weights"},
    overrides={"train.validate_every_epochs": 4},
    evaluations=(Evaluation("val", "val"),),
  ),
}

# Short name of a loss in tables -> its name in configs.
_LOSSES = {
  "ap": "ap_loss",
  "focal": "focal_loss",
  "rank_and_sort": "rank_and_sort_loss",
  "auc": "auc_loss",
  "ohem_cross_entropy": "ohem_cross_entropy_loss",
  "quality_focal": "quality_focal_loss",
}
# Box loss -> losses of the classes that are compared with it.
_BESIDE = {"smooth_l1": tuple(_LOSSES), "giou": ("ap", "focal", "rank_and_sort")}
_SEEDS = (0, 1, 2)


def _loss(name):
  return {"train.classification_loss": _LOSSES[name]}


def _losses(*names):
  """A row for each loss."""
  return tuple(Row(name, _loss(name)) for name in names)


def _tuned(rows):
  """The rows, each with the best point of the row of its name in the tuning."""
  return tuple(row._replace(tuned_as=row.name) for row in rows)


def _stages(*rates, weights=(1.0, 2.0, 4.0)):
  """A grid for all losses; the first rate is the config's own."""
  return (
    Stage("rate", "train.learning_rate", rates),
    Stage("weight", "train.box_loss_weight", weights),
    Stage("prior", "model.score_prior", (0.01, 0.1)),
  )


_ON_SHAPES = tuple(
  Row(f"{name}-{box_loss}", {**_loss(name), "train.box_loss": box_loss})
  for box_loss, names in _BESIDE.items()
  for name in names
)
_ON_BCCD = _losses("ap", "focal", "rank_and_sort", "quality_focal")
_ON_VOC = _losses("ap", "focal")

_CHOICE = (
  "One after the other, each from the best so far by AP on val: the learning rate, the "
  "weight of the box loss, the prior of the scores; the same values for every loss, one "
  "seed."
)

_COMPARISONS = (
  Experiment(
    name="tuning_shapes",
    question=f"What each loss wants on shapes at 3 epochs. {_CHOICE}",
    dataset="shapes",
    rows=_ON_SHAPES,
    seeds=(0,),
    minutes=2.5,
    overrides={"train.epochs": 3},
    evaluations=(Evaluation("val", "val"),),
    # Focal loss wants the lowest of 3 rates and the highest of 3 weights, so 4 of each.
    stages=_stages(2e-3, 1e-3, 4e-3, 5e-4, weights=(1.0, 2.0, 4.0, 8.0)),
  ),
  Experiment(
    name="comparison_shapes",
    question=(
      "Which classification loss detects best on shapes after 3 epochs from scratch, each "
      "at its own best point, and does that depend on the box loss?"
    ),
    dataset="shapes",
    rows=_tuned(_ON_SHAPES),
    seeds=_SEEDS,
    minutes=2.5,
    overrides={"train.epochs": 3},
    tuning="tuning_shapes",
    pairs=tuple((f"ap-{box_loss}", f"focal-{box_loss}") for box_loss in _BESIDE),
  ),
  Experiment(
    name="comparison_shapes_7",
    question="The same with the demo's 7 epochs, at the points that were best at 3.",
    dataset="shapes",
    rows=_tuned(_ON_SHAPES[:2]),
    seeds=_SEEDS,
    minutes=6,
    tuning="tuning_shapes",
    pairs=(("ap-smooth_l1", "focal-smooth_l1"),),
  ),
  Experiment(
    name="tuning_bccd",
    question=f"What each loss wants on BCCD at 10 epochs. {_CHOICE}",
    dataset="bccd",
    rows=_ON_BCCD,
    seeds=(0,),
    minutes=4,
    overrides={"train.epochs": 10},
    evaluations=(Evaluation("val", "val"),),
    stages=_stages(1e-3, 5e-4, 2e-3),
  ),
  Experiment(
    name="comparison_bccd",
    question=(
      "Which classification loss detects blood cells best after 10 epochs of fine-tuning, "
      "each at its own best point?"
    ),
    dataset="bccd",
    rows=_tuned(_ON_BCCD),
    seeds=_SEEDS,
    minutes=4,
    overrides={"train.epochs": 10},
    tuning="tuning_bccd",
    pairs=(("ap", "focal"),),
  ),
  Experiment(
    name="comparison_bccd_30",
    question="The same with 30 epochs, at the points that were best at 10.",
    dataset="bccd",
    rows=_tuned(_ON_BCCD[:2]),
    seeds=_SEEDS,
    minutes=10,
    overrides={"train.epochs": 30, "train.validate_every_epochs": 3},
    tuning="tuning_bccd",
    pairs=(("ap", "focal"),),
  ),
  Experiment(
    name="box_weight_bccd",
    question=(
      "Whether a box loss of weight 1 gets too little beside either loss: as it is, and "
      "scaled to the value of the classification loss at every step."
    ),
    dataset="bccd",
    rows=tuple(
      Row(f"{name}-{label}", {**_loss(name), "train.balance_box_loss": is_balanced})
      for name in ("ap", "focal")
      for label, is_balanced in (("weight1", False), ("balanced", True))
    ),
    seeds=_SEEDS,
    minutes=4,
    overrides={"train.epochs": 10, "train.box_loss_weight": 1.0},
    pairs=(("ap-weight1", "focal-weight1"), ("ap-balanced", "focal-balanced")),
  ),
  Experiment(
    name="tuning_voc07",
    question=f"What each loss wants on VOC 2007, train to val, at 2 epochs. {_CHOICE}",
    dataset="voc07",
    rows=_ON_VOC,
    seeds=(0,),
    minutes=8,
    overrides={"train.epochs": 2},
    stages=_stages(3e-4, 1.5e-4, 6e-4),
  ),
  Experiment(
    name="comparison_voc07",
    question=(
      "AP-loss and focal loss on the 20 classes of VOC 2007, train to val, at a quarter of "
      "the config's length, each at its own best point."
    ),
    dataset="voc07",
    rows=_tuned(_ON_VOC),
    seeds=_SEEDS,
    minutes=42,
    overrides={"train.epochs": 14},
    tuning="tuning_voc07",
    pairs=(("ap", "focal"),),
  ),
)


def _option(name, value):
  return {"train.loss_options": {name: value}}


_OF_THE_PAPER = (
  Experiment(
    name="table1",
    question=(
      "The paper's Table 1 in small: how many images share a ranking, at 8 images a step; "
      "the half-width delta of the step; interpolated precision or not. The first row is "
      "the package's default, and the paper's choice."
    ),
    dataset="shapes",
    rows=(
      Row("default", {}),
      *(
        Row(f"images_per_ranking-{number}", _option("images_per_ranking", number))
        for number in (1, 2, 4)
      ),
      *(Row(f"delta-{delta:g}", _option("delta", delta)) for delta in (0.25, 0.5, 2.0)),
      Row("not_interpolated", _option("interpolated", False)),
    ),
    seeds=_SEEDS,
    minutes=2.5,
    overrides={"train.epochs": 3},
  ),
  Experiment(
    name="ranking_size",
    question=(
      "Table 1 on: rankings of more images than a batch has, by accumulated batches, at 32 "
      "images a step."
    ),
    dataset="shapes",
    rows=tuple(
      Row(f"images_per_ranking-{number}", _option("images_per_ranking", number))
      for number in (4, 8, 16, 32)
    ),
    seeds=_SEEDS,
    minutes=6,
    overrides={
      "train.epochs": 4,
      "train.accumulate_steps": 4,
      "train.learning_rate": 4e-3,
    },
  ),
  Experiment(
    name="figure_5b",
    question=(
      "The paper's Figure 5b in small: the value of AP-loss itself on the images trained "
      "on, boxes not trained, by the error-driven update, by the gradient of -log(AP) with "
      "a sigmoid for the step, and by the structured hinge loss, at three learning rates."
    ),
    dataset="shapes",
    rows=tuple(
      Row(
        f"{method}-rate{rate:g}",
        {
          "train.classification_loss": f"figure_5b.{method}",
          "train.learning_rate": rate,
        },
      )
      for method in ("error_driven_update", "approximate_gradient", "structured_hinge")
      for rate in (5e-4, 2e-3, 8e-3)
    ),
    seeds=_SEEDS,
    minutes=2,
    overrides={"train.epochs": 2, "train.box_loss_weight": 0.0},
    evaluations=(Evaluation("val", "val"),),
    curve="classification_loss",
  ),
  Experiment(
    name="smooth_steps",
    question=(
      "AP-loss with other smooth steps of the same slope at 0 than the piecewise linear "
      "one."
    ),
    dataset="shapes",
    rows=tuple(
      Row(
        step,
        {
          "train.classification_loss": "step_losses.ap_loss_with_step",
          **_option("step", step),
        },
      )
      for step in ("linear", "logistic", "normal", "cubic")
    ),
    seeds=_SEEDS,
    minutes=4,
    overrides={"train.epochs": 3},
  ),
  Experiment(
    name="delta_weight_decay",
    question=(
      "Whether delta and weight decay make up for each other, as the paper says: scores "
      "that weight decay keeps small want a narrow step."
    ),
    dataset="shapes",
    rows=tuple(
      Row(
        f"delta-{delta:g}-decay-{decay:g}",
        {**_option("delta", delta), "train.weight_decay": decay},
      )
      for delta in (0.25, 1.0, 4.0)
      for decay in (0.0, 1e-3)
    ),
    seeds=_SEEDS,
    minutes=2.5,
    overrides={"train.epochs": 3},
  ),
)


def _with_background(size_px):
  """The objects of images of 64 px, as large and as many, on larger images."""
  return {
    "data.shapes_size_px": (size_px, size_px),
    "data.image_size_px": (size_px, size_px),
    "data.shapes_relative_size": 64 / size_px,
  }


_IMBALANCE = Experiment(
  name="imbalance",
  question=(
    "How each loss takes to a foreground share that falls to a ninth and to a hundredth: "
    "the objects of images of 64 x 64 px, as large and as many, on images of 192 x 192 and "
    "640 x 640 px, with the settings that the config has for AP-loss."
  ),
  dataset="shapes",
  rows=tuple(
    Row(f"{name}-{size_px}px", {**_loss(name), **_with_background(size_px)})
    for size_px in (64, 192, 640)
    for name in ("ap", "focal", "ohem_cross_entropy")
  ),
  seeds=_SEEDS,
  minutes=8,
  overrides={
    "train.batch_size": 4,
    "train.epochs": 3,
    "data.shapes_train_images": 1000,
    "data.shapes_val_images": 100,
    "train.validate_every_epochs": 3,
  },
  evaluations=(Evaluation("val", "val", data={"shapes_val_images": 200}),),
)

EXPERIMENTS = (*_COMPARISONS, *_OF_THE_PAPER, _IMBALANCE)
