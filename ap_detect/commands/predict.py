"""Detects objects in images with a trained run.

ap_detect predict --model_dir=... --output_dir=... IMAGE_FOLDER_OR_PATTERN ...

Takes files, folders with all that is below them, and patterns such as "photos/*.jpg".
Files that cannot be read are skipped and listed. Writes every image with boxes, labels
and scores, and predictions.json: for each file its size and its detections, boxes as
[ymin, xmin, ymax, xmax] in its pixels.
"""

from __future__ import annotations

import glob
import os

from absl import logging

from ap_detect import command_line

if __name__ == "__main__":
  # Before the imports below, which need TensorFlow: help comes at once.
  MODEL_DIR = command_line.define_model_dir()
  OUTPUT_DIR = command_line.define_path(
    "output_dir", "", "Where the results go; default: <model_dir>/predictions."
  )
  CHECKPOINT = command_line.define_checkpoint()
  AVERAGED_WEIGHTS = command_line.define_averaged_weights()
  SCORES = command_line.define_scores()
  MAX_IMAGE_PIXELS = command_line.define_max_image_pixels()
  command_line.load_tensorflow()

from ap_detect import errors
from ap_detect.data import image_headers, summary
from ap_detect.data.readers import image_files
from ap_detect.data.records import DataError
from ap_detect.runs import files, scores
from ap_detect.runs import model as model_lib
from ap_detect.training import evaluation, evaluation_files

PREDICTIONS = "predictions.json"


def find_images(paths):
  """Files as they are given, and the images that patterns and folders lead to, sorted.

  What an earlier call wrote, by the predictions.json beside it, is passed over in
  folders, and the log says so.

  Args:
    paths: of files and folders, and patterns as of `glob`, "**" for any folders.

  Returns:
    List of paths, each once.

  Raises:
    ValueError: no path, a path that does not exist, or no image at all.
  """
  if not paths:
    raise ValueError("name at least one image, folder of images or pattern")
  expanded = [(path, _expand(path)) for path in paths]
  missing = [path for path, found in expanded if not found]
  if missing:
    raise ValueError(f"no such image or folder: {', '.join(missing)}")
  found: list[str] = []
  for path in (path for _, group in expanded for path in group):
    found += _search(path) if os.path.isdir(path) else [path]
  if not found:
    raise ValueError(
      f"no image ({', '.join(image_headers.ENDINGS)}) in {', '.join(paths)}"
    )
  return list(dict.fromkeys(found))


def read_images(paths, **image_options):
  """ImageRecords, without objects, of the files that are sound.

  Args:
    paths: of image files.
    **image_options: see image_files.make_records.

  Returns:
    (records, skipped): list of ImageRecord, and a line for each file left out.

  Raises:
    DataError: there is no sound image among them.
  """
  skipped: list[str] = []
  records = image_files.make_records(
    [image_files.AnnotatedImage(path, path, path) for path in paths],
    skipped,
    root=os.curdir,
    **image_options,
  )
  if not records:
    raise DataError(skipped)
  return records, skipped


def predict(
  model_dir,
  paths,
  output_dir,
  *,
  checkpoint="",
  averaged_weights=True,
  max_image_pixels=None,
  **score_options,
):
  """Detects on image files and writes what was found.

  Args:
    model_dir: a run's folder.
    paths: of image files. Those that cannot be read are skipped; the log names them.
    output_dir: where <stem>.jpg (of JPEG files) or <stem>.png (of others), with boxes,
      and predictions.json go.
    checkpoint: see runs.folder.find_checkpoint.
    averaged_weights: see runs.model.restore.
    max_image_pixels: larger images are skipped; None for the run's own limit.
    **score_options: see runs.scores.load_shown_scores.

  Returns:
    (path of predictions.json, number of files skipped).

  Raises:
    ValueError: no such run or checkpoint, a precision or recall that it does not reach,
      no sound image, or an image would be written over; nothing is written then.
  """
  restored = model_lib.restore(model_dir, checkpoint, averaged_weights=averaged_weights)
  names = restored.classes.names
  shown = scores.load_shown_scores(model_dir, restored.checkpoint, **score_options)
  data = restored.config.data
  records, skipped = read_images(
    paths,
    max_image_pixels=max_image_pixels or data.max_image_pixels,
    exif_orientation=data.exif_orientation,
  )
  drawn_paths = _drawn_paths(records, paths, output_dir)
  for line in skipped:
    logging.warning("skipped: %s", line)
  for line in summary.describe_images(records):
    logging.info("%s", line)
  evaluator = evaluation.Evaluator(restored.network, restored.config, restored.strategy)
  os.makedirs(output_dir, exist_ok=True)
  entries = []
  for record, everything, path in zip(records, evaluator.detect(records), drawn_paths):
    found = evaluation.to_shown(everything, names, shown)
    pixels = evaluation_files.load_pixels(record)
    write = files.write_jpeg if path.endswith(".jpg") else files.write_png
    write(path, evaluation_files.draw_found(pixels, found, names))
    entries.append(_to_json(record, found, names, path))
  path = os.path.join(output_dir, PREDICTIONS)
  files.write_json(path, entries)
  return path, len(skipped)


