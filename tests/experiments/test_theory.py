"""The theory's statements hold where they are checked, and its parts are what they say."""

import json

import numpy as np
import pytest
import render_theory
import theory


def test_average_precision_by_hand():
  labels = np.array([True, False, True, False])
  assert theory.average_precision(np.array([4.0, 3, 2, 1]), labels) == (1 + 2 / 3) / 2
  assert theory.average_precision(np.zeros(4), labels) == (1 / 3 + 2 / 4) / 2


def test_data_are_as_separable_as_they_say():
  features, labels, direction = theory.separable_data(0, dimensions=5, margin=0.5)
  along = theory.pair_differences(features, labels) @ direction
  assert 0.5 <= along.min() < 1
  features, labels = theory.trap()
  along = theory.pair_differences(features, labels) @ np.array([1.0, 4, 4, 4, 4])
  assert along.min() == pytest.approx(1)


@pytest.mark.parametrize("delta", [theory.HARD, 1.0])
def test_proposition_1(delta):
  found = theory._separated(0, 2, 2.0, delta, steps=200)
  assert 0 < found["steps_to_ap_1"] <= found["bound_of_steps"]
  assert 0 < found["sum"] <= found["bound_of_sum"]


@pytest.mark.slow
def test_gradient_descent_is_trapped_where_error_driven_steps_are_not():
  features, labels = theory.trap()
  aps = {}
  for method, steps in ((theory.error_driven, 150), (theory.gradient_descent, 300)):
    w = method(
      features, labels, eta=1.0, delta=1.0, steps=steps, observe=lambda *_: False
    )
    aps[method] = theory.average_precision(features @ w, labels)
  assert aps[theory.error_driven] == 1
  assert aps[theory.gradient_descent] < 0.9


@pytest.mark.slow
def test_bound_where_data_are_not_separable():
  found = theory._mislabelled(0, 3, steps=200, delta=1.0)
  assert found["ap_of_u"] < 0.95
  for _, mean_loss, bound in found["curve"]:
    assert 0.1 < mean_loss <= bound
  assert found["curve"][-1][2] < 0.5


@pytest.mark.slow
def test_page_of_small_results(tmp_path):
  parts = {
    "proposition_1": theory.proposition_1(seeds=2, steps=300),
    "converse": theory.converse(steps=40, rates=(1.0,), deltas=(1.0,)),
    "non_separable": theory.non_separable(steps=30, seeds=2, mislabelled=(3,)),
  }
  assert render_theory.pages(tmp_path) == {}
  measured = {
    "machine": {"processor": "x", "cores": 2, "memory_gib": 8, "gpus": []},
    "versions": {},
    "commit": "abc",
    "date": "today",
    "note": "",
  }
  for name, part in parts.items():
    (tmp_path / f"{name}.json").write_text(json.dumps({**measured, **part}))
  pages = render_theory.pages(tmp_path)
  assert "| 2 | 0.1 | 0.001 |" in pages["theory.md"]
  assert "| gradient descent | 1 | 1 |" in pages["theory.md"]
  assert set(pages) == {
    *("theory.md", "theory_converse.png", "theory_non_separable.png")
  }
