import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from dr_plugin.datasets import TinyImageNet
from dr_plugin.relevance import FeatureRelevance, GoldenFeatures, StoredRelevance
from dr_plugin.relevance.features import HOG, LABHistogram
from dr_plugin.relevance.max_margin import max_margin
from dr_plugin.triplets.relevances import Relevance

LABELS = np.array([5, 5, 2, 5, 2, 9, 5, 2, 2, 5, 2, 5])  # 9 has one image


def noise(count=12, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def in_colour(labels, side=16, seed=0):
    """Images of which only the colour tells the class; the patterns are noise."""
    rng = np.random.default_rng(seed)
    tint = np.random.default_rng(1).integers(40, 216, (labels.max() + 1, 3, 1, 1))
    return (tint[labels] + rng.normal(0, 30, (len(labels), 3, side, side))).clip(0, 255).astype(np.uint8)


class Channel(BaseEstimator):
    """One channel's mean and deviation."""

    def __init__(self, channel):
        self.channel = channel

    def transform(self, images):
        values = images[:, self.channel].reshape(len(images), -1) / 255
        return np.stack([values.mean(axis=1), values.std(axis=1)], axis=1)


class Batches:
    """As PackedImages: images by index, with labels."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[torch.from_numpy(indices)], torch.zeros(len(indices), dtype=torch.long)


def gaussian(x, y, bandwidth):
    return math.exp(-sum((float(a) - float(b)) ** 2 for a, b in zip(x, y, strict=True)) / (2 * bandwidth**2))


def intersection(x, y):
    return sum(min(float(a), float(b)) for a, b in zip(x, y, strict=True)) / max(x.sum(), y.sum())


def by_loops(golden, queries, images):
    """r of every query with every image, without classes: what `fit` found, put together number by number."""
    r = np.zeros((len(queries), len(images)))
    histograms, gradients = LABHistogram(), HOG()
    of_queries = histograms.transform(queries), gradients.transform(queries)
    of_images = histograms.transform(images), gradients.transform(images)
    bandwidth = golden.similarities_[1].bandwidth
    for a in range(len(queries)):
        for b in range(len(images)):
            kernels = (
                intersection(of_queries[0][a], of_images[0][b]),
                gaussian(of_queries[1][a], of_images[1][b], bandwidth),
            )
            for weight, kernel, (mean, deviation) in zip(
                golden.weights_, kernels, golden.scales_, strict=True
            ):
                r[a, b] += weight * math.log(1 + math.exp((kernel - mean) / deviation))
    return r


@pytest.mark.parametrize("weights", ["equal", [3.0, 1.0], (0, 2)])
def test_relevance_against_loops(weights):
    images = noise()
    golden = GoldenFeatures(weights=weights).fit(images, LABELS)
    expected = by_loops(golden, images, images)
    expected[LABELS[:, None] != LABELS] = 0
    np.fill_diagonal(expected, 0)
    everything = np.arange(12)
    i, j = (grid.ravel() for grid in np.meshgrid(everything, everything, indexing="ij"))
    pairs = golden.pairs(i, j)
    assert pairs.dtype == np.float32
    np.testing.assert_allclose(pairs.reshape(12, 12), expected, atol=1e-4)
    np.testing.assert_allclose(golden.block(everything), expected, atol=1e-4)
    np.testing.assert_allclose(golden.block(everything), golden.block(everything).T, atol=1e-6)
    np.testing.assert_allclose(golden.total(everything), expected.sum(axis=1), rtol=1e-4)
    assert (expected[LABELS[:, None] == LABELS] >= 0).all()


def test_cross_against_loops_knows_no_classes_and_is_the_relevance_of_the_same_image():
    images, queries = noise(), noise(3, seed=1)
    golden = GoldenFeatures().fit(images, LABELS)
    j = np.array([7, 0, 5])
    np.testing.assert_allclose(golden.cross(queries, j), by_loops(golden, queries, images[j]), atol=1e-4)
    np.testing.assert_allclose(
        golden.cross(Batches(images[[0]]), [1, 3]), golden.pairs([0, 0], [1, 3])[None], atol=1e-5
    )
    assert golden.cross(queries, []).shape == (3, 0)


def test_scales_are_those_of_pairs_of_one_class():
    images = noise()
    golden = GoldenFeatures().fit(images, LABELS)
    drawn = [  # an image that has a partner, and a partner, uniformly: the law of the draws, in full
        (i, j, 1 / (11 * ((LABELS[i] == LABELS).sum() - 1)))
        for i in range(12)
        for j in range(12)
        if i != j and LABELS[i] == LABELS[j]
    ]
    i, j, share = (np.array(part) for part in zip(*drawn, strict=True))
    assert share.sum() == pytest.approx(1)
    for similarity, (mean, deviation) in zip(golden.similarities_, golden.scales_, strict=True):
        values = similarity.pairs(i, j)
        exact = (share * values).sum()
        assert mean == pytest.approx(exact, abs=6 * deviation / math.sqrt(10_000))
        assert deviation == pytest.approx(math.sqrt((share * (values - exact) ** 2).sum()), rel=0.1)
        in_class = FeatureRelevance(similarity.features, LABELS, kernel="gaussian")
        assert similarity.bandwidth in (None, in_class.bandwidth)


def test_one_feature_keeps_the_order_of_its_kernel():
    images = noise()
    golden = GoldenFeatures(["HOG"]).fit(images, np.zeros(12, int))
    kernel = golden.similarities_[0].block(np.arange(12))
    upper = np.triu_indices(12, 1)
    r = golden.block(np.arange(12))[upper]
    assert np.array_equal(np.argsort(r), np.argsort(kernel[upper]))
    assert (r > 0).all()


def test_a_feature_that_is_the_same_for_all_pairs_adds_one_number():
    images = np.full((4, 3, 16, 16), 9, np.uint8)
    golden = GoldenFeatures().fit(images, [0, 0, 0, 1])
    np.testing.assert_allclose(golden.pairs([0, 1, 0], [1, 2, 3]), [math.log(2), math.log(2), 0], rtol=1e-5)


def test_classes_of_one_image_have_no_relevance():
    golden = GoldenFeatures().fit(noise(3), [0, 1, 2])
    assert golden.total([0, 1, 2]).tolist() == [0, 0, 0]
    assert np.isfinite(golden.cross(noise(2, seed=1), [0, 1, 2])).all()


def test_without_labels_all_images_are_one_class():
    golden = GoldenFeatures().fit(noise(4), None)
    assert golden.labels is None
    assert (golden.block(np.arange(4))[~np.eye(4, dtype=bool)] > 0).all()


def test_equal_weights():
    assert (
        GoldenFeatures(["HOG", LABHistogram(bins=3), Channel(0)]).fit(noise(), LABELS).weights_.tolist()
        == [1 / 3] * 3
    )


def test_given_weights_are_brought_to_sum_one():
    assert GoldenFeatures(weights=[1, 3]).fit(noise(), LABELS).weights_.tolist() == [0.25, 0.75]


def test_learned_weights_go_to_the_feature_that_separates_the_classes():
    labels = np.repeat(np.arange(5), 24)
    golden = GoldenFeatures(weights="learned").fit(in_colour(labels), labels)
    assert golden.weights_[0] > 0.9
    assert golden.weights_.sum() == pytest.approx(1)
    turned = GoldenFeatures(["HOG", "LABHistogram"], weights="learned").fit(in_colour(labels), labels)
    np.testing.assert_allclose(turned.weights_[::-1], golden.weights_, rtol=1e-3)


def test_learned_weights_of_planted_noise_go_to_nothing():
    labels = np.repeat(np.arange(4), 40)
    images = noise(160)
    images[:, 0] = 60 * labels[:, None, None]  # only red says anything
    golden = GoldenFeatures([Channel(0), Channel(1), Channel(2)], weights="learned", seed=3).fit(
        images, labels
    )
    assert golden.weights_[0] > 0.97


def test_learned_weights_rank_better_than_the_worst_feature():
    """On images that were not fitted: the point of learning them."""
    labels = np.repeat(np.arange(5), 24)
    images, queries = in_colour(labels), in_colour(labels, seed=7)

    def right(weights):
        golden = GoldenFeatures(weights=weights).fit(images, labels)
        return (labels[golden.cross(queries, np.arange(120)).argmax(axis=1)] == labels).mean()

    assert right("learned") > right([0, 1]) + 0.3


def test_learned_weights_are_max_margin_over_all_class_triplets():
    labels = np.repeat(np.arange(3), 4)
    golden = GoldenFeatures([Channel(0), Channel(1)], weights="learned", penalty=0.1)
    golden.fit(in_colour(labels), labels)
    triplets = [  # all equally likely, as the classes are of one size
        (q, p, n)
        for q in range(12)
        for p in range(12)
        for n in range(12)
        if p != q and labels[p] == labels[q] != labels[n]
    ]
    q, p, n = np.array(triplets).T

    def scaled(k, j):
        mean, deviation = golden.scales_[k]
        return np.log1p(np.exp((golden.similarities_[k].pairs(q, j) - mean) / deviation))

    expected = max_margin(np.stack([scaled(k, p) - scaled(k, n) for k in range(2)], axis=1), 0.1)
    np.testing.assert_allclose(golden.weights_, expected / expected.sum(), atol=0.03)
    assert 0.1 < golden.weights_[0] < 0.9


def test_the_same_seed_gives_the_same_and_another_other_weights():
    labels = np.repeat(np.arange(5), 24)
    images = in_colour(labels)

    def fitted(seed):
        return GoldenFeatures(weights="learned", triplets=500, seed=seed).fit(images, labels)

    first, second, other = fitted(4), fitted(4), fitted(5)
    assert np.array_equal(first.weights_, second.weights_)
    assert np.array_equal(first.block(np.arange(20)), second.block(np.arange(20)))
    assert not np.array_equal(first.weights_, other.weights_)
    assert not np.array_equal(first.scales_, other.scales_)


def test_global_random_state_is_left_alone():
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    GoldenFeatures(weights="learned").fit(in_colour(LABELS), LABELS)
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


def test_images_of_32_pixels():
    golden = GoldenFeatures().fit(noise(side=32), LABELS)
    assert golden.similarities_[1].features.shape == (12, 3 * 3 * 36)
    assert golden.total([0]) > 0


def test_a_transformer_without_a_default_kernel_is_compared_by_a_gaussian():
    golden = GoldenFeatures([Channel(0), "LABHistogram"]).fit(noise(), LABELS)
    assert golden.kernels == ["gaussian", "intersection"]
    assert golden.similarities_[0].bandwidth > 0


def test_kernels_may_be_named_or_given():
    images = noise()
    golden = GoldenFeatures([Channel(0), Channel(0)], kernels=[None, "cosine"]).fit(images, LABELS)
    assert golden.kernels == ["gaussian", "cosine"]
    own = GoldenFeatures([Channel(0)], kernels=[lambda x, y: x @ y.T]).fit(images, LABELS)
    features = Channel(0).transform(images)
    mean, deviation = own.scales_[0]
    z = ((features @ features.T)[0, 1] - mean) / deviation
    assert own.pairs([0], [1]) == pytest.approx(math.log(1 + math.exp(z)), rel=1e-4)
    assert own.fingerprint() is None


def test_cached_features_are_made_once_and_mapped(tmp_path):
    images, calls = noise(), []
    fresh = GoldenFeatures(weights="learned").fit(in_colour(LABELS), LABELS)
    for _ in range(2):
        golden = GoldenFeatures(weights="learned", cache=tmp_path)
        golden.fit(in_colour(LABELS), torch.from_numpy(LABELS), progress=lambda *call: calls.append(call))
        assert all(isinstance(similarity.features, np.memmap) for similarity in golden.similarities_)
        assert np.array_equal(golden.weights_, fresh.weights_)
        assert np.array_equal(golden.block(np.arange(12)), fresh.block(np.arange(12)))
    assert calls == [("LABHistogram features", 12, 12), ("HOG features", 12, 12)]
    GoldenFeatures(cache=tmp_path).fit(images, LABELS, progress=lambda *call: calls.append(call))
    assert len(calls) == 4  # other images, other features
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cached", [False, True])
def test_pickled_it_says_the_same(tmp_path, cached):
    images = noise(60, side=32)
    golden = GoldenFeatures(cache=tmp_path if cached else None).fit(images, np.arange(60) % 2)
    pickled = pickle.dumps(golden)
    if cached:
        assert len(pickled) < 20_000  # HOG's features alone are 77,760 bytes
    copy = pickle.loads(pickled)
    assert np.array_equal(copy.block(np.arange(60)), golden.block(np.arange(60)))
    assert np.array_equal(copy.cross(images[:2], [3]), golden.cross(images[:2], [3]))
    assert pickle.loads(pickle.dumps(GoldenFeatures(seed=3))).seed == 3


def test_fingerprint_tells_whatever_changes_a_relevance():
    images = noise()

    def fingerprint(images=images, labels=LABELS, **options):
        return GoldenFeatures(**options).fit(images, labels).fingerprint()

    labels = LABELS.copy()
    labels[0] = 2
    others = [
        fingerprint(images=noise(seed=1)),
        fingerprint(labels=labels),
        fingerprint(weights=[2, 1]),
        fingerprint(features=["HOG", "LABHistogram"]),
        fingerprint(kernels=["cosine", None]),
        fingerprint(seed=1),
        fingerprint(),
    ]
    assert len(set(others)) == len(others)
    assert fingerprint() == others[-1]
    flat = np.zeros((3, 3, 16, 16), np.uint8)  # the same scale whatever the classes
    assert fingerprint(images=flat, labels=[0, 0, 1]) != fingerprint(images=flat, labels=[0, 1, 1])


def test_it_is_stored_class_by_class(tmp_path):
    golden = GoldenFeatures().fit(noise(), LABELS)
    stored = StoredRelevance.build(golden, tmp_path)
    assert np.array_equal(stored.block(np.arange(12)), golden.block(np.arange(12)))
    assert isinstance(golden, Relevance)


def test_fitted_again_it_is_that_of_the_new_images():
    golden = GoldenFeatures().fit(noise(), LABELS)
    golden.total([0])
    golden.fit(noise(5, seed=2), [0, 0, 0, 1, 1])
    fresh = GoldenFeatures().fit(noise(5, seed=2), [0, 0, 0, 1, 1])
    assert len(golden) == 5
    assert np.array_equal(golden.total(np.arange(5)), fresh.total(np.arange(5)))


def test_a_failed_fit_leaves_what_was_fitted():
    golden = GoldenFeatures(weights="learned").fit(in_colour(LABELS), LABELS)
    before = golden.block(np.arange(12))
    with pytest.raises(ValueError, match="labels: got int64 of shape"):
        golden.fit(noise(5), LABELS)
    assert np.array_equal(golden.block(np.arange(12)), before)


@pytest.mark.parametrize(
    "ask",
    [
        len,
        lambda golden: golden.labels,
        lambda golden: golden.pairs([0], [1]),
        lambda golden: golden.total([0]),
        lambda golden: golden.block([0]),
        lambda golden: golden.cross(noise(1), [0]),
        lambda golden: golden.fingerprint(),
        lambda golden: golden.weights_,
    ],
)
def test_before_fit_it_says_so(ask):
    with pytest.raises(NotFittedError, match=r"before fit\(images, labels\)"):
        ask(GoldenFeatures())


def test_an_unknown_attribute_is_no_matter_of_fitting():
    with pytest.raises(AttributeError, match="no attribute 'weight_'"):
        _ = GoldenFeatures().weight_


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"features": []}, "features: got .*at least one"),
        ({"features": "HOG"}, "features: got 'HOG', expected transformers or names"),
        (
            {"features": ["LABHistograms"]},
            r"got 'LABHistograms', expected one of .*HOG, .*LABHistogram, .* \(did you mean 'LABHistogram'\?\)",
        ),
        ({"features": [HOG]}, "expected an object with transform and get_params"),
        ({"features": [3]}, "features: got 3, expected an object"),
        ({"kernels": ["cosine"]}, "kernels: got .*expected 2, one a feature"),
        ({"kernels": "cosine"}, "kernels: got 'cosine', expected 2"),
        ({"kernels": ["cosine", "gausian"]}, r"kernel: got 'gausian'.*did you mean 'gaussian'"),
        ({"weights": "even"}, "weights: got 'even', expected 'equal', 'learned' or a finite number"),
        ({"weights": [1.0]}, "for each of the 2 features"),
        ({"weights": [1.0, 2.0, 3.0]}, "for each of the 2 features"),
        ({"weights": [1.0, -0.1]}, "at least 0"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": [1.0, math.nan]}, "finite"),
        ({"weights": [1.0, math.inf]}, "finite"),
        ({"weights": ["1", "2"]}, "finite number"),
        ({"weights": None}, "weights: got None"),
        ({"triplets": 0}, "triplets: got 0, expected a whole number, at least 1"),
        ({"triplets": 1e4}, "triplets: got 10000.0"),
        ({"seed": -1}, "seed: got -1, expected a whole number, at least 0"),
        ({"penalty": 0}, "penalty: got 0, expected a finite number above 0"),
        ({"penalty": math.inf}, "penalty: got inf"),
        ({"penalty": "1"}, "penalty: got '1'"),
    ],
)
def test_bad_arguments_are_refused_before_there_are_images(arguments, match):
    with pytest.raises(ValueError, match=match):
        GoldenFeatures(**arguments)


@pytest.mark.parametrize(
    ("images", "labels", "match"),
    [
        (noise()[0], LABELS, r"images: got uint8 of shape \(3, 16, 16\)"),
        (noise().astype(np.float32), LABELS, "images: got float32"),
        (noise(), LABELS[:-1], "labels: got int64 of shape"),
        (noise(), LABELS.astype(float), "labels: got float64"),
        (noise(side=15), LABELS, "at least 16 x 16"),
        (noise(), np.zeros(12, int), "labels: got 1 classes of up to 12 images, expected at least two"),
        (noise(), None, "labels: got 1 classes"),
        (noise(), np.arange(12), "labels: got 12 classes of up to 1 images"),
    ],
)
def test_bad_images_and_labels_are_refused(images, labels, match):
    with pytest.raises(ValueError, match=match):
        GoldenFeatures(weights="learned").fit(images, labels)


def test_weights_that_nothing_supports_are_not_learned():
    images = noise(8)
    images[:, 0] = np.array([0, 200, 0, 200, 0, 200, 0, 200])[:, None, None]  # unlike within, alike across
    with pytest.raises(ValueError, match=r"'learned', but no feature is more alike within classes .*'equal'"):
        GoldenFeatures([Channel(0)], weights="learned").fit(images, [0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("j", [[12], [-1], [0.0]])
def test_cross_with_images_that_are_not_there_is_refused(j):
    golden = GoldenFeatures().fit(noise(), LABELS)
    with pytest.raises((ValueError, IndexError), match="j: got"):
        golden.cross(noise(1), j)


def test_cross_with_images_of_another_size_is_refused():
    golden = GoldenFeatures().fit(noise(), LABELS)
    with pytest.raises(ValueError, match=r"queries: got \(1, 324\), expected \(Q, 36\)"):
        golden.cross(noise(1, side=32), [0])


@pytest.mark.real_data
def test_precision_on_ten_classes(tiny_imagenet_root, tmp_path):
    """Class precision of the 30 most relevant of 100 images a class, for 50 new ones a class; chance is 0.1."""
    train, val = (TinyImageNet(tiny_imagenet_root, split=split) for split in ("train", "val"))
    chosen = [
        np.concatenate([np.flatnonzero(np.array(data.labels) == c)[:count] for c in range(10)])
        for data, count in ((train, 100), (val, 50))
    ]
    (images, labels), (queries, query_labels) = (
        (
            np.stack([np.moveaxis(np.asarray(data[i][0]), -1, 0) for i in indices]),
            np.array(data.labels)[indices],
        )
        for data, indices in zip((train, val), chosen, strict=True)
    )

    def precision(weights):
        golden = GoldenFeatures(weights=weights, cache=tmp_path).fit(images, labels)
        nearest = np.argsort(-golden.cross(queries, np.arange(len(images))), axis=1)[:, :30]
        return (labels[nearest] == query_labels[:, None]).mean()

    found = [precision(weights) for weights in ([1, 0], [0, 1], "equal", "learned")]
    assert found == pytest.approx([0.1611, 0.1272, 0.1565, 0.1585], abs=2e-3)
