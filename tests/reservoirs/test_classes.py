"""ClassReservoirs: a WeightedReservoir a class, streams of several passes, and bounded memory."""

import copy
import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch

from dr_plugin.reservoirs import ClassReservoirs, WeightedReservoir

WEIGHTS = np.array([[1.0, 2.0, 3.0, 4.0, 10.0], [995.0, 1, 1, 1, 1], [1.0, 1, 1, 1, 0]])


def _stream(count, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.permutation(count), rng.integers(0, classes, count), rng.random(count) ** 2


def _filled(capacity=4, classes=3, count=100, cuts=(), **options):
    reservoirs = ClassReservoirs(capacity, classes, **{"seed": 1} | options)
    chunks = zip(*(np.split(part, cuts) for part in _stream(count, classes)), strict=True)
    for chunk in chunks:
        reservoirs.extend(*chunk)
    return reservoirs


def test_classes_have_the_law_of_single_reservoirs(set_law, check_law):
    """Three classes of other weights, 4,000 times over, streamed in a jumble and in chunks."""
    repeats = 4000
    labels = np.repeat(np.arange(3 * repeats), 5)
    items, weights = np.arange(5 * len(labels) // 5), np.tile(WEIGHTS.ravel(), repeats)
    order = np.random.default_rng(0).permutation(len(labels))
    reservoirs = ClassReservoirs(2, seed=0)
    for chunk in np.array_split(order, 7):
        reservoirs.extend(items[chunk], labels[chunk], weights[chunk])
    for kind in range(3):
        samples = [frozenset((reservoirs.held(label) % 5).tolist()) for label in range(kind, 3 * repeats, 3)]
        law = {items: p for items, p in set_law(WEIGHTS[kind], 2).items() if p}
        check_law(samples, law)


@pytest.mark.parametrize("cuts", [(), (1, 2, 50), (5, 90_000)])
def test_keys_are_those_of_a_loop_over_the_generators_numbers(cuts):
    items, labels, weights = _stream(100_000, 30)
    weights[::5] = 0
    reservoirs = ClassReservoirs(20, seed=3)
    for chunk in zip(*(np.split(part, cuts) for part in (items, labels, weights)), strict=True):
        reservoirs.extend(*chunk)
    numbers = np.random.Generator(np.random.PCG64(3)).standard_exponential(100_000)
    for label in range(30):
        own = np.flatnonzero((labels == label) & (weights > 0))
        best = own[np.argsort(numbers[own] / weights[own])[:20]]
        assert reservoirs.held(label).tolist() == items[best].tolist()
        np.testing.assert_array_equal(reservoirs.weights_of(label), weights[best])
        np.testing.assert_allclose(reservoirs.log_keys_of(label), -numbers[best] / weights[best], rtol=1e-12)
    np.testing.assert_allclose(reservoirs.totals, np.bincount(labels, weights))
    np.testing.assert_array_equal(reservoirs.counts, np.bincount(labels))


def test_one_class_is_a_weighted_reservoir_to_the_bit():
    items, _, weights = _stream(5000, 1)
    single, classes = WeightedReservoir(9, seed=4), ClassReservoirs(9, 1, seed=4)
    for chunk in (slice(0, 40), slice(40, 5000)):
        single.extend(items[chunk], weights[chunk])
        classes.extend(items[chunk], np.zeros(len(items[chunk]), int), weights[chunk])
        np.testing.assert_array_equal(single.items, classes.held(0))
        np.testing.assert_array_equal(single.log_keys, classes.log_keys_of(0))
        for ours, theirs in zip(classes.draw([0] * 12), single.draw(12), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_held_all_names_each_item_with_its_class():
    reservoirs = _filled(count=40)
    items, labels = reservoirs.held_all()
    assert len(items) == len(reservoirs) == reservoirs.sizes.sum() == 12
    for label in range(3):
        assert items[labels == label].tolist() == reservoirs.held(label).tolist()


def test_classes_appear_with_their_labels():
    growing, fixed = ClassReservoirs(3, seed=5), ClassReservoirs(3, 6, seed=5)
    assert (growing.classes, len(growing)) == (0, 0)
    for reservoirs in (growing, fixed):
        reservoirs.extend([0, 1], [1, 0], [1.0, 2.0])
        reservoirs.extend([], [], [])
        reservoirs.extend([2, 3], [5, 1], [1.0, 2.0])
    assert growing.classes == fixed.classes == 6
    assert growing.counts.tolist() == [1, 2, 0, 0, 0, 1]
    assert growing.state_dict()["arrivals"] == fixed.state_dict()["arrivals"]


def test_uniform_draws_give_each_held_item_equal_chances(check_law):
    reservoirs = _filled(capacity=4, count=60)
    reservoirs.extend([1000], [1], [1e9])
    before = reservoirs.state_dict()
    drawn = reservoirs.draw_uniform(np.tile([2, 1], 10_000), np.random.default_rng(0)).reshape(-1, 2)
    for label, column in ((2, 0), (1, 1)):
        check_law(drawn[:, column].tolist(), dict.fromkeys(reservoirs.held(label).tolist(), 0.25))
    assert reservoirs.state_dict() == before
    reservoirs.draw_uniform([0])
    assert reservoirs.state_dict() != before


def test_refresh_replaces_held_items_and_counts_none_twice():
    reservoirs = _filled(capacity=10, count=100)
    totals, counts = reservoirs.totals, reservoirs.counts
    items, labels, weights = _stream(100, 3)
    keys = [reservoirs.log_keys_of(label) for label in range(3)]
    for _ in range(3):
        reservoirs.new_pass()
        for chunk in np.array_split(np.arange(100), 9):
            reservoirs.refresh(items[chunk], labels[chunk], weights[chunk])
        for label in range(3):
            held = reservoirs.held(label).tolist()
            assert len(set(held)) == 10
            assert set(held) <= set(items[labels == label].tolist())
            assert not np.isin(reservoirs.log_keys_of(label), keys[label]).any()
    np.testing.assert_array_equal(reservoirs.totals, totals)
    np.testing.assert_array_equal(reservoirs.counts, counts)


def test_refresh_with_one_item_twice_takes_the_last():
    reservoirs = ClassReservoirs(5, seed=0)
    reservoirs.extend([1, 2], [0, 0], [1.0, 1.0])
    reservoirs.refresh([2, 1, 2, 1], [0, 0, 0, 0], [5.0, 6.0, 7.0, 0.0])
    assert reservoirs.held(0).tolist() == [2]
    assert reservoirs.weights_of(0).tolist() == [7.0]


def test_merge_is_as_one_stream(set_law, check_law):
    repeats = 4000
    left, right = ClassReservoirs(2, seed=1), ClassReservoirs(2, seed=2)
    labels = np.repeat(np.arange(repeats), 5)
    streamed = np.arange(5 * repeats)
    for part, own in ((left, streamed % 5 < 2), (right, streamed % 5 >= 2)):
        part.extend(streamed[own], labels[own], WEIGHTS[0][streamed[own] % 5])
    states = copy.deepcopy([left.state_dict(), right.state_dict()])
    merged = left.merge(right)
    samples = [frozenset((merged.held(label) % 5).tolist()) for label in range(repeats)]
    check_law(samples, set_law(WEIGHTS[0], 2))
    assert set(merged.totals) == {20.0}
    assert set(merged.counts) == {5}
    assert [left.state_dict(), right.state_dict()] == states


def test_merge_of_unequal_class_counts_and_its_exact_draws(tuple_law, check_law):
    few, many = ClassReservoirs(2, seed=1), ClassReservoirs(2, seed=2)
    repeats = 8000
    labels = np.repeat(np.arange(repeats), 5)
    streamed = np.arange(5 * repeats)
    weights = np.tile(WEIGHTS[0], repeats)
    few.extend(streamed[: 5 * 100], labels[: 5 * 100], weights[: 5 * 100])
    many.extend(streamed[5 * 100 :], labels[5 * 100 :], weights[5 * 100 :])
    for one, other in ((few, many), (many, few)):
        merged = one.merge(other)
        items, exact = merged.draw(np.repeat(np.arange(repeats), 2))
        check_law([tuple(pair) for pair in (items % 5).reshape(-1, 2).tolist()], tuple_law(WEIGHTS[0], 2))
        assert exact.all()
        _, exact = merged.draw(np.repeat(np.arange(repeats), 30))
        assert not exact.reshape(repeats, 30)[:, -1].any()


def test_merge_after_draws_goes_on_exactly(tuple_law, check_law):
    """Each part counts time from its own last draw; draws before and after are independent."""
    repeats = 8000
    left, right = ClassReservoirs(4, seed=1), ClassReservoirs(4, seed=2)
    labels = np.arange(repeats)
    for part, own in ((left, [0, 1]), (right, [2, 3, 4])):
        for item in own:
            part.extend(5 * labels + item, labels, np.full(repeats, WEIGHTS[0][item]))
    before = left.draw(np.repeat(labels, 3))[0].reshape(repeats, 3)[:, 2] % 5
    after, exact = left.merge(right).draw(np.repeat(labels, 2))
    law = {
        (first, *rest): p * (1 + first) / 3
        for first in (0, 1)
        for rest, p in tuple_law(WEIGHTS[0], 2).items()
    }
    check_law(list(zip(before.tolist(), *(after % 5).reshape(repeats, 2).T.tolist(), strict=True)), law)
    assert exact.all()


def test_merge_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"merge: got \(capacity, classes\) \(4, 3\) and \(4, 2\)"):
        _filled().merge(_filled(classes=2, seed=2))
    with pytest.raises(ValueError, match="same seed, a copy"):
        _filled().merge(_filled())


def _through_pickle(reservoirs):
    return pickle.loads(pickle.dumps(reservoirs))


def _through_state(reservoirs):
    """By way of a file that torch opens with weights_only=True, as checkpoints are."""
    file = io.BytesIO()
    torch.save(reservoirs.state_dict(), file)
    file.seek(0)
    restored = ClassReservoirs(4, None, seed=99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    return restored


@pytest.mark.parametrize("through", [_through_pickle, _through_state])
@pytest.mark.parametrize("count", [0, 7, 300])
def test_restored_reservoirs_go_on_exactly(through, count):
    reservoirs = ClassReservoirs(4)
    reservoirs.extend(*_stream(count, 5))
    if count:
        reservoirs.draw(np.repeat(reservoirs.held_all()[1], 3))
        reservoirs.new_pass()
        reservoirs.refresh(*(part[:5] for part in _stream(count, 5)))
    restored = through(reservoirs)
    outcomes = []
    for one in (reservoirs, restored):
        one.extend(*(part + 1000 * (i == 0) for i, part in enumerate(_stream(50, 6, seed=2))))
        outcomes.append([*one.draw(np.arange(60) % 6), one.draw_uniform([1, 2, 3])])
    assert reservoirs.state_dict() == restored.state_dict()
    for ours, theirs in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_state_of_other_reservoirs_is_refused():
    state = _filled().state_dict()
    for other, message in [
        (ClassReservoirs(5, 3), "capacity: got 4, expected 5"),
        (ClassReservoirs(4, 2), "classes: got 3, expected 2"),
        (ClassReservoirs(4), "classes: got 3, expected None"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
    growing = ClassReservoirs(4, seed=0)
    growing.extend([1], [9], [1.0])
    with pytest.raises(ValueError, match="total_capacity: got 10 classes"):
        ClassReservoirs(4, total_capacity=39).load_state_dict(growing.state_dict())


@pytest.mark.parametrize("method", ["extend", "refresh"])
@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (([1, 2], [0, 1], [1.0, np.nan]), "weights: got nan at index 1, expected finite numbers"),
        (([1, 2], [0, 1], [np.inf, 1]), "weights: got inf at index 0"),
        (([1, 2], [0, 1], [1.0, -2]), "weights: got -2.0 at index 1"),
        (([1, 2], [0, 1], [1.0]), r"weights: got shape \(1,\) for 2 items"),
        (([1, 2], [0], [1.0, 1]), "labels: got 1 for 2 items, expected one an item"),
        (([1, 2], [0, -1], [1.0, 1]), "labels: got -1 at index 1, expected classes 0, 1, ..."),
        (([1, 2], [0, 3], [1.0, 1]), "labels: got 3 at index 1, expected classes below 3"),
        (([1, 2], [0.0, 1.0], [1.0, 1]), "labels: got float64, expected integers"),
        (([1, 2], [[0, 1]], [1.0, 1]), r"labels: got shape \(1, 2\)"),
        (([1.5, 2], [0, 1], [1.0, 1]), "items: got float64, expected integers"),
        (
            (np.array([1, 2], np.uint64), [0, 1], [1.0, 1]),
            "items: got uint64, expected integers that fit in int64",
        ),
        (([True, False], [0, 1], [1.0, 1]), "items: got bool"),
        ((["a", "b"], [0, 1], [1.0, 1]), "items: got <U1"),
    ],
)
def test_bad_chunk_is_refused_before_anything_changes(method, chunk, message):
    reservoirs = _filled()
    before = reservoirs.state_dict()
    with pytest.raises(ValueError, match=message):
        getattr(reservoirs, method)(*chunk)
    assert reservoirs.state_dict() == before


def test_total_beyond_float64_is_refused():
    reservoirs = ClassReservoirs(2)
    reservoirs.extend([1], [0], [1.5e308])
    with pytest.raises(ValueError, match="a sum beyond float64"):
        reservoirs.extend([2], [0], [1.5e308])
    assert reservoirs.counts.tolist() == [1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity: got 0, expected a whole number, at least 1"),
        ({"capacity": 2, "classes": 0}, "classes: got 0"),
        ({"capacity": 2, "total_capacity": 0}, "total_capacity: got 0"),
        (
            {"capacity": 5, "classes": 3, "total_capacity": 14},
            "got 3 classes x capacity 5 = 15 items, expected at most 14",
        ),
        ({"capacity": 2, "seed": "x"}, "seed: got 'x'"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassReservoirs(**arguments)


def test_label_beyond_the_memory_is_refused_before_it_is_allocated():
    reservoirs = ClassReservoirs(100)
    with pytest.raises(ValueError, match=r"total_capacity: got .* classes x capacity 100"):
        reservoirs.extend([1], [2**40], [1.0])
    assert reservoirs.classes == 0


@pytest.mark.parametrize("draw", ["draw", "draw_uniform"])
def test_draw_of_a_class_that_holds_nothing_is_refused(draw):
    reservoirs = ClassReservoirs(2, 3)
    reservoirs.extend([1, 2], [0, 1], [1.0, 0.0])
    for labels, message in [
        ([0, 1], "draw: got class 1, which holds nothing"),
        ([2], "draw: got class 2, which holds nothing"),
        ([0, 3], "labels: got 3, expected classes below 3"),
        ([0, -1], "labels: got -1 at index 1"),
        ([0.0], "labels: got float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            getattr(reservoirs, draw)(labels)
    with pytest.raises(ValueError, match="label: got 3, expected a whole number, at least 0 and below 3"):
        reservoirs.held(3)


def test_memory_is_bounded_by_the_capacity():
    """A stream of 3 million items in classes of very unequal size."""
    labels = (np.random.default_rng(0).random(500_000) ** 6 * 400).astype(np.int64)
    items, weights = np.arange(500_000), np.ones(500_000)
    tracemalloc.start()
    try:
        reservoirs = ClassReservoirs(50, 400, seed=0)
        for start in range(0, 3_000_000, 500_000):
            reservoirs.extend(items + start, labels, weights)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 400 * 50 * 24 + 100_000
    assert peak < 12e6  # besides a chunk's items, 4 MB
