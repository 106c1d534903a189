import doctest
import pickle
import sys

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dr_plugin.relevance.features import LABHistogram
from dr_plugin.relevance.features.lab_histogram import RANGES, _bin_of_colour


def noise(count, height=9, width=7, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


class Packed:
    """As PackedImages: taken by index, no array."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], None


def flat(*colour):
    return np.broadcast_to(np.array(colour, np.uint8)[None, :, None, None], (1, 3, 5, 4))


def counted_by_histogramdd(image, bins):
    """One image (3, H, W) -> (bins^3,), pixel by pixel as scikit-image and numpy have it."""
    lab = rgb2lab(np.moveaxis(image, 0, -1)).reshape(-1, 3)
    counts, _ = np.histogramdd(lab, bins=bins, range=RANGES)
    return counts.ravel() / len(lab)


@pytest.mark.parametrize("bins", [3, 8])  # a table each, which takes seconds
def test_histogram_against_skimage_and_histogramdd(bins):
    images = noise(70, seed=bins)  # more than one batch
    expected = np.stack([counted_by_histogramdd(image, bins) for image in images])
    features = LABHistogram(bins=bins).fit_transform(images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)


def test_bins_of_greys_and_of_the_edges_of_the_rgb_cube_against_skimage():
    ramp = np.arange(256, dtype=np.uint8)
    greys = np.stack([ramp] * 3, axis=1)
    edges = [
        np.insert(np.tile(np.array(ends, np.uint8), (256, 1)), channel, ramp, axis=1)
        for channel in range(3)
        for ends in [(0, 0), (0, 255), (255, 0), (255, 255)]
    ]
    colours = np.concatenate([greys, *edges])  # (n, 3)
    places = [
        np.digitize(values, np.linspace(low, high, 9)[1:-1])
        for values, (low, high) in zip(rgb2lab(colours).T, RANGES, strict=True)
    ]
    red, green, blue = colours.astype(int).T
    expected = (places[0] * 8 + places[1]) * 8 + places[2]
    assert np.array_equal(_bin_of_colour(8)[(red << 16) + (green << 8) + blue], expected)


@pytest.mark.parametrize(
    ("colour", "bin_"),
    [
        # L 0, a 0, b 0; a and b are in the bins from -17.25 and from -6.5, numbers 3 and 4
        ((0, 0, 0), (0, 3, 4)),
        ((255, 255, 255), (7, 3, 4)),  # L 100, the upper edge
        ((128, 128, 128), (4, 3, 4)),  # L 53.6
        ((255, 0, 0), (4, 7, 6)),  # L 53.2, a 80.1, b 67.2
        ((0, 255, 0), (7, 0, 7)),  # L 87.7, a -86.2, b 83.2
        ((0, 0, 255), (2, 7, 0)),  # L 32.3, a 79.2, b -107.9
    ],
)
def test_a_flat_image_is_in_one_bin(colour, bin_):
    features = LABHistogram().transform(flat(*colour))[0]
    assert features[np.ravel_multi_index(bin_, (8, 8, 8))] == 1
    assert features.sum() == 1


def test_shares_of_an_image_of_two_colours():
    image = np.zeros((1, 3, 4, 4), np.uint8)
    image[:, :, 0] = 255
    features = LABHistogram(bins=3).transform(image)[0]
    # L in the first and the last third, a and b in the second.
    assert np.flatnonzero(features).tolist() == [4, 22]
    assert features[[4, 22]].tolist() == [0.75, 0.25]


def test_rows_sum_to_one_whatever_the_size():
    for side in (1, 8, 225):
        np.testing.assert_allclose(LABHistogram().transform(noise(2, side, side)).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("batch_size", "n_jobs"), [(64, None), (7, None), (50, 2)])
def test_each_image_is_for_itself_whatever_the_batch(batch_size, n_jobs):
    images = noise(130)
    expected = np.concatenate([LABHistogram(bins=3).transform(image[None]) for image in images])
    histogram = LABHistogram(bins=3, batch_size=batch_size, n_jobs=n_jobs)
    assert np.array_equal(histogram.transform(images), expected)


def test_tensors_memory_maps_and_packed_images_give_the_same(tmp_path):
    images = noise(3)
    np.save(tmp_path / "images.npy", images)
    expected = LABHistogram().transform(images)
    assert np.array_equal(LABHistogram().transform(torch.from_numpy(images)), expected)
    assert np.array_equal(LABHistogram().fit(Packed(images)).transform(Packed(images)), expected)
    assert np.array_equal(LABHistogram().transform(np.load(tmp_path / "images.npy", mmap_mode="r")), expected)
    assert np.array_equal(LABHistogram().transform(images[:, :, ::-1, ::-1]), expected)  # order is nothing


def test_progress_counts_images():
    calls = []
    LABHistogram().transform(noise(130, 1, 1), progress=lambda *call: calls.append(call))
    assert calls == [("LABHistogram", 64, 130), ("LABHistogram", 128, 130), ("LABHistogram", 130, 130)]


def test_it_is_a_scikit_learn_transformer():
    histogram = LABHistogram(bins=3)
    assert clone(histogram).get_params() == {"bins": 3, "batch_size": 64, "n_jobs": None}
    images = noise(5)
    copy = pickle.loads(pickle.dumps(histogram))
    assert np.array_equal(copy.transform(images), histogram.fit_transform(images))
    assert make_pipeline(LABHistogram(bins=3), StandardScaler()).fit_transform(images).shape == (5, 27)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (noise(2)[0], r"images: got uint8 of shape \(3, 9, 7\), expected uint8 \(N, 3, H, W\)"),
        (np.moveaxis(noise(2), 1, -1), "channels first"),
        (noise(2).astype(np.float32), "images: got float32"),
        (noise(2)[:0], "got no images, expected at least one"),
        (noise(2)[:, :, :0], r"got uint8 of shape \(2, 3, 0, 7\)"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "transform"])
def test_bad_images_are_refused(images, match, method):
    with pytest.raises(ValueError, match=match):
        getattr(LABHistogram(), method)(images)


@pytest.mark.parametrize("bins", [0, 41, -1, 2.0, True, None])
def test_bad_bins_are_refused(bins):
    with pytest.raises(ValueError, match=r"bins: got .*, expected a whole number, at least 1 and below 41"):
        LABHistogram(bins=bins).fit(noise(1))


def test_a_bad_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        LABHistogram(batch_size=0).fit(noise(1))


def test_example_runs():
    results = doctest.testmod(sys.modules[LABHistogram.__module__])
    assert results.attempted > 0
    assert results.failed == 0
