"""What `check` says of the two splits of a config: parts of a page, and the numbers."""

from __future__ import annotations

import numpy as np

from ap_detect import anchor_coverage, charts
from ap_detect.commands import check_measures
from ap_detect.commands.check_measures import Findings
from ap_detect.commands.report_page import Heading, Part, Picture, Table
from ap_detect.data import summary

# Objects that no anchor covers, listed one by one; the worst.
NUM_LISTED = 20

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def overrides(setting: anchor_coverage.AnchorSetting) -> str:
  """The flags that give a config these anchors."""
  return " ".join(
    f'--config.model.anchor_{name}="{value}"'
    for name, value in setting._asdict().items()
  )


def to_json(findings: Findings):
  """The numbers, as a dict for a JSON file."""
  config, splits = findings.config, findings.splits
  measured = check_measures.quantities(findings)
  return {
    "image_size_px": list(config.data.image_size_px),
    "placement": _placement(config),
    "splits": {
      split.role: {
        "name": split.name,
        **summary.count(split.dataset),
        "skipped": list(split.dataset.skipped),
        "classes": [
          item._asdict()
          for item in summary.count_classes(split.objects, split.dataset.class_names)
        ],
        "quantiles": {item.name: _quantiles(item.values[i]) for item in measured},
        "covered_share": _covered_share(split, config),
      }
      for i, split in enumerate(splits)
    },
    "positive_iou": config.model.positive_iou,
    "worst_uncovered": [
      item._asdict() for item in check_measures.find_uncovered(findings)[:NUM_LISTED]
    ],
    "anchor_settings": [
      {
        **item.setting._asdict(),
        "anchors_per_cell": item.setting.anchors_per_cell,
        "covered_share": item.share,
        "mean_best_iou": item.mean_iou,
      }
      for item in findings.settings
    ],
    "recommended_overrides": overrides(findings.recommended.setting),
  }


def to_parts(findings: Findings) -> list[Part]:
  """The report, for `report_page` to show."""
  return [
    *_data_parts(findings.splits),
    *_quantity_parts(findings),
    *_coverage_parts(findings),
    *_setting_parts(findings),
  ]


def _data_parts(splits):
  header = ("", "split", "images", "empty", "objects", "ignored", "faults skipped")
  rows = [
    [
      split.role,
      split.name,
      *summary.count(split.dataset).values(),
      len(split.dataset.skipped),
    ]
    for split in splits
  ]
  yield Heading("Images and objects")
  yield Table(header, rows)
  yield "Ignored objects are difficult or crowd. What follows is of the others."
  for split in splits:
    if split.dataset.skipped:
      yield "\n  ".join([f"Skipped in {split.role}:", *split.dataset.skipped])
  names = splits[0].dataset.class_names
  counts = [summary.count_classes(split.objects, names) for split in splits]
  yield Heading("Classes")
  yield Table(
    ("class", "training objects", "images", "validation objects", "images"),
    [[*training, *validation[1:]] for training, validation in zip(*counts)],
  )
  unseen = [item.name for item in counts[0] if not item.objects]
  if unseen:
    yield f"Classes without an object to train on: {', '.join(unseen)}."


def _quantity_parts(findings):
  config, splits = findings.config, findings.splits
  measured = check_measures.quantities(findings)
  height, width = config.data.image_size_px
  yield Heading("Sizes and shapes")
  yield (
    f"The network's input is {height} pixels high and {width} wide; pictures are "
    f"{_placement(config)}. Size is the square root of the area."
  )
  yield Table(
    ("", "", *_quantiles([0])),
    [
      [item.title, split.role, *(f"{q:.3g}" for q in _quantiles(values).values())]
      for item in measured
      for split, values in zip(splits, item.values)
    ],
  )
  for item in measured:
    title = f"{item.title[0].upper()}{item.title[1:]}"
    picture = charts.histogram_picture(
      dict(zip((split.role for split in splits), item.values)),
      item.axis.edges,
      title,
      f"dotted: {item.marked}" if item.marks else "",
      ticks=item.axis.ticks,
      log_scale=item.axis.log_scale,
      marks=item.marks,
    )
    yield Picture(f"Histogram: {item.title}", picture)


