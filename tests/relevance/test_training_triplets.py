"""Triplets that are known by their numbers: of classes, of a relevance, given."""

import numpy as np
import pytest

from dr_plugin.relevance import training_triplets as module
from dr_plugin.relevance.training_triplets import TrainingTriplets, seen_of

LABELS = np.repeat(np.arange(4), 6)
DRAW = {"out_of_class_ratio": 0.25, "relevance_threshold": None, "relevance_margin": 0.1}


def relevances(labels=LABELS, seed=0):
    table = np.random.default_rng(seed).uniform(0.1, 1, (len(labels), len(labels))).astype(np.float32)
    table = (table + table.T) / 2
    table[labels[:, None] != labels] = 0
    return table


def source_of(seed=3, count=24, **data):
    given = {"labels": None, "relevance": None, "triplets": None, **data}
    return TrainingTriplets(count, seed=seed, draw=DRAW if given["relevance"] is not None else {}, **given)


SOURCES = {
    "labels": {"labels": LABELS},
    "relevance": {"labels": LABELS, "relevance": relevances()},
    "graded": {"relevance": relevances()},
    "triplets": {"triplets": [[0, 1, 2], [5, 4, 3], [7, 7, 7]]},
}


@pytest.mark.parametrize("data", SOURCES)
def test_takes_over_borders_of_chunks_are_one_long_take(data, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 64)
    expected = source_of(**SOURCES[data]).take(0, 300)
    assert expected.shape == (300, 3)
    source = source_of(**SOURCES[data])
    for start, stop in [(60, 68), (64, 128), (63, 64), (0, 300), (127, 257), (5, 5), (299, 300), (10, 20)]:
        if stop > start:
            assert np.array_equal(source.take(start, stop), expected[start:stop])
    steps = [source_of(**SOURCES[data]).take(start, min(start + 7, 300)) for start in range(0, 300, 7)]
    assert np.array_equal(np.concatenate(steps), expected)


def test_given_triplets_come_again_from_the_first():
    source = source_of(**SOURCES["triplets"])
    assert source.take(2, 5).tolist() == [[7, 7, 7], [0, 1, 2], [5, 4, 3]]
    assert source.take(10**12, 10**12 + 1).tolist() == [[5, 4, 3]]


def test_triplets_of_classes_are_of_their_classes_and_by_seed():
    source = TrainingTriplets(24, labels=LABELS, relevance=None, triplets=None, seed=3, draw={})
    query, positive, negative = source.take(100, 40_000).T
    assert (LABELS[query] == LABELS[positive]).all()
    assert (query != positive).all()
    assert (LABELS[query] != LABELS[negative]).all()
    again = TrainingTriplets(24, labels=LABELS, relevance=None, triplets=None, seed=3, draw={})
    parts = [again.take(start, min(start + 999, 40_000)) for start in range(100, 40_000, 999)]
    assert np.array_equal(np.concatenate(parts), np.stack((query, positive, negative), axis=1))
    other = TrainingTriplets(24, labels=LABELS, relevance=None, triplets=None, seed=4, draw={})
    assert not np.array_equal(other.take(100, 200), source.take(100, 200))
    assert not np.array_equal(source.take(0, 16_384), source.take(16_384, 32_768))


@pytest.mark.parametrize("labels", [LABELS, None], ids=["classes", "graded"])
def test_relevance_draws_in_its_order_and_its_share_of_other_classes(labels):
    table = relevances()
    draw = {"out_of_class_ratio": 0.25, "relevance_threshold": None, "relevance_margin": 0.1}
    source = TrainingTriplets(24, labels=labels, relevance=table, triplets=None, seed=0, draw=draw)
    query, positive, negative = source.take(0, 8_000).T
    apart = LABELS[query] != LABELS[negative]
    assert apart.mean() == pytest.approx(0.25, abs=0.02)
    difference = table[query, positive] - table[query, negative]
    assert (difference[~apart] >= 0.1).all()
    off_diagonal = table * ~np.eye(24, dtype=bool)
    counts = np.bincount(query, minlength=24)
    assert np.corrcoef(counts, off_diagonal.sum(axis=1))[0, 1] > 0.8


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ({}, "labels, relevance, triplets: got none"),
        ({"labels": LABELS, "triplets": [[0, 1, 2]]}, "got triplets and others"),
        ({"labels": LABELS[:-1]}, r"labels: got int64 of shape \(23,\)"),
        ({"labels": LABELS * 1.0}, "labels: got float64"),
        ({"labels": LABELS * 0}, "got 1 classes of 24 images, expected at least two classes"),
        ({"labels": np.arange(24)}, "got 24 classes of 24 images"),
        ({"triplets": [[0, 1]]}, r"triplets: got int64 of shape \(1, 2\)"),
        ({"triplets": np.zeros((0, 3), int)}, "T at least 1"),
        ({"triplets": [[0, 1, 2.0]]}, "triplets: got float64"),
        ({"triplets": [[0, 1, 2], [0, 24, 1]]}, r"triplet 1: got \[0, 24, 1\], expected 0 to 23"),
        ({"triplets": [[0, -1, 2]]}, "triplet 0"),
        ({"labels": LABELS, "relevance": np.ones((3, 3))}, r"of shape \(3, 3\)"),
        ({"labels": LABELS, "relevance": np.ones((24, 24))}, "out_of_class_ratio: got one below 1"),
    ],
)
def test_bad_training_data_is_refused(data, match):
    with pytest.raises(ValueError, match=match):
        source_of(**data)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"labels": LABELS, "relevance": None}, "class labels"),
        ({"labels": None, "relevance": relevances()}, "unrated relevance"),
        ({"labels": LABELS, "relevance": relevances(), "triplets": None}, "class labels; unrated relevance"),
        ({"labels": None, "relevance": None, "triplets": [[0, 1, 2]]}, "given triplets"),
    ],
)
def test_what_a_table_says_of_them(given, seen):
    assert seen_of(**given) == seen
