"""Signatures of the largest Haar wavelet coefficients, ref. [9] of the paper."""

from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pywt
import torch
from scipy.sparse import csr_array
from skimage.color.colorconv import yiq_from_rgb
from sklearn.base import BaseEstimator, TransformerMixin
from torch.nn.functional import interpolate

from dr_plugin.checks import check_choice, check_whole
from dr_plugin.relevance.features.batches import Features, Images, Progress, describe_batches
from dr_plugin.relevance.image_rows import ImageRows

SIDE = 128
# w_0 ... w_5 of Y, I and Q, in Jacobs et al.'s table for a scanned image as the query, and for a painted one
WEIGHTS = {
    "scanned": (
        (5.00, 19.21, 34.37),
        (0.83, 1.26, 0.36),
        (1.01, 0.44, 0.45),
        (0.52, 0.53, 0.14),
        (0.47, 0.28, 0.18),
        (0.30, 0.14, 0.27),
    ),
    "painted": (
        (4.04, 15.14, 22.62),
        (0.78, 0.92, 0.40),
        (0.46, 0.53, 0.63),
        (0.42, 0.26, 0.25),
        (0.41, 0.14, 0.15),
        (0.32, 0.07, 0.38),
    ),
}
_ROUNDING = (
    1e-6  # a third of what one level of one channel of one pixel makes: smaller ones are no coefficients
)
_ROWS = 256  # queries compared at once


class Wavelet(TransformerMixin, BaseEstimator):
    """Mean colour, and signs and places of the 40 largest Haar coefficients of each of Y, I and Q.

    1. The image at 128 x 128 pixels (of another size: resized, antialiased, its proportions lost), in YIQ.
    2. The standard decomposition: all steps along the rows, then all along the columns; a coefficient is that of
       the orthonormal basis over 128, so that the scaling function's is the mean of the channel.
    3. Of each channel the mean, and of the other coefficients the 40 largest, of which only the sign is kept.

    A row holds for each channel the mean, then 40 numbers: +-(128 row + column) of a coefficient, by its sign, in
    the order of places; 0 where there are fewer (a flat image has none). They are no vectors: compare by
    `distances`, as Jacobs et al. do,
    d(q, t) = sum over channels of w_0 |mean_q - mean_t| + sum over q's coefficients that t has not, with that
    sign, of w_bin, bin = min(max(row, column), 5).

    - d(q, q) = 0, but for float32's rounding. It is not symmetric: only q's coefficients count, and q may have fewer.
    - Of coefficients of equal size at the limit, which are kept is arbitrary, but the same for the same image.
    - The paper compares with the negative of the coefficients in common: less by q's total weight, the same order.

    Differs from ref. [9] in: coefficients within float32's rounding of 0 are not kept, so a grey image has none
    of I and Q. The weights are the paper's as open implementations quote them, not read in the paper itself.

    Args:
        coefficients: Kept of each channel, 1 to 16,383.
        weights: "scanned" or "painted", by what the query is.
        batch_size: Images in one piece of work.
        n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
    Shape:
        images (N, 3, H, W) uint8 (array, memory map or tensor) or an object with `len` and `batch(indices)` ->
        (N, 3 (1 + coefficients)) float32, 123 by default.
    Raises:
        ValueError: if images or a parameter are none of these.
    Example:
        >>> white = np.full((1, 3, 128, 128), 255, np.uint8)
        >>> signature = Wavelet().fit_transform(white)
        >>> signature.shape, round(signature[0, 0].item(), 4), np.flatnonzero(signature).tolist()
        ((1, 123), 1.0, [0])

    References:
        Jacobs, Finkelstein and Salesin, Fast Multiresolution Image Querying, SIGGRAPH 1995.
    """

    distance: ClassVar[str] = "own"
    seen: ClassVar[str] = "nothing"  # what fit learns from, as a table says

    def __init__(
        self,
        *,
        coefficients: int = 40,
        weights: str = "scanned",
        batch_size: int = 16,
        n_jobs: int | None = None,
    ) -> None:
        self.coefficients = coefficients
        self.weights = weights
        self.batch_size = batch_size
        self.n_jobs = n_jobs

    def fit(self, images: Any, y: Any = None) -> Self:
        """Nothing is learned: parameters and images are only checked."""
        self._check()
        ImageRows(images)
        return self

    def transform(self, images: Any, *, progress: Progress | None = None) -> Features:
        """The signatures (N, F); ``progress`` is called as progress(task, images done, images in all)."""
        self._check()
        return describe_batches(
            partial(_signatures, kept=self.coefficients),
            images,
            task="Wavelet",
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            progress=progress,
        )

    def distances(self, queries: Features, gallery: Features) -> Features:
        """d(q, t) of all signatures: (Q, F), (N, F) -> (Q, N)."""
        self._check()
        query_means, query_places = self._parts(queries, "queries")
        means, places = self._parts(gallery, "gallery")
        there = _one_hot(places, np.ones((3, SIDE * SIDE), np.float32)).T.tocsr()
        distances = np.empty((len(queries), len(gallery)), np.float32)
        for start in range(0, len(queries), _ROWS):
            s = slice(start, start + _ROWS)
            wanted = _one_hot(query_places[s], self._weight_of_place())
            distances[s] = wanted.sum(axis=1)[:, None] - (wanted @ there).toarray()
            for channel, weight in enumerate(WEIGHTS[self.weights][0]):
                gaps = np.abs(query_means[s, channel, None] - means[:, channel])
                distances[s] += np.float32(weight) * gaps
        return distances.clip(min=0)

    def default_kernel(self, x: Features, y: Features) -> Features:
        """1 / (1 + d), by which GoldenFeatures compares signatures."""
        similarities: Features = np.reciprocal(1 + self.distances(x, y))
        return similarities

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _weight_of_place(self) -> Features:
        """w_bin of each channel and place: (3, 128 128)."""
        row, column = np.indices((SIDE, SIDE))
        weights = np.array(WEIGHTS[self.weights], np.float32)
        by_place: Features = weights[np.minimum(np.maximum(row, column), 5)].reshape(-1, 3).T
        return by_place

    def _parts(self, signatures: Features, name: str) -> tuple[Features, npt.NDArray[np.int64]]:
        """Means (n, 3) and signed places (n, 3, coefficients)."""
        rows = np.asarray(signatures)
        expected = 3 * (1 + self.coefficients)
        if rows.ndim != 2 or rows.shape[1] != expected:
            raise ValueError(f"{name}: got signatures {rows.shape}, expected (n, {expected})")
        rows = rows.reshape(len(rows), 3, 1 + self.coefficients)
        whole = np.isfinite(rows).all() and (rows[:, :, 1:] % 1 == 0).all()
        if not whole or (np.abs(rows[:, :, 1:]) >= SIDE * SIDE).any():
            raise ValueError(
                f"{name}: got numbers that are no places, expected signatures as `transform` makes them"
            )
        return rows[:, :, 0], rows[:, :, 1:].astype(np.int64)

    def _check(self) -> None:
        check_whole("coefficients", self.coefficients, minimum=1, below=SIDE * SIDE)
        check_whole("batch_size", self.batch_size, minimum=1)
        check_choice("weights", self.weights, WEIGHTS)


