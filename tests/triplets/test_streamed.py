"""StreamedTriplets: its law against explicit loops, what is exact of it, its counters, and a stream that goes on."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from dr_plugin.reservoirs import ClassReservoirs
from dr_plugin.triplets.streamed import BYSTANDER, StreamedTriplets

LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3])  # class 2 can give no in-class triplet, 3 no query


def _table(labels=LABELS, seed=0):
    numbers = np.random.default_rng(seed).random((len(labels), len(labels)))
    table = (numbers + numbers.T) / 2 * (labels[:, None] == labels)
    np.fill_diagonal(table, 0)
    if labels is LABELS:
        table[5, 6] = table[6, 5] = 0  # relevant to the third of their class only
    return table


def _reservoirs(table, labels=LABELS, capacity=5, seed=0, weights=None):
    reservoirs = ClassReservoirs(capacity, seed=seed)
    reservoirs.extend(np.arange(len(labels)), labels, table.sum(axis=1) if weights is None else weights)
    return reservoirs


def _draws(table, reservoirs=None, **changes):
    reservoirs = (
        _reservoirs(table, weights=np.maximum(table.sum(axis=1), BYSTANDER))
        if reservoirs is None
        else reservoirs
    )
    return StreamedTriplets(reservoirs, lambda i, j: table[i, j], **changes)


def _bounds(table, threshold=np.inf):
    ratios = np.minimum(table, threshold) / np.maximum(table.sum(axis=1), 1e-30)
    return lambda queries: ratios[queries].max(axis=1)


def _law(
    table,
    labels=LABELS,
    *,
    in_class,
    threshold=np.inf,
    margin=0.0,
    uniform=False,
    equal=False,
    max_trials=100,
    buffer=False,
):
    """Probability of each triplet of a kind, by explicit loops. buffer: the approximate law of whole-class buffers."""
    totals, images, law = table.sum(axis=1), range(len(labels)), {}

    def weight(query, image):
        if uniform:
            return 1.0
        return min(threshold, table[query, image]) / (totals[image] if buffer else 1)

    for query in images:
        members = [i for i in images if labels[i] == labels[query] and i != query]
        others = [i for i in images if labels[i] != labels[query]]
        if not members or totals[query] == 0:
            continue
        within = (
            1 / (1 + len(members))
            if uniform or buffer
            else totals[query] / totals[labels == labels[query]].sum()
        )
        size = 1 + len(members)
        chance = within * (1 if equal else size if uniform else totals[labels == labels[query]].sum())
        positives = sum(weight(query, i) for i in members)
        for positive in members:
            both = chance * weight(query, positive) / positives
            rest = [i for i in members if i != positive]
            allowed = [
                i
                for i in rest
                if table[query, positive] - table[query, i] >= margin
                and table[query, positive] > table[query, i]
            ]
            trial = sum(weight(query, i) for i in rest)
            share = sum(weight(query, i) for i in allowed) / trial if trial else 0
            for negative in (allowed if share else []) if in_class else others:
                within = (
                    weight(query, negative) / trial / share * (1 - (1 - share) ** max_trials)
                    if in_class
                    else 1 / len(others)
                )
                law[query, positive, negative] = both * within
    total = sum(law.values())
    return {triplet: probability / total for triplet, probability in law.items() if probability > 0}


def _check(counts, law):
    draws = sum(counts.values())
    assert set(counts) <= set(law)
    statistic = sum((counts[t] - draws * p) ** 2 / (draws * p) for t, p in law.items())
    assert 0.001 < chi2.sf(statistic, len(law) - 1) < 0.999


def _threes(draw):
    return zip(draw.query.tolist(), draw.positive.tolist(), draw.negative.tolist(), strict=True)


@pytest.mark.parametrize(
    ("in_class", "changes", "options"),
    [
        (True, {}, {}),
        (True, {"relevance_threshold": 0.4}, {"threshold": 0.4}),
        (True, {"relevance_margin": 0.2, "max_trials": 2}, {"margin": 0.2, "max_trials": 2}),
        (False, {}, {}),
        (False, {"relevance_threshold": 0.4}, {"threshold": 0.4}),
        (False, {"equal_classes": True}, {"equal": True}),
    ],
    ids=["in class", "T_p", "T_r and few trials", "out of class", "out of class, T_p", "equal classes"],
)
def test_whole_buffers_follow_the_exact_law(in_class, changes, options):
    table = _table()
    bounds = _bounds(table, changes.get("relevance_threshold", np.inf))
    draws = _draws(table, out_of_class_ratio=0 if in_class else 1, bounds=bounds, **changes)
    draw = draws.draw(20_000, np.random.default_rng(1))
    _check(Counter(_threes(draw)), _law(table, in_class=in_class, **options))
    assert draw.counters["inexact"] == 0


@pytest.mark.parametrize("in_class", [True, False], ids=["in class", "out of class"])
def test_uniform_weighting_follows_its_law(in_class):
    table = _table()
    reservoirs = _reservoirs(table, weights=np.ones(len(LABELS)))
    draws = _draws(
        table, reservoirs, weighting="uniform", out_of_class_ratio=0 if in_class else 1, relevance_margin=0.1
    )
    law = _law(table, in_class=in_class, uniform=True, margin=0.1 if in_class else 0)
    _check(Counter(_threes(draws.draw(20_000, np.random.default_rng(2)))), law)


@pytest.mark.parametrize("in_class", [True, False], ids=["in class", "out of class"])
def test_approximate_reading_of_whole_buffers_follows_its_own_law(in_class):
    table = _table(np.zeros(5, int)) if in_class else _table()
    labels = np.zeros(5, int) if in_class else LABELS
    reservoirs = _reservoirs(table, labels, weights=np.maximum(table.sum(axis=1), BYSTANDER))
    draws = _draws(
        table, reservoirs, out_of_class_ratio=0 if in_class else 1, exact=False, bounds=_bounds(table)
    )
    draw = draws.draw(20_000, np.random.default_rng(3))
    law = _law(table, labels, in_class=in_class, buffer=True)
    _check(Counter(_threes(draw)), law)
    assert draw.counters["inexact"] == 20_000


@pytest.mark.parametrize("in_class", [True, False], ids=["in class", "out of class"])
def test_small_buffers_follow_the_law_of_the_whole_stream(in_class):
    size, capacity, classes = 30, 26, 300  # all classes alike: each gives a triplet or two a round
    one = _table(np.zeros(size, int), seed=4)
    totals = np.tile(one.sum(axis=1), classes)
    labels = np.repeat(np.arange(classes), size)
    positives, negatives, inexact = Counter(), Counter(), 0
    for seed in range(30):
        reservoirs = ClassReservoirs(capacity, seed=seed)
        reservoirs.extend(np.arange(len(labels)), labels, totals)
        draws = StreamedTriplets(
            reservoirs,
            lambda i, j: one[i % size, j % size],
            out_of_class_ratio=0 if in_class else 1,
            bounds=lambda queries: _bounds(one)(queries % size),
        )
        draw = draws.draw(300, np.random.default_rng(seed))
        positives.update((draw.query % size * size + draw.positive % size).tolist())
        negatives.update((draw.negative % size).tolist())
        inexact += draw.counters["inexact"]
    law = _law(one, np.zeros(size, int), in_class=True)
    if in_class:
        _check(negatives, _marginal(law, lambda q, p, n: n))
        _check(positives, _marginal(law, lambda q, p, n: q * size + p))
    else:
        pairs = one.sum(axis=1)[:, None] * one / one.sum(axis=1, keepdims=True)
        _check(
            positives,
            {q * size + p: pairs[q, p] / pairs.sum() for q, p in itertools.permutations(range(size), 2)},
        )
    assert inexact < 0.08 * 30 * 300  # those that took many draws


def _marginal(law, of):
    marginal = Counter()
    for triplet, probability in law.items():
        marginal[of(*triplet)] += probability
    return marginal


def test_draws_beyond_what_a_buffer_holds_are_counted():
    labels = np.zeros(50, int)
    table = _table(labels)
    few = _draws(table, _reservoirs(table, labels, capacity=10), out_of_class_ratio=0)
    first, later = few.draw(1, np.random.default_rng(0)), few.draw(500, np.random.default_rng(0))
    assert first.counters["inexact"] <= 1
    assert later.counters["inexact"] > 400


def test_out_of_class_negatives_are_uniform_over_the_other_buffers():
    labels = np.repeat([0, 1, 2], [10, 20, 3])
    table = _table(labels)
    reservoirs = _reservoirs(table, labels, capacity=4)
    draw = _draws(table, reservoirs, out_of_class_ratio=1).draw(6000, np.random.default_rng(0))
    for label in range(3):
        chosen = Counter(draw.negative[labels[draw.query.numpy()] == label].tolist())
        others = [i for other in range(3) if other != label for i in reservoirs.held(other).tolist()]
        _check(chosen, dict.fromkeys(others, 1 / len(others)))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_margin_is_never_violated_and_ratio_is_kept_whatever_fails(exact, margin):
    table = _table().round(1)  # with ties
    draws = _draws(table, out_of_class_ratio=0.3, relevance_margin=margin, exact=exact, max_trials=3)
    draw = draws.draw(3000, np.random.default_rng(0))
    query, positive, negative = (part.numpy() for part in draw[:3])
    assert (LABELS[query] == LABELS[positive]).all()
    assert (query != positive).all()
    in_class = LABELS[negative] == LABELS[query]
    gap = table[query, positive][in_class] - table[query, negative][in_class]
    assert (gap >= margin).all()
    assert (gap > 0).all()
    assert (negative != query).all()
    counters = draw.counters
    assert (counters["in_class"], counters["out_of_class"]) == (in_class.sum(), (~in_class).sum())
    assert abs(counters["in_class"] - 2100) < 5 * (3000 * 0.3 * 0.7) ** 0.5
    assert counters["accepted"] == 3000
    assert counters["rejected"] > counters["discarded"] > 0


def test_discarded_and_rejected_are_counted_for_each_attempt():
    table = np.array([[0, 3, 1], [3, 0, 1], [1, 1, 0.0]])  # of 0 and 1, three quarters succeed; of 2, none
    draws = _draws(table, _reservoirs(table, np.zeros(3, int)), out_of_class_ratio=0, max_trials=3)
    counters = draws.draw(6000, np.random.default_rng(0)).counters
    success = 0.8 * 0.75
    expected, deviation = 6000 * (1 - success) / success, (6000 * (1 - success)) ** 0.5 / success
    assert abs(counters["discarded"] - expected) < 4 * deviation
    assert counters["rejected"] == 3 * counters["discarded"]


def test_batches_are_parts_of_one_draw():
    table = _table()
    whole = _draws(table, relevance_margin=0.1).draw(60, np.random.default_rng(0))
    parts = _draws(table, relevance_margin=0.1).draw_batches(4, 15, np.random.default_rng(0))
    assert [t for part in parts for t in _threes(part)] == list(_threes(whole))
    assert {name: sum(part.counters[name] for part in parts) for name in whole.counters} == whole.counters


def test_no_triplets_are_an_empty_draw():
    draw = _draws(_table()).draw(0, np.random.default_rng(0))
    assert [len(part) for part in draw[:3]] == [0, 0, 0]
    assert set(draw.counters.values()) == {0}


def test_without_pairs_the_positive_comes_by_its_own_weight():
    weights = np.array([1.0, 2.0, 5.0, 1.0, 1.0])
    reservoirs = ClassReservoirs(5, seed=0)
    reservoirs.extend(np.arange(5), [0, 0, 0, 1, 1], weights)
    draw = StreamedTriplets(reservoirs, None, out_of_class_ratio=1).draw(20_000, np.random.default_rng(0))
    law = {}
    for query, positive in [*itertools.permutations(range(3), 2), *itertools.permutations([3, 4], 2)]:
        rest = sum(weights[i] for i in ([0, 1, 2] if query < 3 else [3, 4]) if i != query)
        law[query, positive] = weights[query] / 10 * weights[positive] / rest
    _check(Counter(zip(draw.query.tolist(), draw.positive.tolist(), strict=True)), law)


def test_learned_bounds_come_to_the_same_law():
    table = _table()
    draws = _draws(table, out_of_class_ratio=0)
    draws.draw(500, np.random.default_rng(0))
    draw = draws.draw(20_000, np.random.default_rng(1))
    _check(Counter(_threes(draw)), _law(table, in_class=True))
    assert draw.counters["inexact"] < 20


def test_stream_that_goes_on_is_drawn_from_as_it_is():
    table = _table()
    reservoirs = ClassReservoirs(5, seed=0)
    draws = _draws(table, reservoirs, out_of_class_ratio=1)
    reservoirs.extend([0, 1, 5], [0, 0, 1], table.sum(axis=1)[[0, 1, 5]])
    assert set(draws.draw(50, np.random.default_rng(0)).query.tolist()) == {0, 1}
    reservoirs.extend([6, 7, 9], [1, 1, 2], table.sum(axis=1)[[6, 7, 9]])
    draw = draws.draw(200, np.random.default_rng(0))
    assert set(draw.query.tolist()) == {0, 1, 5, 6, 7}
    assert set(draw.negative.tolist()) == {0, 1, 5, 6, 7, 9}


def test_bystanders_and_queries_of_weight_0_are_negatives_only():
    table = _table()
    table[4] = table[:, 4] = 0
    for weighting in ("relevance", "uniform"):
        totals = table.sum(axis=1)
        weights = np.maximum(totals, BYSTANDER) if weighting == "relevance" else np.ones(len(LABELS))
        draws = _draws(
            table,
            _reservoirs(table, weights=weights),
            weighting=weighting,
            out_of_class_ratio=1,
            weights=totals.take,
        )
        draw = draws.draw(3000, np.random.default_rng(0))
        assert set(draw.query.tolist()) == {0, 1, 2, 3, 5, 6, 7, 8, 9}
        assert set(draw.negative.tolist()) == set(range(11))


def test_same_numbers_give_the_same_triplets():
    first, second = (
        _draws(_table(), _reservoirs(_table(), seed=3)).draw(50, np.random.default_rng(5)) for _ in range(2)
    )
    assert list(_threes(first)) == list(_threes(second))
    other = _draws(_table(), _reservoirs(_table(), seed=4)).draw(50, np.random.default_rng(5))
    assert list(_threes(first)) != list(_threes(other))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_of_class_ratio": 1.1}, "out_of_class_ratio: got 1.1"),
        ({"relevance_threshold": 0.0}, "relevance_threshold: got 0.0"),
        ({"relevance_margin": -0.1}, "relevance_margin: got -0.1"),
        ({"weighting": "unifrom"}, "weighting: got 'unifrom'"),
        ({"max_trials": 0}, "max_trials: got 0"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _draws(_table(), **changes)


def test_in_class_negatives_without_pairs_are_refused():
    with pytest.raises(ValueError, match=r"out_of_class_ratio: got 0.2 without pairs, expected 1"):
        StreamedTriplets(ClassReservoirs(2, seed=0), None)


@pytest.mark.parametrize(
    ("labels", "ratio", "message"),
    [
        ([0, 0, 0], 1.0, "expected a class with two images, and another class for out-of-class"),
        ([0, 1, 2], 1.0, "expected a class with two images, and another class for out-of-class"),
        ([0, 0, 1], 0.0, "expected a class with three images for in-class"),
    ],
)
def test_reservoirs_that_cannot_give_a_triplet_are_refused(labels, ratio, message):
    reservoirs = ClassReservoirs(3, seed=0)
    reservoirs.extend(np.arange(3), labels, np.ones(3))
    with pytest.raises(ValueError, match=message):
        _draws(np.ones((3, 3)), reservoirs, out_of_class_ratio=ratio).draw(1, np.random.default_rng(0))


def test_equal_relevances_have_no_in_class_triplet_and_say_so():
    table = np.ones((4, 4)) - np.eye(4)
    draws = _draws(table, _reservoirs(table, np.zeros(4, int)), out_of_class_ratio=0)
    with pytest.raises(ValueError, match=r"got no in-class negative in .*relevance_margin"):
        draws.draw(1, np.random.default_rng(0))


def test_images_of_which_none_is_relevant_to_another_are_refused():
    reservoirs = ClassReservoirs(4, seed=0)
    reservoirs.extend(np.arange(4), [0, 0, 1, 1], np.ones(4))
    draws = _draws(np.zeros((4, 4)), reservoirs, out_of_class_ratio=1)
    with pytest.raises(ValueError, match="got no positive"):
        draws.draw(1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (lambda i, j: np.full(len(i), np.nan), "= nan, expected finite"),
        (lambda i, j: np.full(len(i), -1.0), "= -1.0, expected finite"),
        (lambda i, j: np.full(len(i), np.inf), "= inf, expected finite"),
        (lambda i, j: np.ones((len(i), 1)), "pairs: got shape"),
    ],
)
def test_relevance_that_is_no_number_is_refused(pairs, message):
    draws = StreamedTriplets(_reservoirs(_table()), pairs)
    with pytest.raises(ValueError, match=message):
        draws.draw(5, np.random.default_rng(0))
