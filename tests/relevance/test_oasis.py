"""OASIS against the algorithm as it is printed: one triplet after the other, one outer product each."""

import doctest
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dr_plugin.relevance import OASIS
from dr_plugin.relevance.distances import feature_distances
from dr_plugin.relevance.oasis import learn_block

LABELS = np.repeat(np.arange(4), 6)


def features_of(labels=LABELS, dimension=7, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(labels.max() + 1, dimension))
    return (centres[labels] + rng.normal(size=(len(labels), dimension))).astype(dtype)


def random_triplets(count, images, seed=0):
    return np.random.default_rng(seed).integers(0, images, (count, 3))


def by_loops(features, triplets, aggressiveness, weights=None):
    weights = np.eye(features.shape[1]) if weights is None else weights.copy()
    updates = 0
    for query, positive, negative in triplets:
        p, p_plus, p_minus = features[query], features[positive], features[negative]
        loss = max(0.0, 1 - p @ weights @ p_plus + p @ weights @ p_minus)
        gradient = np.outer(p, p_plus - p_minus)
        square = (gradient**2).sum()
        if loss > 0 and square > 0:
            weights = weights + min(aggressiveness, loss / square) * gradient
            updates += 1
    return weights, updates


def loss_of(weights, p, p_plus, p_minus):
    return max(0.0, 1 - float(p @ weights @ p_plus) + float(p @ weights @ p_minus))


@pytest.mark.parametrize("aggressiveness", [0.003, 0.1, 10.0])
@pytest.mark.parametrize("count", [1, 128, 129, 1000])
def test_weights_against_loops(count, aggressiveness):
    features, triplets = features_of(), random_triplets(count, len(LABELS))
    oasis = OASIS(aggressiveness=aggressiveness, steps=count).fit(features, triplets=triplets)
    expected, updates = by_loops(features, triplets, aggressiveness)
    np.testing.assert_allclose(oasis.weights_, expected, rtol=1e-9, atol=1e-9)
    assert (oasis.steps_, oasis.updates_) == (count, updates)
    assert updates > 0 or count == 1


def test_given_triplets_come_in_their_order_again_and_again():
    features, triplets = features_of(), random_triplets(50, len(LABELS))
    oasis = OASIS(steps=333).fit(features, triplets=triplets)
    expected, _ = by_loops(features, np.tile(triplets, (7, 1))[:333], 0.1)
    np.testing.assert_allclose(oasis.weights_, expected, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(0.05, 3))
def test_a_step_leaves_no_loss_or_lowers_it_by_what_its_size_allows(seed, aggressiveness, scale):
    rng = np.random.default_rng(seed)
    p, p_plus, p_minus = scale * rng.normal(size=(3, 5))
    weights = np.asfortranarray(rng.normal(size=(5, 5)))
    before = loss_of(weights, p, p_plus, p_minus)
    changed = learn_block(weights, p[None], (p_plus - p_minus)[None], aggressiveness)
    after = loss_of(weights, p, p_plus, p_minus)
    square = (np.outer(p, p_plus - p_minus) ** 2).sum()
    assert changed == (before > 0)
    if before / square <= aggressiveness:  # unclipped
        assert after == pytest.approx(0, abs=1e-9 * max(1, before))
    else:
        assert before - after == pytest.approx(aggressiveness * square, rel=1e-6, abs=1e-9)


def test_closed_form_of_one_step():
    features = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    # S(p, p+) = S(p, p-) = 0, l = 1, V = [[0, 2], [0, 0]], ||V||^2 = 4
    clipped = OASIS(aggressiveness=0.1, steps=1).fit(features, triplets=[[0, 1, 2]])
    np.testing.assert_allclose(clipped.weights_, [[1, 0.2], [0, 1]])
    unclipped = OASIS(aggressiveness=1.0, steps=1).fit(features, triplets=[[0, 1, 2]])
    np.testing.assert_allclose(unclipped.weights_, [[1, 0.5], [0, 1]])
    assert unclipped.similarities(features[:1], features).tolist() == [[4.0, 1.0, 0.0]]
    assert unclipped.distances(features[:1], features).tolist() == [[-4.0, -1.0, 0.0]]


