import doctest
import math
import sys

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from dr_plugin.relevance import distances, features
from dr_plugin.relevance.distances import DISTANCES, distance_name, feature_distances, triplet_distances


def loop_distance(name, x, y):
    """One pair, number by number."""
    pairs = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    if name == "euclidean":
        return math.sqrt(sum((a - b) ** 2 for a, b in pairs))
    if name == "manhattan":
        return sum(abs(a - b) for a, b in pairs)
    if name == "chi2":
        return sum((a - b) ** 2 / (a + b) for a, b in pairs if a + b > 0)
    if name == "intersection":
        largest = max(sum(a for a, _ in pairs), sum(b for _, b in pairs))
        return 1 - sum(min(a, b) for a, b in pairs) / largest if largest > 0 else 1.0
    lengths = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return 1 - sum(a * b for a, b in pairs) / lengths if lengths > 0 else 1.0


def histograms(count, width=9, seed=0):
    """With empty bins, one row of zeros, and rows of different sums."""
    rng = np.random.default_rng(seed)
    rows = (rng.random((count, width)) * (rng.random((count, width)) < 0.6)).astype(np.float32)
    rows[0] = 0
    return rows


class Halved:
    """A transformer with a distance of its own, not symmetric."""

    distance = "own"

    def distances(self, queries, gallery):
        return np.abs(queries[:, None, 0] - gallery[:, 0] / 2)


@pytest.mark.parametrize("name", DISTANCES)
def test_all_pairs_against_loops(name):
    x, y = histograms(5, seed=1), histograms(7, seed=2)
    expected = [[loop_distance(name, a, b) for b in y] for a in x]
    found = feature_distances(name, x, y)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "scipy_name"), [("euclidean",) * 2, ("manhattan", "cityblock"), ("cosine",) * 2]
)
def test_signed_numbers_against_scipy_across_pieces(name, scipy_name, monkeypatch):
    monkeypatch.setattr(distances, "_ROWS_BYTES", 100)
    monkeypatch.setattr(distances, "_CACHED", 20)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 6)).astype(np.float32), rng.normal(size=(13, 6)).astype(np.float32)
    np.testing.assert_allclose(feature_distances(name, x, y), cdist(x, y, scipy_name), atol=1e-5)


@pytest.mark.parametrize("name", [*DISTANCES, "own"])
def test_triplets_are_the_same_pairs(name, monkeypatch):
    monkeypatch.setattr(distances, "_ROWS_BYTES", 100)
    how = Halved() if name == "own" else name
    features = histograms(20)
    triplets = np.random.default_rng(1).integers(0, 20, (75, 3))
    everything = feature_distances(how, features, features)
    positive, negative = triplet_distances(how, features, triplets)
    np.testing.assert_allclose(positive, everything[triplets[:, 0], triplets[:, 1]], atol=2e-6)
    np.testing.assert_allclose(negative, everything[triplets[:, 0], triplets[:, 2]], atol=2e-6)
    assert positive.dtype == negative.dtype == np.float32


def test_the_querys_distance_is_asked_in_its_direction():
    rows = np.array([[1.0], [2.0]], np.float32)
    assert feature_distances(Halved(), rows[:1], rows[1:]) == 0
    assert feature_distances(Halved(), rows[1:], rows[:1]) == 1.5
    positive, negative = triplet_distances(Halved(), rows, [[0, 1, 0]])
    assert (positive, negative) == (0, 0.5)


@pytest.mark.parametrize("name", DISTANCES)
def test_equal_rows_are_nearest_and_zero_rows_are_no_nan(name):
    rows = histograms(6)
    found = feature_distances(name, rows, rows)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    # what float32 rounds of a Euclidean square becomes its root
    np.testing.assert_allclose(found.diagonal()[1:], 0, atol=1e-6)


def test_near_vectors_far_from_the_origin_keep_their_distance():
    x = np.array([[1000.0, 1000.0]], np.float32)
    y = np.array([[1000.0, 1000.25]], np.float32)
    assert feature_distances("euclidean", x, y) == 0.25


def test_tensors_whole_numbers_and_memory_maps_give_the_same(tmp_path):
    rows = np.random.default_rng(0).integers(0, 9, (5, 4)).astype(np.uint8)
    expected = feature_distances("manhattan", rows.astype(np.float32), rows.astype(np.float32))
    assert np.array_equal(feature_distances("manhattan", rows, torch.from_numpy(rows)), expected)
    half = torch.from_numpy(rows).bfloat16().requires_grad_()
    assert np.array_equal(feature_distances("manhattan", half, rows), expected)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert np.array_equal(feature_distances("manhattan", mapped, rows), expected)


