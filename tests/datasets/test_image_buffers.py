"""Buffers of encoded images: the byte budget, what is evicted, and the law of what stays."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from dr_plugin.datasets.image_buffers import OVERHEAD, READING_PARTS, ImageBuffers, cost_of
from dr_plugin.datasets.shard_reader import Sample


def _sample(place, label, size, features=0):
    return Sample(str(place), bytes(size), label, None, np.zeros(features) if features else None)


def _held(buffers):
    places, classes = buffers.reservoirs.held_all()
    return dict(zip(places.tolist(), classes.tolist(), strict=True))


def _budget(images, classes):
    """Just enough for so many images in each class."""
    return -(-images * classes * OVERHEAD * READING_PARTS // (READING_PARTS - 1))


STREAMS = st.lists(
    st.tuples(st.integers(-2, 3), st.integers(0, 3000), st.integers(0, 40), st.floats(1e-200, 1e200)),
    min_size=1,
    max_size=250,
)


@settings(deadline=None, max_examples=60)
@given(STREAMS, st.integers(1, 3), st.integers(64_000, 300_000), st.integers(0, 2**32), st.data())
def test_budget_is_never_exceeded_and_nothing_else_is_kept(stream, passes, budget, seed, data):
    buffers = ImageBuffers(budget, (seed,))
    samples = [_sample(place, *rest) for place, (*rest, _) in enumerate(stream)]
    for _ in range(passes):
        for place, sample in enumerate(samples):
            buffers.add(place, sample, stream[place][3])
            assert buffers.bytes == sum(map(cost_of, buffers._samples.values())) <= budget
            if data.draw(st.integers(0, 99)) == 0:
                buffers.flush()
                held = _held(buffers)
                if len(held):
                    buffers.reservoirs.draw([held[min(held)]] * 3)
        buffers.new_pass()
        held = _held(buffers)
        assert held.keys() == buffers._samples.keys()
        labels = {}
        for place, number in held.items():
            assert labels.setdefault(number, buffers[place].label) == buffers[place].label
        share = (budget - budget // READING_PARTS) // len({sample.label for sample in samples})
        for number in set(held.values()):
            assert sum(cost_of(buffers[place]) for place in held if held[place] == number) <= share


def test_budget_holds_while_images_are_read_into_full_buffers():
    budget = 1_000_000
    buffers = ImageBuffers(budget, (0,))
    for place in range(300):
        buffers.add(place, _sample(place, place % 2, 20_000), 1.0)
        assert buffers.bytes == sum(map(cost_of, buffers._samples.values())) <= budget
    assert buffers.bytes > 0.9 * budget


def test_all_is_held_where_the_budget_suffices():
    buffers = ImageBuffers(_budget(10, 3), (0,))
    for place in range(30):
        buffers.add(place, _sample(place, place % 3, 0), 1.0)
    buffers.flush()
    assert _held(buffers) == {place: place % 3 for place in range(30)}
    _, exact = buffers.reservoirs.draw(np.repeat([0, 1, 2], 500))
    assert exact.all()


def test_classes_share_the_budget_equally_and_a_new_one_shrinks_the_others():
    buffers = ImageBuffers(_budget(24, 1), (0,))
    for place, label in enumerate([7] * 40 + [8] * 8 + [9] * 40):
        buffers.add(place, _sample(place, label, 0), 1.0)
        if place == 39:
            buffers.flush()
            assert Counter(_held(buffers).values()) == {0: 24}
    buffers.flush()
    assert Counter(_held(buffers).values()) == {0: 8, 1: 8, 2: 8}


def test_evicted_are_the_smallest_keys():
    buffers = ImageBuffers(_budget(20, 1), (0,))
    for place in range(20):
        buffers.add(place, _sample(place, 0, 0), 1.0 + place)
    buffers.flush()
    order = buffers.reservoirs.held(0).tolist()
    buffers.add(20, _sample(20, 1, 0), 1.0)
    buffers.flush()
    assert buffers.reservoirs.held(0).tolist() == order[:10]


def test_what_stays_follows_the_law_of_successive_sampling():
    weights, classes, runs = [1.0, 2.0, 3.0, 4.0, 10.0], 8, 120  # two of five stay in each of eight classes
    counts = Counter()
    for run in range(runs):
        buffers = ImageBuffers(_budget(2, classes), (run,))
        for place in range(5 * classes):
            buffers.add(place, _sample(place, place % classes, 0), weights[place // classes])
        buffers.flush()
        for number in range(classes):
            counts[frozenset((buffers.reservoirs.held(number) // classes).tolist())] += 1
    law = Counter()
    for i, first in enumerate(weights):
        for j, second in enumerate(weights):
            if i != j:
                law[frozenset((i, j))] += first / sum(weights) * second / (sum(weights) - first)
    assert counts.keys() == law.keys()
    draws = runs * classes
    statistic = sum((counts[pair] - draws * p) ** 2 / (draws * p) for pair, p in law.items())
    assert 0.001 < chi2.sf(statistic, len(law) - 1) < 0.999


def test_second_pass_streams_the_same_images_again():
    buffers = ImageBuffers(_budget(20, 1), (0,))
    seen = set()
    for _ in range(20):
        for place in range(60):
            buffers.add(place, _sample(place, 0, 0), 1.0)
        buffers.new_pass()
        assert buffers.reservoirs.counts.tolist() == [60]
        assert buffers.reservoirs.totals.tolist() == [60.0]
        seen |= set(_held(buffers))
        buffers.reservoirs.draw([0] * 20)
    assert seen == set(range(60))


def test_features_are_those_of_the_images():
    buffers = ImageBuffers(10**6, (0,))
    for place in range(5):
        buffers.add(place, Sample("", b"", 0, 1.0, np.array([place, -place])), 1.0)
    buffers.flush()
    assert buffers.features(np.array([3, 1, 3])).tolist() == [[3, -3], [1, -1], [3, -3]]


def test_budget_too_small_for_an_image_is_refused():
    buffers = ImageBuffers(100_000, (0,))
    with pytest.raises(
        ValueError, match=r"byte_budget: got 100000 .* but big takes 6512; expected at least 104192"
    ):
        buffers.add(0, Sample("big", bytes(6000), 0, None, None), 1.0)


def test_budget_too_small_for_the_classes_is_refused():
    buffers = ImageBuffers(_budget(20, 1), (0,))
    with pytest.raises(ValueError, match=r"byte_budget: .* 11 classes .* too few for two images"):
        for place in range(100):
            buffers.add(place, _sample(place, place % 11, 0), 1.0)
        buffers.flush()


@pytest.mark.parametrize(
    ("labels", "ratio", "problem"),
    [
        ([0, 1, 2], 1.0, "none with two images"),
        ([0, 0, 0], 1.0, "one class only"),
        ([0, 0, 1, 1], 0.5, "no class with three images"),
        ([0, 0, 1], 1.0, None),
        ([0, 0, 0], 0.0, None),
        ([0, 0, 0, 1], 0.5, None),
    ],
)
def test_what_lacks_for_a_triplet_is_told(labels, ratio, problem):
    buffers = ImageBuffers(10**6, (0,))
    for place, label in enumerate(labels):
        buffers.add(place, _sample(place, label, 0), 1.0)
    buffers.flush()
    lacks = buffers.lacks(ratio)
    assert lacks is None if problem is None else problem in lacks
