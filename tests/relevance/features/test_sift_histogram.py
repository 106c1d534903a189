import doctest
import pickle
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dr_plugin.relevance.features import SIFTHistogram
from dr_plugin.relevance.features.dense_sift import DenseSIFT

SMALL = {"words": 12, "cell_sizes": (4, 5), "step": 5, "samples": 500}


def noise(count, height=28, width=33, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def stripes(count, across, seed=0):
    """Bars of random widths, across or down, on which all patches of one image look alike."""
    rng = np.random.default_rng(seed)
    lines = rng.integers(0, 2, (count, 1, 1, 16)).repeat(2, axis=3).repeat(32, axis=2) * 255
    images = np.broadcast_to(lines, (count, 3, 32, 32)).astype(np.uint8)
    return images if across else images.swapaxes(2, 3)


@pytest.fixture(scope="module")
def fitted():
    return SIFTHistogram(**SMALL).fit(noise(20))


def counted_by_loops(histogram, image):
    """One image, patch by patch."""
    sift = DenseSIFT(histogram.cell_sizes, histogram.step)
    descriptors = sift(image[None])[0].numpy().astype(float)
    words = len(histogram.words_)
    parts = []
    for grid in histogram.grids:
        counts = np.zeros((grid, grid, words + 1))
        for descriptor, (y, x) in zip(descriptors, sift.places(*image.shape[1:]), strict=True):
            distances = [((descriptor - word) ** 2).sum() for word in histogram.words_]
            word = int(np.argmin(distances)) if descriptor.any() else words
            counts[int(y * grid), int(x * grid), word] += 1
        parts.append(counts.ravel() / len(descriptors) / len(histogram.grids))
    return np.concatenate(parts)


@pytest.mark.parametrize("grids", [(1,), (1, 2), (3,)])
def test_histograms_against_loops(fitted, grids):
    histogram = pickle.loads(pickle.dumps(fitted)).set_params(grids=grids)
    images = noise(3, seed=1)
    images[2, :, :, 10:] = 90  # partly flat
    expected = [counted_by_loops(histogram, image) for image in images]
    features = histogram.transform(images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)
    np.testing.assert_allclose(features.sum(axis=1), 1, atol=1e-5)


def test_words_are_means_of_patches_that_they_are_nearest_to():
    histogram = SIFTHistogram(**SMALL).fit(noise(20))
    assert histogram.words_.shape == (12, 128)
    sample = DenseSIFT((4, 5), 5)(noise(20)).flatten(0, 1).numpy()
    distances = ((sample[:, None] - histogram.words_) ** 2).sum(axis=2)
    one = ((sample - sample.mean(axis=0)) ** 2).sum()
    assert distances.min(axis=1).sum() < 0.95 * one


def test_stripes_across_and_down_share_no_words():
    images = np.concatenate([stripes(10, True), stripes(10, False)])
    features = SIFTHistogram(words=16, grids=(1,)).fit_transform(images)
    features[:, -1] = 0  # flat patches are in both
    common = np.minimum(features[:, None], features).sum(axis=2)
    assert common[:10, :10].mean() > 3 * common[:10, 10:].mean()


def test_a_flat_image_is_in_the_bin_of_flat_patches(fitted):
    features = fitted.transform(np.full((1, 3, 28, 33), 77, np.uint8))[0]
    assert features[12] == 0.5  # of grid 1
    assert features[13:].reshape(4, 13)[:, -1].sum() == pytest.approx(0.5)


def test_fit_is_seeded_and_learns_from_a_bounded_part():
    images = noise(20)
    words = SIFTHistogram(**SMALL).fit(images).words_
    assert np.array_equal(SIFTHistogram(**SMALL).fit(images).words_, words)
    assert not np.array_equal(SIFTHistogram(**SMALL, seed=1).fit(images).words_, words)

    class Counting:
        taken = 0

        def __len__(self):
            return len(images)

        def batch(self, indices):
            self.taken += len(indices)
            return torch.from_numpy(images[indices]), None

    counting = Counting()
    SIFTHistogram(**SMALL, images=5).fit(counting)
    assert counting.taken == 5


@pytest.mark.parametrize(("batch_size", "n_jobs"), [(1, None), (3, None), (3, 2)])
def test_batches_processes_and_order_change_nothing(fitted, batch_size, n_jobs):
    images = noise(7, seed=1)
    histogram = pickle.loads(pickle.dumps(fitted)).set_params(batch_size=batch_size, n_jobs=n_jobs)
    expected = fitted.transform(images)
    np.testing.assert_allclose(histogram.transform(images), expected, atol=1e-6)
    np.testing.assert_allclose(histogram.transform(images[::-1]), expected[::-1], atol=1e-6)
    np.testing.assert_allclose(histogram.transform(torch.from_numpy(images)), expected, atol=1e-6)


def test_progress_counts_images(fitted):
    calls = []
    histogram = pickle.loads(pickle.dumps(fitted)).set_params(batch_size=3)
    histogram.transform(noise(7), progress=lambda *call: calls.append(call))
    assert calls == [("SIFTHistogram", 3, 7), ("SIFTHistogram", 6, 7), ("SIFTHistogram", 7, 7)]


def test_it_is_a_scikit_learn_transformer(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not copy.__sklearn_is_fitted__()
    with pytest.raises(NotFittedError, match=r"before fit\(images\)"):
        copy.transform(noise(1))
    with pytest.raises(ValueError, match=r"20 x 40 pixels, expected at least 20 x 20|expected at least"):
        fitted.transform(noise(1, 19, 40))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"words": 1}, "words: got 1"),
        ({"grids": ()}, r"grids: got \(\)"),
        ({"grids": (1, 0)}, "grids: got 0"),
        ({"cell_sizes": ()}, "cell_sizes"),
        ({"step": 0}, "step: got 0"),
        ({"images": 0}, "images: got 0"),
        ({"samples": 0.5}, "samples: got 0.5"),
        ({"seed": -1}, "seed: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"words": 5000}, "patches that are not flat, expected at least words=5000"),
    ],
)
def test_bad_parameters_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        SIFTHistogram(**(SMALL | arguments)).fit(noise(2))


@pytest.mark.parametrize("images", [noise(2)[0], noise(2).astype(float), noise(2)[:0]])
def test_bad_images_are_refused(fitted, images):
    with pytest.raises(ValueError, match="expected"):
        SIFTHistogram(**SMALL).fit(images)
    with pytest.raises(ValueError, match="expected"):
        fitted.transform(images)


def test_example_runs():
    results = doctest.testmod(sys.modules[SIFTHistogram.__module__])
    assert results.attempted > 0
    assert results.failed == 0
