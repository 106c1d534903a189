import doctest
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

from dr_plugin.metrics import nearest, precision_at_k
from dr_plugin.relevance.features import HOG


def noise(count, height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


class Packed:
    """As PackedImages: taken by index, no array."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[indices], None


def described_by_loops(image, orientations=9, cell=8, block=2):
    """Dalal and Triggs with explicit loops: (3, H, W) uint8 -> (F,); whole cells only."""
    pixels = image.astype(float)
    _, height, width = pixels.shape
    rows, columns = height // cell, width // cell
    histograms = np.zeros((rows, columns, orientations))
    for y in range(rows * cell):
        for x in range(columns * cell):
            best = (-1.0, 0.0, 0.0)
            for c in range(3):
                dy = pixels[c, y + 1, x] - pixels[c, y - 1, x] if 0 < y < height - 1 else 0.0
                dx = pixels[c, y, x + 1] - pixels[c, y, x - 1] if 0 < x < width - 1 else 0.0
                if np.hypot(dy, dx) > best[0]:
                    best = (np.hypot(dy, dx), dy, dx)
            degrees = np.degrees(np.arctan2(best[1], best[2])) % 180
            bin_ = min(int(degrees / (180 / orientations)), orientations - 1)
            histograms[y // cell, x // cell, bin_] += best[0] / cell**2
    blocks = []
    for y in range(rows - block + 1):
        for x in range(columns - block + 1):
            values = histograms[y : y + block, x : x + block].ravel()
            values = np.minimum(values / np.sqrt((values**2).sum() + 1e-10), 0.2)
            blocks.append(values / np.sqrt((values**2).sum() + 1e-10))
    return np.concatenate(blocks)


def test_descriptor_against_explicit_loops():
    images = noise(2)
    expected = np.stack([described_by_loops(image) for image in images])
    np.testing.assert_allclose(HOG().fit_transform(images), expected, atol=1e-5)


def test_an_edge_is_seen_in_its_own_orientation():
    image = np.zeros((1, 3, 16, 16), np.uint8)
    image[..., 8:] = 255  # brightness changes along x: 0 degrees, the first bin
    features = HOG().transform(image).reshape(2, 2, 9)
    assert (features[..., 0] > 0).all()
    assert features[..., 1:].sum() == 0


@pytest.mark.parametrize("grey", [False, True])
def test_a_flat_image_gives_zeros(grey):
    assert not HOG(grey=grey).transform(np.full((1, 3, 64, 64), 77, np.uint8)).any()


def test_grey_describes_the_luminance():
    image = noise(1)[0]
    luminance = np.tensordot([0.2125, 0.7154, 0.0721], image / 255, axes=1)
    expected = described_by_loops(np.stack([luminance] * 3))
    np.testing.assert_allclose(HOG(grey=True).transform(image[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "n_jobs"), [(1, None), (3, None), (100, None), (3, 2)])
def test_batches_and_processes_change_nothing(batch_size, n_jobs):
    images = noise(7)
    expected = np.concatenate([HOG().transform(images[i : i + 1]) for i in range(7)])
    assert np.array_equal(HOG(batch_size=batch_size, n_jobs=n_jobs).transform(images), expected)


def test_tensors_memory_maps_and_packed_images_give_the_same(tmp_path):
    images = noise(3)
    np.save(tmp_path / "images.npy", images)
    expected = HOG().transform(images)
    assert expected.dtype == np.float32
    assert np.array_equal(HOG().transform(torch.from_numpy(images)), expected)
    assert np.array_equal(HOG(batch_size=2).fit(Packed(images)).transform(Packed(images)), expected)
    assert np.array_equal(HOG().transform(np.load(tmp_path / "images.npy", mmap_mode="r")), expected)


def test_progress_counts_images():
    calls = []
    HOG(batch_size=3).transform(noise(7), progress=lambda *call: calls.append(call))
    assert calls == [("HOG", 3, 7), ("HOG", 6, 7), ("HOG", 7, 7)]


def test_it_is_a_scikit_learn_transformer():
    hog = HOG(orientations=6, cell_size=4, grey=True)
    assert clone(hog).get_params() == hog.get_params()
    images = noise(5)
    assert np.array_equal(pickle.loads(pickle.dumps(hog)).transform(images), hog.fit_transform(images))
    assert make_pipeline(HOG(), PCA(2)).fit_transform(images).shape == (5, 2)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (noise(2)[0], r"images: got uint8 of shape \(3, 24, 32\), expected uint8 \(N, 3, H, W\)"),
        (np.moveaxis(noise(2), 1, -1), "channels first"),
        (noise(2).astype(np.float32), "images: got float32"),
        (noise(2)[:0], "got no images, expected at least one"),
        (noise(2, 15, 40), "15 x 40 pixels, expected at least 16 x 16, one block: lower cell_size"),
        (Packed(noise(2, 15, 40)), "15 x 40 pixels, expected at least 16 x 16, one block: lower cell_size"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "transform"])
def test_bad_images_are_refused(images, match, method):
    with pytest.raises(ValueError, match=match):
        getattr(HOG(), method)(images)


def test_a_bad_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch_size: got 0"):
        HOG(batch_size=0).fit(noise(1))


def test_example_runs():
    results = doctest.testmod(sys.modules[HOG.__module__])
    assert results.attempted > 0
    assert results.failed == 0


@pytest.fixture(scope="module")
def twenty_classes(tiny_imagenet_root):
    """Train and val images (N, 3, 64, 64) uint8 and labels of the first 20 class ids of Tiny ImageNet."""
    root = tiny_imagenet_root / "tiny-imagenet-200"
    class_ids = sorted(folder.name for folder in (root / "train").iterdir())[:20]
    lines = [line.split("\t") for line in (root / "val" / "val_annotations.txt").read_text().splitlines()]
    paths = {
        "train": [(p, c) for c in class_ids for p in sorted((root / "train" / c / "images").iterdir())],
        "val": [(root / "val" / "images" / line[0], line[1]) for line in lines if line[1] in class_ids],
    }
    return {
        split: (
            np.stack(
                [np.moveaxis(np.asarray(Image.open(path).convert("RGB")), -1, 0) for path, _ in of_split]
            ),
            torch.tensor([class_ids.index(class_id) for _, class_id in of_split]),
        )
        for split, of_split in paths.items()
    }


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("describe", "expected"),
    [
        (lambda images: images.reshape(len(images), -1), 0.1040),
        (HOG(grey=True, n_jobs=2).transform, 0.0737),
        (HOG(n_jobs=2).transform, 0.0757),
    ],
    ids=["pixels", "grey HOG", "HOG"],
)
def test_precision_on_twenty_classes(twenty_classes, describe, expected):
    (train, train_labels), (val, val_labels) = twenty_classes["train"], twenty_classes["val"]
    _, indices = nearest(torch.from_numpy(describe(val)), torch.from_numpy(describe(train)), 30)
    assert precision_at_k(train_labels[indices], val_labels, 30).item() == pytest.approx(expected, abs=5e-4)
