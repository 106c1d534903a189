import doctest
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import chi2_kernel

from dr_plugin.relevance import FeatureRelevance, feature

LABELS = [4, 2, 4, 4, 2, 9, 4, 2]
KERNELS = ("gaussian", "laplacian", "cosine", "intersection")


def draw(count=8, dimension=5, seed=0):
    return np.random.default_rng(seed).random((count, dimension)).astype(np.float32)


def value(name, x, y, bandwidth):
    x, y = x.astype(float), y.astype(float)
    if name == "gaussian":
        return math.exp(-((x - y) ** 2).sum() / (2 * bandwidth**2))
    if name == "laplacian":
        return math.exp(-abs(x - y).sum() / bandwidth)
    if name == "cosine":
        return max(0.0, (x * y).sum() / math.sqrt((x**2).sum() * (y**2).sum()))
    return np.minimum(x, y).sum() / max(x.sum(), y.sum())


def expected(name, features, labels, bandwidth):
    count = len(features)
    values = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j and (labels is None or labels[i] == labels[j]):
                values[i, j] = value(name, features[i], features[j], bandwidth)
    return values


def some(name, features=None, labels=LABELS, bandwidth=0.8, **arguments):
    bandwidth = bandwidth if name in ("gaussian", "laplacian") else None
    features = draw() if features is None else features
    return FeatureRelevance(features, labels, kernel=name, bandwidth=bandwidth, **arguments)


@pytest.mark.parametrize("labels", [LABELS, None], ids=["classes", "graded"])
@pytest.mark.parametrize("name", KERNELS)
def test_every_method_against_loops(name, labels):
    relevance, values = some(name, labels=labels), expected(name, draw(), labels, 0.8)
    i, j = (part.ravel() for part in np.indices(values.shape))
    np.testing.assert_allclose(relevance.pairs(i, j), values.ravel(), rtol=1e-5)
    np.testing.assert_allclose(relevance.block(np.arange(8)), values, rtol=1e-5)
    np.testing.assert_allclose(
        relevance.rectangle([0, 2, 1], [3, 6, 2]), values[[0, 2, 1]][:, [3, 6, 2]], rtol=1e-5
    )
    np.testing.assert_allclose(relevance.rectangle([0, 2], [3, 6]), values[[0, 2]][:, [3, 6]], rtol=1e-5)
    np.testing.assert_allclose(relevance.total(np.arange(8)), values.sum(axis=1), rtol=1e-5)
    assert (relevance.pairs(i, j)[values.ravel() == 0] == 0).all()