@pytest.mark.parametrize("triplets", [[[2, 0, 1]], [[0, 1, 1]]], ids=["query of zeros", "equal answers"])
def test_a_triplet_without_direction_changes_nothing(triplets):
    features = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    oasis = OASIS(steps=300).fit(features, triplets=triplets)
    assert np.array_equal(oasis.weights_, np.eye(2))
    assert oasis.updates_ == 0


def relevances(labels=LABELS, seed=0):
    table = np.random.default_rng(seed).uniform(0.1, 1, (len(labels), len(labels))).astype(np.float32)
    table = (table + table.T) / 2
    table[labels[:, None] != labels] = 0
    return table


def test_relevance_alone_is_learned():
    """Similar is what the first number says; the rest is noise that W = I believes in."""
    rng = np.random.default_rng(0)
    value = rng.uniform(-1, 1, 60)
    features = np.column_stack((np.cos(value), np.sin(value), rng.normal(size=(60, 4))))
    table = np.exp(-3 * np.abs(value[:, None] - value))
    oasis = OASIS(steps=20_000, out_of_class_ratio=0.0).fit(features, relevance=table)
    query, positive, negative = random_triplets(4_000, 60, seed=1).T
    swap = table[query, positive] < table[query, negative]
    positive, negative = np.where(swap, negative, positive), np.where(swap, positive, negative)
    proper = (query != positive) & (query != negative) & (positive != negative)

    def right(similarities):
        return (similarities[query, positive] > similarities[query, negative])[proper].mean()

    assert right(oasis.similarities(features, features)) > right(features @ features.T) + 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, torch.bfloat16])
def test_dtypes(dtype):
    wide = features_of().round()
    given = torch.from_numpy(wide).to(dtype) if isinstance(dtype, torch.dtype) else wide.astype(dtype)
    oasis = OASIS(steps=500).fit(given, LABELS)
    expected = OASIS(steps=500).fit(wide, LABELS)
    assert expected.weights_.dtype == np.float64
    assert oasis.weights_.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert oasis.similarities(given, given).dtype == oasis.weights_.dtype
    np.testing.assert_allclose(oasis.weights_, expected.weights_, atol=1e-3)


def test_memory_maps_are_read_as_arrays_are(tmp_path):
    features = features_of(dtype=np.float32)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    oasis = OASIS(steps=500).fit(mapped, LABELS)
    expected = OASIS(steps=500).fit(features, LABELS)
    assert np.array_equal(oasis.weights_, expected.weights_)
    assert np.array_equal(oasis.distances(mapped, mapped), expected.distances(features, features))
    assert np.array_equal(mapped, features)


@pytest.mark.parametrize("data", ["labels", "relevance", "triplets"])
def test_partial_fits_are_one_fit(data):
    features = features_of(dtype=np.float32)
    given = {
        "labels": {"labels": LABELS},
        "relevance": {"labels": LABELS, "relevance": relevances()},
        "triplets": {"triplets": random_triplets(70, len(LABELS))},
    }[data]
    expected = OASIS(steps=700).fit(features, **given)
    oasis = OASIS(steps=256).partial_fit(features, **given)
    oasis = pickle.loads(pickle.dumps(oasis)).partial_fit(features, **given, steps=444)
    assert np.array_equal(oasis.weights_, expected.weights_)
    assert (oasis.steps_, oasis.updates_) == (700, expected.updates_)
    unaligned = OASIS().partial_fit(features, **given, steps=77).partial_fit(features, **given, steps=623)
    np.testing.assert_allclose(unaligned.weights_, expected.weights_, atol=1e-5)
    assert np.array_equal(oasis.set_params(steps=700).fit(features, **given).weights_, expected.weights_)


def test_going_on_does_not_change_weights_already_taken():
    features = features_of()
    oasis = OASIS(steps=100).fit(features, LABELS)
    taken = oasis.weights_
    before = taken.copy()
    oasis.partial_fit(features, LABELS)
    assert np.array_equal(taken, before)
    assert not np.array_equal(oasis.weights_, before)


