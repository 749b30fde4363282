"""What `check` says of the splits of a config: parts of a page, and the numbers."""

from __future__ import annotations

import numpy as np

from ap_detect import anchor_coverage, charts
from ap_detect.commands import check_measures, fault_kinds
from ap_detect.commands.check_measures import Findings
from ap_detect.commands.report_page import Heading, Part, Picture, Table
from ap_detect.data import summary
from ap_detect.data.records import DataError

# Objects that no anchor covers, listed one by one; the worst.
NUM_LISTED = 20

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def overrides(setting: anchor_coverage.AnchorSetting) -> str:
  """The flags that give a config these anchors."""
  return " ".join(
    f'--config.model.anchor_{name}="{value}"'
    for name, value in setting._asdict().items()
  )


def to_json(findings: Findings | None, refusal: DataError | None):
  """The numbers and all faults, as a dict for a JSON file.

  Args:
    findings: Findings; None where nothing could be measured.
    refusal: why training would not start; None where it would.
  """
  return {
    "would_start": refusal is None,
    "faults": [item._asdict() for item in _kinds(refusal)],
    **(_numbers(findings) if findings else {}),
  }


def _kinds(refusal):
  return fault_kinds.group(refusal.faults if refusal else ())


def _numbers(findings):
  config, splits = findings.config, findings.splits
  measured = check_measures.quantities(findings)
  most = config.eval.max_detections
  return {
    "image_size_px": list(config.data.image_size_px),
    "placement": _placement(config),
    "splits": {
      split.role: {
        "name": split.name,
        **summary.count(split.dataset),
        "skipped": list(split.dataset.skipped),
        "notes": list(_describe_reading(split)),
        "exif_orientations": split.orientations,
        "crowded_images": [
          {"image_id": image_id, "objects": count}
          for image_id, count in check_measures.find_crowded(split, most)
        ],
        "classes": [
          {**item._asdict(), "covered_share": item.share}
          for item in check_measures.cover_classes(split, config.model.positive_iou)
        ],
        "quantiles": {item.name: _quantiles(item.values[i]) for item in measured},
        "covered_share": _covered_share(split, config),
      }
      for i, split in enumerate(splits)
    },
    "unused_images": findings.unused_images,
    "positive_iou": config.model.positive_iou,
    "worst_uncovered": [
      item._asdict() for item in check_measures.find_uncovered(findings)[:NUM_LISTED]
    ],
    "anchor_settings": [
      {
        **item.setting._asdict(),
        "anchors_per_cell": item.setting.anchors_per_cell,
        "covered_share": item.share,
        "mean_class_share": item.mean_class_share,
        "worst_class_share": item.worst_class_share,
        "mean_best_iou": item.mean_iou,
      }
      for item in findings.settings
    ],
    "recommended_overrides": overrides(findings.recommended.setting),
  }


def to_parts(findings: Findings | None, refusal: DataError | None) -> list[Part]:
  """The report, for `report_page` to show; arguments as of `to_json`."""
  parts = [*_fault_parts(refusal)] if refusal else []
  if findings:
    parts += [
      *_data_parts(findings),
      *_quantity_parts(findings),
      *_coverage_parts(findings),
      *_setting_parts(findings),
    ]
  return parts


def _fault_parts(refusal):
  yield Heading("Training would not start")
  yield fault_kinds.describe(_kinds(refusal))
  yield "\n".join(["report.json lists them all.", *refusal.advice])


def _data_parts(findings):
  splits = findings.splits
  header = ("", "split", "images", "empty", "objects", "ignored", "skipped")
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
  yield (
    "Skipped are invalid images and annotations. Ignored objects are difficult or crowd. "
    "What follows is of the others."
  )
  for split in splits:
    if split.dataset.skipped and findings.config.data.skip_faulty:
      kinds = fault_kinds.group(split.dataset.skipped)
      yield f"Skipped in {split.role}:\n{fault_kinds.describe(kinds)}"
  yield from _notes(findings)
  iou = findings.config.model.positive_iou
  counts = [check_measures.cover_classes(split, iou) for split in splits]
  yield Heading("Classes")
  columns = (
    cell for split in splits for cell in (f"{split.role} objects", "images", "covered")
  )
  yield Table(
    ("class", *columns),
    [
      [items[0].name, *(cell for item in items for cell in _class_cells(item))]
      for items in zip(*counts)
    ],
  )
  yield "Covered is the share that anchors cover, see Anchors below."
  for split, items in zip(splits, counts):
    unseen = [item.name for item in items if not item.objects]
    if unseen:
      yield f"Classes without an object in {split.role}: {', '.join(unseen)}."


