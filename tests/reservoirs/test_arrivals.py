"""Draws: independent and by weight over all that was streamed, and flagged exactly where an item may be missing.

A class is one repetition of an experiment; all classes are streamed the same items.
"""

import copy

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from dr_plugin.reservoirs import ClassReservoirs, WeightedReservoir

WEIGHTS = np.array([1.0, 2.0, 3.0, 4.0, 10.0])
REPEATS = 20_000


class _Experiment:
    """Many repetitions of one stream; item i of the stream is item 5 c + i in class c."""

    def __init__(self, capacity, seed=0, repeats=REPEATS):
        self.reservoirs = ClassReservoirs(capacity, repeats, seed=seed)
        self.repeats = repeats

    def stream(self, items, again=False, weights=WEIGHTS):
        labels = np.repeat(np.arange(self.repeats), len(items))
        streamed = np.tile(items, self.repeats)
        give = self.reservoirs.refresh if again else self.reservoirs.extend
        give(5 * labels + streamed, labels, weights[streamed])

    def draw(self, count):
        """(repeats, count) items and flags."""
        labels = np.repeat(np.arange(self.repeats), count)
        items, exact = self.reservoirs.draw(labels)
        np.testing.assert_array_equal(items // 5, labels)
        return (items % 5).reshape(-1, count), exact.reshape(-1, count)


def _tuples(*columns):
    return list(zip(*(column.tolist() for column in np.concatenate(columns, axis=1).T), strict=True))


def test_draws_of_as_many_as_are_held_are_exact_and_independent(tuple_law, check_law):
    experiment = _Experiment(capacity=2)
    experiment.stream([0, 1, 2, 3, 4])
    items, exact = experiment.draw(2)
    check_law(_tuples(items), tuple_law(WEIGHTS, 2))
    assert exact.all()


@pytest.mark.parametrize("calls", [[3], [1, 1, 1], [2, 1]])
def test_exact_flags_leave_out_just_the_third_different_item(calls, tuple_law, check_law):
    """Of capacity 2: it is known which triples are exact, and each has the chance of independent draws."""
    experiment = _Experiment(capacity=2, seed=1)
    experiment.stream([3, 4, 0, 2, 1])
    items, exact = (np.concatenate(parts, axis=1) for parts in zip(*map(experiment.draw, calls), strict=True))
    law = {triple: p for triple, p in tuple_law(WEIGHTS, 3).items() if len(set(triple)) < 3}
    law["inexact"] = 1 - sum(law.values())
    outcomes = [
        triple if good else "inexact" for triple, good in zip(_tuples(items), exact.all(axis=1), strict=True)
    ]
    check_law(outcomes, law)
    assert exact[:, :2].all()


def _draw_by_key_order(items, weights, total, count, rng):
    """The published way: one of the items drawn so far with the chance of their weight, else the next by key."""
    drawn = 0
    outcome = []
    for _ in range(count):
        known = weights[:drawn].sum()
        if rng.random() < known / total:
            outcome.append(rng.choice(items[:drawn], p=weights[:drawn] / known).item())
        elif drawn < len(items):
            outcome.append(items[drawn].item())
            drawn += 1
        else:
            return "inexact"
    return tuple(outcome)


def test_draws_have_the_law_of_draws_by_key_order_and_total_weight():
    experiment = _Experiment(capacity=3, seed=2, repeats=8000)
    experiment.stream([0, 1, 2, 3, 4])
    reservoirs = experiment.reservoirs
    rng = np.random.default_rng(0)
    by_keys = [
        _draw_by_key_order(reservoirs.held(label) % 5, reservoirs.weights_of(label), WEIGHTS.sum(), 4, rng)
        for label in range(8000)
    ]
    items, exact = experiment.draw(4)
    ours = [four if good else "inexact" for four, good in zip(_tuples(items), exact.all(axis=1), strict=True)]
    outcomes = sorted(set(by_keys) | set(ours), key=str)
    table = np.array([[sample.count(outcome) for outcome in outcomes] for sample in (by_keys, ours)])
    table = table[:, table.sum(axis=0) >= 10]
    assert table.shape[1] > 100
    assert chi2_contingency(table).pvalue > 1e-3


def test_draws_between_chunks_are_by_weight_of_what_was_streamed_then(tuple_law, check_law):
    experiment = _Experiment(capacity=5, seed=3)
    experiment.stream([0, 2])
    first, exact_first = experiment.draw(2)
    experiment.stream([4, 1, 3])
    second, exact_second = experiment.draw(2)
    law = {
        (*a, *b): p * q
        for a, p in tuple_law([1, 0, 3, 0, 0], 2).items()
        for b, q in tuple_law(WEIGHTS, 2).items()
        if p
    }
    check_law(_tuples(first, second), law)
    assert exact_first.all()
    assert exact_second.all()


def test_draws_between_refreshed_items_stay_independent(tuple_law, check_law):
    """Also an item that has just been drawn, or one that is about to come, can be streamed again."""
    experiment = _Experiment(capacity=5, seed=4)
    experiment.stream([0, 1, 2, 3, 4])
    drawn = []
    for again in ([0, 4], [3, 1, 2], [4]):
        items, exact = experiment.draw(1)
        assert exact.all()
        drawn.append(items)
        experiment.stream(again, again=True)
    drawn.append(experiment.draw(1)[0])
    check_law(_tuples(*drawn[1:]), tuple_law(WEIGHTS, 3))
    check_law(_tuples(drawn[0], drawn[3]), tuple_law(WEIGHTS, 2))


def test_refresh_takes_a_new_weight(tuple_law, check_law):
    experiment = _Experiment(capacity=5, seed=5)
    experiment.stream([0, 1, 2, 3, 4])
    experiment.draw(2)
    experiment.stream([4, 0], again=True, weights=np.array([7.0, 2, 3, 4, 0]))
    items, exact = experiment.draw(2)
    check_law(_tuples(items), {pair: p for pair, p in tuple_law([7, 2, 3, 4, 0], 2).items() if p})
    assert exact.all()


@pytest.mark.parametrize("capacity", [1, 2, 3, 4])
def test_flagged_exact_is_what_a_reservoir_of_everything_would_draw(capacity):
    """Both take the same numbers from their generators. What is flagged later may have been refreshed in time."""
    small, large = (_Experiment(size, seed=6, repeats=3000) for size in (capacity, 5))
    rng = np.random.default_rng(capacity)
    certain = np.ones(3000, bool)
    shares = []
    for number in range(4):
        again = number > 0
        if again:
            small.reservoirs.new_pass()
            large.reservoirs.new_pass()
        for piece in np.split(rng.permutation(5), [1, 3]):
            small.stream(piece, again)
            large.stream(piece, again)
            ours, exact = small.draw(1)
            all_items, always = large.draw(1)
            assert always.all()
            equal, exact = (ours == all_items)[:, 0], exact[:, 0]
            assert equal[certain & exact].all()
            if not again:  # then the first that is flagged is one that was lost
                assert not equal[certain & ~exact].any()
            certain &= exact
            shares.append(certain.mean())
    assert shares[0] == 1
    assert (shares[-1] > 0) == (capacity > 1)
    assert shares[-1] < 1


def test_exactness_comes_back_after_one_whole_pass():
    """After it, all times are new: the draws are those of a reservoir of everything that saw this pass alone."""
    small, large = (_Experiment(capacity, seed=7) for capacity in (2, 5))
    small.stream([0, 1, 2, 3, 4])
    assert not small.draw(60)[1][:, -1].any()
    assert not small.draw(1)[1].any()
    small.reservoirs.new_pass()
    large.reservoirs._keys.load(small.reservoirs._keys.state())
    for piece in ([1, 0, 4], [3, 2]):
        assert not copy.deepcopy(small).draw(1)[1].any()  # the others are still missing
        small.stream(piece, again=True)
        large.stream(piece, again=True)
    small.reservoirs.new_pass()
    (ours, exact), (true, _) = small.draw(1), large.draw(1)
    assert (ours == true)[exact].all()
    # Where an item was replaced that was held, one that was lost may come before it.
    assert 0.5 < exact.mean() < 1


@pytest.mark.parametrize("size", [1, 7, 5000])
def test_a_long_run_of_draws_is_independent_and_by_weight(size, tuple_law, check_law):
    reservoir = WeightedReservoir(6, seed=8)
    reservoir.extend(np.arange(5), WEIGHTS)
    parts = [reservoir.draw(size) for _ in range(-(-min(10_000, 2500 * size) // size))]
    items = np.concatenate([items for items, _ in parts])
    assert all(exact.all() for _, exact in parts)
    check_law(_tuples(items[: len(items) // 2 * 2].reshape(-1, 2)), tuple_law(WEIGHTS, 2))


def test_every_label_gets_the_next_arrivals_of_its_class_in_turn():
    """A call that names classes in a jumble gives what calls for each class alone would."""
    experiment = _Experiment(capacity=2, seed=9, repeats=3)
    experiment.stream([0, 1, 2, 3, 4])
    labels = np.array([2, 0, 2, 1, 1, 2, 0])
    items, _ = experiment.reservoirs.draw(labels)
    assert (items // 5).tolist() == labels.tolist()
    empty = experiment.reservoirs.draw(np.empty(0, int))
    assert [part.shape for part in empty] == [(0,), (0,)]


def test_first_draws_are_the_held_items_in_key_order():
    """The first draw is the largest key; a later one repeats an item or is the next key."""
    experiment = _Experiment(capacity=5, seed=10, repeats=200)
    experiment.stream([0, 1, 2, 3, 4])
    orders = [(experiment.reservoirs.held(label) % 5).tolist() for label in range(200)]
    items, _ = experiment.draw(30)
    for order, drawn in zip(orders, items.tolist(), strict=True):
        assert list(dict.fromkeys(drawn)) == order[: len(set(drawn))]


def test_log_keys_count_from_the_last_draw():
    reservoir = WeightedReservoir(5, seed=11)
    reservoir.extend(np.arange(5), WEIGHTS)
    before = dict(zip(reservoir.items.tolist(), reservoir.log_keys, strict=True))
    (first,), _ = reservoir.draw(1)
    after = dict(zip(reservoir.items.tolist(), reservoir.log_keys, strict=True))
    del after[int(first)]
    for item, log_key in after.items():
        assert log_key == pytest.approx(before[item] - before[int(first)])
