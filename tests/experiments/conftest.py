import numpy as np
import pytest
import torch

from dr_plugin.datasets import PackedImages


class ColourBlobs:
    """Noisy one-colour images: class c is bright in its own mix of channels."""

    def __init__(self, classes=4, per_class=12, size=8, seed=0):
        rng = np.random.default_rng(seed)
        self.labels = [label for label in range(classes) for _ in range(per_class)]
        colours = rng.integers(40, 215, (classes, 3, 1, 1))
        noise = rng.normal(0, 25, (len(self.labels), 3, size, size))
        self.images = np.clip(colours[self.labels] + noise, 0, 255).astype(np.uint8)
        self.class_names = self.class_ids = [f"colour {label}" for label in range(classes)]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.from_numpy(self.images[index]), self.labels[index]


@pytest.fixture(scope="session")
def blobs(tmp_path_factory):
    """48 packed 8x8 images of 4 classes."""
    return PackedImages.build(ColourBlobs(), tmp_path_factory.mktemp("blobs"))
