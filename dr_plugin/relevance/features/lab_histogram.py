"""Colour histograms in L*a*b*, the Color feature of section 6.4."""

import functools
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2xyz, xyz2lab
from sklearn.base import BaseEstimator, TransformerMixin

from dr_plugin.checks import check_whole
from dr_plugin.relevance.features.batches import Features, Images, Progress, describe_batches
from dr_plugin.relevance.image_rows import ImageRows

RANGES = ((0.0, 100.0), (-87.0, 99.0), (-108.0, 95.0))  # of L, a, b: sRGB's, rounded outwards
_MOST_BINS = 40  # 40^3 still count in 16 bits


class LABHistogram(TransformerMixin, BaseEstimator):
    """Share of an image's pixels in each of 8 x 8 x 8 bins of L*a*b*.

    Colours are scikit-image's `rgb2lab` of sRGB (illuminant D65, 2 degree observer). The bins of an axis are of
    equal width and divide what sRGB reaches, rounded outwards: L 0 to 100, a -87 to 99, b -108 to 95. So no colour
    is outside, and with 8 bins grey (a = b = 0) is well inside one, where no rounding moves it.

    - Bin (l, a, b) is number (8 l + a) 8 + b. A bin holds its lower edge; the last one its upper edge too.
    - A row sums to 1, so histograms of images of different sizes compare.
    - The bin of each of the 2^24 colours is computed once in a process (2 s, 32 MB); an image is then 4 bytes of
      reading a pixel. With 8 bins it is the bin that `rgb2lab`
      gives, for every colour: none is nearer than 1e-7 to an edge between bins.

    Differs from the paper in: it says "LAB histograms" only; number and place of the bins are ours.

    Args:
        bins: Of each axis, 1 to 40.
        batch_size: Images in one piece of work; the pixels of 64 small ones stay in a core's cache.
        n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
    Shape:
        images (N, 3, H, W) uint8 (array, memory map or tensor) or an object with `len` and `batch(indices)` ->
        (N, bins^3) float32.
    Raises:
        ValueError: if images are not that, or bins is not a whole number from 1 to 40.
    Example:
        >>> black = np.zeros((1, 3, 4, 4), np.uint8)
        >>> histogram = LABHistogram().fit_transform(black)
        >>> histogram.shape, np.flatnonzero(histogram).tolist()
        ((1, 512), [28])

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.4.
    """

    default_kernel: ClassVar[str] = "intersection"  # by which GoldenFeatures compares histograms
    distance: ClassVar[str] = "intersection"
    seen: ClassVar[str] = "nothing"  # what fit learns from, as a table says

    def __init__(self, *, bins: int = 8, batch_size: int = 64, n_jobs: int | None = None) -> None:
        self.bins = bins
        self.batch_size = batch_size
        self.n_jobs = n_jobs

    def fit(self, images: Any, y: Any = None) -> Self:
        """Nothing is learned: the images are only checked."""
        self._check()
        ImageRows(images)
        return self

    def transform(self, images: Any, *, progress: Progress | None = None) -> Features:
        """The histograms (N, F); ``progress`` is called as progress(task, images done, images in all)."""
        self._check()
        return describe_batches(
            functools.partial(_histograms, bins=self.bins),
            images,
            task="LABHistogram",
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            progress=progress,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _check(self) -> None:
        check_whole("batch_size", self.batch_size, minimum=1)
        check_whole("bins", self.bins, minimum=1, below=_MOST_BINS + 1)


@functools.cache
def _bin_of_colour(bins: int) -> npt.NDArray[np.uint16]:
    """The bin of colour 2^16 red + 2^8 green + blue: (2^24,).

    XYZ is linear in the channels once their gamma is undone: a colour's is the sum of its channels', 3 x 256
    numbers, which is most of `rgb2lab`'s work.
    """
    ramps = np.zeros((3, 256, 3), np.uint8)  # (channel, value, RGB)
    for channel in range(3):
        ramps[channel, :, channel] = np.arange(256)
    red, green, blue = rgb2xyz(ramps)  # (256, XYZ) each
    green_blue = green[:, None] + blue  # (256, 256, XYZ)
    low, high = np.array(RANGES).T
    table = np.empty((256, 256, 256), np.uint16)
    for value in range(256):
        lab = xyz2lab(red[value] + green_blue)
        place = ((lab - low) * (bins / (high - low))).astype(np.int64).clip(0, bins - 1)
        table[value] = (place[..., 0] * bins + place[..., 1]) * bins + place[..., 2]
    return table.ravel()


def _histograms(images: Images, bins: int) -> Features:
    """Of one batch: (n, 3, H, W) -> (n, bins^3)."""
    count = bins**3
    red, green, blue = np.moveaxis(images.astype(np.int32), 1, 0)
    # each process makes the table for itself: sent, it would be 32 MB a batch
    places = _bin_of_colour(bins)[(red << 16) | (green << 8) | blue].reshape(len(images), -1)  # (n, H W)
    first = np.arange(0, len(images) * count, count)
    counts = np.bincount((places + first[:, None]).ravel(), minlength=len(images) * count)
    features: Features = (counts.reshape(len(images), count) / places.shape[1]).astype(np.float32)
    return features
