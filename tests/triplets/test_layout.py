"""The order of entries, against explicit loops over classes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.triplets import ClassLayout
from dr_plugin.triplets.layout import relevance_values

labels_lists = st.lists(st.integers(-2, 3), max_size=10)


def _expected_pairs(labels, references):
    others = labels if references is None else references
    return [
        (i, j)
        for label in sorted(set(labels))
        for i in range(len(labels))
        if labels[i] == label
        for j in range(len(others))
        if others[j] == label
    ]


@settings(deadline=None)
@given(labels_lists, st.none() | labels_lists)
def test_pairs_are_the_class_matrices_row_by_row(labels, references):
    layout = _layout(labels, references)
    expected = _expected_pairs(labels, references)
    assert layout.size == len(expected)
    assert torch.stack(layout.pairs(), 1).tolist() == [list(pair) for pair in expected]


@settings(deadline=None)
@given(labels_lists, st.none() | labels_lists, st.integers(1, 7))
def test_pairs_in_parts_are_the_pairs_of_the_whole(labels, references, size):
    layout = _layout(labels, references)
    parts = [layout.pairs(s, min(s + size, layout.size)) for s in range(0, layout.size, size)]
    for whole, pieces in zip(layout.pairs(), zip(*parts, strict=True), strict=False):
        assert torch.equal(torch.cat(pieces), whole)


@settings(deadline=None)
@given(labels_lists, st.none() | labels_lists)
def test_itself_is_where_a_row_pairs_an_image_with_itself(labels, references):
    layout = _layout(labels, references)
    i, j = layout.pairs()
    if references is not None:
        assert (layout.itself == -1).all()
    else:
        own = (layout.offset[:-1] + layout.itself).tolist()
        assert own == torch.nonzero(i == j).flatten().tolist()


def test_layout_of_classes_that_only_one_side_has():
    layout = _layout([5, 1, 2], [2, 9, 2, 1])
    assert layout.count.tolist() == [1, 2, 0]  # of the images 1, 2, 0
    assert torch.stack(layout.pairs()).tolist() == [[1, 2, 2], [3, 0, 2]]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 6), (6, None)])
def test_pairs_out_of_range_are_refused(start, stop):
    with pytest.raises(ValueError, match=f"got entries {start} to {stop}, expected .* 0 to 5"):
        _layout([1, 0, 1], None).pairs(start, stop)


@pytest.mark.parametrize(
    ("labels", "references", "message"),
    [
        (torch.zeros(3), None, "labels: got torch.float32"),
        (torch.zeros(2, 2).long(), None, r"labels: got shape \(2, 2\)"),
        (torch.zeros(3).long(), torch.zeros(3), "reference_labels: got torch.float32"),
    ],
)
def test_labels_that_are_no_integer_vector_are_refused(labels, references, message):
    with pytest.raises(ValueError, match=message):
        ClassLayout(labels, references)


def _layout(labels, references):
    return ClassLayout(
        torch.tensor(labels, dtype=torch.long),
        None if references is None else torch.tensor(references, dtype=torch.long),
    )


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_values_of_a_relevance_are_those_of_each_pair_and_0_of_an_image_with_itself(monkeypatch, chunk):
    monkeypatch.setattr("dr_plugin.triplets.layout._CHUNK", chunk)

    class Asked:
        def pairs(self, i, j):
            assert (i != j).all()
            return (10 * i + j).astype(np.float32)

    images, references = torch.tensor([5, 3, 8]), torch.tensor([3, 8, 2, 5, 5])
    layout = ClassLayout(torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1, 1, 0]))
    values = relevance_values(layout, Asked(), images, references)
    expected = [
        0 if (i := int(images[query])) == (j := int(references[reference])) else 10 * i + j
        for query, reference in zip(*layout.pairs(), strict=True)
    ]
    assert values.tolist() == expected == [0, 35, 58, 52, 0, 0, 82, 85]


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_values_that_are_none_are_refused(bad):
    class Bad:
        def pairs(self, i, j):
            return np.full(len(i), bad, np.float32)

    with pytest.raises(ValueError, match=r"relevance: got one that is not, expected every r\(i, j\) finite"):
        relevance_values(ClassLayout(torch.zeros(2).long()), Bad(), torch.arange(2), torch.arange(2))
