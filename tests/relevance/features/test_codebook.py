"""What a codebook is learned from, and how."""

import numpy as np
import pytest

from dr_plugin.relevance.features.codebook import codebook, sampled_descriptors
from dr_plugin.relevance.image_rows import ImageRows


def numbered(count):
    """Images that tell their number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 2, 2))


def sampled(count=20, has=9, images=20, samples=50, seed=0):
    """(image, place) of each descriptor; images have `has` places each, or a list of numbers of them."""
    places = [has] * count if isinstance(has, int) else has

    def describe(batch):
        numbers = batch[:, 0, 0, 0].tolist()
        return [np.array([(i, place) for place in range(places[i])]).reshape(-1, 2) for i in numbers]

    rows = ImageRows(numbered(count))
    return sampled_descriptors(describe, rows, images=images, samples=samples, seed=seed)


@pytest.mark.parametrize("samples", [1, 7, 20, 31, 50, 179, 180, 1000])
@pytest.mark.parametrize("images", [1, 13, 20, 99])
def test_it_is_at_most_so_many_and_even(samples, images):
    found = sampled(images=images, samples=samples)
    count = min(images, 20)
    assert len(found) == min(samples, 9 * count)
    shares = np.bincount(found[:, 0].astype(int), minlength=20)
    of_chosen = np.sort(shares)[20 - count :]
    assert of_chosen.max() - of_chosen.min() <= 1
    assert len(np.unique(found, axis=0)) == len(found)
    assert (np.diff(found[:, 0]) >= 0).all()


def test_an_image_of_few_gives_what_it_has_and_the_rest_is_cut_evenly():
    has = [2, 0, 9, 9, 9, 9, 9, 9]
    found = sampled(8, has, 8, 27)  # at most 4 each: 2 + 6 x 4 are fewer
    assert np.bincount(found[:, 0].astype(int), minlength=8).tolist() == [2, 0, 4, 4, 4, 4, 4, 4]
    found = sampled(8, [9, 0, *[9] * 6], 8, 27)
    assert sorted(np.bincount(found[:, 0].astype(int), minlength=8)) == [0, 3, *[4] * 6]


def test_which_images_give_one_less_is_by_chance():
    least = [np.bincount(sampled(samples=59, seed=seed)[:, 0].astype(int)).argmin() for seed in range(40)]
    assert len(set(least)) > 10


def test_it_is_seeded():
    assert np.array_equal(sampled(images=5), sampled(images=5))
    assert not np.array_equal(sampled(images=5), sampled(images=5, seed=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_words_are_the_centres_of_clusters(dtype):
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [9, 0], [0, 9]])
    descriptors = np.concatenate([centre + rng.normal(0, 0.1, (50, 2)) for centre in centres]).astype(dtype)
    words = codebook(descriptors, 3, seed=0)
    assert words.dtype == np.float32
    assert sorted(words.round().tolist()) == sorted(centres.tolist())
    np.testing.assert_allclose(words, words.round(), atol=0.1)
    assert np.array_equal(words, codebook(descriptors, 3, seed=0))