@pytest.mark.parametrize("projection", [None, "symmetric"])
def test_weights_are_kept_once_where_nothing_is_projected(projection):
    features = features_of(dimension=100)
    oasis = OASIS(steps=100, projection=projection).fit(features, LABELS)
    size, square = len(pickle.dumps(oasis)), oasis.weights_.nbytes
    assert size // square == (1 if projection is None else 2)
    arrays = [value for value in vars(pickle.loads(pickle.dumps(oasis))).values() if hasattr(value, "nbytes")]
    assert len({id(array) for array in arrays}) == size // square


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        ({"labels": LABELS}, "class labels"),
        ({"relevance": relevances()}, "unrated relevance"),
        ({"labels": LABELS, "relevance": relevances()}, "class labels; unrated relevance"),
        ({"triplets": [[0, 1, 2]]}, "given triplets"),
    ],
)
def test_it_says_what_it_has_seen(data, seen):
    oasis = OASIS(steps=10)
    assert not hasattr(oasis, "seen")
    assert oasis.fit(features_of(), **data).seen == seen
    assert pickle.loads(pickle.dumps(oasis)).seen == seen


def test_going_on_adds_to_what_it_has_seen():
    oasis = OASIS(steps=10).partial_fit(features_of(), triplets=[[0, 1, 2]])
    oasis.partial_fit(features_of(), LABELS).partial_fit(features_of(), triplets=[[0, 1, 2]])
    assert oasis.seen == "given triplets; class labels"
    assert oasis.fit(features_of(), LABELS).seen == "class labels"


def test_a_call_that_is_broken_off_has_changed_nothing():
    features = features_of(dtype=np.float32)
    expected = OASIS(steps=5_120).fit(features, LABELS)
    oasis = OASIS(steps=1_024).fit(features, LABELS)

    def interrupt(task, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        oasis.partial_fit(features, LABELS, steps=9_000, progress=interrupt)
    oasis.partial_fit(features, LABELS, steps=4_096)
    assert np.array_equal(oasis.weights_, expected.weights_)
    assert oasis.steps_ == 5_120


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projections(dtype):
    features = features_of(dtype=dtype)
    plain = OASIS(steps=600).fit(features, LABELS).weights_
    symmetric = OASIS(steps=600, projection="symmetric").fit(features, LABELS).weights_
    np.testing.assert_array_equal(symmetric, (plain + plain.T) / 2)
    psd = OASIS(steps=600, projection="psd").fit(features, LABELS).weights_
    assert psd.dtype == dtype
    np.testing.assert_allclose(psd, psd.T, atol=1e-6)
    values = np.linalg.eigvalsh(symmetric)
    assert values.min() < -1e-3  # there is something to project
    found = np.linalg.eigvalsh(psd)
    assert found.min() > -1e-5
    # The nearest one: what it lacks are the negative eigenvalues.
    assert np.linalg.norm(psd - symmetric) == pytest.approx(
        np.sqrt((values[values < 0] ** 2).sum()), rel=1e-4
    )


def test_going_on_is_from_weights_before_the_projection():
    features = features_of()
    expected = OASIS(steps=512, projection="psd").fit(features, LABELS)
    oasis = OASIS(steps=256, projection="psd").partial_fit(features, LABELS).partial_fit(features, LABELS)
    assert np.array_equal(oasis.weights_, expected.weights_)


def test_normalized_rows_are_unit_rows_given():
    features = features_of()
    features[3] = 0
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-300)
    oasis = OASIS(steps=600, normalize=True).fit(features, LABELS)
    expected = OASIS(steps=600).fit(units, LABELS)
    np.testing.assert_allclose(oasis.weights_, expected.weights_, atol=1e-9)
    np.testing.assert_allclose(
        oasis.similarities(5 * features, features), expected.similarities(units, units), atol=1e-9
    )