def _expand(path):
  """What a path or pattern stands for; a file's own name may look like a pattern."""
  if os.path.lexists(path):
    return [path]
  return sorted(glob.glob(path, recursive=True))


def _search(root):
  """Paths of the images below a folder, sorted."""
  found = []
  for parent, _, names in os.walk(root, onerror=_report_unlisted):
    images = {name for name in names if name.lower().endswith(image_headers.ENDINGS)}
    drawn = images & _drawn_earlier(parent) if PREDICTIONS in names else set()
    if drawn:
      logging.info(
        "passed over in %s: %d images that predict wrote", parent, len(drawn)
      )
    found += [os.path.join(parent, name) for name in images - drawn]
  return sorted(found)


def _report_unlisted(error):
  logging.warning("skipped: %s", errors.describe(error))


def _drawn_earlier(parent):
  """Names of the images beside a predictions.json that it says were written."""
  try:
    entries = files.read_json(os.path.join(parent, PREDICTIONS))
    return {os.path.basename(entry["picture"]) for entry in entries}
  except (OSError, ValueError, TypeError, KeyError):  # another program's
    return set()


def _drawn_paths(records, given, output_dir):
  """Where the image drawn for each record goes; ValueError where it is given."""
  taken: set[str] = set()
  drawn = [os.path.join(output_dir, _free_name(record, taken)) for record in records]
  given = {os.path.realpath(path) for path in given}
  for path in drawn:
    if os.path.realpath(path) in given:
      raise ValueError(
        f"{path} would be written over, and is itself an image to read; choose another "
        "--output_dir"
      )
  return drawn


def _free_name(record, taken):
  """<stem>.<ending>, or <stem>_2 and so on where another folder's file has that name."""
  ending = ".jpg" if record.header.format == "JPEG" else ".png"
  stem = os.path.splitext(os.path.basename(record.image))[0]
  name, number = stem + ending, 1
  while name.lower() in taken:  # file systems may know no case
    number += 1
    name = f"{stem}_{number}{ending}"
  taken.add(name.lower())
  return name


def _to_json(record, found, names, drawn_path):
  return {
    "file": record.image,
    "picture": drawn_path,
    "height": record.height,
    "width": record.width,
    "detections": [
      {
        "box_yxyx": box.tolist(),
        "class": int(class_id),
        "label": names[class_id - 1],
        "score": float(score),
      }
      for box, score, class_id in zip(*found)
    ],
  }


def main(argv):
  model_dir = MODEL_DIR.value
  output_dir = OUTPUT_DIR.value or os.path.join(model_dir, "predictions")
  paths = find_images([command_line.local_path(path) for path in argv[1:]])
  written, num_skipped = predict(
    model_dir,
    paths,
    output_dir,
    checkpoint=CHECKPOINT.value,
    averaged_weights=AVERAGED_WEIGHTS.value,
    max_image_pixels=MAX_IMAGE_PIXELS.value,
    **SCORES(),
  )
  print(f"{len(paths) - num_skipped} images written to {output_dir}/")
  if num_skipped:
    print(f"{num_skipped} of {len(paths)} files skipped, see above")
  print(f"detections   {written}")


if __name__ == "__main__":
  command_line.run(main, takes_arguments=True)
