"""Compares forms of calibration on detections that they were not fitted to.

  ap_detect evaluate --model_dir=runs/shapes --split=val
  ap_detect evaluate --model_dir=runs/shapes --split=test
  python benchmarks/calibration_benchmark.py --model_dir=runs/shapes

Fits each form to the detections of one split, all of its images or one part of them after
another, judges it on those of the other split, and the other way round. Prints means of
the log loss and of the expected calibration error, of all detections and of the best, as
many as there are hits. With --unlabelled=0.2 every fifth hit, by chance, is a miss, as
where objects have no label: precision then levels off at 0.8.

Yardsticks: Platt's logistic regression on the logit (1999), beta calibration (Kull et al.
2017), which both fit by Newton's method, and isotonic regression. All have Platt's targets.
Isotonic regression ties scores, which changes AP: the last column is the share of distinct
scores that are distinct float32 numbers afterwards.
"""

from __future__ import annotations

import os

import numpy as np
from absl import flags

from ap_detect import command_line

_MODEL_DIR = command_line.define_model_dir()
_SPLITS = flags.DEFINE_list("splits", ["val", "test"], "Two splits, evaluated before.")
_PARTS = flags.DEFINE_integer(
  "parts", 1, "Parts of the images to fit to, one by one.", 1
)
_UNLABELLED = flags.DEFINE_float(
  "unlabelled", 0.0, "Share of hits to turn into misses."
)


def logits(scores):
  scores = np.clip(scores, 2.0**-150, 1 - 2.0**-25)
  return np.log(scores) - np.log1p(-scores)


def sigmoid(values):
  return 1 / (1 + np.exp(-values))


def targets(hits):
  n, m = np.sum(hits), np.sum(~hits)
  return np.where(hits, (n + 1) / (n + 2), 1 / (m + 2))


def logistic(features, hits):
  """Weights of a logistic regression, by Newton's method with halved steps."""
  wanted, weights = targets(hits), np.zeros(features.shape[1])

  def loss(weights):
    values = features @ weights
    return np.sum(np.logaddexp(0, values) - wanted * values)

  for _ in range(100):
    found = sigmoid(features @ weights)
    hessian = (features * (found * (1 - found))[:, np.newaxis]).T @ features
    step = np.linalg.lstsq(hessian, features.T @ (found - wanted), rcond=None)[0]
    length = 1.0
    while loss(weights - length * step) > loss(weights) and length > 1e-9:
      length /= 2
    weights = weights - length * step
  return weights


def fit_raw(scores, hits):
  return lambda scores: scores


def fit_platt(scores, hits):
  def features(scores):
    return np.column_stack([np.ones(len(scores)), logits(scores)])

  weights = logistic(features(scores), hits)
  return lambda scores: sigmoid(features(scores) @ weights)


def fit_beta(scores, hits):
  def features(scores):
    scores = np.clip(scores, 2.0**-150, 1 - 2.0**-25)
    return np.column_stack([np.ones(len(scores)), np.log(scores), -np.log1p(-scores)])

  weights = logistic(features(scores), hits)
  return lambda scores: sigmoid(features(scores) @ weights)


def fit_isotonic(scores, hits):
  """Pool adjacent violators; between the scores that it saw, the lower one's value."""
  order = np.argsort(scores, kind="stable")
  blocks: list[list[float]] = []  # [lowest score, sum of targets, size]
  for score, target in zip(scores[order], targets(hits)[order]):
    blocks.append([score, target, 1])
    while len(blocks) > 1 and (
      blocks[-2][1] / blocks[-2][2] >= blocks[-1][1] / blocks[-1][2]
    ):
      _, total, size = blocks.pop()
      blocks[-1][1] += total
      blocks[-1][2] += size
  lowest, sums, sizes = np.array(blocks).T
  values = sums / sizes
  return lambda scores: values[
    np.maximum(np.searchsorted(lowest, scores, "right") - 1, 0)
  ]


def main(_):
  from ap_detect.metrics import evaluate_coco, fit_calibration, measure_reliability
  from ap_detect.runs import data as data_lib
  from ap_detect.runs import files, folder

  def load(split):
    """(scores, hits, images) of a split's detections."""
    config = folder.load_config(_MODEL_DIR.value)
    names = folder.load_classes(_MODEL_DIR.value).names
    dataset = data_lib.open_split(config, split, names)
    path = os.path.join(_MODEL_DIR.value, "eval", split, "detections.json")
    found = evaluate_coco(dataset, files.read_json(path)).outcomes
    labelled = np.random.default_rng(0).random(len(found.hits)) >= _UNLABELLED.value
    return found.scores, found.hits & labelled, found.images

  forms = {
    "raw": fit_raw,
    "logistic": fit_platt,
    "beta": fit_beta,
    "isotonic": fit_isotonic,
    "ours": fit_calibration,
  }
  measured: dict[str, list] = {name: [] for name in forms}
  splits = [load(split) for split in _SPLITS.value]
  for (scores, hits, images), judged_on in (splits, splits[::-1]):
    others, are_hits, _ = judged_on
    best = np.argsort(-others)[: are_hits.sum()]
    distinct = np.unique(others)
    for part in range(_PARTS.value):
      of_part = images % _PARTS.value == part
      for name, fit in forms.items():
        calibrate = fit(scores[of_part], hits[of_part])
        found = calibrate(others)
        likelihoods = np.log(np.clip(np.where(are_hits, found, 1 - found), 1e-15, 1))
        served = np.unique(calibrate(distinct).astype(np.float32))
        measured[name].append(
          (
            -likelihoods.mean(),
            measure_reliability(found, are_hits).error,
            measure_reliability(found[best], are_hits[best]).error,
            len(served) / len(distinct),
          )
        )
  columns = ("log loss", "error, all", "error, best", "distinct")
  print(f"{'':10}" + "".join(f"{name:>13}" for name in columns))
  for name, rows in measured.items():
    print(f"{name:10}" + "".join(f"{value:13.4f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
  command_line.run(main)
