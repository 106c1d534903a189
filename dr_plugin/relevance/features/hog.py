"""Histograms of oriented gradients, ref. [4] of the paper."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2gray
from skimage.feature import hog
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.parallel import Parallel, delayed

Progress = Callable[[str, int, int | None], None]
Images = npt.NDArray[np.uint8]  # (N, 3, H, W)
Features = npt.NDArray[np.float32]  # (N, F)


class HOG(TransformerMixin, BaseEstimator):
    """Histograms of oriented gradients in overlapping blocks, by scikit-image.

    The defaults are Dalal and Triggs' standard descriptor: RGB without gamma correction, at each pixel the
    gradient of the channel where it is largest, 9 unsigned orientations, cells of 8 x 8 pixels, blocks of
    2 x 2 cells, L2-Hys. A 64 x 64 image gives 7 x 7 blocks x 36 = 1764 numbers.

    Differs from the paper in: scikit-image leaves out the Gaussian weights inside a block and the
    interpolation between cells. Rows and columns beyond the last whole cell are not used.

    Args:
        orientations: Bins of the gradient's direction over 180 degrees.
        cell_size: Side of a cell, in pixels.
        block_size: Side of a block, in cells.
        grey: Use the luminance alone.
        batch_size: Images in one piece of work.
        n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
    Shape:
        images (N, 3, H, W) uint8 (array, memory map or CPU tensor) -> (N, F) float32 with
        F = (H // cell - block + 1) (W // cell - block + 1) block^2 orientations.
    Raises:
        ValueError: if images have another shape or type, or are smaller than one block.
    Example:
        >>> import numpy as np
        >>> HOG().fit_transform(np.zeros((2, 3, 64, 64), np.uint8)).shape
        (2, 1764)

    References:
        Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, CVPR 2005.
    """

    def __init__(
        self,
        *,
        orientations: int = 9,
        cell_size: int = 8,
        block_size: int = 2,
        grey: bool = False,
        batch_size: int = 256,
        n_jobs: int | None = None,
    ) -> None:
        self.orientations = orientations
        self.cell_size = cell_size
        self.block_size = block_size
        self.grey = grey
        self.batch_size = batch_size
        self.n_jobs = n_jobs

    def fit(self, images: Images, y: Any = None) -> Self:
        """Nothing is learned: the images are only checked."""
        self._check(images)
        return self

    def transform(self, images: Images, *, progress: Progress | None = None) -> Features:
        """The descriptors (N, F); ``progress`` is called as progress(task, images done, images in all)."""
        images = self._check(images)
        describe = partial(
            _describe,
            grey=self.grey,
            orientations=self.orientations,
            cell=self.cell_size,
            block=self.block_size,
        )
        batches: Iterator[Images] = (
            images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)
        )
        jobs = Parallel(n_jobs=self.n_jobs, return_as="generator")
        parts: list[Features] = []
        done = 0
        for part in jobs(delayed(describe)(batch) for batch in batches):
            parts.append(part)
            done += len(part)
            if progress is not None:
                progress("HOG", done, len(images))
        return np.concatenate(parts)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _check(self, images: Images) -> Images:
        images = np.asanyarray(images)  # a memory map stays one
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8 or len(images) == 0:
            raise ValueError(
                f"got images {images.shape} of {images.dtype}, expected (N, 3, H, W) uint8 with N >= 1 "
                "(channels first, as PackedImages gives them)"
            )
        side = self.cell_size * self.block_size
        if min(images.shape[2:]) < side:
            raise ValueError(
                f"got images of {images.shape[2]} x {images.shape[3]} pixels, expected at least "
                f"{side} x {side}, one block: lower cell_size or block_size"
            )
        return images


def _describe(images: Images, *, grey: bool, orientations: int, cell: int, block: int) -> Features:
    """Descriptors of one batch."""
    rows = []
    for image in images:
        pixels = np.moveaxis(np.asarray(image), 0, -1)  # (H, W, 3)
        rows.append(
            hog(
                rgb2gray(pixels) if grey else pixels,
                orientations=orientations,
                pixels_per_cell=(cell, cell),
                cells_per_block=(block, block),
                block_norm="L2-Hys",
                channel_axis=None if grey else -1,
            )
        )
    return np.stack(rows).astype(np.float32)
