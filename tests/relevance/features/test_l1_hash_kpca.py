import doctest
import pickle
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import NotFittedError

from dr_plugin.relevance.features import HOG, L1HashKPCA, LABHistogram, SPMKTexton, l1_hash_kpca
from dr_plugin.relevance.min_hash import hash_parameters, min_hash

BASES = [LABHistogram(bins=3), HOG(cell_size=8)]


def pictures(count=24, classes=3, side=16, seed=0):
    """A class is a colour; images (N, 3, side, side) uint8 and labels (N,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    colours = np.array([(220, 30, 30), (30, 220, 30), (30, 30, 220)])[labels]
    noise = rng.normal(0, 40, (count, 3, side, side))
    return (colours[:, :, None, None] + noise).clip(0, 255).astype(np.uint8), labels


def base_features(images):
    return [base.transform(images) for base in BASES]


def small(features=BASES, **parameters):
    return L1HashKPCA(features, **{"hashes": 64, **parameters})


@pytest.fixture(scope="module")
def fitted():
    return small().fit(*pictures())


class Shares(TransformerMixin, BaseEstimator):
    """The mean of each channel; learns how many images it was fitted on."""

    def __init__(self, power=1):
        self.power = power

    def fit(self, images, y=None):
        self.count_ = len(images)
        return self

    def transform(self, images):
        return (images.mean(axis=(2, 3)) ** self.power).astype(np.float32)


def filled_by_loops(features, totals):
    return [
        np.array([[*row, max(0.0, total - row.sum())] for row in array.astype(float)])
        for array, total in zip(features, totals, strict=True)
    ]


def codes_by_loops(model, features):
    filled = filled_by_loops(features, model.sums_)
    scaled = [array * scale for array, scale in zip(filled, model.scales_, strict=True) if scale]
    rows = np.concatenate(scaled, axis=1)
    return min_hash(rows, hash_parameters(rows.shape[1], model.hashes, model.seed))


def test_embedding_is_kernel_pca_of_collisions():
    images, _ = pictures(20)
    features = base_features(images)
    model = small(images=12).fit_features(features)
    codes = codes_by_loops(model, features)
    chosen = [i for i in range(20) if (model.codes_ == codes[i]).all(axis=1).any()]
    assert len(chosen) == 12
    kernel = np.array([[(a == b).mean() for b in codes[chosen]] for a in codes[chosen]])
    centre = np.eye(12) - 1 / 12
    values, vectors = np.linalg.eigh(centre @ kernel @ centre)
    rows = np.array([[(a == b).mean() for b in codes[chosen]] for a in codes])  # (20, 12)
    centred = rows - rows.mean(axis=1, keepdims=True) - kernel.mean(axis=0) + kernel.mean()
    expected = centred @ vectors[:, 1:] / np.sqrt(values[1:])
    embedding = model.transform_features(features)
    assert embedding.shape == (20, 11)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding @ embedding.T, expected @ expected.T, atol=1e-5)  # up to signs


def test_sums_are_the_largest_of_the_fitted_rows_and_scales_make_mean_distances_alike(fitted):
    images, _ = pictures()
    features = base_features(images)
    assert fitted.sums_ == pytest.approx([array.astype(float).sum(axis=1).max() for array in features])
    equal = small().fit_features(features)
    assert equal.weights_.tolist() == [0.5, 0.5]
    filled = filled_by_loops(features, equal.sums_)
    means = [
        scale * np.mean([np.abs(a - b).sum() for i, a in enumerate(array) for b in array[:i]])
        for array, scale in zip(filled, equal.scales_, strict=True)
    ]
    assert means == pytest.approx([0.5, 0.5], rel=0.3)  # of 24 seeded pairs, and of all pairs


def test_collisions_are_a_falling_function_of_the_l1_distance():
    """All rows have one sum S, so that sum min / sum max = (2 S - d) / (2 S + d)."""
    features = base_features(pictures(30)[0])
    model = small(hashes=4096).fit_features(features)
    filled = [a * s for a, s in zip(filled_by_loops(features, model.sums_), model.scales_, strict=True)]
    rows = np.concatenate(filled, axis=1)
    total = rows[0].sum()
    np.testing.assert_allclose(rows.sum(axis=1), total, rtol=1e-5)
    for i, j in [(0, 1), (0, 3), (5, 29)]:
        distance = np.abs(rows[i] - rows[j]).sum()
        expected = float((2 * total - distance) / (2 * total + distance))
        share = float((model.codes_[i] == model.codes_[j]).mean())
        assert share == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 4096).item())


def test_a_feature_that_tells_no_classes_apart_is_left_out():
    _, labels = pictures(60)
    rng = np.random.default_rng(0)
    useful = np.eye(3)[labels] + rng.uniform(0, 0.1, (60, 3))
    useless = rng.uniform(0, 1, (60, 5))
    model = small().fit_features([useless, useful], labels)
    assert model.weights_.tolist() == [0, 1]
    assert model.scales_[0] == 0
    changed = model.transform_features([rng.uniform(0, 1, (60, 5)), useful])
    assert np.array_equal(changed, model.transform_features([useless, useful]))
    weak = useless + useful[:, :1]
    kept = small(share=0.0).fit_features([weak, useful], labels).weights_
    assert (kept > 0).all()
    assert kept[0] < 0.9 * kept[1]
    assert small(share=0.9).fit_features([weak, useful], labels).weights_.tolist() == [0, 1]
    assert small().fit_features([useless, useful]).weights_.tolist() == [0.5, 0.5]


def test_features_are_taken_chunk_by_chunk(monkeypatch):
    features = base_features(pictures(20, seed=2)[0])
    model = small().fit_features(features)
    expected = model.transform_features(features)
    filled = []
    whole = l1_hash_kpca._filled
    monkeypatch.setattr(l1_hash_kpca, "_CHUNK", 7)
    monkeypatch.setattr(l1_hash_kpca, "_filled", lambda *of: filled.append(len(of[0])) or whole(*of))
    np.testing.assert_allclose(model.transform_features(features), expected, atol=1e-6)
    assert filled == [7, 7, 7, 7, 6, 6]  # two features


def test_parameters_of_hashes_are_an_instances_own_and_not_pickled(monkeypatch):
    drawn = []
    draw = l1_hash_kpca.hash_parameters
    monkeypatch.setattr(l1_hash_kpca, "hash_parameters", lambda *of: drawn.append(of) or draw(*of))
    images, labels = pictures()
    model = small().fit(images, labels)
    expected = model.transform(images)
    assert len(drawn) == 1
    state = pickle.dumps(model)
    assert len(state) < 200_000
    copy = pickle.loads(state).set_params(seed=5)  # which the next fit takes, not what is fitted
    for _ in range(2):
        assert np.array_equal(copy.transform(images), expected)
    assert drawn == [drawn[0]] * 2
    assert len(pickle.dumps(copy)) < 200_000


def test_embedding_tells_classes_apart():
    images, labels = pictures(30)
    embedding = small().fit(images, labels).transform(pictures(30, seed=1)[0])
    similar = embedding @ embedding.T
    np.fill_diagonal(similar, -np.inf)
    assert (labels[similar.argmax(axis=1)] == labels).all()


def test_fit_is_fit_features_of_the_features(fitted):
    images, labels = pictures()
    from_features = small().fit_features(base_features(images), labels)
    new, _ = pictures(7, seed=3)
    assert np.array_equal(from_features.weights_, fitted.weights_)
    assert np.array_equal(from_features.codes_, fitted.codes_)
    expected = fitted.transform(new)
    np.testing.assert_allclose(fitted.transform_features(base_features(new)), expected, atol=1e-6)
    np.testing.assert_allclose(from_features.transform(new), expected, atol=1e-5)


def test_each_image_is_for_itself_whatever_the_batch(fitted):
    images, _ = pictures(9, seed=5)
    expected = np.concatenate([fitted.transform(image[None]) for image in images])
    np.testing.assert_allclose(fitted.transform(images), expected, atol=1e-5)
    np.testing.assert_allclose(fitted.transform(images[::-1]), expected[::-1], atol=1e-5)


def test_no_more_images_are_fitted_than_it_may():
    model = small([Shares(), LABHistogram(bins=3)], images=10).fit(*pictures(24))
    assert model.codes_.shape == (10, 64)
    assert model.features_[0].count_ == 10
    assert model.transform(pictures(2)[0]).shape == (2, 9)
    assert small(components=4).fit(*pictures(24)).transform(pictures(2)[0]).shape == (2, 4)


def test_fitted_features_stay_and_others_are_fitted_as_clones():
    images, labels = pictures()
    given, learned = Shares(), Shares(2).fit(images[:7])
    model = small([given, learned]).fit(images, labels)
    assert not hasattr(given, "count_")
    assert model.features_[0].count_ == 24
    assert model.features_[1] is learned
    assert learned.count_ == 7


def test_features_of_the_fitted_images_are_kept_in_a_cache(tmp_path, monkeypatch):
    images, labels = pictures()
    expected = small().fit(images, labels)
    first = small(cache=tmp_path).fit(images, labels)
    assert len(list(tmp_path.rglob("features-*.npy"))) == 2
    asked = []
    transform = HOG.transform
    monkeypatch.setattr(HOG, "transform", lambda self, x: asked.append(len(x)) or transform(self, x))
    second = small(cache=tmp_path).fit(images, labels)
    assert max(asked) <= 4  # by which the store knows that it is of the same features
    for model in (first, second):
        assert np.array_equal(model.codes_, expected.codes_)


def test_features_are_had_by_name():
    images, _ = pictures(6, side=32)
    model = L1HashKPCA(("LABHistogram", SPMKTexton(words=8, step=8)), hashes=32).fit(images)
    assert [type(of) for of in model.features_] == [LABHistogram, SPMKTexton]
    assert model.transform(images).shape == (6, 5)


def test_flat_images_give_finite_rows(fitted):
    flat = np.stack([np.full((3, 16, 16), value, np.uint8) for value in (0, 128, 255)])
    assert np.isfinite(fitted.transform(flat)).all()


def test_images_that_are_all_alike_are_all_0():
    images = np.full((5, 3, 16, 16), 9, np.uint8)
    model = small().fit(images)
    assert model.weights_.tolist() == [0.5, 0.5]
    embedding = model.transform(images)
    np.testing.assert_allclose(embedding, 0, atol=1e-6)
    assert np.isfinite(model.transform(pictures(4)[0])).all()


def test_progress_counts_images(fitted):
    calls = []
    fitted.transform(pictures(7)[0], progress=lambda *call: calls.append(call))
    small().fit(*pictures(), progress=lambda *call: calls.append(call))
    assert calls == [("L1HashKPCA", 7, 7), ("LABHistogram features", 24, 24), ("HOG features", 24, 24)]


def test_it_is_a_scikit_learn_transformer(fitted):
    images, _ = pictures(3)
    assert clone(fitted).hashes == 64
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).transform(images), fitted.transform(images))
    with pytest.raises(NotFittedError, match="L1HashKPCA"):
        clone(fitted).transform(images)
    with pytest.raises(NotFittedError, match="L1HashKPCA"):
        clone(fitted).transform_features(base_features(images))


def test_features_that_were_never_fitted_are_refused():
    images, _ = pictures(side=32)
    model = small([SPMKTexton()]).fit_features([np.eye(24)])
    with pytest.raises(NotFittedError, match="SPMKTexton"):
        model.transform(images)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"features": []}, "features: got"),
        ({"features": ["LABHistogramm"]}, "did you mean 'LABHistogram'"),
        ({"features": [HOG]}, "expected an object with transform"),
        ({"hashes": 0}, "hashes: got 0"),
        ({"components": 1.5}, "components: got 1.5"),
        ({"images": 1}, "images: got 1"),
        ({"triplets": 0}, "triplets: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"share": 1.5}, "share: got 1.5"),
        ({"penalty": 0}, "penalty: got 0"),
    ],
)
def test_bad_parameters_are_refused(parameters, match):
    with pytest.raises(ValueError, match=match):
        small(**parameters).fit(*pictures())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda features: features[:1], "features: got 1 arrays, expected 2"),
        (lambda features: [features[0], features[1][:5]], r"features\[1\]: got 5 rows, expected 24"),
        (
            lambda features: [features[0], features[1] - 1],
            r"features\[1\]: got -1, expected numbers at least 0",
        ),
        (lambda features: [features[0] * np.nan, features[1]], r"features\[0\]: row 0: got nan"),
    ],
)
def test_bad_features_are_refused(fitted, change, match):
    features = change(base_features(pictures()[0]))
    with pytest.raises(ValueError, match=match):
        small().fit_features(features)
    with pytest.raises(ValueError, match=match):
        fitted.transform_features(features)


def test_features_of_another_length_are_refused(fitted):
    features = base_features(pictures()[0])
    with pytest.raises(ValueError, match=r"expected numbers of shape \(N, 27\)"):
        fitted.transform_features([features[0][:, 1:], features[1]])


def test_bad_images_and_labels_are_refused():
    images, labels = pictures()
    with pytest.raises(ValueError, match="got 1 image"):
        small().fit(images[:1])
    with pytest.raises(ValueError, match="labels"):
        small().fit(images, labels[:5])
    with pytest.raises(ValueError, match="expected at least two classes"):
        small().fit(images, np.zeros(24, int))


def test_labels_that_no_feature_tells_are_refused():
    halves = np.repeat([[0.0], [1.0]], 12, axis=0)  # of each class one image in either
    with pytest.raises(ValueError, match="fit without"):
        small([Shares()]).fit_features([halves], np.arange(24) % 12)


def test_other_errors_of_the_weights_are_not_taken_for_that(monkeypatch):
    def broken(nearer, penalty):
        raise ValueError("something else")

    monkeypatch.setattr(l1_hash_kpca, "max_margin", broken)
    with pytest.raises(ValueError, match="something else"):
        small().fit(*pictures())


def test_example_runs():
    assert doctest.testmod(sys.modules[L1HashKPCA.__module__]).failed == 0