def _coverage_parts(findings):
  config, uncovered = findings.config, check_measures.find_uncovered(findings)
  iou = config.model.positive_iou
  yield Heading("Anchors")
  yield Table(
    ("", "objects", "covered", "share"),
    [
      [
        split.role,
        len(split.best_iou),
        int((split.best_iou >= iou).sum()),
        f"{_covered_share(split, config):.1%}",
      ]
      for split in findings.splits
    ],
  )
  fate = (
    "still gets its best ones (model.force_match)"
    if config.model.force_match
    else "gets none (model.force_match is off)"
  )
  yield (
    f"Covered is an object that some anchor meets at an IoU of {iou:g} or more "
    f"(model.positive_iou). One that is not {fate}."
  )
  if uncovered:
    smallest = min(check_measures.anchor_sides(config.model))
    num_small = sum(
      item.input_height_px * item.input_width_px < smallest**2 for item in uncovered
    )
    yield (
      f"{len(uncovered)} objects are not, {num_small} of them smaller than the smallest "
      f"anchors ({smallest:g} pixels), which a larger data.image_size_px would help. "
      "The least covered:"
    )
    yield Table(
      (
        "split",
        "image",
        "class",
        "box yxyx, pixels of the picture",
        "h x w in input",
        "IoU",
      ),
      [
        [
          item.split,
          item.image_id,
          item.class_name,
          ", ".join(f"{value:g}" for value in item.box_yxyx),
          f"{item.input_height_px:.1f} x {item.input_width_px:.1f}",
          f"{item.best_iou:.2f}",
        ]
        for item in uncovered[:NUM_LISTED]
      ],
    )


def _setting_parts(findings):
  current, recommended = findings.settings[0], findings.recommended
  yield Heading("Other anchors")
  yield Table(
    (
      "base scale",
      "octave scales",
      "aspect ratios",
      "anchors a cell",
      "covered",
      "mean IoU",
    ),
    [
      [
        item.setting.base_scale,
        *(", ".join(f"{value:.3g}" for value in values) for values in item.setting[1:]),
        item.setting.anchors_per_cell,
        f"{item.share:.1%}",
        f"{item.mean_iou:.3f}",
      ]
      for item in findings.settings
    ],
  )
  yield (
    "The first row is the config's own setting. Shares are of the training split's "
    f"objects (of {anchor_coverage.MAX_SEARCHED_OBJECTS} drawn from them where there are "
    "more); the base scale is the one that covers most."
  )
  if recommended is current:
    yield (
      "Recommended: the config's own, for none with fewer anchors comes within "
      f"{anchor_coverage.TOLERANCE:.0%} of the best."
    )
  else:
    yield (
      "Recommended, with the fewest anchors of those that come within "
      f"{anchor_coverage.TOLERANCE:.0%} of the best (a cell has "
      f"{recommended.setting.anchors_per_cell} instead of "
      f"{current.setting.anchors_per_cell}; {recommended.share:.1%} are covered instead "
      f"of {current.share:.1%}; what that does to accuracy only training tells):\n"
      f"  {overrides(recommended.setting)}"
    )


def _placement(config):
  if config.data.augmentation == "ssd":
    return "warped to it, as in training, though not expanded or cropped"
  placement = "scaled to fit into it with their aspect kept, as in evaluation"
  low, high = config.data.zoom_range
  if low == high == 1:
    return placement
  return f"{placement}; training scales them by {low:g} to {high:g} on top"


def _covered_share(split, config):
  return float((split.best_iou >= config.model.positive_iou).mean())


def _quantiles(values):
  """{"5%": 12.0, ...} of values."""
  found = np.quantile(values, QUANTILES)
  return {f"{share:.0%}": float(value) for share, value in zip(QUANTILES, found)}
