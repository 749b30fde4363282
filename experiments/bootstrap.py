"""How sure the difference of two rows is: a paired bootstrap over images."""

from __future__ import annotations

import numpy as np

from ap_detect.metrics.matches import Matches, rank_all, rank_by_class

RESAMPLES = 1000
# Place of an IoU threshold among COCO's ten.
_AT_50, _AT_75 = 0, 5


def figures(matches: Matches) -> dict[str, float]:
  """COCO's mean over classes, and over the one list of all classes' detections.

  Returns:
    {"AP", "AP50", "AP75", "pooled_AP", "pooled_AP50", "pooled_AP75"}, each in [0, 1].
  """
  return _figures(rank_by_class(matches), rank_all(matches), None)


def compare(
  pairs: list[tuple[Matches, Matches]], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, float]]:
  """The differences of two rows' figures, with what other images could have given.

  Images are drawn with replacement, the same ones for both of a pair and for all pairs, so
  that images that are hard for both do not count.

  Args:
    pairs: (Matches of the first row, of the second), one for every seed, on the same
      images.
    seed: of the draws.
    resamples: number of draws.

  Returns:
    figure -> {"difference" of the means over pairs, first minus second, "low" and "high",
    the central 95 % of the draws, "share_above_0" of the draws}.

  Raises:
    ValueError: the images of the pairs are not the same.
  """
  first = pairs[0][0].num_objects
  if not all(np.array_equal(one.num_objects, first) for pair in pairs for one in pair):
    raise ValueError("the rows must be evaluated on the same images")
  rankings = [[(rank_by_class(one), rank_all(one)) for one in pair] for pair in pairs]

  def differences(image_counts):
    of_pairs = []
    for pair in rankings:
      one, other = (_figures(*ranking, image_counts) for ranking in pair)
      of_pairs.append({name: one[name] - other[name] for name in one})
    return {
      name: float(np.mean([of_pair[name] for of_pair in of_pairs]))
      for name in of_pairs[0]
    }

  rng = np.random.default_rng(seed)
  num_images = first.shape[1]
  drawn = [
    differences(rng.multinomial(num_images, [1 / num_images] * num_images))
    for _ in range(resamples)
  ]
  result = {}
  for name, difference in differences(None).items():
    values = np.array([one[name] for one in drawn])
    low, high = np.quantile(values, (0.025, 0.975))
    result[name] = {
      "difference": difference,
      "low": float(low),
      "high": float(high),
      "share_above_0": float(np.mean(values > 0)),
    }
  return result


def _figures(by_class, pooled, image_counts):
  precisions = np.array([one.average_precision(image_counts) for one in by_class])
  # A class that no drawn image has is left out, as in COCO's mean.
  mean = np.nanmean(precisions, axis=0)
  found = {}
  for prefix, of_thresholds in (
    ("", mean),
    ("pooled_", pooled.average_precision(image_counts)),
  ):
    found[f"{prefix}AP"] = float(of_thresholds.mean())
    found[f"{prefix}AP50"] = float(of_thresholds[_AT_50])
    found[f"{prefix}AP75"] = float(of_thresholds[_AT_75])
  return found
