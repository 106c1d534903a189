"""Histograms of visual words of SIFT descriptors, the SIFT-like feature, ref. [17] of the paper."""

from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from dr_plugin.checks import check_whole, check_wholes
from dr_plugin.relevance.features.batches import Features, Images, Progress, describe_batches
from dr_plugin.relevance.features.codebook import codebook
from dr_plugin.relevance.features.dense_sift import DenseSIFT
from dr_plugin.relevance.image_rows import ImageRows


class SIFTHistogram(TransformerMixin, BaseEstimator):
    """Share of an image's dense SIFT patches that are nearest to each of 1024 visual words.

    Patches are those of `DenseSIFT`, as RootSIFT; words are learned by k-means on seeded patches of the fitted
    images. With `grids=(1, 2)` an image has a histogram of the whole and one of each quarter, by the patch's
    middle; each grid has the same share of the sum.

    - A row sums to 1. Flat patches are counted in a bin of their own, the last of a histogram.
    - Images of different sizes have rows of one length.

    Differs from the paper in: it says "SIFT-like" and cites Lowe; grid, codebook and comparison are ours, chosen
    without ratings (benchmarks/feature_settings.py).

    Args:
        words: Of the codebook, at least 2.
        grids: Cells a side of each spatial grid.
        cell_sizes: Pixels a side of a descriptor's cells, one scale each; a patch is 4 cells wide.
        step: Pixels between patches.
        images: From how many images, at most, words are learned.
        samples: From how many patches, at most, evenly over these.
        seed: Of both draws and of k-means.
        batch_size: Images in one piece of work.
        n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
    Attributes:
        words_: (words, 128) float32; after `fit`.
    Shape:
        images (N, 3, H, W) uint8 (array, memory map or tensor) or an object with `len` and `batch(indices)` ->
        (N, (words + 1) x the sum of squared grids) float32.
    Raises:
        ValueError: if images or a parameter are none of these; from `fit`, if fewer textured patches than words.
        NotFittedError: from `transform` before `fit`.
    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 48, 48), np.uint8)
        >>> SIFTHistogram(words=16).fit_transform(images).shape
        (4, 85)

    References:
        Lowe, Object Recognition from Local Scale-Invariant Features, ICCV 1999.
        Sivic and Zisserman, Video Google: A Text Retrieval Approach to Object Matching in Videos, ICCV 2003.
    """

    default_kernel: ClassVar[str] = "intersection"  # by which GoldenFeatures compares histograms
    distance: ClassVar[str] = "intersection"
    seen: ClassVar[str] = "unlabelled images"  # what fit learns from, as a table says

    def __init__(
        self,
        *,
        words: int = 1024,
        grids: tuple[int, ...] = (1, 2),
        cell_sizes: tuple[int, ...] = (4, 6, 8),
        step: int = 6,
        images: int = 1000,
        samples: int = 100_000,
        seed: int = 0,
        batch_size: int = 16,
        n_jobs: int | None = None,
    ) -> None:
        self.words = words
        self.grids = grids
        self.cell_sizes = cell_sizes
        self.step = step
        self.images = images
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.n_jobs = n_jobs

    def fit(self, images: Any, y: Any = None) -> Self:
        """Learn the words from seeded patches of seeded images."""
        patches = self._patches()
        sample = patches.sample(ImageRows(images), self.images, self.samples, self.seed).numpy()
        if len(sample) < self.words:
            raise ValueError(
                f"got {len(sample)} patches that are not flat, expected at least words={self.words}: give more "
                "or larger images, or lower words or step"
            )
        self.words_ = codebook(sample, self.words, self.seed)
        return self

    def transform(self, images: Any, *, progress: Progress | None = None) -> Features:
        """The histograms (N, F); ``progress`` is called as progress(task, images done, images in all)."""
        check_is_fitted(self, msg="got %(name)s before fit(images), expected its words learned")
        self._patches()
        return describe_batches(
            self._histograms,
            images,
            task="SIFTHistogram",
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            progress=progress,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "words_")

    def _histograms(self, images: Images) -> Features:
        """Of one batch: (n, 3, H, W) -> (n, F)."""
        patches = DenseSIFT(self.cell_sizes, self.step)
        descriptors = patches(images)  # (n, K, 128)
        words = torch.from_numpy(self.words_)
        # |x - w|^2 = |x|^2 - 2 x.w + |w|^2, where |x|^2 makes no difference
        squares = torch.addmm(words.square().sum(1), descriptors.flatten(0, 1), words.T, alpha=-2)
        nearest = squares.argmin(1).view(descriptors.shape[:2]).numpy()
        nearest[~descriptors.any(dim=2).numpy()] = len(words)
        places = patches.places(*images.shape[2:])
        parts = [_counted(nearest, len(words) + 1, places, grid) for grid in self.grids]
        counts = np.concatenate(parts, axis=1).astype(np.float32)
        counts /= nearest.shape[1] * len(self.grids)
        return counts

    def _patches(self) -> DenseSIFT:
        check_whole("words", self.words, minimum=2)
        for name in ("images", "samples", "batch_size"):
            check_whole(name, getattr(self, name), minimum=1)
        check_whole("seed", self.seed, minimum=0, below=2**32)
        if not check_wholes("grids", self.grids, minimum=1):
            raise ValueError(f"grids: got {self.grids!r}, expected a tuple of at least one")
        return DenseSIFT(self.cell_sizes, self.step)


def _counted(
    nearest: npt.NDArray[np.int64], words: int, places: npt.NDArray[np.float64], grid: int
) -> npt.NDArray[np.int64]:
    """Patches of each word in each cell of one grid: (n, K), places (K, 2) from 0 to 1 -> (n, grid^2 words)."""
    row, column = np.minimum((places * grid).astype(np.int64), grid - 1).T
    length = grid * grid * words
    first = np.arange(0, len(nearest) * length, length)[:, None]
    bins = first + (row * grid + column) * words + nearest
    return np.bincount(bins.ravel(), minlength=len(nearest) * length).reshape(len(nearest), length)
