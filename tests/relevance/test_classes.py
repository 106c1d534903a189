import numpy as np
import pytest
import torch

from dr_plugin.checks import as_indices
from dr_plugin.relevance.classes import Classes


def test_classes_by_loops():
    labels = [7, -2, 7, 9, -2, 7]
    classes = Classes(labels, 6)
    assert len(classes) == 3
    for number, (label, members) in enumerate(zip(sorted(set(labels)), classes, strict=True)):
        assert members.tolist() == [i for i, other in enumerate(labels) if other == label]
        assert classes.members(number).tolist() == members.tolist()
        assert classes.sizes[number] == len(members)
        assert classes.place[members].tolist() == list(range(len(members)))
        assert set(classes.number[members]) == {number}
        assert set(classes.first[members]) == {members[0]}
    assert classes.labels.tolist() == labels


def test_no_labels_is_one_class():
    classes = Classes(None, 3)
    assert classes.labels is None
    assert [members.tolist() for members in classes] == [[0, 1, 2]]


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([1, 1, 0]), np.array([1, 1, 0], np.uint8), (1, 1, 0)],
    ids=["tensor", "array", "tuple"],
)
def test_any_integers_are_labels(labels):
    assert [members.tolist() for members in Classes(labels, 3)] == [[2], [0, 1]]


@pytest.mark.parametrize(
    ("labels", "count", "match"),
    [
        ([0, 1], 3, r"labels: got int64 of shape \(2,\), expected an integer for each image, \(3,\)"),
        ([[0, 1]], 2, r"shape \(1, 2\)"),
        ([0.5, 1.0], 2, "got float64"),
        (["a", "b"], 2, "labels: got <U1"),
        (None, 0, "got no images"),
        ([], 0, "got no images"),
    ],
)
def test_bad_labels_are_refused(labels, count, match):
    with pytest.raises(ValueError, match=match):
        Classes(labels, count)


def test_indices_are_checked():
    assert as_indices("i", [], 3).dtype == np.int64
    assert as_indices("i", torch.tensor([2, 0]), 3).tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"i: got float64 of shape \(1,\), expected integers"):
        as_indices("i", [0.0], 3)
    with pytest.raises(ValueError, match=r"shape \(1, 1\)"):
        as_indices("i", [[0]], 3)
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=f"i: got {wrong}, expected 0 to 2"):
            as_indices("i", [0, wrong], 3)
