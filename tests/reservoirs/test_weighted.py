"""WeightedReservoir: its sample's law for both methods, numeric extremes, merging, and going on from a state."""

import copy
import io
import pickle
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from dr_plugin.reservoirs import WeightedReservoir

METHODS = ["a-res", "a-expj"]
WEIGHTS = [1.0, 2.0, 3.0, 4.0, 10.0]
TINIEST = 5e-324


def _filled(weights, capacity, chunks=(), order=None, **options):
    """A reservoir of the items 0, 1, ..., streamed in the order and cut at the places given."""
    reservoir = WeightedReservoir(capacity, **options)
    items = np.arange(len(weights)) if order is None else np.array(order)
    for start, stop in pairwise([0, *chunks, len(items)]):
        reservoir.extend(items[start:stop], np.array(weights)[items[start:stop]])
    return reservoir


def _samples(weights, capacity, repeats=1500, **options):
    return [
        frozenset(_filled(weights, capacity, seed=(1, i), **options).items.tolist()) for i in range(repeats)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_inclusion_is_that_of_successive_sampling(method, set_law, check_law):
    law = set_law(WEIGHTS, 2)
    included = [sum(p for items, p in law.items() if i in items) for i in range(5)]
    np.testing.assert_allclose(included, [0.1269, 0.2479, 0.3621, 0.4680, 0.7951], atol=5e-5)
    by_pairs = np.array(WEIGHTS) / 20
    by_pairs = [
        p + sum(q * p / (1 - q) for j, q in enumerate(by_pairs) if j != i) for i, p in enumerate(by_pairs)
    ]
    np.testing.assert_allclose(included, by_pairs)
    check_law(_samples(WEIGHTS, 2, method=method), law)


@pytest.mark.parametrize("method", METHODS)
def test_inclusion_with_one_dominant_weight(method, set_law, check_law):
    weights = [995.0, 1, 1, 1, 1, 1]
    samples = _samples(weights, 3, method=method)
    check_law(samples, set_law(weights, 3))
    assert np.mean([0 in sample for sample in samples]) > 0.999
    assert np.mean([1 in sample for sample in samples]) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("method", METHODS)
def test_largest_key_is_in_proportion_to_weight(method, tuple_law, check_law):
    largest = [(_filled(WEIGHTS, 3, method=method, seed=(2, i)).items[0],) for i in range(1500)]
    check_law(largest, tuple_law(WEIGHTS, 1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("order", "chunks"), [([4, 3, 2, 1, 0], ()), ([2, 4, 0, 1, 3], (1, 2, 3, 4)), (None, (4,))]
)
def test_law_knows_no_order_and_no_chunks(method, order, chunks, set_law, check_law):
    samples = _samples(WEIGHTS, 2, method=method, order=order, chunks=chunks, repeats=1200)
    check_law(samples, set_law(WEIGHTS, 2))


@pytest.mark.parametrize("method", METHODS)
def test_keys_of_a_long_stream_follow_their_law(method, check_law):
    """The j-th smallest -log key exceeds the one before by Exp(1) / (W - weights of those before)."""
    weights = np.random.default_rng(0).pareto(1.2, 3000) + 1e-3
    steps, largest, group = [], [], np.arange(3000) % 8
    for i in range(250):
        reservoir = _filled(weights, 20, method=method, seed=(3, i), chunks=(37, 1500))
        left = weights.sum() - np.cumsum(reservoir.weights) + reservoir.weights
        steps.append(np.diff(-reservoir.log_keys, prepend=0) * left)
        largest.append(group[reservoir.items[0]])
        np.testing.assert_array_equal(reservoir.weights, weights[reservoir.items])
    assert kstest(np.ravel(steps), "expon").pvalue > 1e-3
    check_law(largest, {g: weights[group == g].sum() / weights.sum() for g in range(8)})


@pytest.mark.parametrize("count", [1, 5, 1000, 200_000])
def test_plain_keys_are_those_of_a_loop_over_the_generators_numbers(count):
    weights = np.random.default_rng(1).random(count) ** 3
    weights[::7] = 0
    reservoir = _filled(weights, 10, seed=5, chunks=(count // 3,))
    numbers = np.random.Generator(np.random.PCG64(5)).standard_exponential(count)
    keys = sorted((-numbers[i] / weights[i], i) for i in range(count) if weights[i] > 0)[::-1][:10]
    assert reservoir.items.tolist() == [item for _, item in keys]
    np.testing.assert_allclose(reservoir.log_keys, [key for key, _ in keys], rtol=1e-12)
    assert reservoir.total_weight == pytest.approx(weights.sum())
    assert reservoir.count == count


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(0, 300), max_size=5), st.integers(0, 2**70))
def test_plain_sample_is_the_same_to_the_bit_for_any_chunks(capacity, cuts, seed):
    weights = np.random.default_rng(seed).random(300)
    whole, cut = _filled(weights, capacity, seed=seed), _filled(weights, capacity, sorted(cuts), seed=seed)
    np.testing.assert_array_equal(whole.items, cut.items)
    np.testing.assert_array_equal(whole.log_keys, cut.log_keys)
    for one, other in zip(whole.draw(5), cut.draw(5), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("method", METHODS)
def test_all_are_held_until_there_are_more_than_capacity(method):
    reservoir = _filled([1.0, 0.0, 1e-300, TINIEST, 1e300], 4, method=method, seed=0)
    assert sorted(reservoir.items.tolist()) == [0, 2, 3, 4]
    assert (np.diff(reservoir.log_keys) <= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_weight_0_is_never_chosen(method):
    assert len(_filled([0.0] * 500, 3, method=method)) == 0
    weights = np.zeros(500)
    weights[[3, 77, 401]] = 1e-200, 1.0, 1e200
    reservoir = _filled(weights, 4, method=method, chunks=(50, 51))
    assert sorted(reservoir.items.tolist()) == [3, 77, 401]
    items, exact = reservoir.draw(100)
    assert set(items.tolist()) <= {3, 77, 401}
    assert exact.all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [TINIEST, 1e-310, 1e-300, 1e-160, 1e160, 1e300, 1e307])
def test_law_holds_at_every_scale(method, scale, set_law, tuple_law, check_law):
    weights = np.array([1.0, 2.0, 4.0, 8.0]) * scale
    reservoirs = [_filled(weights, 2, method=method, seed=(4, i)) for i in range(800)]
    check_law([frozenset(r.items.tolist()) for r in reservoirs], set_law([1, 2, 4, 8], 2))
    law = {three: p for three, p in tuple_law([1, 2, 4, 8], 3).items() if len(set(three)) < 3}
    law["inexact"] = 1 - sum(law.values())  # the third of three different ones, of capacity 2
    drawn = [reservoir.draw(3) for reservoir in reservoirs]
    check_law([tuple(items.tolist()) if exact.all() else "inexact" for items, exact in drawn], law)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_magnitudes_is_kept(method):
    """Weights 1e100 apart: the held ones are the largest, and the largest one is always drawn."""
    weights = np.repeat([0.0, TINIEST, 1e-200, 1e-100, 1.0, 1e100, 1e200, 1e300], 2)
    reservoir = _filled(np.random.default_rng(0).permutation(weights), 6, method=method, seed=0)
    assert reservoir.weights.tolist() == [1e300, 1e300, 1e200, 1e200, 1e100, 1e100]
    items, exact = reservoir.draw(1000)
    assert set(items.tolist()) == set(reservoir.items[:2].tolist())
    assert exact.all()


def test_what_was_missed_stays_missed_at_any_scale():
    """The bound was passed; a far larger weight that is streamed then is drawn at once, but not exactly."""
    reservoir = _filled([1e-200] * 5, 2, seed=0)
    assert not reservoir.draw(100)[1][-1]
    reservoir.extend([5], [1e200])
    items, exact = reservoir.draw(10)
    assert set(items.tolist()) == {5}
    assert not exact.any()


class _Zeros(np.random.Generator):
    """What the generator may give once in 2**53 numbers: 0, which is U = 1."""

    def standard_exponential(self, *shape):
        return np.zeros(*shape)

    def random(self, *shape):
        return np.zeros(*shape)


@pytest.mark.parametrize("method", METHODS)
def test_random_number_0_divides_nothing(method):
    reservoir = WeightedReservoir(2, method=method)
    reservoir._keys.generator = _Zeros(np.random.PCG64(0))
    reservoir.extend(np.arange(200), np.linspace(0, 1e300, 200))
    reservoir.extend(np.arange(200), np.full(200, 1e-300))
    assert 0 not in reservoir.items
    assert np.isfinite(reservoir.log_keys).all()
    reservoir.draw(10)
    assert len(reservoir) == 2


@pytest.mark.parametrize("method", METHODS)
def test_merge_is_as_one_stream(method, set_law, check_law):
    samples = []
    for i in range(1200):
        left, right = (WeightedReservoir(2, method=method, seed=(5, i, side)) for side in (0, 1))
        left.extend([0, 4], [1.0, 10.0])
        right.extend([1, 2, 3], [2.0, 3.0, 4.0])
        merged = left.merge(right)
        samples.append(frozenset(merged.items.tolist()))
    check_law(samples, set_law(WEIGHTS, 2))
    assert (merged.total_weight, merged.count) == (20.0, 5)


def test_merge_keeps_the_largest_keys_of_both_and_leaves_them_be():
    left, right = _filled(np.arange(50.0), 8, seed=1), _filled(np.arange(90.0), 8, seed=2)
    states = copy.deepcopy([left.state_dict(), right.state_dict()])
    merged, turned = left.merge(right), right.merge(left)
    keys = np.concatenate([left.log_keys, right.log_keys])
    best = np.argsort(-keys)[:8]
    np.testing.assert_array_equal(merged.log_keys, keys[best])
    np.testing.assert_array_equal(merged.items, np.concatenate([left.items, right.items])[best])
    assert [left.state_dict(), right.state_dict()] == states
    assert merged.state_dict() == turned.state_dict()
    merged.extend([1000], [1e9])
    assert merged.items[0] == 1000


def test_merge_of_dependent_keys_is_refused():
    one, same, other = (_filled(WEIGHTS, 2, seed=seed) for seed in (1, 1, 2))
    free = WeightedReservoir(2)
    merged = one.merge(other).merge(free)
    for left, right in [(one, same), (one, one), (one, copy.deepcopy(one)), (merged, other), (free, merged)]:
        with pytest.raises(ValueError, match="same seed, a copy, or one that was merged before"):
            left.merge(right)
    assert len(free.merge(WeightedReservoir(2))) == 0


def test_merge_of_different_capacities_or_items_is_refused():
    with pytest.raises(ValueError, match="capacities 2 and 3"):
        _filled(WEIGHTS, 2).merge(_filled(WEIGHTS, 3))
    named = WeightedReservoir(2)
    named.extend(["a", "bc"], [1, 1])
    with pytest.raises(ValueError, match="items: got <U2, expected int64"):
        _filled(WEIGHTS, 2).merge(named)
    longer = WeightedReservoir(2)
    longer.extend(["defg"], [1e9])
    assert "defg" in named.merge(longer).items


@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf, -np.inf, -TINIEST])
def test_bad_weight_is_refused_by_its_index_before_anything_changes(bad):
    reservoir = _filled(WEIGHTS, 2, seed=0)
    before = reservoir.state_dict()
    weights = np.ones(70_000)
    weights[69_000:] = bad
    with pytest.raises(
        ValueError, match=r"weights: got .* at index 69000, expected finite numbers, at least 0"
    ):
        reservoir.extend(np.arange(70_000), weights)
    assert reservoir.state_dict() == before


@pytest.mark.parametrize(
    ("items", "weights", "message"),
    [
        ([1, 2], [1.0], r"weights: got shape \(1,\) for 2 items, expected \(2,\)"),
        ([1, 2], [[1.0], [2.0]], r"weights: got shape \(2, 1\)"),
        ([1, 2], 1.0, r"weights: got shape \(\)"),
        ([[1, 2]], [1.0], r"items: got shape \(1, 2\), expected one dimension"),
        ([1, 2], ["1", "2"], "weights: got <U1, expected real numbers"),
        ([1, 2], [True, False], "weights: got bool, expected real numbers"),
        ([1, 2], [1j, 2j], "weights: got complex128, expected real numbers"),
        ([1.5], [1], "items: got float64, expected int64, the first chunk's type"),
        (np.array([(1,)], [("a", int)]), [1], "expected a plain type"),
        ([1, 2], [1.7e308, 1.7e308], "a sum beyond float64"),
    ],
)
def test_bad_chunk_is_refused(items, weights, message):
    reservoir = _filled(WEIGHTS, 2, seed=0)
    before = reservoir.state_dict()
    with pytest.raises(ValueError, match=message):
        reservoir.extend(items, weights)
    assert reservoir.state_dict() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity: got 0, expected a whole number, at least 1"),
        ({"capacity": -3}, "capacity: got -3"),
        ({"capacity": 2.0}, "capacity: got 2.0"),
        ({"capacity": True}, "capacity: got True"),
        ({"capacity": 2, "method": "chao"}, 'method: got \'chao\', expected "a-res" or "a-expj"'),
        ({"capacity": 2, "seed": -1}, "seed: got -1"),
        ({"capacity": 2, "seed": (1, 0.5)}, r"seed: got \(1, 0.5\)"),
    ],
)
def test_bad_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WeightedReservoir(**arguments)


