"""The paper's theory on linear models: what is proved, and what it looks like.

  python experiments/theory.py

Writes results/theory/<part>.json, of which render.py makes docs/results/theory.md. Scores
are s = F w, and w starts at 0. An error-driven step is w += eta u with
u = 1/|P| sum_ij L_ij (f_i - f_j), over positives i and negatives j.

Proofs. Let l_t = 1/|P| sum_ij L_ij be AP-loss before step t (interpolated or not), S their
sum, R >= |f_i - f_j| for all pairs, and u any unit vector.

L_ij > 0 only where s_i - s_j < delta, so <w_t, u_t> <= delta l_t; and |u_t| <= R l_t <= R.
Hence |w|^2 grows by at most (2 eta delta + eta^2 R^2) l_t a step, and
|w_T|^2 <= (2 eta delta + eta^2 R^2) S.

Proposition 1: where <u, f_i - f_j> >= gamma > 0 for all pairs, <u, w_T> >= eta gamma S.
With |w_T| >= <u, w_T> this gives S <= C / gamma^2, C = R^2 + 2 delta / eta. Where a pair is
misordered, l_t >= 1 / (2 |P| (|P| + 1)), so at most 2 |P| (|P| + 1) C / gamma^2 steps are
taken before AP is 1. (For the step itself, delta = 0, AP = 1 is loss 0, and the factor 2
is not needed. With the smoothed step the loss may go on falling towards 0 forever.)

Where data are not separable, let X = 1/|P| sum_i max_j max(0, gamma - <u, f_i - f_j>),
how far the model u is from separating them by gamma. As sum_j L_ij <= 1 for every i,
<u, w_T> >= eta (gamma S - T X) after T steps, so gamma S - T X <= sqrt(C S), which solved
for S is sqrt(S) <= (sqrt(C) + sqrt(C + 4 gamma T X)) / (2 gamma): on average over many
steps AP-loss is at most X / gamma, in proportion to what the best model leaves.
"""

from __future__ import annotations

import itertools
import pathlib

import numpy as np
import settings
from absl import flags

from ap_detect import command_line, provenance
from ap_detect.runs import files

settings.use("results_dir", "note")
PARTS_TO_DO = flags.DEFINE_multi_enum(
  "part", [], ["proposition_1", "converse", "non_separable"], "What to do; default all."
)

FOLDER = "theory"
# As good as the step itself.
HARD = 1e-3
_POINTS = 60


def main(_):
  command_line.load_tensorflow()
  folder = pathlib.Path(settings.RESULTS_DIR.value) / FOLDER
  folder.mkdir(parents=True, exist_ok=True)
  for name in PARTS_TO_DO.value or PARTS:
    part = PARTS[name]
    result = {**provenance.describe(settings.NOTE.value), **part()}
    files.write_json(str(folder / f"{name}.json"), result, indent=1)
    print(f"wrote {folder / name}.json")


def error_driven(features, labels, *, eta, delta, steps, observe, interpolated=True):
  """Error-driven steps of a linear model from w = 0, until AP-loss is 0.

  Args:
    features: [n, d] float64, F.
    labels: [n] bool, whether positive.
    eta: learning rate.
    delta: half-width of the step.
    steps: most steps.
    observe: function (step, w, loss) called before every step; True from it ends it.
    interpolated: as for ap_loss.

  Returns:
    w [d], after the last step.
  """
  import tensorflow as tf

  from ap_detect import losses

  targets = tf.constant(labels, tf.int32)
  w = np.zeros(features.shape[1])
  for step in range(steps):
    scores = tf.constant((features @ w)[:, np.newaxis], tf.float32)
    loss, gradient = losses.ap_loss_and_gradient(
      scores, targets, delta=delta, interpolated=interpolated
    )
    if observe(step, w, float(loss)) or float(loss) == 0:
      break
    w = w - eta * (features.T @ gradient.numpy()[:, 0].astype(np.float64))
  return w


