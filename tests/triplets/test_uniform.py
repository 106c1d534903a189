"""The triplet draw on labels, against exact integer arithmetic and explicit loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.triplets import RANDOM_BITS, UniformTriplets, uniform_below

labels_lists = st.lists(st.integers(-3, 3), max_size=12)


@settings(deadline=None)
@given(st.integers(0, 2**RANDOM_BITS - 1), st.integers(1, 2**31 - 1))
def test_uniform_below_is_the_exact_product(bits, bound):
    drawn = uniform_below(torch.tensor(bits), torch.tensor(bound))
    assert drawn.item() == bits * bound // 2**RANDOM_BITS


@pytest.mark.parametrize("bound", [1, 2, 3, 2**24 + 1, 2**31 - 1])
def test_uniform_below_reaches_both_ends_and_not_the_bound(bound):
    bits = torch.tensor([0, 2**RANDOM_BITS - 1])
    assert uniform_below(bits, torch.tensor(bound)).tolist() == [0, bound - 1]


def _choices(labels, references, own, query):
    positives = [
        j for j, label in enumerate(references) if label == labels[query] and not (own and j == query)
    ]
    return positives, [j for j, label in enumerate(references) if label != labels[query]]


@settings(deadline=None)
@given(labels_lists, st.none() | labels_lists)
def test_queries_are_the_images_with_a_positive_and_a_negative(labels, references):
    triplets = UniformTriplets(_long(labels), None if references is None else _long(references))
    others = labels if references is None else references
    expected = [i for i in range(len(labels)) if all(_choices(labels, others, references is None, i))]
    assert triplets.queries.tolist() == expected


@settings(deadline=None, max_examples=40)
@given(labels_lists, st.none() | labels_lists)
def test_draw_gives_each_choice_one_equal_share_of_the_random_numbers(labels, references):
    # The m-th of `grid` equal shares of the random numbers, for a grid that every number of choices divides:
    # each choice must come up equally often, exactly.
    triplets = UniformTriplets(_long(labels), None if references is None else _long(references))
    others = labels if references is None else references
    grid = 27720  # divisible by 1, ..., 12
    shares = (torch.arange(grid) * (2**RANDOM_BITS // grid)) + 2**20  # just above each boundary
    for query in triplets.queries.tolist():
        drawn = triplets.draw(torch.full((grid,), query), shares.expand(2, -1))
        for indices, choices in zip(drawn, _choices(labels, others, references is None, query), strict=True):
            values, counts = indices.unique(return_counts=True)
            assert values.tolist() == choices
            assert counts.tolist() == [grid // len(choices)] * len(choices)


def test_draw_queries_gives_each_query_an_equal_share():
    triplets = UniformTriplets(torch.tensor([5, 1, 1, 5, 2]))
    bits = torch.arange(8) * (2**RANDOM_BITS // 8)
    assert triplets.draw_queries(bits).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("classes", [[2**24, 2**24 + 1], [2**62, 2**62 + 1], [-1, 0], [-(2**62), 2**62]])
def test_classes_that_float32_would_merge_stay_apart(classes):
    labels = torch.tensor(classes).repeat(3)
    triplets = UniformTriplets(labels)
    bits = torch.randint(1 << RANDOM_BITS, (2, 6, 50), generator=torch.Generator().manual_seed(0))
    positive, negative = triplets.draw(triplets.queries.unsqueeze(1), bits)
    assert (labels[positive] == labels.unsqueeze(1)).all()
    assert (labels[negative] != labels.unsqueeze(1)).all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_labels_of_any_integer_dtype_give_the_same_queries(dtype):
    assert UniformTriplets(torch.tensor([1, 0, 1], dtype=dtype)).queries.tolist() == [0, 2]


def test_labels_that_are_a_strided_view_are_taken_as_they_are():
    labels = torch.tensor([[0, 9], [1, 9], [0, 9]])[:, 0]
    assert UniformTriplets(labels).queries.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("labels", "references", "message"),
    [
        (torch.zeros(2, 2).long(), None, r"labels: got shape \(2, 2\), expected"),
        (torch.zeros(3), None, "labels: got torch.float32, expected integer"),
        (torch.zeros(3).long(), torch.zeros(3), "reference_labels: got torch.float32"),
        (torch.zeros(3).long(), torch.tensor(1), r"reference_labels: got shape \(\)"),
    ],
)
def test_labels_that_are_no_integer_vector_are_refused(labels, references, message):
    with pytest.raises(ValueError, match=message):
        UniformTriplets(labels, references)


def _long(values):
    return torch.tensor(values, dtype=torch.long)