def test_draw_from_nothing_is_refused():
    reservoir = WeightedReservoir(2)
    reservoir.extend([1, 2], [0, 0])
    assert [part.tolist() for part in reservoir.draw(0)] == [[], []]
    with pytest.raises(ValueError, match="draw: got an empty reservoir"):
        reservoir.draw(1)
    with pytest.raises(ValueError, match="count: got -1"):
        reservoir.draw(-1)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32, np.uint8])
def test_weights_of_any_real_type_are_taken(dtype):
    weights = np.array([1, 2, 3, 4, 10], dtype)
    np.testing.assert_array_equal(_filled(weights, 3, seed=0).log_keys, _filled(WEIGHTS, 3, seed=0).log_keys)


@pytest.mark.parametrize(
    "items",
    [["a", "bb", ""], [b"x", b"y", b"z"], [0.5, 1.5, 2.5], np.array(["2014", "2019", "2016"], "M8[Y]"),
     np.array([("shard", 1), None, "x"], object)],
)  # fmt: skip
def test_items_of_any_plain_type_are_held_and_restored(items):
    reservoir = WeightedReservoir(5, seed=0)
    reservoir.extend([], [])
    reservoir.extend(items, [1, 2, 3])
    restored = WeightedReservoir(5)
    restored.load_state_dict(pickle.loads(pickle.dumps(reservoir.state_dict())))
    assert restored.items.dtype == reservoir.items.dtype == np.asarray(items).dtype
    assert restored.items.tolist() == reservoir.items.tolist()
    assert sorted(map(str, reservoir.items)) == sorted(map(str, np.asarray(items)))