@pytest.mark.parametrize("name", [*KERNELS, chi2_kernel])
def test_pieces_change_nothing(name, monkeypatch):
    wanted = some(name), np.indices((8, 8)).reshape(2, -1)
    pairs, totals = wanted[0].pairs(*wanted[1]), wanted[0].total(np.arange(8))
    monkeypatch.setattr(feature, "_ROWS_BYTES", 8 * 5 * 3)  # 3 rows of 5 numbers
    monkeypatch.setattr(feature, "_SQUARE", 3)
    found = some(name)
    np.testing.assert_allclose(found.pairs(*wanted[1]), pairs, rtol=1e-6)
    np.testing.assert_allclose(found.total(np.arange(8)), totals, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float16, 2e-3), (np.float32, 1e-6), (np.float64, 1e-7), (np.uint8, 1e-6)]
)
@pytest.mark.parametrize("name", KERNELS)
def test_dtypes(name, dtype, tolerance):
    features = draw() * 4
    if dtype == np.uint8:
        features = features.round()
    relevance = some(name, features.astype(dtype), bandwidth=3.0)
    values = expected(name, features, LABELS, 3.0)
    np.testing.assert_allclose(relevance.block(np.arange(8)), values, atol=tolerance)
    i, j = np.indices((8, 8)).reshape(2, -1)
    np.testing.assert_allclose(relevance.pairs(i, j), values.ravel(), atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors(dtype):
    features = torch.from_numpy(draw()).to(dtype).requires_grad_()
    wanted = some("gaussian", features.detach().float().numpy()).block(np.arange(8))
    assert np.array_equal(some("gaussian", features).block(np.arange(8)), wanted)


def test_a_user_kernel_is_taken_within_classes():
    features = draw()
    relevance = FeatureRelevance(features, LABELS, kernel=chi2_kernel)
    all_with_all = chi2_kernel(features)
    i, j = np.indices((8, 8)).reshape(2, -1)
    same = np.equal.outer(LABELS, LABELS) & ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(relevance.pairs(i, j), (all_with_all * same).ravel(), rtol=1e-6)
    np.testing.assert_allclose(relevance.block(np.arange(8)), all_with_all * same, rtol=1e-6)
    assert relevance.bandwidth is None
    assert relevance.fingerprint() is None


def test_a_user_kernel_need_not_be_symmetric():
    relevance = FeatureRelevance(np.array([[1.0], [2.0], [4.0]]), [0] * 3, kernel=lambda x, y: x - 0 * y.T)
    assert relevance.block([0, 1, 2]).tolist() == [[0, 1, 1], [2, 0, 2], [4, 4, 0]]
    assert relevance.pairs([0, 2], [2, 0]).tolist() == [1, 4]
    assert relevance.total([0, 1, 2]).tolist() == [2, 4, 8]


@pytest.mark.parametrize(
    ("kernel", "match"),
    [
        (
            lambda x, y: np.ones(len(x)),
            r"kernel\(x, y\): got float64 of shape \(3,\), expected numbers \(3, 3\)",
        ),
        (lambda x, y: -x @ y.T, "expected every relevance finite"),
        (lambda x, y: x @ y.T * np.nan, "got nan"),
    ],
)
def test_bad_user_kernels_are_refused(kernel, match):
    relevance = FeatureRelevance(np.ones((3, 2)), [0] * 3, kernel=kernel)
    with pytest.raises(ValueError, match=match):
        relevance.block([0, 1, 2])
    with pytest.raises(ValueError, match=match):
        relevance.pairs([0, 1, 2], [1, 2, 0])


def test_cross_is_the_kernel_whatever_the_class():
    features, queries = draw(), draw(3, seed=1)
    wanted = [[value("gaussian", q, features[j], 0.8) for j in (5, 0, 0, 1)] for q in queries]
    np.testing.assert_allclose(some("gaussian").cross(queries, [5, 0, 0, 1]), wanted, rtol=1e-5)
    np.testing.assert_allclose(
        some(chi2_kernel).cross(queries, [5]), chi2_kernel(queries, features[5:6]), rtol=1e-5
    )
    assert some("gaussian").cross(queries, []).shape == (3, 0)
    assert some(chi2_kernel).cross(queries[:0], [1]).shape == (0, 1)
    with pytest.raises(ValueError, match=r"queries: got \(3, 4\), expected \(Q, 5\)"):
        some("gaussian").cross(queries[:, :4], [0])
    with pytest.raises(ValueError, match="features: row 0: got"):
        some("intersection").cross(-queries, [0])


@pytest.mark.parametrize(("name", "norm"), [("gaussian", 2), ("laplacian", 1)])
def test_bandwidth_is_the_median_distance_within_classes(name, norm):
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 30)
    features = rng.normal(size=(60, 4)) + 100 * labels[:, None]
    distances = [
        np.linalg.norm(features[i] - features[j], norm)
        for i in range(60)
        for j in range(60)
        if i != j and labels[i] == labels[j]
    ]
    relevance = FeatureRelevance(features, labels, kernel=name)
    assert relevance.bandwidth == pytest.approx(np.median(distances), rel=0.02)
    again = FeatureRelevance(features, labels, kernel=name)
    assert again.bandwidth == relevance.bandwidth
    assert FeatureRelevance(features, labels, kernel=name, seed=1).bandwidth != relevance.bandwidth
    assert FeatureRelevance(features, labels, kernel=name, bandwidth=2).bandwidth == 2


def test_bandwidth_pairs_are_uniform_over_images_and_partners(monkeypatch):
    seen = []
    monkeypatch.setattr(
        feature, "bandwidth_distances", lambda _, x, y: seen.append((x[:, 0], y[:, 0])) or torch.ones(len(x))
    )
    FeatureRelevance(np.arange(6.0)[:, None], [0, 0, 0, 0, 1, 2])
    i, j = (torch.cat(parts).long().numpy() for parts in zip(*seen, strict=True))
    counts = np.zeros((6, 6), int)
    np.add.at(counts, (i, j), 1)
    possible = np.zeros((6, 6), bool)
    possible[:4, :4] = ~np.eye(4, dtype=bool)
    assert counts[~possible].sum() == 0
    wanted = len(i) / possible.sum()
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < 31.3  # chi-square, 11 degrees, p = .001


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.ones((4, 2)), [0] * 4),  # all copies
        (np.arange(4.0)[:, None], range(4)),  # no two of one class
        (np.ones((1, 2)), [0]),
    ],
    ids=["copies", "singletons", "one image"],
)
@pytest.mark.parametrize("name", ["gaussian", "laplacian"])
def test_bandwidth_without_any_distance_is_1(name, features, labels):
    relevance = FeatureRelevance(features, labels, kernel=name)
    assert relevance.bandwidth == 1
    count = len(features)
    same = np.equal.outer(labels, labels) & ~np.eye(count, dtype=bool)
    assert np.array_equal(relevance.block(np.arange(count)), same)
    assert np.array_equal(relevance.total(np.arange(count)), same.sum(axis=1))