def gradient_descent(features, labels, *, eta, delta, steps, observe, start=None):
  """Gradient descent on -log(AP) with a sigmoid for the step, as `error_driven`."""
  import tensorflow as tf

  from ap_detect import losses

  targets = tf.constant(labels, tf.int32)
  w = np.zeros(features.shape[1]) if start is None else np.array(start, np.float64)
  for step in range(steps):
    scores = tf.constant((features @ w)[:, np.newaxis], tf.float32)
    with tf.GradientTape() as tape:
      tape.watch(scores)
      loss = losses.smooth_ap_loss(scores, targets, delta=delta)
    if observe(step, w, float(loss)):
      break
    gradient = tape.gradient(loss, scores).numpy()[:, 0].astype(np.float64)
    w = w - eta * (features.T @ gradient)
  return w


def average_precision(scores, labels):
  """AP of a ranking; a positive that ties with a negative is below it."""
  order = np.lexsort((labels, -scores))
  ranked = np.asarray(labels)[order]
  return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked].mean())


def pair_differences(features, labels):
  """[P, N, d] f_i - f_j of positives i and negatives j."""
  return features[labels][:, np.newaxis] - features[~labels][np.newaxis]


def norm_of_longest(differences):
  """R."""
  return float(np.linalg.norm(differences, axis=-1).max())


def separable_data(seed, *, dimensions, margin, positives=10, negatives=90, spread=10):
  """(features, labels, unit vector by which all pairs are `margin` apart at least).

  Across that vector, features are spread out so much that means say little of it.
  """
  rng = np.random.default_rng(seed)
  labels = np.arange(positives + negatives) < positives
  direction = rng.normal(size=dimensions)
  direction /= np.linalg.norm(direction)
  features = spread * rng.normal(size=(len(labels), dimensions))
  along = np.where(labels, 1, -1) * (margin / 2 + np.abs(rng.normal(size=len(labels))))
  features += np.outer(along - features @ direction, direction)
  return features, labels, direction


def proposition_1(seeds=10, steps=5000):
  """Steps to AP = 1 and summed losses on separable data, with their bounds."""
  rows = []
  for dimensions, margin, delta in itertools.product(
    (2, 5, 10), (0.1, 0.5, 2.0), (HARD, 1.0, 100.0)
  ):
    runs = [_separated(seed, dimensions, margin, delta, steps) for seed in range(seeds)]
    rows.append(
      {"dimensions": dimensions, "margin": margin, "delta": delta, "runs": runs}
    )
  return {"seeds": seeds, "most_steps": steps, "rows": rows}


def _separated(seed, dimensions, margin, delta, steps):
  features, labels, direction = separable_data(
    seed, dimensions=dimensions, margin=margin
  )
  differences = pair_differences(features, labels)
  gamma = float((differences @ direction).min())
  bound = (norm_of_longest(differences) ** 2 + 2 * delta) / gamma**2  # eta = 1
  found = {"sum": 0.0, "steps_to_ap_1": None, "steps_to_loss_0": None, "loss": None}

  def observe(step, w, loss):
    found["sum"] += loss
    found["loss"] = loss
    if found["steps_to_ap_1"] is None and average_precision(features @ w, labels) == 1:
      found["steps_to_ap_1"] = step
    if loss == 0:
      found["steps_to_loss_0"] = step
    # What comes then is the same for all: the loss falls towards 0.
    return found["steps_to_ap_1"] is not None and step >= found["steps_to_ap_1"] + 200

  error_driven(features, labels, eta=1.0, delta=delta, steps=steps, observe=observe)
  count = int(labels.sum())
  factor = (1 if delta == HARD else 2) * count * (count + 1)
  return {**found, "bound_of_sum": bound, "bound_of_steps": factor * bound}


def trap(easy=20, hard=4, negatives=200):
  """Separable data on which gradient descent on the smoothed AP fails.

  Negatives lie at 0. Easy positives lie at 1 on the first axis; each hard one lies at -3 on
  it and at 1 on an axis of its own. A large weight of the first axis orders the easy ones,
  and puts the hard ones so far below that a sigmoid has no slope there any more.

  Returns:
    (features [n, 1 + hard], labels [n]).
  """
  features = np.zeros((easy + hard + negatives, 1 + hard))
  features[:easy, 0] = 1
  features[easy : easy + hard, 0] = -3
  features[np.arange(easy, easy + hard), 1 + np.arange(hard)] = 1
  return features, np.arange(len(features)) < easy + hard


