"""Histograms of oriented gradients, ref. [4] of the paper."""

from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from skimage.color import rgb2gray
from skimage.feature import hog
from sklearn.base import BaseEstimator, TransformerMixin

from dr_plugin.checks import check_flag, check_whole
from dr_plugin.relevance.features.batches import Features, Images, Progress, check_side, describe_batches
from dr_plugin.relevance.image_rows import ImageRows


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
        images (N, 3, H, W) uint8 (array, memory map or tensor) or an object with `len` and `batch(indices)` ->
        (N, F) float32 with
        F = (H // cell - block + 1) (W // cell - block + 1) block^2 orientations.
    Raises:
        ValueError: if images are not that, or are smaller than one block.
    Example:
        >>> import numpy as np
        >>> HOG().fit_transform(np.zeros((2, 3, 64, 64), np.uint8)).shape
        (2, 1764)

    References:
        Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, CVPR 2005.
    """

    distance: ClassVar[str] = "manhattan"  # tells Tiny ImageNet's classes apart better than the Euclidean one
    seen: ClassVar[str] = "nothing"  # what fit learns from, as a table says

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

    def fit(self, images: Any, y: Any = None) -> Self:
        """Nothing is learned: the images are only checked."""
        self._check(images)
        return self

    def transform(self, images: Any, *, progress: Progress | None = None) -> Features:
        """The descriptors (N, F); ``progress`` is called as progress(task, images done, images in all)."""
        self._check(images)
        describe = partial(
            _describe,
            grey=self.grey,
            orientations=self.orientations,
            cell=self.cell_size,
            block=self.block_size,
        )
        return describe_batches(
            describe,
            images,
            task="HOG",
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            progress=progress,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _check(self, images: Any) -> None:
        for name in ("orientations", "cell_size", "block_size", "batch_size"):
            check_whole(name, getattr(self, name), minimum=1, below=2**31)
        check_flag("grey", self.grey)
        side = self.cell_size * self.block_size
        check_side(ImageRows(images), side, "one block: lower cell_size or block_size")


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
