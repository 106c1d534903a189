import doctest
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from skimage.feature import fisher_vector
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.mixture import GaussianMixture

from dr_plugin.relevance.features import FisherVector
from dr_plugin.relevance.features.dense_sift import DenseSIFT
from dr_plugin.relevance.features.fisher_vector import fisher_gradients

SMALL = {"gaussians": 5, "dimension": 6, "cell_sizes": (4, 5), "step": 5, "samples": 500}


def noise(count, height=28, width=33, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted():
    return FisherVector(**SMALL).fit(noise(20))


def gradients_by_loops(x, mixture):
    """G_mean and G_deviation, patch by patch and Gaussian by Gaussian, in float64."""
    count, dimension = len(x), x.shape[1]
    deviations = np.sqrt(mixture.covariances_)
    by_mean, by_deviation = np.zeros((2, len(mixture.weights_), dimension))
    for patch in x:
        densities = [
            weight * np.prod(np.exp(-0.5 * ((patch - mean) / s) ** 2) / (s * math.sqrt(2 * math.pi)))
            for weight, mean, s in zip(mixture.weights_, mixture.means_, deviations, strict=True)
        ]
        for k, density in enumerate(densities):
            z = (patch - mixture.means_[k]) / deviations[k]
            share = density / sum(densities) / (count * math.sqrt(mixture.weights_[k]))
            by_mean[k] += share * z
            by_deviation[k] += share * (z**2 - 1) / math.sqrt(2)
    return np.concatenate([by_mean.ravel(), by_deviation.ravel()])


def described(fitted, image):
    """An image's textured patches after PCA: (n, D)."""
    descriptors = DenseSIFT(fitted.cell_sizes, fitted.step, fitted.root)(image[None])[0].numpy()
    return descriptors[descriptors.any(axis=1)] @ fitted.projection_ + fitted.offset_


def by_scikit_image(x, mixture, **how):
    """Without its gradients of the weights, which come first; its gradients of deviations have the other sign."""
    by_mean, by_deviation = np.split(fisher_vector(x, mixture, **how)[len(mixture.weights_) :], 2)
    return np.concatenate([by_mean, -by_deviation])


def partly_flat(count):
    images = noise(count, seed=1)
    images[-1, :, :, 10:] = 90
    return images


def test_gradients_against_loops_and_scikit_image(fitted):
    for image in partly_flat(3):
        x = described(fitted, image)
        counted = torch.ones(1, len(x), dtype=bool)
        found = fisher_gradients(torch.from_numpy(x)[None], counted, fitted.mixture_)[0].numpy()
        np.testing.assert_allclose(found, gradients_by_loops(x, fitted.mixture_), atol=2e-5)
        np.testing.assert_allclose(found, by_scikit_image(x, fitted.mixture_), atol=2e-5)


def test_vectors_against_scikit_image_improved(fitted):
    images = partly_flat(4)
    features = fitted.transform(images)
    assert features.dtype == np.float32
    for row, image in zip(features, images, strict=True):
        theirs = by_scikit_image(described(fitted, image), fitted.mixture_, improved=True)
        np.testing.assert_allclose(row, theirs / np.linalg.norm(theirs), atol=1e-3)


def test_patches_at_the_mean_of_the_only_gaussian_have_no_mean_gradient():
    rng = np.random.default_rng(0)
    mixture = GaussianMixture(1, covariance_type="diag").fit(rng.normal(3, 2, (50, 2)))
    mean, variance = mixture.means_[0], mixture.covariances_[0]
    x = torch.tensor(np.stack([mean, mean + np.sqrt(variance)]), dtype=torch.float32)[None]
    both = fisher_gradients(x, torch.ones(1, 2, dtype=bool), mixture)[0]
    # z = 0 and 1: mean .5; z^2 - 1 = -1 and 0: mean -.5, over sqrt 2
    np.testing.assert_allclose(both, [0.5, 0.5, -(0.5**1.5), -(0.5**1.5)], atol=1e-4)
    first = fisher_gradients(x, torch.tensor([[True, False]]), mixture)[0]
    np.testing.assert_allclose(first, [0, 0, -(0.5**0.5), -(0.5**0.5)], atol=1e-4)


def test_vectors_of_the_fitted_patches_are_near_0_in_the_mean():
    images = noise(40, seed=2)
    fitted = FisherVector(**SMALL | {"samples": 10**6}).fit(images)
    x = np.concatenate([described(fitted, image) for image in images])
    everything = fisher_gradients(
        torch.from_numpy(x)[None], torch.ones(1, len(x), dtype=bool), fitted.mixture_
    )[0]
    one = fisher_gradients(torch.from_numpy(x[:12])[None], torch.ones(1, 12, dtype=bool), fitted.mixture_)[0]
    assert everything.norm() < 0.05 * one.norm()  # where EM has converged, the likelihood's gradient is 0


def test_rows_have_length_1_and_a_flat_image_is_0(fitted):
    images = noise(3)
    images[1] = 77
    lengths = np.linalg.norm(fitted.transform(images), axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 1], atol=1e-5)


