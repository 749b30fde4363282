"""Detections as the PASCAL VOC server and development kit take them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ap_detect import errors
from ap_detect.metrics import results as results_lib

if TYPE_CHECKING:
  from ap_detect.data.records import DetectionDataset


def write_comp4(
  folder: str | os.PathLike[str],
  split: str,
  dataset: DetectionDataset,
  results: list[dict[str, Any]],
) -> list[str]:
  """Writes VOC's files of competition 4, detection after training on any data.

  A line a detection: image id, score, xmin, ymin, xmax, ymax. As in VOC's annotations,
  the box is its first and last columns and rows of pixels, counted from 1: our
  continuous box is [xmin + 1, ymin + 1, xmax, ymax]. Numbers have the digits that give
  the same float64 again.

  Args:
    folder: to write into; made if need be.
    split: name of the split, part of the files' names.
    dataset: whose images and classes `results` names; need not have objects.
    results: as `coco_results` returns, of all images together; may be empty.

  Returns:
    Paths of the K files comp4_det_<split>_<class>.txt, one a class.

  Raises:
    ValueError: as `evaluate_coco` raises it for results, or a name cannot be part of a
      file's name, or an image id has white space in it, which ends it for a reader.
  """
  found = results_lib.result_arrays(dataset, results)
  for name in (split, *dataset.class_names):
    if not name or set(name) & set("/\\\0"):
      raise ValueError(f"{name!r} cannot be part of a file's name")
  lines: list[list[str]] = [[] for _ in dataset.class_names]
  columns = (found.images, found.classes, found.scores, found.boxes)
  for image, k, score, box in zip(*(column.tolist() for column in columns)):
    image_id = str(dataset.records[image].image_id)
    if image_id.split() != [image_id]:
      raise ValueError(f"image ids must have no white space, got {image_id!r}")
    ymin, xmin, ymax, xmax = box
    numbers = (score, xmin + 1, ymin + 1, xmax, ymax)
    lines[k - 1].append(" ".join([image_id, *map(repr, numbers)]) + "\n")
  os.makedirs(folder, exist_ok=True)
  paths = []
  for name, of_class in zip(dataset.class_names, lines):
    paths.append(os.path.join(folder, f"comp4_det_{split}_{name}.txt"))
    with errors.naming(paths[-1]), open(paths[-1], "w", encoding="utf-8") as file:
      file.writelines(of_class)
  return paths
