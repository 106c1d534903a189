"""Triplets as tuples, and ranks within them."""

import math

import pytest
import torch

from dr_plugin.triplets.tuples import as_tuples

TRIPLETS = torch.tensor([(2, 0, 3), (0, 1, 4), (2, 0, 1), (0, 1, 2), (0, 3, 4), (2, 0, 3)]).unbind(1)


def test_triplets_are_grouped_by_query_and_positive_and_none_comes_twice():
    tuples = as_tuples(*TRIPLETS, references=5)
    assert tuples.query.tolist() == [0, 0, 2]
    assert tuples.positive.tolist() == [1, 3, 0]
    assert tuples.size.tolist() == [2, 1, 2]
    assert tuples.of.tolist() == [0, 0, 1, 2, 2]
    assert tuples.negative.tolist() == [2, 4, 4, 1, 3]


@pytest.mark.parametrize(
    ("distances", "ranks"),
    [
        ([0.1, 0.2, 0.9, 0.4, 0.3], [0, 1, 0, 1, 0]),
        ([0.5] * 5, [0, 1, 0, 0, 1]),
        ([math.inf, math.nan, math.nan, -math.inf, math.nan], [1, 0, 0, 0, 1]),
    ],
    ids=["distinct", "ties", "not finite"],
)
def test_ranks_are_within_each_tuple(distances, ranks):
    tuples = as_tuples(*TRIPLETS, references=5)
    assert tuples.ranks(torch.tensor(distances)).tolist() == ranks


def test_lowest_keeps_so_many_of_each_tuple():
    tuples = as_tuples(*TRIPLETS, references=5).lowest(1, torch.tensor([0.2, 0.1, 0.9, 0.5, 0.5]))
    assert tuples.query.tolist() == [0, 0, 2]
    assert tuples.size.tolist() == [1, 1, 1]
    assert tuples.of.tolist() == [0, 1, 2]
    assert tuples.negative.tolist() == [4, 4, 1]


def test_no_triplets_are_no_tuples():
    tuples = as_tuples(*torch.zeros(3, 0).long(), references=0)
    assert [len(part) for part in tuples] == [0] * 5


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_indices_of_a_narrow_dtype_do_not_overflow(dtype):
    triplets = [(60, 1, 200), (60, 1, 7), (59, 250, 3)]
    tuples = as_tuples(*torch.tensor(triplets, dtype=dtype).unbind(1), references=7001)
    assert {part.dtype for part in tuples} == {torch.long}
    assert tuples.query.tolist() == [59, 60]
    assert tuples.positive.tolist() == [250, 1]
    assert tuples.negative.tolist() == [3, 7, 200]