@pytest.mark.parametrize("how", [*DISTANCES, Halved()])
def test_nothing_to_compare_gives_nothing(how):
    rows = histograms(3)
    assert feature_distances(how, rows[:0], rows).shape == (0, 3)
    assert feature_distances(how, rows, rows[:0]).shape == (3, 0)
    positive, negative = triplet_distances(how, rows, np.empty((0, 3), int))
    assert positive.shape == negative.shape == (0,)


def test_name_of_a_transformers_distance():
    class Features:
        distance = "chi2"

    assert distance_name(Features()) == "chi2"
    assert distance_name(Halved()) == "own"
    x = histograms(3)
    assert np.array_equal(feature_distances(Features(), x, x), feature_distances("chi2", x, x))


@pytest.mark.parametrize("name", features.__all__)
def test_every_feature_says_how_it_is_compared(name):
    feature = getattr(features, name)()
    assert distance_name(feature) == feature.distance


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("manhatan", r"got 'manhatan', expected one of euclidean, .*did you mean 'manhattan'"),
        ("own", r"got 'own', expected one of"),
        (None, "got None"),
        (object(), "attribute distance"),
        (type("Lacking", (), {"distance": "own"})(), r"expected it to have a method distances\(x, y\)"),
    ],
)
def test_unknown_distances_are_refused(how, match):
    with pytest.raises(ValueError, match=match):
        feature_distances(how, histograms(2), histograms(2))
    with pytest.raises(ValueError, match=match):
        triplet_distances(how, histograms(2), [[0, 1, 1]])


@pytest.mark.parametrize(
    ("x", "y", "name", "match"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "euclidean", r"x \(2, 3\) and y \(2, 4\)"),
        (np.ones(3), np.ones((2, 3)), "euclidean", r"x: got float64 of shape \(3,\)"),
        (np.ones((2, 3)), np.ones((2, 0)), "euclidean", r"y: got float64 of shape \(2, 0\)"),
        (np.ones((2, 3)), np.full((2, 3), "a"), "euclidean", "expected numbers"),
        (np.ones((2, 1)), np.array([[1.0], [math.nan]]), "manhattan", "y: row 1: got nan, expected finite"),
        (np.ones((2, 1)), np.array([[1.0], [math.inf]]), "manhattan", "y: row 1: got inf"),
        (np.array([[1.0], [-2.0]]), np.ones((2, 1)), "chi2", "x: row 1: got -2, .* at least 0, for 'chi2'"),
        (np.array([[-1.0]]), np.ones((2, 1)), "intersection", "at least 0, for 'intersection'"),
    ],
)
def test_bad_features_are_refused(x, y, name, match):
    with pytest.raises(ValueError, match=match):
        feature_distances(name, x, y)


@pytest.mark.parametrize(
    ("triplets", "match"),
    [
        ([[0, 1]], r"triplets: got int64 of shape \(1, 2\)"),
        ([[0.0, 1.0, 2.0]], "of float64|got float64"),
        ([[0, 1, 3]], "got indices from 0 to 3, expected 0 to 2"),
        ([[-1, 1, 2]], "got indices from -1"),
    ],
)
def test_bad_triplets_are_refused(triplets, match):
    with pytest.raises(ValueError, match=match):
        triplet_distances("euclidean", np.ones((3, 2)), triplets)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3)), np.array([[0, math.nan], [0, 0]])])
def test_a_transformers_wrong_distances_are_refused(wrong):
    class Wrong:
        distance = "own"

        def distances(self, queries, gallery):
            return wrong

    with pytest.raises(ValueError, match=r"Wrong.distances: got .*expected finite numbers of shape \(2, 2\)"):
        feature_distances(Wrong(), np.ones((2, 1)), np.ones((2, 1)))


def test_examples_run():
    results = doctest.testmod(sys.modules[feature_distances.__module__])
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("how", DISTANCES)
def test_memory_maps_that_are_only_read_are_taken(how, tmp_path):
    features = np.random.default_rng(0).random((7, 5), np.float32)
    np.save(tmp_path / "features.npy", features)
    stored = np.load(tmp_path / "features.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        feature_distances(how, stored, stored), feature_distances(how, features, features)
    )
    for mine, theirs in zip(
        *(triplet_distances(how, x, [[0, 1, 2], [3, 4, 5]]) for x in (stored, features)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
