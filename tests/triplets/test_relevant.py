"""Corner cases of the relevance-weighted draw; its law is tested in test_relevant_law.py."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dr_plugin.triplets.relevant as relevant
from dr_plugin.triplets import RANDOM_BITS, ClassLayout, RelevantTriplets

PLAIN = ([0, 0, 0, 1, 1, 1], [[(i * j) % 5 + 1.0 for j in range(6)] for i in range(6)])

small = st.integers(2, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
        st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.30000001, 1.0, 3.0]), min_size=n * n, max_size=n * n),
        st.none() | st.sampled_from([0.1, 0.15, 5.0]),
        st.sampled_from([0.0, 0.1, 0.2, 0.9]),
        st.sampled_from(["relevance", "uniform"]),
        st.integers(1, 4),
    )
)


@settings(deadline=None, max_examples=60)
@given(small, st.integers(0, 2**32))
def test_every_triplet_satisfies_its_conditions(case, seed):
    labels, values, threshold, margin, weighting, trials = case
    n = len(labels)
    r = torch.tensor(values).view(n, n)
    options = {"relevance_threshold": threshold, "relevance_margin": margin, "weighting": weighting}
    for ratio in (0.0, 0.5, 1.0):
        triplets = _triplets(labels, r, max_trials=trials, out_of_class_ratio=ratio, **options)
        possible = (ratio == 0 or len(triplets.out_of_class_queries)) and (
            ratio == 1 or len(triplets.in_class_queries)
        )
        if not possible:
            with pytest.raises(ValueError, match="out_of_class_ratio"):
                triplets.draw(10, _random_bits(seed))
            continue
        draw = triplets.draw(40, _random_bits(seed))
        for q, p, m in torch.stack(draw[:3], 1).tolist():
            assert len({q, p, m}) == 3
            assert labels[p] == labels[q]
            if labels[m] == labels[q]:
                assert q in triplets.in_class_queries
                assert r[q, p] > r[q, m]
                assert r[q, p].item() - r[q, m].item() >= margin
            else:
                assert q in triplets.out_of_class_queries


def test_every_class_and_image_is_reached():
    labels = list(range(12)) * 4
    r = np.random.default_rng(0).gamma(0.5, size=(48, 48))
    draw = _triplets(labels, r + r.T).draw(20_000, _random_bits(4))
    for part in draw[:3]:
        assert part.unique().tolist() == list(range(48))


def test_the_same_random_numbers_give_the_same_triplets():
    triplets = _triplets(*PLAIN)
    first, second = (triplets.draw(500, _random_bits(6)) for _ in range(2))
    assert first.counters == second.counters
    assert all(torch.equal(one, other) for one, other in zip(first[:3], second[:3], strict=True))


def test_nothing_is_drawn_for_a_count_of_zero():
    draw = _triplets(*PLAIN).draw(0, _random_bits(0))
    assert [len(part) for part in draw[:3]] == [0, 0, 0]
    assert set(draw.counters.values()) == {0}


def test_draw_ends_in_an_error_where_next_to_no_triplet_is_accepted(monkeypatch):
    monkeypatch.setattr(relevant, "_GIVE_UP", 2000)
    r = [[0.0, 2, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]
    rarely = torch.tensor([1, 1e-9, 1, 1])
    triplets = _triplets([0] * 4, r, candidate_weights=rarely, out_of_class_ratio=0.0)
    assert triplets.in_class_queries.tolist() == [0]
    with pytest.raises(ValueError, match=r"so few in-class pairs have that \d+ triplets in a row"):
        triplets.draw(5, _random_bits(0))


@pytest.mark.parametrize("small", [1e-30, 1e-45])
@pytest.mark.parametrize("large", [1.0, 3.4e38])
def test_extreme_relevances_stay_possible(small, large):
    # Each part is asked for by the random numbers that mean it: the lowest take what comes first.
    r = [[0, large, small, 0], [small, 0, small, 0], [small, small, 0, 0], [0, 0, 0, 0]]
    triplets = _triplets([0, 0, 0, 1], r, out_of_class_ratio=1.0)
    lowest = triplets.draw(1, lambda shape: torch.zeros(shape, dtype=torch.long))
    highest = triplets.draw(1, lambda shape: torch.full(shape, 2**RANDOM_BITS - 1))
    assert [int(part) for part in lowest[:3]] == [0, 2, 3]
    assert [int(part) for part in highest[:3]] == [2, 1, 3]
    inside = _triplets([0, 0, 0, 1], r, out_of_class_ratio=0.0, relevance_margin=large / 2)
    assert inside.in_class_queries.tolist() == [0]
    draw = inside.draw(100, _random_bits(7))
    assert torch.stack(draw[:3]).unique(dim=1).flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("bits", [0, 2**RANDOM_BITS - 1])
@pytest.mark.parametrize("equal_classes", [False, True])
def test_ends_of_the_random_numbers_draw_no_query_without_weight(bits, equal_classes):
    labels = [0, 1, 1, 1, 2]  # three queries, whose equal shares are rounded down
    triplets = _triplets(labels, np.ones((5, 5)), out_of_class_ratio=1.0, equal_classes=equal_classes)
    draw = triplets.draw(1, lambda shape: torch.full(shape, bits))
    assert draw.query.tolist() == [3 if bits else 1]


@pytest.mark.parametrize("chance", [0, 2**RANDOM_BITS - 1])
def test_ends_of_the_random_numbers_fail_no_trial_that_cannot_fail(chance):
    triplets = _triplets([0, 0, 0], [[0, 2, 1], [2, 0, 2], [1, 2, 0]], out_of_class_ratio=0.0)
    numbers = iter([0, 0, 2**RANDOM_BITS - 1, chance, 0])  # kind, query, positive, trials, negative
    draw = triplets.draw(1, lambda shape: torch.full(shape, next(numbers)))
    assert [int(part) for part in draw[:3]] == [0, 1, 2]
    assert draw.counters["rejected"] == 0


def test_draw_goes_on_where_discarded_triplets_are_not_in_a_row(monkeypatch):
    monkeypatch.setattr(relevant, "_GIVE_UP", 100)
    draw = _triplets(*PLAIN, max_trials=1).draw(2000, _random_bits(8))
    assert draw.counters["discarded"] > 500


@pytest.mark.parametrize("name", ["query_weights", "candidate_weights"])
def test_huge_weights_do_not_overflow(name):
    labels, r = PLAIN
    huge = _triplets(labels, np.multiply(r, 1e37), **{name: torch.full((6,), 1.5e308, dtype=torch.float64)})
    plain = _triplets(labels, np.multiply(r, 1e37), **{name: torch.ones(6)})
    first, second = (triplets.draw(200, _random_bits(9)) for triplets in (huge, plain))
    assert all(torch.equal(one, other) for one, other in zip(first[:3], second[:3], strict=True))


def test_what_is_not_there_is_refused_before_drawing():
    with pytest.raises(ValueError, match=r"below 1, but no image has two references .*relevance_margin=0.0"):
        _triplets([0, 0, 0, 1], [[1.0] * 4] * 4, out_of_class_ratio=0.0).check()
    with pytest.raises(ValueError, match=r"above 0, but no image has .* reference of another class"):
        _triplets([0, 0, 0], [[1.0, 2.0, 3.0]] * 3).check()
    graded = _triplets([0, 0, 0], [[1.0, 2.0, 3.0]] * 3, zero_relevance_negatives=True)
    with pytest.raises(ValueError, match="reference of relevance 0"):
        graded.draw(1, _random_bits(0))


@pytest.mark.parametrize(
    ("labels", "queries", "inside", "outside"),
    [
        ([], [], [], []),
        ([5], [], [], []),
        ([5, 5], [0, 1], [], []),
        ([5, 6], [], [], []),
        ([5, 6, 5], [0, 2], [], [0, 2]),
        ([5, 6, 5, 5], [0, 2, 3], [0, 2, 3], [0, 2, 3]),
    ],
)
def test_queries_of_small_data(labels, queries, inside, outside):
    layout = ClassLayout(_long(labels))
    i, j = layout.pairs()
    triplets = RelevantTriplets(layout, ((i + 1) * (j + 1)).float())
    assert triplets.queries.tolist() == queries
    assert triplets.in_class_queries.tolist() == inside
    assert triplets.out_of_class_queries.tolist() == outside


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("out_of_class_ratio", 1.1, "out_of_class_ratio: got 1.1, expected a number from 0 to 1"),
        ("out_of_class_ratio", math.nan, "out_of_class_ratio: got nan"),
        ("relevance_threshold", 0.0, "relevance_threshold: got 0.0, expected a finite number above 0"),
        ("relevance_margin", -0.1, "relevance_margin: got -0.1, expected"),
        ("weighting", "equal", "weighting: got 'equal', expected one of relevance, uniform"),
        ("max_trials", 0, "max_trials: got 0, expected a whole number, at least 1"),
        ("query_weights", torch.tensor([1.0, -1, 1]), "query_weights: got one that is negative"),
        ("query_weights", torch.ones(4), r"query_weights: got shape \(4,\), expected \(3,\)"),
        ("candidate_weights", torch.tensor([1.0, torch.nan, 1]), "candidate_weights: got one that is"),
        ("zero_relevance_negatives", True, "zero_relevance_negatives: got a layout of several classes"),
    ],
)
def test_bad_arguments_are_refused(name, value, message):
    layout = ClassLayout(_long([0, 0, 1]))
    with pytest.raises(ValueError, match=message):
        RelevantTriplets(layout, torch.ones(layout.size), **{name: value})


@pytest.mark.parametrize("count", [-1, 2.0, True])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match="count: got"):
        _triplets(*PLAIN).draw(count, _random_bits(0))


def _triplets(labels, relevance, **options):
    layout = ClassLayout(_long(labels))
    i, j = layout.pairs()
    values = torch.as_tensor(np.asarray(relevance, np.float32))[i, j]
    return RelevantTriplets(layout, values, **options)


def _random_bits(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randint(1 << RANDOM_BITS, shape, generator=generator)


def _long(values):
    return torch.tensor(values, dtype=torch.long)