def test_projection_is_pca_of_the_patches(fitted):
    np.testing.assert_allclose(fitted.projection_.T @ fitted.projection_, np.eye(6), atol=1e-5)
    sample = np.concatenate([described(fitted, image) for image in noise(20)])
    np.testing.assert_allclose(sample.mean(axis=0), 0, atol=0.05)


def test_fit_is_seeded():
    images = noise(20)
    vectors = FisherVector(**SMALL).fit_transform(images)
    assert np.array_equal(FisherVector(**SMALL).fit_transform(images), vectors)
    assert not np.allclose(FisherVector(**SMALL, seed=1).fit_transform(images), vectors)


@pytest.mark.parametrize(("batch_size", "n_jobs"), [(1, None), (3, None), (3, 2)])
def test_batches_processes_and_order_change_nothing(fitted, batch_size, n_jobs):
    images = noise(7, seed=1)
    other = pickle.loads(pickle.dumps(fitted)).set_params(batch_size=batch_size, n_jobs=n_jobs)
    expected = fitted.transform(images)
    np.testing.assert_allclose(other.transform(images), expected, atol=1e-4)
    np.testing.assert_allclose(other.transform(images[::-1]), expected[::-1], atol=1e-4)


def test_progress_counts_images(fitted):
    calls = []
    other = pickle.loads(pickle.dumps(fitted)).set_params(batch_size=3)
    other.transform(noise(7), progress=lambda *call: calls.append(call))
    assert calls == [("FisherVector", 3, 7), ("FisherVector", 6, 7), ("FisherVector", 7, 7)]


def test_it_is_a_scikit_learn_transformer(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not copy.__sklearn_is_fitted__()
    with pytest.raises(NotFittedError, match=r"before fit\(images\)"):
        copy.transform(noise(1))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gaussians": 0}, "gaussians: got 0"),
        ({"dimension": 129}, "dimension: got 129, .*below 129"),
        ({"cell_sizes": ()}, "cell_sizes"),
        ({"step": 0}, "step: got 0"),
        ({"images": 0}, "images: got 0"),
        ({"samples": 0.5}, "samples: got 0.5"),
        ({"seed": -1}, "seed: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"gaussians": 500}, "patches that are not flat, expected at least 1000"),
    ],
)
def test_bad_parameters_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        FisherVector(**(SMALL | arguments)).fit(noise(2))


@pytest.mark.parametrize("images", [noise(2)[0], noise(2).astype(float), noise(2)[:0], noise(2, 19, 19)])
def test_bad_images_are_refused(fitted, images):
    with pytest.raises(ValueError, match="expected"):
        FisherVector(**SMALL).fit(images)
    with pytest.raises(ValueError, match="expected"):
        fitted.transform(images)


def test_example_runs():
    results = doctest.testmod(sys.modules[FisherVector.__module__])
    assert results.attempted > 0
    assert results.failed == 0