def _class_cells(item):
  return item.objects, item.images, "-" if item.share is None else f"{item.share:.1%}"


def _describe_reading(split):
  """What was read otherwise than it is written."""
  clipped = sum(record.num_clipped for record in split.dataset.records)
  if clipped:
    yield f"{clipped} boxes reach past an edge of their image and are clipped"
  yield from split.dataset.notes


def _notes(findings):
  """What is valid, but perhaps not what was meant."""
  config = findings.config
  for split in findings.splits:
    orientations = split.orientations
    if orientations:
      numbers = ", ".join(
        f"{count} of {value}" for value, count in orientations.items()
      )
      yield (
        f"{sum(orientations.values())} images of {split.role} are turned or mirrored by "
        f"their EXIF orientation ({numbers})."
      )
    for line in _describe_reading(split):
      yield f"In {split.role}, {line}."
    most = config.eval.max_detections
    crowded = check_measures.find_crowded(split, most)
    if crowded:
      examples = ", ".join(f"{image} ({count})" for image, count in crowded[:3])
      yield (
        f"{len(crowded)} images of {split.role} have more than {most} objects, the "
        f"number of detections that are kept (eval.max_detections): {examples}"
        f"{' ...' if len(crowded) > 3 else '.'}"
      )
  unused = findings.unused_images
  if unused:
    yield (
      f"{len(unused)} image files below {config.data.root} are used in neither training "
      f"nor validation: {', '.join(unused[:3])}{' ...' if len(unused) > 3 else '.'}"
    )


def _quantity_parts(findings):
  config, splits = findings.config, findings.splits
  measured = check_measures.quantities(findings)
  height, width = config.data.image_size_px
  yield Heading("Sizes and shapes")
  yield (
    f"The network's input is {height} pixels high and {width} wide; images are "
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
    "still gets its best anchors (model.force_match)"
    if config.model.force_match
    else "gets none (model.force_match is off)"
  )
  yield (
    f"An object is covered if its IoU with some anchor is {iou:g} or more "
    f"(model.positive_iou). An object that is not covered {fate}."
  )
  if uncovered:
    smallest = min(check_measures.anchor_sides(config.model))
    num_small = sum(
      item.input_height_px * item.input_width_px < smallest**2 for item in uncovered
    )
    yield (
      f"{len(uncovered)} objects are not covered. {num_small} of them are smaller than "
      f"the smallest anchors ({smallest:g} pixels), and a larger data.image_size_px "
      "would help these. The least covered:"
    )
    yield Table(
      (
        "split",
        "image",
        "class",
        "box yxyx, pixels of the image",
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
      "anchors per cell",
      "covered",
      "class mean",
      "worst class",
      "mean IoU",
    ),
    [
      [
        item.setting.base_scale,
        *(", ".join(f"{value:.3g}" for value in values) for values in item.setting[1:]),
        item.setting.anchors_per_cell,
        f"{item.share:.1%}",
        f"{item.mean_class_share:.1%}",
        f"{item.worst_class_share:.1%}",
        f"{item.mean_iou:.3f}",
      ]
      for item in findings.settings
    ],
  )
  yield (
    "The first row is the config's own setting. Shares are of the training split's "
    f"objects (where there are more than {anchor_coverage.MAX_SEARCHED_OBJECTS}, of a "
    "sample). The base scale is the one that covers most in the mean over the classes."
  )
  rule = (
    f"within {anchor_coverage.TOLERANCE:.0%} of the best in the mean over the classes"
  )
  if recommended is current:
    yield (
      "Recommended: the config's own setting. None with fewer anchors covers as much "
      f"and is {rule}."
    )
  else:
    yield (
      "Recommended: the fewest anchors that cover no less than the config's own and are "
      f"{rule}. A cell has {recommended.setting.anchors_per_cell} instead of "
      f"{current.setting.anchors_per_cell}; {recommended.share:.1%} of the objects are "
      f"covered instead of {current.share:.1%}, of the worst class "
      f"{recommended.worst_class_share:.1%} instead of {current.worst_class_share:.1%}. "
      "What that does to accuracy only training tells.\n"
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
