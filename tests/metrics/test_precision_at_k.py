import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.metrics import precision_at_k, recall_at_k

NEIGHBORS = torch.tensor([[1, 1, 2, 1], [2, 1, 1, 1], [3, 3, 3, 3]])
QUERIES = torch.tensor([1, 2, 1])


def counted_by_hand(neighbor_labels, query_labels, k):
    values = []
    for row, label in zip(neighbor_labels.tolist(), query_labels.tolist(), strict=True):
        right = 0
        for i in range(k):
            if row[i] == label:
                right += 1
        values.append(right / k)
    return values


@pytest.mark.parametrize(("k", "expected"), [(1, [1, 1, 0]), (2, [1, 0.5, 0]), (4, [0.75, 0.25, 0])])
def test_values_by_hand(k, expected):
    assert precision_at_k(NEIGHBORS, QUERIES, k, reduction="none").tolist() == expected
    assert precision_at_k(NEIGHBORS, QUERIES, k).item() == pytest.approx(sum(expected) / 3)


def test_class_means_follow_the_sorted_labels():
    per_class = precision_at_k(NEIGHBORS, QUERIES, 4, reduction="class")
    assert torch.unique(QUERIES).tolist() == [1, 2]
    assert per_class.tolist() == [0.375, 0.25]


@settings(max_examples=60, deadline=None)
@given(
    queries=st.integers(1, 20),
    columns=st.integers(1, 10),
    classes=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_property_against_counting(queries, columns, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    neighbor_labels = torch.randint(classes, (queries, columns), generator=generator)
    query_labels = torch.randint(classes, (queries,), generator=generator)
    for k in range(1, columns + 1):
        by_hand = counted_by_hand(neighbor_labels, query_labels, k)
        values = precision_at_k(neighbor_labels, query_labels, k, reduction="none")
        torch.testing.assert_close(values, torch.tensor(by_hand))
        mean = precision_at_k(neighbor_labels, query_labels, k)
        assert mean.item() == pytest.approx(sum(by_hand) / queries)
        assert 0 <= mean <= recall_at_k(neighbor_labels, query_labels, k) <= 1
        for value, label in zip(
            precision_at_k(neighbor_labels, query_labels, k, reduction="class").tolist(),
            query_labels.unique().tolist(),
            strict=True,
        ):
            of_class = [v for v, own in zip(by_hand, query_labels.tolist(), strict=True) if own == label]
            assert value == pytest.approx(sum(of_class) / len(of_class))


def test_labels_beyond_float32_are_told_apart():
    labels = torch.tensor([[2**24 + 1], [2**53 + 1]])
    assert precision_at_k(labels, torch.tensor([2**24, 2**53]), 1).item() == 0
    assert precision_at_k(labels, labels[:, 0], 1).item() == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.long])
def test_integer_types(dtype):
    assert precision_at_k(NEIGHBORS.to(dtype), QUERIES.to(dtype), 2).item() == 0.5


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpy_k_is_taken(kind):
    assert precision_at_k(NEIGHBORS, QUERIES, kind(2)) == precision_at_k(NEIGHBORS, QUERIES, 2) == 0.5


def test_mean_over_many_queries_does_not_drift():
    queries = torch.zeros(3_000_000, dtype=torch.long)
    neighbor_labels = (torch.arange(3_000_000) % 10 != 0).long()[:, None]
    assert precision_at_k(neighbor_labels, queries, 1).item() == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize("function", [precision_at_k, recall_at_k])
@pytest.mark.parametrize(
    ("neighbor_labels", "query_labels", "k", "options", "match"),
    [
        (NEIGHBORS, QUERIES, 5, {}, "k: got 5, expected at most 4: the neighbours at hand"),
        (NEIGHBORS, QUERIES, 0, {}, "k: got 0, expected a whole number, at least 1"),
        (NEIGHBORS, QUERIES, True, {}, "k: got True"),
        (NEIGHBORS, QUERIES[:2], 1, {}, r"neighbor_labels \(3, 4\) and query_labels \(2,\)"),
        (NEIGHBORS[0], QUERIES, 1, {}, r"expected \(Q, K\)"),
        (NEIGHBORS, QUERIES[:, None], 1, {}, r"expected \(Q, K\) and \(Q,\)"),
        (NEIGHBORS.float(), QUERIES, 1, {}, "neighbor_labels of torch.float32, expected integers"),
        (NEIGHBORS, QUERIES.double(), 1, {}, "query_labels of torch.float64"),
        (NEIGHBORS[:0], QUERIES[:0], 1, {}, "no queries"),
        (NEIGHBORS, QUERIES, 1, {"reduction": "sum"}, "reduction='sum', expected 'mean', 'none' or 'class'"),
    ],
)
def test_bad_input_is_refused(function, neighbor_labels, query_labels, k, options, match):
    with pytest.raises(ValueError, match=match):
        function(neighbor_labels, query_labels, k, **options)
