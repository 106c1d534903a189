"""Folds of rated triplets that share nothing, and golden features learned out of them."""

import doctest
import itertools
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dr_plugin.relevance.max_margin import max_margin
from dr_plugin.relevance.rated_folds import PENALTIES, OutOfFoldGolden, grouped_folds


def groups_by_loops(text_queries, triplets):
    """Groups of triplets, merged until no two share a text query or an image."""
    groups = [{number} for number in range(len(triplets))]

    def marks(group):
        return {mark for t in group for mark in (text_queries[t], *(int(image) for image in triplets[t]))}

    merged = True
    while merged:
        merged = False
        for one, other in itertools.combinations(groups, 2):
            if marks(one) & marks(other):
                groups.remove(other)
                one |= other
                merged = True
                break
    return groups


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), *[st.integers(0, 40)] * 3), max_size=25),
    st.integers(2, 6),
    st.integers(0, 2**40),
)
def test_no_text_query_and_no_image_is_in_two_folds(rated, n_folds, seed):
    rated = [*rated, ("y", 50, 51, 52), ("z", 53, 54, 55)]
    text_queries, triplets = [row[0] for row in rated], [row[1:] for row in rated]
    groups = groups_by_loops(text_queries, triplets)
    n_folds = min(n_folds, len(groups))
    folds = grouped_folds(text_queries, triplets, n_folds, seed)
    assert folds.dtype == np.int64
    assert set(folds.tolist()) == set(range(n_folds))  # none is empty
    fold_of = {}
    for fold, text_query, images in zip(folds.tolist(), text_queries, triplets, strict=True):
        for mark in (text_query, *images):
            assert fold_of.setdefault(mark, fold) == fold
    for group in groups:
        assert len({int(folds[t]) for t in group}) == 1
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= max(len(group) for group in groups)
    assert np.array_equal(folds, grouped_folds(text_queries, triplets, n_folds, seed))


def test_images_join_over_roles_and_over_others():
    # 1 and 2 share image 5 as query and negative, 2 and 3 the text query; 4 stands alone
    triplets = [[5, 1, 2], [8, 9, 5], [10, 11, 12], [13, 14, 15]]
    folds = grouped_folds(["a", "b", "b", "c"], triplets, n_folds=2)
    assert folds[0] == folds[1] == folds[2] != folds[3]


def test_singletons_are_dealt_evenly_and_by_seed():
    names, triplets = [str(t) for t in range(103)], np.arange(309).reshape(103, 3)
    folds = [grouped_folds(names, triplets, seed=seed) for seed in range(2)]
    for one in folds:
        assert sorted(np.bincount(one)) == [10] * 7 + [11] * 3
    assert not np.array_equal(*folds)


def test_large_groups_are_dealt_first():
    names, triplets = ["large"] * 8 + list("abcdefgh"), np.arange(48).reshape(16, 3)
    for seed in range(5):
        assert np.bincount(grouped_folds(names, triplets, 2, seed)).tolist() == [8, 8]


def test_image_numbers_may_have_gaps_and_be_large():
    names = list("abcd")
    triplets = np.arange(12).reshape(4, 3)
    assert np.array_equal(grouped_folds(names, triplets * 2**40 + 7, 2), grouped_folds(names, triplets, 2))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((["a"], [[0, 1, 2], [3, 4, 5]], 2), "text_queries: got 1, expected one for each of 2 triplets"),
        (("ab", [[0, 1, 2], [3, 4, 5]], 2), "text_queries"),
        ((["a", "b"], [[0, 1], [3, 4]], 2), r"triplets: got int64 of shape \(2, 2\)"),
        ((["a", "b"], [[0, 1, 2.5], [3, 4, 5]], 2), "triplets: got float64"),
        (([], np.zeros((0, 3), int), 2), "T at least 1"),
        ((["a", "b"], [[0, 1, 2], [3, 4, 5]], 3), "n_folds: got 3 for 2 groups"),
        ((["a", "b"], [[0, 1, 2], [3, 4, 0]], 2), "n_folds: got 2 for 1 groups"),
        ((["a", "b"], [[0, 1, 2], [3, 4, 5]], 1), "n_folds: got 1, expected a whole number, at least 2"),
        ((["a", "b"], [[0, 1, 2], [3, 4, 5]], 2, -1), "seed: got -1"),
    ],
)
def test_bad_triplets_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        grouped_folds(*arguments)


def rated(count=120, seed=0):
    """Similarities of which the first orders well, the second a little and the third not, on scales of their own."""
    rng = np.random.default_rng(seed)
    positive = rng.normal([1.0, 0.4, 0.0], 1, (count, 3)) * [1, 50, 0.01] + [0, -300, 5]
    negative = rng.normal(0.0, 1, (count, 3)) * [1, 50, 0.01] + [0, -300, 5]
    return positive, negative, [f"query {t // 2}" for t in range(count)], np.arange(3 * count).reshape(-1, 3)


