"""Score at top K against loops, its ties, and K scaled to the pool."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dr_plugin.metrics import scaled_k, score_at_top_k


def loop(positive, negative, ks):
    score = 0
    for p, n, k in zip(positive, negative, ks, strict=True):
        if p <= k or n <= k:
            score += 1 if p < n else -1 if p > n else 0
    return score


ranks = st.integers(1, 12)


@given(st.lists(st.tuples(ranks, ranks, ranks), min_size=1, max_size=40), ranks)
def test_score_equals_the_loop_for_one_k_and_for_one_each(rows, k):
    positive, negative, ks = map(list, zip(*rows, strict=True))
    tensors = torch.tensor(positive), torch.tensor(negative)
    assert score_at_top_k(*tensors, k) == loop(positive, negative, [k] * len(rows))
    assert score_at_top_k(*tensors, torch.tensor(ks)) == loop(positive, negative, ks)
    assert score_at_top_k(*tensors[::-1], k) == -score_at_top_k(*tensors, k)


def test_an_answer_at_the_kth_place_counts_and_one_behind_it_does_not():
    for positive, negative, expected in ((30, 31, 1), (31, 30, -1), (31, 32, 0), (30, 30, 0)):
        assert score_at_top_k(torch.tensor([positive]), torch.tensor([negative]), 30) == expected


def test_k_of_the_whole_pool_is_right_less_wrong():
    positive, negative = torch.tensor([1, 4, 3, 900]), torch.tensor([2, 2, 3, 999])
    assert score_at_top_k(positive, negative, 1000) == 1


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_integers_of_any_size_and_numpy(dtype):
    positive, negative = torch.tensor([1, 2], dtype=dtype), torch.tensor([3, 1], dtype=dtype)
    assert score_at_top_k(positive, negative, 5) == 0
    assert score_at_top_k(positive.numpy(), negative.numpy(), 1) == 0
    assert score_at_top_k(torch.tensor([1], dtype=torch.uint8), torch.tensor([2], dtype=torch.uint8), 1) == 1


def test_no_triplets_are_refused():
    with pytest.raises(ValueError, match="got no triplets, expected at least one"):
        score_at_top_k(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), 3)


@pytest.mark.parametrize(
    ("size", "expected"), [(1000, 30), (999, 30), (100, 3), (50, 2), (49, 1), (10, 1), (1, 1)]
)
def test_scaled_k_is_three_percent_but_at_least_one(size, expected):
    assert scaled_k(torch.tensor([size])).tolist() == [expected]
    assert scaled_k(np.array([size])).tolist() == [expected]


def test_scaled_k_with_another_share():
    assert scaled_k(torch.tensor([4, 7]), share=1).tolist() == [4, 7]


@pytest.mark.parametrize(
    ("positive", "negative", "k", "match"),
    [
        ([1], [2], 0, "k: got 0, expected a whole number, at least 1"),
        ([1], [2], True, "k: got True, expected a whole number"),
        ([1], [2], 1.5, "k: got 1.5"),
        ([0], [2], 3, "positive_ranks: got 0"),
        ([1], [2.0], 3, "negative_ranks: got torch.float32"),
        ([1], [2, 3], 3, r"positive_ranks \(1,\), negative_ranks \(2,\)"),
        ([1], [2], torch.tensor([3, 4]), r"k \(2,\)"),
        ([[1]], [[2]], 3, r"expected \(T,\), \(T,\)"),
    ],
)
def test_bad_input_is_refused(positive, negative, k, match):
    with pytest.raises(ValueError, match=match):
        score_at_top_k(torch.tensor(positive), torch.tensor(negative), k)


def test_bad_pools_are_refused():
    with pytest.raises(ValueError, match="pool_sizes: got 0"):
        scaled_k(torch.tensor([3, 0]))
    with pytest.raises(ValueError, match="share=0"):
        scaled_k(torch.tensor([3]), share=0)
