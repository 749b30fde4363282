"""Average precision by matches: pycocotools' own, and by it over one list of classes."""

import contextlib
import copy
import dataclasses
import io

import numpy as np
import pytest
from coco_cases import dataset, found, random_case, record
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ap_detect.metrics import evaluate_coco, rank_all, rank_by_class

BOX, FAR = [10, 20, 110, 120], [200, 200, 300, 300]


def by_class(evaluation):
  """[K, T] average precisions."""
  rankings = rank_by_class(evaluation.matches)
  return np.array([ranking.average_precision() for ranking in rankings])


def pycocotools_precisions(images, truth, results):
  """COCOeval's [T] average precisions of a single category."""

  def index(annotations):
    coco = COCO()
    coco.dataset = {
      "images": [{"id": i} for i in images],
      "categories": [{"id": 1}],
      "annotations": [{**a, "id": n} for n, a in enumerate(annotations, 1)],
    }
    coco.createIndex()
    return coco

  with contextlib.redirect_stdout(io.StringIO()):
    judge = COCOeval(index(truth), index(results), "bbox")
    judge.evaluate()
    judge.accumulate()
  return judge.eval["precision"][:, :, 0, 0, -1].mean(1)


@pytest.mark.parametrize("seed", range(6))
def test_mean_over_classes_is_pycocotools(seed):
  data, results, *_ = random_case(seed)
  evaluation = evaluate_coco(data, results)
  found = by_class(evaluation)
  assert np.nanmean(found) == pytest.approx(evaluation.metrics["AP"], abs=1e-12)
  for name, place in (("AP50", 0), ("AP75", 5)):
    mean = np.nanmean(found[:, place])
    assert mean == pytest.approx(evaluation.metrics[name], abs=1e-12)
  per_class = [figures["AP"] for figures in evaluation.per_class.values()]
  np.testing.assert_allclose(found.mean(1), np.array(per_class, float), atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_one_list_is_pycocotools_with_an_image_for_each_image_and_class(seed):
  """Where classes are images of their own, all detections are of one category."""
  data, results, *_ = random_case(seed)
  ids = sorted(item.image_id for item in data.records)

  def place(image, category):  # class by class, as ties are broken
    return data.category_ids.index(category) * len(ids) + ids.index(image) + 1

  truth = []
  for item in data.records:
    rows = zip(item.boxes, item.classes, item.areas, item.ignored)
    for (ymin, xmin, ymax, xmax), k, area, ignored in rows:
      truth.append(
        {
          "image_id": place(item.image_id, data.category_ids[k - 1]),
          "category_id": 1,
          "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
          "area": area,
          "iscrowd": int(ignored),
        }
      )
  moved = []
  for result in copy.deepcopy(results):
    image = place(result["image_id"], result["category_id"])
    area = result["bbox"][2] * result["bbox"][3]
    moved.append(
      {**result, "image_id": image, "category_id": 1, "area": area, "iscrowd": 0}
    )
  images = range(1, len(ids) * len(data.category_ids) + 1)
  expected = pycocotools_precisions(images, truth, moved)
  ranking = rank_all(evaluate_coco(data, results).matches)
  np.testing.assert_allclose(ranking.average_precision(), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_an_image_that_counts_twice_is_like_two_of_it(seed):
  data, results, *_ = random_case(seed, num_images=5)
  scores = np.random.default_rng(seed).permutation(len(results)) / len(results)
  results = [{**one, "score": float(s)} for one, s in zip(results, scores)]
  counts = [2, 0, 1, 3, 1]  # of the images in the order of their ids
  records, copies = [], []
  order = sorted(data.records, key=lambda item: item.image_id)
  for item, count in zip(order, counts):
    for image_id in 100 * item.image_id + np.arange(count):
      records.append(dataclasses.replace(item, image_id=int(image_id)))
      of_image = [one for one in results if one["image_id"] == item.image_id]
      copies += [{**one, "image_id": int(image_id)} for one in of_image]
  matches = evaluate_coco(data, results).matches
  of_copies = evaluate_coco(dataset(*records, num_classes=3), copies).matches
  pairs = [(rank_all(matches), rank_all(of_copies))]
  pairs += zip(rank_by_class(matches), rank_by_class(of_copies))
  for ranking, expected in pairs:
    np.testing.assert_allclose(
      ranking.average_precision(counts), expected.average_precision(), atol=1e-12
    )


def test_one_list_by_hand():
  """Perfect in each class; but the second class's hit is below the first one's miss."""
  data = dataset(record(1, [BOX, FAR], [1, 2]), num_classes=2)
  results = found(data, 1, [BOX, FAR, FAR], [0.9, 0.8, 0.7], [1, 1, 2])
  evaluation = evaluate_coco(data, results)
  assert evaluation.metrics["AP"] == pytest.approx(1)
  # Recall 1/2 at precision 1, recall 1 at precision 2/3: 51 and 50 of the 101 recalls.
  expected = (51 + 50 * 2 / 3) / 101
  ranking = rank_all(evaluation.matches)
  np.testing.assert_allclose(ranking.average_precision(), expected)


def test_nothing_to_find_and_nothing_found():
  data = dataset(record(1, [BOX], [1]), record(2), num_classes=2)
  evaluation = evaluate_coco(data, [])
  first, second = by_class(evaluation)
  assert not first.any() and np.isnan(second).all()
  ranking = rank_all(evaluation.matches)
  assert np.isnan(ranking.average_precision([0, 1])).all()
