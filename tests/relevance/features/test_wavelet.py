import doctest
import pickle
import sys

import numpy as np
import pytest
import torch
from skimage.color import rgb2yiq
from sklearn.base import clone

from dr_plugin.relevance import FeatureRelevance, GoldenFeatures
from dr_plugin.relevance.distances import feature_distances
from dr_plugin.relevance.features import Wavelet
from dr_plugin.relevance.features.wavelet import SIDE, WEIGHTS, standard_decomposition


def noise(count, side=SIDE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def smooth(count, seed=0):
    """Images of large patches, whose coefficients differ enough that rounding changes no rank."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8), np.ones((1, 1, 16, 16), np.uint8))


def decomposed(values):
    """DecomposeArray of Jacobs et al., number by number."""
    values = [value / len(values) ** 0.5 for value in values]
    count = len(values)
    while count > 1:
        count //= 2
        sums = [(values[2 * i] + values[2 * i + 1]) / 2**0.5 for i in range(count)]
        differences = [(values[2 * i] - values[2 * i + 1]) / 2**0.5 for i in range(count)]
        values[: 2 * count] = sums + differences
    return values


def decomposed_image(channel):
    rows = np.array([decomposed(list(row)) for row in channel])
    return np.array([decomposed(list(column)) for column in rows.T]).T


def signature(image, kept=40):
    """Means (3,) and {(row, column): sign} of each channel, by sorting."""
    means, signs = [], []
    for channel in np.moveaxis(rgb2yiq(np.moveaxis(image, 0, -1)), -1, 0):
        coefficients = decomposed_image(channel)
        means.append(coefficients[0, 0])
        places = [place for place in np.ndindex(SIDE, SIDE) if place != (0, 0)]
        places.sort(key=lambda place: -abs(coefficients[place]))
        signs.append({p: np.sign(coefficients[p]) for p in places[:kept] if abs(coefficients[p]) > 1e-6})
    return means, signs


def loop_distance(query, target, weights="scanned"):
    total = 0.0
    for channel in range(3):
        total += WEIGHTS[weights][0][channel] * abs(query[0][channel] - target[0][channel])
        for place, sign in query[1][channel].items():
            if target[1][channel].get(place) != sign:
                total += WEIGHTS[weights][min(max(place), 5)][channel]
    return total


def read(row):
    """A row of features as `signature` has it."""
    means, signs = [], []
    for part in row.reshape(3, -1):
        means.append(part[0])
        signs.append({divmod(int(abs(value)), SIDE): np.sign(value) for value in part[1:] if value})
    return means, signs


def test_decomposition_against_the_papers_code():
    channel = np.random.default_rng(0).random((SIDE, SIDE))
    np.testing.assert_allclose(standard_decomposition(channel), decomposed_image(channel), atol=1e-12)


def test_signatures_and_distances_against_loops():
    images = smooth(4)
    wavelet = Wavelet(coefficients=30)
    features = wavelet.fit_transform(images)
    expected = [signature(image, kept=30) for image in images]
    for row, (means, signs) in zip(features, expected, strict=True):
        found_means, found_signs = read(row)
        np.testing.assert_allclose(found_means, means, atol=1e-5)
        assert found_signs == signs
    distances = [[loop_distance(query, target) for target in expected] for query in expected]
    np.testing.assert_allclose(wavelet.distances(features, features), distances, rtol=1e-5, atol=1e-4)
    assert np.array_equal(
        feature_distances(wavelet, features, features), wavelet.distances(features, features)
    )


@pytest.mark.parametrize("weights", list(WEIGHTS))
def test_distance_takes_only_the_querys_coefficients(weights):
    wavelet = Wavelet(coefficients=2, weights=weights)
    mean, none = [0.5, 0, 0], [0, 0]
    query = np.array([[mean[0], 1, -(3 * SIDE + 70), 0, *none, 0, *none]], np.float32)
    gallery = np.array(
        [
            query[0],
            [0.5, 1, 3 * SIDE + 70, 0, *none, 0, *none],  # of the other sign
            [0.25, 2 * SIDE, 1, 0, *none, 0, *none],  # one in common at another place of the row
            [0.5, 0, 0, 0, 1, 0, 0.5, *none],  # the same place of another channel
        ],
        np.float32,
    )
    w = np.array(WEIGHTS[weights])
    expected = [0, w[5, 0], w[5, 0] + 0.25 * w[0, 0], w[1, 0] + w[5, 0] + 0.5 * w[0, 2]]
    np.testing.assert_allclose(wavelet.distances(query, gallery)[0], expected, rtol=1e-6, atol=1e-6)
    assert wavelet.distances(gallery[3:], query) == pytest.approx(w[1, 1] + 0.5 * w[0, 2], rel=1e-6)


def test_an_edge_is_one_coefficient():
    image = np.zeros((1, 3, SIDE, SIDE), np.uint8)
    image[..., SIDE // 2 :] = 255
    row = Wavelet().transform(image)[0]
    assert row[0] == pytest.approx(0.5)
    assert np.flatnonzero(row[1:]).tolist() == [0]  # none of I and Q: the image is grey
    assert row[1] == -1  # row 0, column 1: darker on the left
    turned = Wavelet().transform(image.swapaxes(2, 3))[0]
    assert turned[1] == -SIDE


@pytest.mark.parametrize("colour", [(0, 0, 0), (77, 77, 77), (255, 255, 255), (13, 200, 97)])
def test_a_flat_image_has_its_mean_and_no_coefficient(colour):
    image = np.broadcast_to(np.array(colour, np.uint8)[None, :, None, None], (1, 3, 50, 70))
    row = Wavelet().transform(image)[0].reshape(3, -1)
    np.testing.assert_allclose(row[:, 0], rgb2yiq(np.array(colour) / 255), atol=1e-6)
    assert not row[:, 1:].any()
    assert np.isfinite(Wavelet().distances(row.reshape(1, -1), row.reshape(1, -1))).all()


def test_rounding_is_no_coefficient():
    rng = np.random.default_rng(0)
    for low, step, rise in rng.integers(1, 85, (20, 3)):
        # both halves have the same mean, which float32 need not find: only each half's own step is there
        bars = np.array([low, low + step + rise, low + step, low + rise], np.uint8).repeat(SIDE // 4)
        row = Wavelet().transform(np.broadcast_to(bars, (1, 3, SIDE, SIDE)))[0]
        assert set(row[1:41].tolist()) <= {0, -2, 2, -3, 3}


def test_brightness_moves_the_mean_alone():
    images = smooth(3) // 2
    dark, bright = Wavelet().transform(images), Wavelet().transform(images + 100)
    gaps = np.arange(123) % 41 == 0
    assert np.array_equal(dark[:, ~gaps][:, :40], bright[:, ~gaps][:, :40])  # of Y
    np.testing.assert_allclose((bright - dark)[:, 0], 100 / 255, atol=1e-5)


def test_places_are_in_order_and_of_the_largest_only():
    rows = Wavelet(coefficients=5).transform(noise(3)).reshape(3, 3, 6)
    assert (np.diff(np.abs(rows[:, :, 1:]), axis=2) > 0).all()


def test_larger_images_are_averaged():
    images = smooth(2)
    doubled = images.repeat(2, axis=2).repeat(2, axis=3)
    wavelet = Wavelet()
    assert wavelet.distances(wavelet.transform(images), wavelet.transform(doubled)).argmin(1).tolist() == [
        0,
        1,
    ]


def test_fine_patterns_are_averaged_where_images_shrink():
    image = np.zeros((1, 3, 512, 512), np.uint8)
    image[..., ::4] = 255
    row = Wavelet().transform(image)[0]
    assert row[0] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(("batch_size", "n_jobs"), [(1, None), (3, None), (100, None), (3, 2)])
def test_batches_processes_and_order_change_nothing(batch_size, n_jobs):
    images = noise(7)
    expected = np.concatenate([Wavelet().transform(image[None]) for image in images])
    assert np.array_equal(Wavelet(batch_size=batch_size, n_jobs=n_jobs).transform(images), expected)
    assert np.array_equal(Wavelet(batch_size=batch_size).transform(images[::-1]), expected[::-1])


def test_many_queries_are_compared_piece_by_piece():
    rows = np.tile(Wavelet().transform(smooth(3)), (100, 1))
    distances = Wavelet().distances(rows, rows[:3])
    assert np.array_equal(distances, np.tile(distances[:3], (100, 1)))
    assert Wavelet().distances(rows[:0], rows).shape == (0, 300)
    assert Wavelet().distances(rows, rows[:0]).shape == (300, 0)


def test_it_is_a_scikit_learn_transformer_and_golden_features_take_it(tmp_path):
    wavelet = Wavelet(coefficients=20, weights="painted")
    assert clone(wavelet).get_params() == wavelet.get_params()
    images = torch.from_numpy(smooth(6))
    features = pickle.loads(pickle.dumps(wavelet)).transform(images)
    assert features.dtype == np.float32
    assert np.array_equal(features, wavelet.fit_transform(images.numpy()))
    np.save(tmp_path / "images.npy", images)
    assert np.array_equal(features, wavelet.transform(np.load(tmp_path / "images.npy", mmap_mode="r")))
    relevance = FeatureRelevance(features, kernel=wavelet.default_kernel)
    np.testing.assert_allclose(
        relevance.pairs([0], [1]), 1 / (1 + wavelet.distances(features[:1], features[1:2]))[0]
    )
    golden = GoldenFeatures([wavelet], n_jobs=None).fit(images, None)
    assert (golden.pairs([0, 1], [1, 2]) > 0).all()


def test_progress_counts_images():
    calls = []
    Wavelet(batch_size=3).transform(noise(7), progress=lambda *call: calls.append(call))
    assert calls == [("Wavelet", 3, 7), ("Wavelet", 6, 7), ("Wavelet", 7, 7)]


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (noise(2)[0], r"uint8 of shape \(3, 128, 128\), expected uint8 \(N, 3, H, W\)"),
        (np.moveaxis(noise(2), 1, -1), "channels first"),
        (noise(2).astype(np.float32), "got float32"),
        (noise(2)[:0], "at least one"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "transform"])
def test_bad_images_are_refused(images, match, method):
    with pytest.raises(ValueError, match=match):
        getattr(Wavelet(), method)(images)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"coefficients": 0}, "coefficients: got 0"),
        ({"coefficients": SIDE * SIDE}, "coefficients: got 16384"),
        ({"coefficients": 2.5}, "got 2.5, expected a whole number"),
        ({"weights": "sketched"}, "weights: got 'sketched', expected one of scanned, painted"),
        ({"batch_size": 0}, "batch_size: got 0"),
    ],
)
def test_bad_parameters_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Wavelet(**arguments).fit(noise(1))
    with pytest.raises(ValueError, match=match):
        Wavelet(**arguments).transform(noise(1))


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.zeros((2, 122)), r"gallery: got signatures \(2, 122\), expected \(n, 123\)"),
        (np.full((2, 123), 0.5), "no places"),
        (np.full((2, 123), 16384), "no places"),
        (np.full((2, 123), np.nan), "no places"),
    ],
)
def test_rows_that_are_no_signatures_are_refused(rows, match):
    with pytest.raises(ValueError, match=match):
        Wavelet().distances(np.zeros((1, 123)), rows)


def test_example_runs():
    results = doctest.testmod(sys.modules[Wavelet.__module__])
    assert results.attempted > 0
    assert results.failed == 0