def test_copies_do_not_shrink_the_bandwidth():
    features = np.zeros((10, 1))
    features[0] = 3.0
    assert FeatureRelevance(features, [0] * 10).bandwidth == 3


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    dimension=st.integers(1, 4),
    name=st.sampled_from(KERNELS),
    classes=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_any_features_give_symmetric_relevances_of_0_to_1(count, dimension, name, classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    features = rng.integers(0, 4, (count, dimension)).astype(float)  # with copies and zeros
    relevance = FeatureRelevance(features, labels, kernel=name)
    block, everything = relevance.block(np.arange(count)), np.arange(count)
    np.testing.assert_allclose(block, block.T, atol=1e-6)
    assert ((block >= 0) & (block <= 1)).all()
    assert (block[np.not_equal.outer(labels, labels)] == 0).all()
    np.testing.assert_allclose(relevance.total(everything), block.sum(axis=1, dtype=np.float64), rtol=1e-6)
    i, j = np.indices((count, count)).reshape(2, -1)
    np.testing.assert_allclose(relevance.pairs(i, j), block.ravel(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_memory_map_stays_one_and_is_reopened_where_pickled(tmp_path, order):
    np.save(tmp_path / "features.npy", np.asarray(draw(), order=order))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    relevance = some("gaussian", mapped)
    assert relevance.features is mapped
    big = some("gaussian", draw(8, 50_000))
    assert len(pickle.dumps(relevance)) < 20_000 < len(pickle.dumps(big))
    copy = pickle.loads(pickle.dumps(relevance))
    assert isinstance(copy.features, np.memmap)
    everything = np.arange(8)
    assert np.array_equal(copy.block(everything), some("gaussian").block(everything))
    part = some("gaussian", mapped[2:6], LABELS[2:6])  # its offset is not the file's: pickled as it is
    copy = pickle.loads(pickle.dumps(part))
    assert np.array_equal(
        copy.block([0, 1, 2, 3]), some("gaussian", draw()[2:6], LABELS[2:6]).block([0, 1, 2, 3])
    )


def test_fingerprint_tells_features_labels_and_kernel(tmp_path):
    np.save(tmp_path / "features.npy", draw())
    same = some("gaussian").fingerprint()
    assert same == some("gaussian", np.load(tmp_path / "features.npy", mmap_mode="r")).fingerprint()
    changed = draw()
    changed[3, 2] += 1
    others = [
        some("gaussian", changed),
        some("gaussian", labels=[0] * 8),
        some("gaussian", bandwidth=0.9),
        some("laplacian"),
        some("cosine"),
    ]
    assert len({same, *(other.fingerprint() for other in others)}) == 6


def spoiled(number, at=(3, 2)):
    features = draw()
    features[at] = number
    return features


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"features": draw()[0]},
            r"features: got float32 of shape \(5,\), expected numbers of shape \(N, D\)",
        ),
        ({"features": draw()[:, :0]}, r"shape \(8, 0\)"),
        ({"features": draw()[:0], "labels": []}, "got no images"),
        ({"features": draw() > 0.5}, "got bool"),
        ({"features": draw().astype(complex)}, "got complex"),
        ({"features": spoiled(np.nan)}, "features: row 3: got nan, expected numbers from -1e.15 to 1e.15"),
        ({"features": spoiled(-np.inf)}, "row 3: got -inf"),
        ({"features": spoiled(2e15)}, r"row 3: got 2.*e.15"),
        (
            {"features": spoiled(-1.0), "kernel": "intersection"},
            "row 3: got -1, expected numbers from 0, for 'inter",
        ),
        ({"labels": [0, 1]}, r"labels: got int64 of shape \(2,\)"),
        ({"kernel": "gausian"}, r"kernel: got 'gausian', .*did you mean 'gaussian'\?"),
        ({"kernel": None}, "kernel: got None"),
        ({"bandwidth": 0.0}, "bandwidth: got 0.0, expected a finite number above 0"),
        ({"bandwidth": 1.0, "kernel": "cosine"}, "bandwidth: got 1.0, expected None"),
        ({"bandwidth": 1.0, "kernel": chi2_kernel}, "bandwidth: got 1.0 with a kernel of yours"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        FeatureRelevance(**{"features": draw(), "labels": LABELS, **arguments})


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_bad_numbers_are_found_in_any_piece_and_dtype(dtype, monkeypatch):
    monkeypatch.setattr(feature, "_ROWS_BYTES", 1)
    with pytest.raises(ValueError, match="row 6: got nan"):
        FeatureRelevance(spoiled(np.nan, (6, 0)).astype(dtype), LABELS)


def test_example_runs():
    results = doctest.testmod(sys.modules[FeatureRelevance.__module__])
    assert results.attempted > 0
    assert results.failed == 0