def _through_pickle(reservoir):
    return pickle.loads(pickle.dumps(reservoir))


def _through_state(reservoir):
    """By way of a file that torch opens with weights_only=True, as checkpoints are."""
    file = io.BytesIO()
    torch.save(reservoir.state_dict(), file)
    file.seek(0)
    restored = WeightedReservoir(reservoir.capacity, method=reservoir.method, seed=99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    return restored


@pytest.mark.parametrize("through", [_through_pickle, _through_state])
@pytest.mark.parametrize("method", METHODS)
def test_restored_reservoir_goes_on_exactly(method, through):
    weights = np.random.default_rng(3).random(500)
    reservoir = _filled(weights[:200], 7, method=method)
    reservoir.draw(9)
    restored = through(reservoir)
    for one in (reservoir, restored):
        one.extend(np.arange(200, 500), weights[200:])
    assert reservoir.state_dict() == restored.state_dict()
    for ours, theirs in zip(reservoir.draw(20), restored.draw(20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="a copy"):
        reservoir.merge(restored)


def test_state_of_another_reservoir_is_refused():
    state = _filled(WEIGHTS, 2).state_dict()
    with pytest.raises(ValueError, match="capacity: got 2, expected 3"):
        WeightedReservoir(3).load_state_dict(state)
    with pytest.raises(ValueError, match="method: got 'a-res', expected 'a-expj'"):
        WeightedReservoir(2, method="a-expj").load_state_dict(state)
    del state["count"], state["keys"]
    with pytest.raises(ValueError, match="got no count, keys"):
        WeightedReservoir(2).load_state_dict(state)


def test_what_is_given_out_is_a_copy():
    reservoir = _filled(WEIGHTS, 2, seed=0)
    before = reservoir.state_dict()
    reservoir.items[:], reservoir.weights[:], reservoir.log_keys[:] = -1, 7, 3
    assert reservoir.state_dict() == before


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_the_chunk(method):
    items, weights = np.arange(2_000_000), np.ones(2_000_000, np.float32)
    reservoir = WeightedReservoir(100, method=method, seed=0)
    tracemalloc.start()
    try:
        reservoir.extend(items, weights)
        assert tracemalloc.get_traced_memory()[1] < 4e6  # the chunk has 24 MB
    finally:
        tracemalloc.stop()
    assert len(reservoir) == 100