def test_weights_margins_and_distances_against_loops():
    positive, negative, text_queries, triplets = rated()
    golden = OutOfFoldGolden(n_folds=4, penalty=0.01, seed=3).fit(positive, negative, text_queries, triplets)
    folds = grouped_folds(text_queries, triplets, 4, 3)
    assert np.array_equal(golden.folds_, folds)
    assert golden.penalties_.tolist() == [0.01] * 4
    assert golden.seen == "ratings, out of fold"
    for fold in range(4):
        train = [t for t in range(120) if folds[t] != fold]
        values = [[row[k] for t in train for row in (positive[t], negative[t])] for k in range(3)]
        mean, deviation = np.array([np.mean(v) for v in values]), np.array([np.std(v) for v in values])
        weights = max_margin(np.array([(positive[t] - negative[t]) / deviation for t in train]), 0.01)
        np.testing.assert_allclose(golden.means_[fold], mean)
        np.testing.assert_allclose(golden.deviations_[fold], deviation)
        np.testing.assert_allclose(golden.weights_[fold], weights, atol=1e-6)
        for t in np.flatnonzero(folds == fold):
            scores = [
                sum(weights[k] * (s[t, k] - mean[k]) / deviation[k] for k in range(3))
                for s in (positive, negative)
            ]
            assert golden.margins_[t] == pytest.approx(scores[0] - scores[1], abs=1e-5)
            found = golden.distances(np.stack((positive[t], negative[t]))[None], [fold])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, [[-scores[0], -scores[1]]], atol=1e-4)
            assert golden.text_query_folds_[text_queries[t]] == fold


@pytest.mark.parametrize("penalty", [0.01, None])
def test_a_folds_own_ratings_change_nothing_of_what_judges_it(penalty):
    positive, negative, text_queries, triplets = rated()
    arguments = {"n_folds": 5, "penalty": penalty, "inner_folds": 3}
    golden = OutOfFoldGolden(**arguments).fit(positive, negative, text_queries, triplets)
    own = (golden.folds_ == 2)[:, None]
    turned, other = np.where(own, 7 * negative, positive), np.where(own, positive - 1, negative)
    again = OutOfFoldGolden(**arguments).fit(turned, other, text_queries, triplets)
    for name in ("weights_", "means_", "deviations_", "penalties_"):
        assert np.array_equal(getattr(golden, name)[2], getattr(again, name)[2])
        if name != "penalties_":
            assert not np.array_equal(getattr(golden, name)[1], getattr(again, name)[1])


def test_noise_gets_no_more_than_chance_and_signal_more():
    positive, negative, text_queries, triplets = rated(600)
    golden = OutOfFoldGolden(n_folds=5).fit(positive, negative, text_queries, triplets)
    alone = (positive[:, 0] > negative[:, 0]).mean()
    assert (golden.margins_ > 0).mean() > alone - 0.01
    assert (golden.weights_[:, 0] > golden.weights_[:, 1]).all()
    # 40 similarities that say nothing: learned in fold they would order more than half of 150 triplets right.
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(2, 150, 40))
    texts, images = [str(t) for t in range(150)], np.arange(450).reshape(150, 3)
    blind = OutOfFoldGolden(n_folds=10, penalty=1e-3).fit(*noise, texts, images)
    in_fold = (noise[0] - noise[1]) @ max_margin(noise[0] - noise[1], 1e-3)
    assert (in_fold > 0).mean() > 0.65
    assert 0.35 < (blind.margins_ > 0).mean() < 0.6


def chosen_by_loops(positive, negative, text_queries, triplets, inner_folds, seed):
    folds = grouped_folds(text_queries, triplets, inner_folds, seed)
    right = {}
    for penalty in PENALTIES:
        right[penalty] = 0
        for fold in range(inner_folds):
            train, test = folds != fold, folds == fold
            deviation = np.concatenate((positive[train], negative[train])).std(axis=0)
            weights = max_margin((positive[train] - negative[train]) / deviation, penalty)
            right[penalty] += int(((positive[test] - negative[test]) / deviation @ weights > 0).sum())
    return max(PENALTIES, key=lambda penalty: (right[penalty], penalty))


def test_penalty_is_chosen_by_inner_folds_of_the_training_part():
    positive, negative, text_queries, triplets = rated(90, seed=4)
    golden = OutOfFoldGolden(n_folds=3, inner_folds=4, seed=1).fit(positive, negative, text_queries, triplets)
    for fold in range(3):
        train = golden.folds_ != fold
        names = [name for name, used in zip(text_queries, train, strict=True) if used]
        expected = chosen_by_loops(positive[train], negative[train], names, triplets[train], 4, 1)
        assert golden.penalties_[fold] == expected


def test_fewer_groups_than_inner_folds_are_as_many_folds():
    positive, negative, _, triplets = rated(40)
    names = [str(t % 4) for t in range(40)]
    golden = OutOfFoldGolden(n_folds=4, inner_folds=10).fit(positive, negative, names, triplets)
    assert set(golden.penalties_) <= set(PENALTIES)
    with pytest.raises(ValueError, match=r"penalty: got None, but .* there are no inner folds"):
        OutOfFoldGolden(n_folds=2).fit(positive, negative, [str(t % 2) for t in range(40)], triplets)


