"""Faults are grouped by what they say, whatever names and numbers are in them."""

import pytest

from ap_detect.commands import fault_kinds


@pytest.mark.parametrize(
  ("faults", "kind"),
  [
    (
      [
        "Annotations/000012.xml: object 2 has xmax 90 <= xmin 110",
        "Annotations/my photo.xml: object 11 has xmax 0.5 <= xmin 1e-05",
      ],
      "object N has xmax N <= xmin N",
    ),
    (
      [
        "annotations/instances_train.json: annotation 7 has bbox [5, -5, 0, 1], empty",
        "one/train: a.json: annotation 8 has bbox [1.5, 2, 3, -4], empty",
      ],
      "annotation N has bbox [N, N, N, N], empty",
    ),
    (
      [
        "a.xml: object 1 has class 'cat', which is not in the list of classes",
        "b.xml: object 1 has class 'dog: 2/3', which is not in the list of classes",
      ],
      "object N has class '...', which is not in the list of classes",
    ),
    (
      [
        "a.xml: gives img/a.jpg 64 x 48 pixels, but it has 48 x 64",
        "b.xml: gives img/b.jpg 640 x 480 pixels, but it has 480 x 640",
      ],
      "gives FILE N x N pixels, but it has N x N",
    ),
    (
      ["train/a.png: there is no such file", "deep/er/b.jpeg: there is no such file"],
      "there is no such file",
    ),
  ],
)
def test_of_one_kind(faults, kind):
  assert fault_kinds.group(faults) == [(kind, tuple(faults))]


def test_the_most_frequent_first_and_none_lost():
  few, many = ["a.png: is empty"], [f"b{i}.png: is damaged" for i in range(5)]
  groups = fault_kinds.group([*few, *many])
  assert [item.faults for item in groups] == [tuple(many), tuple(few)]
  assert fault_kinds.describe(groups) == (
    "5 x is damaged\n  b0.png: is damaged\n  b1.png: is damaged\n  b2.png: is damaged\n"
    "  ... and 2 more\n1 x is empty\n  a.png: is empty"
  )
  assert fault_kinds.group([]) == []
