"""Concordance against loops over pairs, and what it means at its ends."""

from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dr_plugin.metrics import concordance, concordance_score


def loops(distances: Tensor, relevance: Tensor, radius: Tensor) -> tuple[list[float], list[float]]:
    """Pair by pair, in plain Python numbers."""
    shares, scores = [], []
    for row, wanted, limit in zip(distances.tolist(), relevance.tolist(), radius.tolist(), strict=True):
        agreed = pairs = score = 0.0
        for a in range(len(row)):
            for b in range(len(row)):
                if wanted[a] > wanted[b]:
                    pairs += 1
                    agreed += 1.0 if row[a] < row[b] else 0.5 if row[a] == row[b] else 0.0
                    if min(row[a], row[b]) <= limit:
                        score += (row[a] < row[b]) - (row[a] > row[b])
        shares.append(agreed / pairs if pairs else float("nan"))
        scores.append(score)
    return shares, scores


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_both_equal_loops_over_pairs_with_ties(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    distances = torch.randint(12, (5, 9), generator=generator).to(dtype) / 8
    relevance = torch.randint(5, (5, 9), generator=generator).to(dtype)
    radius = torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0])
    shares, scores = loops(distances, relevance, radius)
    assert concordance(distances, relevance).tolist() == pytest.approx(shares)
    assert concordance_score(distances, relevance, radius).tolist() == scores


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    distances, relevance = torch.rand(7, 6), torch.rand(7, 6)
    radius = torch.full((7,), 0.4)
    whole = concordance(distances, relevance), concordance_score(distances, relevance, radius)
    # Two queries at a time.
    monkeypatch.setattr(import_module("dr_plugin.metrics.concordance"), "_CHUNK_ELEMENTS", 80)
    assert torch.equal(concordance(distances, relevance), whole[0])
    assert torch.equal(concordance_score(distances, relevance, radius), whole[1])


def test_the_order_wanted_gives_one_its_reverse_zero_and_equal_distances_a_half() -> None:
    relevance = torch.tensor([[0.1, 0.5, 0.3, 0.9]])
    assert concordance(-relevance, relevance).item() == 1
    assert concordance(relevance, relevance).item() == 0
    assert concordance(torch.zeros(1, 4), relevance).item() == 0.5


def test_score_counts_all_six_pairs_within_the_largest_radius_and_none_below_the_smallest() -> None:
    relevance = torch.tensor([[0.1, 0.5, 0.3, 0.9]])
    distances = 1 - relevance
    assert concordance_score(distances, relevance, torch.tensor([1.0])).item() == 6
    assert concordance_score(-distances, relevance, torch.tensor([1.0])).item() == -6
    assert concordance_score(distances, relevance, torch.tensor([0.05])).item() == 0


def test_query_without_order_is_nan_and_scores_nothing() -> None:
    assert concordance(torch.rand(2, 3), torch.ones(2, 3)).isnan().all()
    assert concordance_score(torch.rand(2, 3), torch.ones(2, 3), torch.ones(2)).tolist() == [0, 0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (3, 1)])
def test_no_pairs_no_queries(shape: tuple[int, int]) -> None:
    result = concordance(torch.zeros(shape), torch.zeros(shape))
    assert result.shape == shape[:1]
    assert result.isnan().all()


@given(st.integers(0, 2**31), st.integers(2, 12))
def test_reversed_distances_complement(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(3, n, generator=generator)
    relevance = torch.randint(6, (3, n), generator=generator)
    both = concordance(distances, relevance) + concordance(-distances, relevance)
    assert torch.allclose(both.nan_to_num(1.0), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("function", [concordance, lambda d, r: concordance_score(d, r, torch.zeros(len(d)))])
def test_bad_input_is_refused(function: object) -> None:
    with pytest.raises(ValueError, match=r"one shape \(Q, n\)"):
        function(torch.zeros(2, 3), torch.zeros(3, 2))  # type: ignore[operator]
    with pytest.raises(ValueError, match="one shape"):
        function(torch.zeros(3), torch.zeros(3))  # type: ignore[operator]
    with pytest.raises(ValueError, match="relevance: got NaN"):
        function(torch.zeros(1, 2), torch.tensor([[0.0, float("nan")]]))  # type: ignore[operator]
    with pytest.raises(ValueError, match="distances: got NaN"):
        function(torch.tensor([[0.0, float("nan")]]), torch.zeros(1, 2))  # type: ignore[operator]


def test_radius_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"radius: got shape \(3,\), expected \(2,\)"):
        concordance_score(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3))
