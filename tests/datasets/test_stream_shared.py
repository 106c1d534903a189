"""One stream that 2 and 3 processes read together: the law of its triplets, its images, its end."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chi2

from dr_plugin import distributed
from dr_plugin.datasets import TripletStream
from dr_plugin.datasets.shared_samples import Elsewhere, shared

from ..processes import on_ranks
from .test_stream import LABELS, Relevances, _indices, _items, _law, product

TEN = np.array([7, 7, 7, 7, 2, 2, 2, 5, 5, 5])
VALUES = np.array([0.3, 0.8, 1.3, 2.0, 0.5, 1.0, 1.1, 0.4, 0.9, 1.6])


def drawn_of_ten(batch_size, batches):
    stream = TripletStream(
        _items(range(10), VALUES, TEN),
        batch_size=batch_size,
        byte_budget=10**6,
        batches_per_epoch=batches,
        triplets_per_image=100.0,
        out_of_class_ratio=0.4,
        pair_relevance=product,
        max_trials=10_000,
        shared=True,
    )
    found = np.concatenate([images[:, 0, 0, 0].view(-1, 3).numpy() for images, _ in stream])
    return found.tolist(), stream.counters


def test_triplets_of_all_processes_follow_the_law_of_one_stream():
    answers = on_ranks(3, drawn_of_ten, 1500, 8)
    counts = Counter(tuple(row) for found, _ in answers for row in found)
    draws = sum(counts.values())
    assert draws == 3 * 8 * 500
    law = _law(TEN, VALUES, 0.4, np.inf, 0.0, "relevance")
    assert counts.keys() <= law.keys()
    rare = {triplet for triplet, p in law.items() if draws * p < 5}
    cells = [(counts[t], p) for t, p in law.items() if t not in rare]
    if rare:
        cells.append((sum(counts[t] for t in rare), sum(law[t] for t in rare)))
    statistic = sum((count - draws * p) ** 2 / (draws * p) for count, p in cells)
    assert 0.001 < chi2.sf(statistic, len(cells) - 1) < 0.999
    whole = Counter()
    for _, counters in answers:  # what all do alike is counted by one of them
        whole.update(counters)
    assert whole["accepted"] == draws
    assert whole["in_class"] + whole["out_of_class"] == draws


def passes_of_shards(folder, passes, start, **changes):
    settings = {"batch_size": 15, "byte_budget": 20_000, "seed": 3, "weighting": "uniform", "shared": True}
    stream = TripletStream(str(folder), **{**settings, **changes})
    stream.set_epoch(0, start)
    return [[_indices(batch) for batch in stream] for _ in range(passes)], stream.counters, len(stream)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from dr_plugin.datasets import write_shards

    from .test_stream import IMAGES

    where = tmp_path_factory.mktemp("shards")
    write_shards(IMAGES, LABELS, where, relevance=Relevances(), images_per_shard=20)
    return where


@pytest.mark.parametrize("count", [2, 3])
def test_every_process_gets_its_own_share_of_whole_triplets(folder, count):
    answers = on_ranks(count, passes_of_shards, folder, 2, 0)
    seen = set()
    for passes, _, length in answers:
        assert length == -(-120 // (15 * count))
        for batches in passes:
            assert len(batches) == length
            for batch in batches:
                query, positive, negative = np.array(batch).reshape(-1, 3).T
                assert (LABELS[query] == LABELS[positive]).all()
                assert (query != positive).all()
                assert (LABELS[query] != LABELS[negative]).all()
                seen |= set(batch)
    assert len(seen) > 60
    shares = [passes[0][0] for passes, _, _ in answers]
    assert len({tuple(share) for share in shares}) == count


def test_resumed_epoch_goes_on_with_the_same_triplets(folder):
    whole = on_ranks(2, passes_of_shards, folder, 2, 0)
    resumed = on_ranks(2, passes_of_shards, folder, 2, 2)
    for (passes, _, _), (again, _, _) in zip(whole, resumed, strict=True):
        assert again == [passes[0][2:], passes[1]]


class Uneven:
    """Rank 0 has seven images, rank 1 one that cannot be decoded, rank 2 none."""

    def __init__(self):
        self.items = _items(range(7), np.ones(7), np.array([0, 0, 0, 1, 1, 1, 1]))

    def __call__(self, part, parts):
        if part == 1:
            return [(b"no image", 1, 1.0, np.ones(1)), ("no image at all", 1, 1.0)]
        return self.items if part == 0 else []


def drawn_unevenly():
    stream = TripletStream(
        Uneven(),
        batch_size=60,
        byte_budget=10**5,
        batches_per_epoch=4,
        weighting="uniform",
        presplit=True,
        max_bad_images=2,
        shared=True,
    )
    found = [images[:, 0, 0, 0].tolist() for images, _ in stream]
    return found, stream.counters


def test_process_without_images_trains_on_those_of_others():
    answers = on_ranks(3, drawn_unevenly)
    for found, _ in answers:
        assert [len(batch) for batch in found] == [60] * 4
        assert set().union(*found) == set(range(7))
    assert sum(counters["bad_images"] for _, counters in answers) >= 2
    assert answers[0][1]["bad_images"] >= 1


def read_together():
    """Names of the samples in order, and which of them lie here."""
    own = iter(_items(range(distributed.rank(), 9, 2), np.ones(9), np.zeros(9, int)))
    from dr_plugin.datasets.stream_source import _parse

    samples = [_parse(f"item {2 * n + distributed.rank()}", item) for n, item in enumerate(own)]
    found = list(shared(lambda: iter(samples))())
    return [one.name for one in found], [not isinstance(one.image, Elsewhere) for one in found]


def test_samples_come_in_turns_and_only_the_own_with_their_images():
    (names, here), (others, there) = on_ranks(2, read_together)
    assert names == others == [f"item {number}" for number in range(9)]
    assert here == [number % 2 == 0 for number in range(9)]
    assert there == [not one for one in here]


def refused(folder):
    with pytest.raises(ValueError, match="world_size: got 3 for a stream to be shared, expected 2"):
        TripletStream(str(folder), batch_size=15, byte_budget=20_000, shared=True, rank=0, world_size=3)
    stream = TripletStream(str(folder), batch_size=15, byte_budget=20_000, weighting="uniform", shared=True)
    from torch.utils.data import DataLoader

    with pytest.raises(ValueError, match="num_workers: got 1 for a stream that 2 ranks share, expected 0"):
        next(iter(DataLoader(stream, batch_size=None, num_workers=1)))


def test_stream_that_cannot_be_shared_is_refused(folder):
    on_ranks(2, refused, folder)


def test_alone_a_shared_stream_is_like_any_other(folder):
    passes = passes_of_shards(folder, 1, 0)[0]
    assert passes == passes_of_shards(folder, 1, 0, shared=False)[0]


def test_shared_is_checked(folder):
    with pytest.raises(ValueError, match="shared: got 'yes', expected True or False"):
        TripletStream(str(folder), batch_size=15, byte_budget=20_000, shared="yes")
