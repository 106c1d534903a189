"""What features with a learned codebook share: a seeded sample of descriptors, and words by k-means."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import MiniBatchKMeans

from dr_plugin.relevance.features.batches import Features, Images
from dr_plugin.relevance.image_rows import ImageRows

_BATCH = 16  # images described at once


def sampled_descriptors(
    describe: Callable[[Images], Iterable[Features]], rows: ImageRows, *, images: int, samples: int, seed: int
) -> Features:
    """At most `samples` descriptors of at most `images` images, both seeded: (n, F), in the images' order.

    Each image gives the same number, or one less, or all it has.

    Args:
        describe: Images (n, 3, H, W) -> the descriptors (K_i, F) of each.
        rows: Where from.
        images, samples: At least 1.
        seed: Of both choices.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(rows), min(images, len(rows)), replace=False))
    share = -(-samples // len(chosen))
    parts: list[Features] = []
    for start in range(0, len(chosen), _BATCH):
        for descriptors in describe(rows.take(chosen[start : start + _BATCH])):
            parts.append(descriptors[rng.permutation(len(descriptors))[:share]])
    surplus = sum(map(len, parts)) - samples
    if surplus > 0:  # fewer than there are images that gave a whole share
        whole = [number for number, part in enumerate(parts) if len(part) == share]
        for number in rng.choice(whole, surplus, replace=False):
            parts[number] = parts[number][:-1]
    return np.concatenate(parts)


def codebook(descriptors: npt.NDArray[Any], words: int, seed: int) -> Features:
    """The words (words, F) of descriptors (n, F), n at least words, by k-means on seeded batches."""
    means = MiniBatchKMeans(
        words, batch_size=4096, max_iter=20, n_init=1, random_state=seed, reassignment_ratio=0
    ).fit(descriptors)
    found: Features = means.cluster_centers_.astype(np.float32)
    return found
