import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dr_plugin.metrics import hit_rate_at_k, recall_at_k


@given(
    st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=width, max_size=width), min_size=1
        )
    ),
    st.data(),
)
def test_rate_equals_the_loop_and_grows_with_k(rows, data):
    k = data.draw(st.integers(1, len(rows[0])))
    threshold = data.draw(st.sampled_from([0.0, 0.3, 0.5]))
    hits = [any(grade > threshold for grade in row[:k]) for row in rows]
    relevance = torch.tensor(rows)
    assert hit_rate_at_k(relevance, k, threshold=threshold).item() == pytest.approx(sum(hits) / len(hits))
    assert hit_rate_at_k(relevance, k, threshold=threshold, reduction="none").tolist() == hits
    assert hit_rate_at_k(relevance, 1) <= hit_rate_at_k(relevance, k)


def test_of_class_labels_it_is_recall():
    generator = torch.Generator().manual_seed(0)
    neighbor_labels = torch.randint(9, (50, 12), generator=generator)
    query_labels = torch.randint(9, (50,), generator=generator)
    for k in (1, 3, 12):
        rate = hit_rate_at_k(neighbor_labels == query_labels[:, None], k)
        assert rate == recall_at_k(neighbor_labels, query_labels, k)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.long, torch.float16, torch.bfloat16, torch.float64]
)
def test_relevance_of_any_type_and_numpy(dtype):
    relevance = torch.tensor([[0, 1, 0], [0, 0, 0]]).to(dtype)
    rate = hit_rate_at_k(relevance, 2)
    assert (rate.item(), rate.dtype) == (0.5, torch.float32)
    assert hit_rate_at_k(np.array([[False, True]]), 2) == 1


def test_numpy_k_is_taken():
    assert hit_rate_at_k(torch.tensor([[0, 1], [0, 0]]), np.int64(2)) == 0.5


def test_threshold_does_not_reach_booleans():
    assert hit_rate_at_k(torch.tensor([[True]]), 1, threshold=1.0) == 1


@pytest.mark.parametrize(
    ("relevance", "k", "options", "match"),
    [
        (torch.zeros(2, 3), 0, {}, "k: got 0, expected a whole number, at least 1"),
        (torch.zeros(2, 3), 4, {}, "k: got 4, expected at most 3"),
        (torch.zeros(2, 3), True, {}, "k: got True"),
        (torch.zeros(2, 0), 1, {}, "k: got 1, expected at most 0"),
        (torch.zeros(3), 1, {}, r"relevance \(3,\)"),
        (torch.zeros(0, 3), 1, {}, r"relevance \(0, 3\)"),
        (torch.tensor([[float("nan")]]), 1, {}, "relevance: got NaN"),
        (torch.zeros(2, 3), 1, {"reduction": "sum"}, "reduction='sum'"),
    ],
)
def test_bad_input_is_refused(relevance, k, options, match):
    with pytest.raises(ValueError, match=match):
        hit_rate_at_k(relevance, k, **options)
