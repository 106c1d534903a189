import doctest
import pickle
import sys

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_laplace
from skimage.color import rgb2lab
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from dr_plugin.relevance.features import SPMKTexton, texton
from dr_plugin.relevance.features.texton import filter_responses, level_weights


def noise(count, height=32, width=40, seed=0):
    """Smooth enough that textons differ."""
    rng = np.random.default_rng(seed)
    blurred = gaussian_filter(rng.normal(0, 1, (count, 3, height, width)), (0, 0, 1.5, 1.5))
    return (128 + 120 * blurred / np.abs(blurred).max()).astype(np.uint8)


def flat(value, side=32):
    return np.full((1, 3, side, side), value, np.uint8)


def small(**parameters):
    return SPMKTexton(**{"words": 8, "step": 4, "nearest": 3, **parameters})


@pytest.fixture(scope="module")
def fitted():
    return small().fit(noise(6))


def responses_by_scipy(image, step):
    """(3, H, W) uint8 -> (H // step, W // step, 17): whole images filtered, then sampled."""
    lab = np.moveaxis(rgb2lab(np.moveaxis(image, 0, -1)), -1, 0)
    light = lab[0]
    maps = [gaussian_filter(channel, sigma) for channel in lab for sigma in (1, 2, 4)]
    maps += [gaussian_laplace(light, sigma) for sigma in (1, 2, 4, 8)]
    maps += [gaussian_filter(light, sigma, order=order) for sigma in (2, 4) for order in ((1, 0), (0, 1))]
    height, width = light.shape
    sampled = [m[step // 2 :: step, step // 2 :: step][: height // step, : width // step] for m in maps]
    return np.stack(sampled, axis=-1)


def pyramid_by_loops(image, fitted):
    """As the docstring says, one response at a time."""
    responses = (responses_by_scipy(image, fitted.step) - fitted.scales_[0]) / fitted.scales_[1]
    rows, columns, _ = responses.shape
    parts = []
    for level, weight in zip(range(3), (0.25, 0.25, 0.5), strict=True):
        side = 2**level
        pooled = np.zeros((side, side, fitted.words))
        for y in range(rows):
            for x in range(columns):
                squares = [((responses[y, x] - word) ** 2).sum() for word in fitted.words_]
                near = sorted(range(fitted.words), key=squares.__getitem__)[: fitted.nearest]
                soft = {k: np.exp(-squares[k] / (fitted.softness * fitted.spread_)) for k in near}
                cell = pooled[y * side // rows, x * side // columns]
                for k in near:
                    cell[k] = max(cell[k], soft[k] / sum(soft.values()))
        parts.append(weight * pooled.ravel() / pooled.sum())
    return np.concatenate(parts)


@pytest.mark.parametrize("step", [1, 3, 8])
def test_responses_against_scipy_on_whole_images(step):
    images = noise(3, 33, 40)
    expected = np.stack([responses_by_scipy(image, step) for image in images])
    np.testing.assert_allclose(filter_responses(images, step).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("parameters", [{}, {"nearest": 1}, {"softness": 3.0, "nearest": 8}, {"step": 7}])
def test_pyramids_against_explicit_loops(parameters):
    images = noise(3, 36, 29)
    texton = small(**parameters).fit(images)
    expected = np.stack([pyramid_by_loops(image, texton) for image in images])
    features = texton.transform(images)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=2e-4)


def test_pyramid_of_an_image_of_two_textons():
    texton = SPMKTexton(words=2, levels=2, step=4, nearest=1).fit(np.concatenate([flat(0), flat(255)]))
    black = int(texton.transform(flat(0))[0, 1])  # the number of its texton
    halves = flat(0)
    halves[..., 16:] = 255
    whole, cells = np.split(texton.transform(halves)[0], [2])
    assert whole.tolist() == [0.25, 0.25]  # both textons, half of level 0's weight 1/2 each
    expected = np.zeros((2, 2, 2))
    # Left cells have the one, right cells the other.
    expected[:, 0, black] = expected[:, 1, 1 - black] = 1 / 8
    assert np.array_equal(cells.reshape(2, 2, 2), expected)


def test_fitted_statistics_are_those_of_all_responses_where_all_are_taken():
    images = noise(4)
    responses = np.concatenate([responses_by_scipy(image, 4).reshape(-1, 17) for image in images])
    texton = small().fit(images)
    np.testing.assert_allclose(
        texton.scales_, [responses.mean(axis=0), responses.std(axis=0)], rtol=2e-3, atol=2e-3
    )
    scaled = (responses - texton.scales_[0]) / texton.scales_[1]
    squares = ((scaled[:, None] - texton.words_) ** 2).sum(axis=-1)
    assert texton.spread_ == pytest.approx(squares.min(axis=1).mean(), rel=1e-3)
    assert texton.spread_ < 0.7 * 17  # what one word, the mean, would leave


@pytest.mark.parametrize(
    ("levels", "weights"), [(1, [1]), (2, [0.5, 0.5]), (3, [0.25, 0.25, 0.5]), (4, [0.125, 0.125, 0.25, 0.5])]
)
def test_level_weights_of_the_pyramid_match_kernel(levels, weights):
    assert level_weights(levels) == weights


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_levels_are_weighted_sums_of_cells(levels):
    features = small(levels=levels, step=2).fit_transform(noise(3))
    assert features.shape == (3, 8 * (4**levels - 1) // 3)
    starts = [8 * (4**level - 1) // 3 for level in range(levels)]
    sums = np.add.reduceat(features, starts, axis=1)
    np.testing.assert_allclose(sums, np.tile(level_weights(levels), (3, 1)), atol=1e-6)


def test_mirrored_image_has_mirrored_cells_of_a_blind_bank():
    # a texton that is told by colour alone: the two halves of the mirrored image change places
    texton = SPMKTexton(words=2, levels=2, step=4, nearest=1).fit(np.concatenate([flat(0), flat(255)]))
    halves = flat(0)
    halves[..., 16:] = 255
    cells, mirrored = (
        texton.transform(image)[0, 2:].reshape(2, 2, 2) for image in (halves, halves[..., ::-1])
    )
    assert np.array_equal(cells[:, ::-1], mirrored)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_a_flat_image_has_finite_rows_of_sum_one(fitted, value):
    features = fitted.transform(flat(value))
    assert np.isfinite(features).all()
    assert features.sum() == pytest.approx(1, abs=1e-5)


def test_flat_images_can_be_fitted():
    images = np.concatenate([flat(value) for value in range(0, 250, 25)])
    features = SPMKTexton(words=4, step=8).fit_transform(images)
    assert np.isfinite(features).all()


def test_batches_order_and_processes_change_nothing(fitted):
    images = noise(7, seed=4)
    expected = np.concatenate([fitted.transform(image[None]) for image in images])
    copy = pickle.loads(pickle.dumps(fitted))
    for batch_size, n_jobs in ((3, None), (100, None), (3, 2)):
        copy.set_params(batch_size=batch_size, n_jobs=n_jobs)
        np.testing.assert_allclose(copy.transform(images), expected, atol=1e-6)
    np.testing.assert_allclose(fitted.transform(images[::-1]), expected[::-1], atol=1e-6)


def test_images_of_other_sizes_have_rows_of_the_same_length(fitted):
    assert fitted.transform(noise(2, 64, 20)).shape == fitted.transform(noise(2)).shape == (2, 168)


def test_tensors_and_memory_maps_give_the_same(fitted, tmp_path):
    images = noise(3)
    np.save(tmp_path / "images.npy", images)
    expected = fitted.transform(images)
    assert np.array_equal(fitted.transform(torch.from_numpy(images)), expected)
    assert np.array_equal(fitted.transform(np.load(tmp_path / "images.npy", mmap_mode="r")), expected)


def test_fitting_reads_no_more_images_than_it_may():
    class Images:
        def __init__(self):
            self.taken = []

        def __len__(self):
            return 1000

        def batch(self, indices):
            self.taken.extend(np.asarray(indices).tolist())
            return noise(len(indices)), None

    images = Images()
    small(images=5).fit(images)
    assert len(images.taken) <= 6  # and one for its size
    assert len(set(images.taken)) >= 5


@pytest.mark.parametrize("samples", [7, 61, 480, 481])
def test_fitting_uses_no_more_responses_than_it_may(samples, monkeypatch):
    given = []
    learned = texton.codebook
    monkeypatch.setattr(texton, "codebook", lambda *of: given.append(len(of[0])) or learned(*of))
    small(words=2, samples=samples).fit(noise(6))  # 80 responses each
    assert given == [min(samples, 480)]


def test_a_seed_is_an_answer():
    images = noise(6)
    first, again, other = (small(seed=seed, images=3, samples=60).fit(images) for seed in (0, 0, 1))
    assert np.array_equal(first.words_, again.words_)
    assert not np.array_equal(first.words_, other.words_)


def test_progress_counts_images(fitted):
    calls = []
    clone(fitted).set_params(batch_size=3).fit(noise(6)).transform(
        noise(7), progress=lambda *c: calls.append(c)
    )
    assert calls == [("SPMKTexton", 3, 7), ("SPMKTexton", 6, 7), ("SPMKTexton", 7, 7)]


def test_it_is_a_scikit_learn_transformer(fitted):
    images = noise(2)
    assert clone(fitted).get_params() == fitted.get_params()
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).transform(images), fitted.transform(images))
    with pytest.raises(NotFittedError, match="SPMKTexton"):
        clone(fitted).transform(images)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (noise(2)[0], r"expected uint8 \(N, 3, H, W\)"),
        (noise(2).astype(np.float32), "float32"),
        (noise(2)[:0], "no images"),
        (noise(2, 15, 40), "15 x 40 pixels, expected at least 16 x 16"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "transform"])
def test_bad_images_are_refused(fitted, images, match, method):
    with pytest.raises(ValueError, match=match):
        getattr(pickle.loads(pickle.dumps(fitted)), method)(images)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"words": 1}, "words: got 1"),
        ({"levels": 0}, "levels: got 0"),
        ({"levels": 6}, "levels: got 6"),
        ({"step": 2.0}, "step: got 2.0"),
        ({"nearest": 0}, "nearest: got 0"),
        ({"images": 0}, "images: got 0"),
        ({"samples": 0}, "samples: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"batch_size": True}, "batch_size: got True"),
        ({"softness": 0.0}, "softness: got 0.0"),
        ({"softness": float("nan")}, "softness: got nan"),
        ({"words": 500}, "got 480 filter responses, expected at least words=500"),
    ],
)
def test_bad_parameters_are_refused(parameters, match):
    with pytest.raises(ValueError, match=match):
        small(**parameters).fit(noise(6))


def test_example_runs():
    results = doctest.testmod(sys.modules[SPMKTexton.__module__])
    assert results.attempted > 0
    assert results.failed == 0