def _signatures(images: Images, kept: int) -> Features:
    """Of one batch: (n, 3, H, W) -> (n, 3 (1 + kept))."""
    coefficients = standard_decomposition(_yiq(images)).reshape(len(images), 3, -1)  # (n, 3, 128 128)
    means = coefficients[:, :, 0].copy()
    coefficients[:, :, 0] = 0
    places = np.argpartition(-np.abs(coefficients), kept - 1)[:, :, :kept]
    values = np.take_along_axis(coefficients, places, axis=2)
    signed = places * np.where(np.abs(values) > _ROUNDING, np.sign(values), 0)
    order = np.argsort(np.where(signed == 0, SIDE * SIDE, places), axis=2, kind="stable")
    signed = np.take_along_axis(signed, order, axis=2)
    signatures: Features = np.concatenate([means[:, :, None], signed], axis=2).reshape(len(images), -1)
    return signatures.astype(np.float32, copy=False)


def standard_decomposition(channels: Features) -> Features:
    """All Haar steps along each of the last two axes, (..., 128, 128); the scaling function's coefficient first."""
    coefficients: Features = pywt.fswavedecn(channels, "haar", axes=(-2, -1)).coeffs
    coefficients /= SIDE
    return coefficients


def _yiq(images: Images) -> Features:
    """(n, 3, H, W) uint8 -> (n, 3, 128, 128), Y from 0 to 1; I and Q of grey are exactly 0."""
    pixels = torch.from_numpy(images.astype(np.float32))
    if pixels.shape[2:] != (SIDE, SIDE):
        pixels = interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True)
    red, green, blue = (pixels / 255).numpy().swapaxes(0, 1)
    red, blue = red - green, blue - green
    y, i, q = yiq_from_rgb[:, [0, 2]].astype(np.float32)  # each channel's share of red and blue
    yiq = (green + y[0] * red + y[1] * blue, *(of[0] * red + of[1] * blue for of in (i, q)))
    return np.stack(yiq, axis=1)


def _one_hot(places: npt.NDArray[np.int64], values: Features) -> csr_array:
    """The values of (channel, place) at a column for each (sign, channel, place): (n, 3, kept) -> (n, 6 128 128)."""
    image, channel, _ = np.nonzero(places)
    signed = places[places != 0]
    column = channel * SIDE * SIDE + np.abs(signed)
    sign = (signed < 0) * (3 * SIDE * SIDE)
    shape = (len(places), 6 * SIDE * SIDE)
    return csr_array((values.ravel()[column], (image, column + sign)), shape=shape)
