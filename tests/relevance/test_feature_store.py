import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, TransformerMixin

from dr_plugin.relevance import image_rows
from dr_plugin.relevance.feature_store import StoredFeatures, compute_features, folder_name
from dr_plugin.relevance.features import HOG


def noise(count, side=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


class Means(TransformerMixin, BaseEstimator):
    """Means of the channels, that counts its images."""

    seen = 0

    def __init__(self, power=1, n_jobs=None, batch_size=3):
        self.power = power
        self.n_jobs = n_jobs
        self.batch_size = batch_size
        self.learned = 0.0

    def transform(self, images):
        type(self).seen += len(images)
        return images.mean(axis=(2, 3)) ** self.power + self.learned


class Odd(BaseEstimator):
    """Gives whatever it is told to."""

    def __init__(self, give):
        self.give = give

    def transform(self, images):
        return self.give(images)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(image_rows, "_CHUNK_BYTES", 3 * noise(1).nbytes)
    monkeypatch.setattr(Means, "seen", 0)


def test_features_against_a_loop(tmp_path):
    images = noise(10)
    expected = np.array([[image[channel].mean() for channel in range(3)] for image in images])
    stored = StoredFeatures.build(Means(), images, tmp_path)
    assert isinstance(stored.features, np.memmap)
    assert stored.features.dtype == np.float32
    assert not stored.features.flags.writeable
    assert len(stored) == 10
    np.testing.assert_allclose(stored.features, expected, rtol=1e-6)
    assert np.array_equal(stored.features, compute_features(Means(), images))


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_hog_in_chunks_and_processes_is_hog(tmp_path, n_jobs):
    images = noise(8)
    stored = StoredFeatures.build(HOG(), images, tmp_path, n_jobs=n_jobs)
    assert np.array_equal(stored.features, HOG().transform(images))


def test_float16_on_request(tmp_path):
    images = noise(5)
    stored = StoredFeatures.build(Means(), images, tmp_path, dtype="float16")
    assert stored.features.dtype == np.float16
    assert np.array_equal(stored.features, Means().transform(images).astype(np.float16))


def test_one_image(tmp_path):
    assert StoredFeatures.build(Means(), noise(1), tmp_path).features.shape == (1, 3)


@pytest.mark.parametrize("jobs", [None, 2])
def test_the_same_is_not_computed_again(tmp_path, jobs):
    StoredFeatures.build(Means(), noise(10), tmp_path)
    assert Means.seen == 10 + 4  # four are looked at to know the transformer
    again = StoredFeatures.build(
        Means(n_jobs=7, batch_size=9), torch.from_numpy(noise(10)), tmp_path, n_jobs=jobs
    )
    assert Means.seen == 14 + 4
    assert np.array_equal(again.features, Means().transform(noise(10)).astype(np.float32))


def other_learned():
    other = Means()
    other.learned = 1.0
    return other


def one_pixel_off():
    images = noise(10)
    images[7, 1, 2, 3] ^= 1
    return images


@pytest.mark.parametrize(
    ("transformer", "images", "options"),
    [
        (Means(power=2), noise(10), {}),
        (other_learned(), noise(10), {}),
        (HOG(), noise(10), {}),
        (Means(), one_pixel_off(), {}),
        (Means(), noise(10)[::-1], {}),
        (Means(), noise(9), {}),
        (Means(), noise(10), {"dtype": "float16"}),
    ],
    ids=["parameter", "learned", "class", "pixel", "order", "fewer", "dtype"],
)
def test_another_is_computed_and_replaces_the_first(tmp_path, transformer, images, options):
    first = StoredFeatures.build(Means(), noise(10), tmp_path)
    kept = first.features.copy()
    stored = StoredFeatures.build(transformer, images, tmp_path, **options)
    assert np.array_equal(stored.features, transformer.transform(images).astype(stored.features.dtype))
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert np.array_equal(first.features, kept)  # an open map is not pulled from under its reader


def test_a_folder_is_opened_without_images(tmp_path):
    built = StoredFeatures.build(Means(), noise(4), tmp_path)
    assert np.array_equal(StoredFeatures(tmp_path).features, built.features)


def test_pickled_it_opens_its_map_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored = StoredFeatures.build(Means(), noise(400), "store")
    pickled = pickle.dumps(stored)
    assert len(pickled) < 1000
    monkeypatch.chdir("/")
    copy = pickle.loads(pickled)
    assert isinstance(copy.features, np.memmap)
    assert np.array_equal(copy.features, stored.features)


@pytest.mark.parametrize("length", [0, 60, 150])
def test_a_file_that_is_cut_short_is_built_again(tmp_path, length):
    path = next(StoredFeatures.build(Means(), noise(10), tmp_path).folder.glob("*.npy"))
    with open(path, "r+b") as file:
        file.truncate(length)
    with pytest.raises(ValueError, match="a file that is not whole"):
        StoredFeatures(tmp_path)
    rebuilt = StoredFeatures.build(Means(), noise(10), tmp_path)
    assert np.array_equal(rebuilt.features, compute_features(Means(), noise(10)))


def test_an_empty_folder_is_no_store(tmp_path):
    with pytest.raises(ValueError, match=r"got 0 stores of features, expected one: make it with"):
        StoredFeatures(tmp_path)


def test_progress_counts_images(tmp_path):
    calls = []
    StoredFeatures.build(Means(), noise(7), tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [("Means features", done, 7) for done in (3, 6, 7)]


@pytest.mark.parametrize(
    ("give", "match"),
    [
        (lambda images: np.full((len(images), 2), np.nan), "a feature that is not finite or above 3.4"),
        (lambda images: np.full((len(images), 2), -np.inf), "expected finite float32 features"),
        (lambda images: np.full((len(images), 2), 1e39), "expected finite float32 features"),
        (lambda images: np.zeros(len(images)), r"float64 of shape \(4,\), expected \(4, F\) numbers"),
        (lambda images: np.zeros((1, 2)), r"shape \(1, 2\)"),
        (lambda images: np.zeros((len(images), 0)), r"shape \(4, 0\)"),
        (lambda images: np.full((len(images), 2), "a"), r"got features <U1"),
    ],
)
def test_bad_features_are_refused_before_much_is_computed(tmp_path, give, match):
    with pytest.raises(ValueError, match=match):
        StoredFeatures.build(Odd(give), noise(10), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_features_that_are_too_large_for_float16_are_refused(tmp_path):
    with pytest.raises(ValueError, match="above 65504, expected finite float16"):
        StoredFeatures.build(Means(power=3), noise(4), tmp_path, dtype="float16")


def test_a_failure_midway_leaves_what_was_there(tmp_path):
    before = StoredFeatures.build(Means(), noise(10), tmp_path)

    def longer_later(images):
        return np.zeros((len(images), 2 + (len(images) == 1)))  # the last chunk has one image

    with pytest.raises(ValueError, match="Odd: got rows of 3 after rows of 2 features"):
        StoredFeatures.build(Odd(longer_later), noise(10), tmp_path)
    assert np.array_equal(StoredFeatures(tmp_path).features, before.features)
    assert sorted(path.suffix for path in tmp_path.iterdir() if path.name != ".lock") == [".npy"]


def test_a_killed_build_leaves_no_store(tmp_path):
    """A process that is killed while it computes: what it wrote counts for nothing, and the next build is whole."""
    code = (
        "import os, signal, sys; sys.path.insert(0, {folder!r});"
        "from {module} import Means, noise, image_rows;"
        "from dr_plugin.relevance.feature_store import StoredFeatures;"
        "image_rows._CHUNK_BYTES = 1;"
        "stop = lambda task, done, total: done == 5 and os.kill(os.getpid(), signal.SIGKILL);"
        "StoredFeatures.build(Means(), noise(10), {store!r}, progress=stop)"
    ).format(folder=os.path.dirname(__file__), module="test_feature_store", store=str(tmp_path / "store"))
    ended = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list((tmp_path / "store").glob("*.partial"))
    with pytest.raises(ValueError, match="got 0 stores"):
        StoredFeatures(tmp_path / "store")
    stored = StoredFeatures.build(Means(), noise(10), tmp_path / "store")
    assert np.array_equal(stored.features, compute_features(Means(), noise(10)))
    assert not list((tmp_path / "store").glob("*.partial"))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", None])
def test_a_bad_dtype_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"dtype: got .*, expected 'float32' or 'float16'"):
        StoredFeatures.build(Means(), noise(2), tmp_path, dtype=dtype)


def test_folder_names_tell_parameters_apart_but_not_ways_to_compute():
    assert folder_name(HOG()) == folder_name(HOG(n_jobs=2, batch_size=1))
    assert folder_name(HOG()) != folder_name(HOG(cell_size=4))
    assert folder_name(HOG()).startswith("HOG-")
