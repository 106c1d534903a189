"""rerank, against explicit sorting, and with PDDM's unit and the neighbours of a search."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dr_plugin.losses import PDDMUnit
from dr_plugin.metrics import nearest, rerank

ROWS = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=width, max_size=width),
        min_size=1,
        max_size=4,
    )
)


@given(ROWS, st.integers(0, 3), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_first_are_ordered_by_similarity_and_the_rest_stays(rows, rest, dtype):
    similarities = torch.tensor(rows).to(dtype)
    width = similarities.shape[1]
    generator = torch.Generator().manual_seed(rest)
    indices = torch.stack([torch.randperm(width + rest, generator=generator) for _ in rows]) + 100
    expected = []
    for row, before in zip(rows, indices.tolist(), strict=True):
        places = sorted(range(width), key=lambda place, row=row: (-row[place], place))  # ties as they were
        expected.append([before[place] for place in places] + before[width:])
    reranked = rerank(indices, similarities)
    assert reranked.dtype == torch.long
    assert reranked.tolist() == expected


def test_order_that_is_right_already_is_kept():
    indices = torch.tensor([[4, 2, 9]])
    assert torch.equal(rerank(indices, torch.tensor([[3.0, 2.0, 1.0]])), indices)
    assert rerank(indices, torch.tensor([[-3.0, -2.0, -1.0]])).tolist() == [[9, 2, 4]]


def test_no_queries_and_no_similarities_change_nothing():
    assert rerank(torch.zeros(0, 3).long(), torch.zeros(0, 3)).shape == (0, 3)
    indices = torch.tensor([[4, 2, 9]])
    assert torch.equal(rerank(indices, torch.zeros(1, 0)), indices)


def test_infinite_similarities_have_their_place():
    indices = torch.tensor([[0, 1, 2]])
    assert rerank(indices, torch.tensor([[-torch.inf, 0.0, torch.inf]])).tolist() == [[2, 1, 0]]


def test_neighbours_are_put_in_the_order_of_the_unit():
    torch.manual_seed(0)
    unit, query, gallery = PDDMUnit(4), torch.randn(5, 4), torch.randn(30, 4)
    _, indices = nearest(query, gallery, 8)
    with torch.no_grad():
        reranked = rerank(indices, unit.candidates(query, gallery, indices))
        similarities = unit.matrix(query, gallery)
    for row, before, after in zip(similarities.tolist(), indices.tolist(), reranked.tolist(), strict=True):
        assert after == sorted(before, key=lambda image, row=row: -row[image])
    assert not torch.equal(reranked, indices)


@pytest.mark.parametrize(
    ("indices", "similarities", "message"),
    [
        ((2, 3), (3, 3), r"similarities: got \(3, 3\) for indices \(2, 3\), expected \(Q, R\) for \(Q, K\)"),
        ((2, 3), (2,), r"similarities: got \(2,\) for indices \(2, 3\)"),
        ((3,), (3, 3), r"similarities: got \(3, 3\) for indices \(3,\)"),
        ((2, 3), (2, 4), "similarities: got 4 a query, expected at most 3, the neighbours at hand"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(indices, similarities, message):
    with pytest.raises(ValueError, match=message):
        rerank(torch.zeros(indices).long(), torch.zeros(similarities))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="similarities: got NaN"):
        rerank(torch.zeros(1, 2).long(), torch.tensor([[0.0, float("nan")]]))
