import numpy as np
import pytest
import torch

from dr_plugin.relevance import image_rows
from dr_plugin.relevance.image_rows import ImageRows


def noise(count, side=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


class Batches:
    """As PackedImages: images by index, with labels."""

    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        return self.images[torch.from_numpy(indices)], torch.zeros(len(indices), dtype=torch.long)


def sources(images, folder):
    np.save(folder / "images.npy", images)
    return [
        images,
        torch.from_numpy(images),
        np.load(folder / "images.npy", mmap_mode="r"),
        Batches(images),
        images[::-1][::-1],
    ]


def test_every_source_gives_the_same_rows_chunks_and_digest(tmp_path, monkeypatch):
    images = noise(7)
    monkeypatch.setattr(image_rows, "_CHUNK_BYTES", 3 * images[0].nbytes)
    for source in sources(images, tmp_path):
        rows = ImageRows(source)
        assert len(rows) == 7
        assert np.array_equal(rows.take(np.array([5, 0, 5])), images[[5, 0, 5]])
        assert [len(chunk) for chunk in rows.chunks()] == [3, 3, 1]
        assert np.array_equal(np.concatenate(list(rows.chunks())), images)
        assert rows.digest == ImageRows(images).digest


def test_an_image_larger_than_a_chunk_is_a_chunk(monkeypatch):
    monkeypatch.setattr(image_rows, "_CHUNK_BYTES", 1)
    assert [len(chunk) for chunk in ImageRows(noise(3)).chunks()] == [1, 1, 1]


def test_digest_changes_with_any_pixel_order_number_and_shape():
    images = noise(5)
    other = images.copy()
    other[4, 2, 3, 3] ^= 1
    variants = [images, other, images[::-1], images[:4], images.reshape(5, 3, 2, 8)]
    assert len({ImageRows(variant).digest for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (noise(2)[0], r"images: got uint8 of shape \(3, 4, 4\), expected uint8 \(N, 3, H, W\)"),
        (np.moveaxis(noise(2), 1, -1), "channels first"),
        (noise(2).astype(np.int64), "got int64"),
        (torch.from_numpy(noise(2)).float(), "got float32"),
        (noise(2)[:, :, :0], r"\(2, 3, 0, 4\)"),
        (noise(0), "no images, expected at least one"),
        (Batches(noise(0)), "no images, expected at least one"),
    ],
)
def test_what_is_no_images_is_refused(images, match):
    with pytest.raises(ValueError, match=match):
        ImageRows(images)


def test_batches_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="got float32"):
        ImageRows(Batches(noise(2).astype(np.float32))).take(np.array([0]))