def test_it_stands_where_a_transformer_stands():
    features = features_of(dtype=np.float32)
    oasis = OASIS(steps=600).fit(features, LABELS)
    rows = oasis.transform(features)
    assert rows.dtype == np.float32
    assert rows is not features
    expected = -features @ oasis.weights_ @ features[:5].T
    np.testing.assert_allclose(feature_distances(oasis, rows, rows[:5]), expected, atol=1e-4)
    np.testing.assert_allclose(oasis.distances(features, features[:5]), expected, atol=1e-4)
    unfitted = clone(oasis)
    assert unfitted.get_params() == oasis.get_params()
    for method in (unfitted.similarities, unfitted.distances):
        with pytest.raises(NotFittedError, match="got OASIS before fit"):
            method(features, features)
    with pytest.raises(NotFittedError, match="got OASIS before fit"):
        unfitted.transform(features)


def test_classes_are_better_told_apart_than_before():
    labels = np.repeat(np.arange(10), 20)
    features = np.hstack((features_of(labels, 8), 2 * np.random.default_rng(1).normal(size=(200, 20))))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    train, test = np.arange(200) % 2 == 0, np.arange(200) % 2 == 1
    oasis = OASIS(steps=30_000).fit(features[train], labels[train])

    def precision(similarities):
        nearest = np.argsort(-similarities, axis=1)[:, :5]
        return (labels[train][nearest] == labels[test][:, None]).mean()

    plain = precision(features[test] @ features[train].T)
    assert precision(oasis.similarities(features[test], features[train])) > plain + 0.15


def test_progress_counts_triplets_of_this_call():
    calls = []
    features = features_of()
    oasis = OASIS(steps=9_000).fit(features, LABELS, progress=lambda *call: calls.append(call))
    assert [call[1] for call in calls] == [4096, 8192, 9000]
    assert {(call[0], call[2]) for call in calls} == {("OASIS", 9000)}
    calls.clear()
    oasis.partial_fit(features, LABELS, steps=10, progress=lambda *call: calls.append(call))
    assert calls == [("OASIS", 10, 10)]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"steps": 0}, "steps: got 0, expected a whole number, at least 1"),
        ({"seed": -1}, "seed: got -1"),
        ({"aggressiveness": 0.0}, r"aggressiveness: got 0\.0, expected a finite number above 0"),
        ({"aggressiveness": float("nan")}, "aggressiveness: got nan"),
        ({"projection": "PSD"}, "projection: got 'PSD', expected None, 'symmetric' or 'psd'"),
        ({"normalize": "yes"}, "normalize: got 'yes'"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        OASIS(**arguments).fit(features_of(), LABELS)


@pytest.mark.parametrize(
    ("features", "match"),
    [
        (np.zeros(3), r"features: got float64 of shape \(3,\), expected numbers of shape \(N, F\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((24, 0)), r"shape \(24, 0\)"),
        (np.array([["a"] * 2] * 24), "features: got <U1"),
        (np.where(np.arange(48) == 31, np.nan, 1.0).reshape(24, 2), "features: row 15: got nan"),
        (
            np.where(np.arange(48) == 31, -2e6, 1.0).reshape(24, 2),
            r"row 15: got -2e\+06, expected numbers from",
        ),
    ],
)
def test_bad_features_are_refused(features, match):
    with pytest.raises(ValueError, match=match):
        OASIS(steps=1).fit(features, LABELS)


def test_bad_training_data_is_refused():
    with pytest.raises(ValueError, match="labels, relevance, triplets: got none"):
        OASIS(steps=1).fit(features_of())
    with pytest.raises(ValueError, match="triplet 0"):
        OASIS(steps=1).fit(features_of(), triplets=[[0, -1, 2]])


@pytest.mark.parametrize("method", ["similarities", "distances"])
def test_features_of_another_dimension_are_refused(method):
    oasis = OASIS(steps=1).fit(features_of(), LABELS)
    with pytest.raises(
        ValueError, match=r"y: got float64 of shape \(24, 6\), expected numbers of shape \(N, 7\)"
    ):
        getattr(oasis, method)(features_of(), features_of(dimension=6))
    with pytest.raises(ValueError, match=r"expected numbers of shape \(N, 7\)"):
        oasis.partial_fit(features_of(dimension=6), LABELS)


def test_example_runs():
    results = doctest.testmod(sys.modules[OASIS.__module__])
    assert results.attempted > 0
    assert results.failed == 0
