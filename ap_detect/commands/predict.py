"""Detects objects in images with a trained run.

ap_detect predict --model_dir=... --output_dir=... PICTURE_OR_FOLDER ...

Writes every picture with boxes, labels and scores, and predictions.json: for each file
its size and its detections, boxes as [ymin, xmin, ymax, xmax] in its pixels.
"""

from __future__ import annotations

import os

from ap_detect import command_line

if __name__ == "__main__":
  # Before the imports below, which need TensorFlow: help comes at once.
  MODEL_DIR = command_line.define_model_dir()
  OUTPUT_DIR = command_line.define_path(
    "output_dir", "", "Where the results go; default: <model_dir>/predictions."
  )
  CHECKPOINT = command_line.define_checkpoint()
  SCORE_THRESHOLD = command_line.define_score_threshold()
  command_line.load_tensorflow()

from ap_detect.data import dataset as dataset_lib
from ap_detect.data import image_files
from ap_detect.runs import files, folder
from ap_detect.runs import model as model_lib
from ap_detect.training import evaluation, evaluation_files

ENDINGS = (".jpg", ".jpeg", ".png")


def find_pictures(paths):
  """Files as they are given, and the JPEG and PNG files below folders, sorted.

  Raises:
    ValueError: no path, a path that does not exist, or no picture at all.
  """
  if not paths:
    raise ValueError("name at least one picture or folder of pictures")
  missing = [path for path in paths if not os.path.exists(path)]
  if missing:
    raise ValueError(f"no such picture or folder: {', '.join(missing)}")
  found = []
  for path in paths:
    if os.path.isdir(path):
      found += sorted(
        os.path.join(folder, name)
        for folder, _, names in os.walk(path)
        for name in names
        if name.lower().endswith(ENDINGS)
      )
    else:
      found.append(path)
  if not found:
    raise ValueError(f"no picture ({', '.join(ENDINGS)}) in {', '.join(paths)}")
  return found


def read_pictures(paths, *, max_image_pixels):
  """ImageRecords, without objects, of picture files.

  Raises:
    DataError: files that are no sound JPEG or PNG pictures; all of them.
  """
  faults: list[str] = []
  records = image_files.make_records(
    [image_files.AnnotatedImage(path, path, path) for path in paths],
    faults,
    root=os.curdir,
    check_images=True,
    max_image_pixels=max_image_pixels,
  )
  if faults:
    raise dataset_lib.DataError(faults)
  return records


def predict(model_dir, paths, output_dir, *, checkpoint="", score_threshold=None):
  """Detects on picture files and writes what was found.

  Args:
    model_dir: a run's folder.
    paths: of JPEG or PNG files.
    output_dir: where <stem>.png, with boxes, and predictions.json go.
    checkpoint: see runs.folder.find_checkpoint.
    score_threshold: see runs.folder.load_thresholds.

  Returns:
    Path of predictions.json.

  Raises:
    ValueError: no such run or checkpoint, or faulty pictures; nothing is written then.
  """
  pictures = _picture_paths(paths, output_dir)
  restored = model_lib.restore(model_dir, checkpoint)
  names = restored.classes.names
  thresholds = folder.load_thresholds(
    model_dir, score_threshold, checkpoint=restored.checkpoint
  )
  records = read_pictures(paths, max_image_pixels=restored.config.data.max_image_pixels)
  evaluator = evaluation.Evaluator(restored.network, restored.config, restored.strategy)
  os.makedirs(output_dir, exist_ok=True)
  entries = []
  for record, everything, picture_path in zip(
    records, evaluator.detect(records), pictures
  ):
    found = evaluation.keep_confident(everything, names, thresholds)
    picture = evaluation_files.draw_found(
      evaluation_files.load_pixels(record), found, names
    )
    files.write_png(picture_path, picture)
    entries.append(_to_json(record, found, names, picture_path))
  path = os.path.join(output_dir, "predictions.json")
  files.write_json(path, entries)
  return path


def _picture_paths(paths, output_dir):
  """Where the picture of each file goes; ValueError where that is one of the files."""
  taken: set[str] = set()
  pictures = [os.path.join(output_dir, _free_name(path, taken)) for path in paths]
  sources = {os.path.realpath(path) for path in paths}
  for picture in pictures:
    if os.path.realpath(picture) in sources:
      raise ValueError(
        f"{picture} would be written over, and is itself a picture to read; choose "
        "another --output_dir"
      )
  return pictures


def _free_name(path, taken):
  """<stem>.png, or <stem>_2.png and so on where another folder's file has that name."""
  stem = os.path.splitext(os.path.basename(path))[0]
  name, number = stem, 1
  while name in taken:
    number += 1
    name = f"{stem}_{number}"
  taken.add(name)
  return f"{name}.png"


def _to_json(record, found, names, picture_path):
  return {
    "file": record.image,
    "picture": picture_path,
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
  paths = find_pictures([command_line.local_path(path) for path in argv[1:]])
  written = predict(
    model_dir,
    paths,
    output_dir,
    checkpoint=CHECKPOINT.value,
    score_threshold=SCORE_THRESHOLD.value,
  )
  print(f"{len(paths)} pictures written to {output_dir}/\ndetections   {written}")


if __name__ == "__main__":
  command_line.run(main, takes_arguments=True)