def converse(steps=3000, rates=(0.1, 1.0, 10.0), deltas=(0.5, 1.0)):
  """AP over the steps of both methods on `trap`."""
  features, labels = trap()
  kept = np.unique(np.geomspace(1, steps, _POINTS).astype(int)) - 1
  rows = []
  for method, eta, delta in itertools.product(
    (error_driven, gradient_descent), rates, deltas
  ):
    curve, ordered = [], []

    def observe(step, w, loss, curve=curve, ordered=ordered):
      ap = average_precision(features @ w, labels)
      if ap == 1:
        ordered.append(step)
      if step in kept or loss == 0:
        curve.append((step, ap))
      return False

    w = method(features, labels, eta=eta, delta=delta, steps=steps, observe=observe)
    ap = average_precision(features @ w, labels)
    rows.append(
      {
        "method": method.__name__,
        "rate": eta,
        "delta": delta,
        "ap": ap,
        "steps_to_ap_1": ordered[0] if ordered else None,
        "curve": [*curve, (steps, ap)],
        "weights": [float(f"{value:.6g}") for value in w],
      }
    )
  differences = pair_differences(features, labels)
  separating = np.array([1.0] + [4.0] * (features.shape[1] - 1))
  separating /= np.linalg.norm(separating)
  return {
    "steps": steps,
    "margin": float((differences @ separating).min()),
    "rows": rows,
  }


def mislabelled_data(seed, *, mislabelled, positives=20, negatives=200):
  """`separable_data` with a margin of 4, but some positives lie among the negatives."""
  features, labels, direction = separable_data(
    seed, dimensions=5, margin=4, positives=positives, negatives=negatives, spread=1
  )
  features[:mislabelled] -= 2 * np.outer(features[:mislabelled] @ direction, direction)
  return features, labels, direction


def non_separable(steps=1000, seeds=3, mislabelled=(1, 3, 6), delta=1.0):
  """Average AP-loss over the steps, with its bound, on data that no model separates."""
  rows = [
    {"mislabelled": number, "seed": seed, **_mislabelled(seed, number, steps, delta)}
    for number in mislabelled
    for seed in range(seeds)
  ]
  return {"steps": steps, "delta": delta, "rows": rows}


def _mislabelled(seed, number, steps, delta):
  features, labels, direction = mislabelled_data(seed, mislabelled=number)
  bound = _make_bound(pair_differences(features, labels), direction, delta)
  kept = np.unique(np.geomspace(1, steps, _POINTS).astype(int))
  seen, path, curve = [], [], []

  def observe(step, w, loss):
    seen.append(loss)
    path.append(w)
    if step + 1 in kept:
      curve.append((step + 1, float(np.mean(seen)), bound(step + 1)))
    return False

  error_driven(features, labels, eta=1.0, delta=delta, steps=steps, observe=observe)
  averaged = np.mean(path[len(path) // 2 :], axis=0)
  return {
    "curve": curve,
    "mean_loss": float(np.mean(seen)),
    "bound": bound(steps),
    "ap_of_averaged_weights": average_precision(features @ averaged, labels),
    "ap_of_u": average_precision(features @ direction, labels),
  }


def _make_bound(differences, direction, delta):
  """Function of the number of steps to the least bound over many gamma."""
  constant = norm_of_longest(differences) ** 2 + 2 * delta  # eta = 1
  gammas = np.geomspace(0.05, 50, 200)
  margins = differences @ direction
  missing = np.array([np.maximum(gamma - margins, 0).max(1).mean() for gamma in gammas])

  def bound(steps):
    roots = np.sqrt(constant) + np.sqrt(constant + 4 * gammas * steps * missing)
    return float(((roots / (2 * gammas)) ** 2).min() / steps)

  return bound


PARTS = {
  "proposition_1": proposition_1,
  "converse": converse,
  "non_separable": non_separable,
}


if __name__ == "__main__":
  command_line.run(main)