def test_a_constant_similarity_counts_nothing():
    positive, negative, text_queries, triplets = rated()
    positive[:, 1], negative[:, 1] = 1000 + 1e-10, 1000  # apart by rounding
    positive[:, 2] = negative[:, 2] = 0.5
    golden = OutOfFoldGolden(n_folds=3, penalty=0.01).fit(positive, negative, text_queries, triplets)
    assert np.isfinite(golden.margins_).all()
    assert (golden.weights_[:, 1:] == 0).all()
    similarities = np.random.default_rng(0).normal(size=(1, 4, 3))
    expected = golden.distances(similarities, [0])
    similarities[:, :, 1:] = 1e6
    assert np.array_equal(golden.distances(similarities, [0]), expected)


def test_equal_answers_have_margin_0():
    positive, negative, text_queries, triplets = rated()
    positive[7] = negative[7]
    golden = OutOfFoldGolden(n_folds=3, penalty=0.01).fit(positive, negative, text_queries, triplets)
    assert golden.margins_[7] == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes_and_scales_of_similarities_do_not_matter(dtype):
    positive, negative, text_queries, triplets = rated()
    expected = OutOfFoldGolden(n_folds=3, penalty=0.01).fit(positive, negative, text_queries, triplets)
    scaled = [(1000 * part + 3).astype(dtype) for part in (positive, negative)]
    found = OutOfFoldGolden(n_folds=3, penalty=0.01).fit(*scaled, text_queries, triplets)
    assert found.weights_.dtype == np.float64
    np.testing.assert_allclose(found.margins_, expected.margins_, atol=2e-2 if dtype == np.float32 else 1e-5)


def test_it_is_a_scikit_learn_estimator_and_reports_progress():
    calls = []
    arguments = rated()
    golden = OutOfFoldGolden(n_folds=3, penalty=0.01, seed=2)
    assert clone(golden).get_params() == golden.get_params()
    with pytest.raises(NotFittedError, match="before fit"):
        golden.distances(np.zeros((1, 1, 3)), [0])
    golden.fit(*arguments, progress=lambda *call: calls.append(call))
    assert calls == [("golden folds", done, 3) for done in (1, 2, 3)]
    again = pickle.loads(pickle.dumps(golden))
    similarities = np.random.default_rng(0).normal(size=(2, 5, 3))
    assert np.array_equal(again.distances(similarities, [2, 0]), golden.distances(similarities, [2, 0]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"positive": np.zeros((120, 2))}, r"got \(120, 2\), \(120, 3\) and \(120, 3\)"),
        ({"positive": np.zeros((119, 3)), "negative": np.zeros((119, 3))}, r"\(119, 3\) and \(120, 3\)"),
        ({"positive": np.full((120, 3), np.nan)}, "positive: got float64 of shape .* finite numbers"),
        ({"negative": np.zeros(120)}, r"negative: got float64 of shape \(120,\)"),
        ({"text_queries": ["a"]}, "text_queries: got 1"),
        ({"triplets": np.zeros((120, 2), int)}, "triplets: got int64"),
    ],
)
def test_bad_ratings_are_refused(change, match):
    given = dict(zip(("positive", "negative", "text_queries", "triplets"), rated(), strict=True)) | change
    with pytest.raises(ValueError, match=match):
        OutOfFoldGolden(penalty=0.1).fit(**given)


def test_distances_in_place_of_similarities_are_refused():
    positive, negative, text_queries, triplets = rated()
    with pytest.raises(ValueError, match="are they distances, or the answers exchanged"):
        OutOfFoldGolden(penalty=0.1).fit(-positive[:, :2], -negative[:, :2], text_queries, triplets)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_folds": 1}, "n_folds: got 1"),
        ({"inner_folds": 1}, "inner_folds: got 1"),
        ({"penalty": 0.0}, r"penalty: got 0\.0, expected a finite number above 0, or None"),
        ({"penalty": float("inf")}, "penalty: got inf"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        OutOfFoldGolden(**arguments).fit(*rated())


@pytest.mark.parametrize(
    ("similarities", "folds", "match"),
    [
        (
            np.zeros((2, 5, 3)),
            [0],
            r"similarities: got shape \(2, 5, 3\), expected finite numbers \(1, n, 3\)",
        ),
        (np.zeros((1, 5, 4)), [0], r"expected finite numbers \(1, n, 3\)"),
        (np.full((1, 5, 3), np.inf), [0], "finite"),
        (np.zeros((1, 5, 3)), [3], r"folds: got \[3\], expected numbers of folds, 0 to 2"),
        (np.zeros((1, 5, 3)), [-1], "folds"),
        (np.zeros((1, 5, 3)), [0.5], "folds"),
    ],
)
def test_bad_similarities_are_refused(similarities, folds, match):
    golden = OutOfFoldGolden(n_folds=3, penalty=0.01).fit(*rated())
    with pytest.raises(ValueError, match=match):
        golden.distances(similarities, folds)


def test_examples_run():
    results = doctest.testmod(sys.modules[OutOfFoldGolden.__module__])
    assert results.attempted > 0
    assert results.failed == 0
