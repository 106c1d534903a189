"""Spatial pyramids of textons with max pooling, ref. [16] of the paper."""

import functools
from typing import Any, ClassVar, Self

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from skimage.color import rgb2xyz, xyz_tristimulus_values
from skimage.color.colorconv import xyz_from_rgb
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from dr_plugin.checks import check_number, check_whole
from dr_plugin.relevance.features.batches import Features, Images, Progress, check_side, describe_batches
from dr_plugin.relevance.features.codebook import codebook, sampled_descriptors
from dr_plugin.relevance.image_rows import ImageRows

# Of Winn, Criminisi and Minka: (channel of Lab, [(standard deviation, derivative down, derivative across)]); the
# terms of one filter are added, each is separable.
FILTERS: tuple[tuple[int, tuple[tuple[float, int, int], ...]], ...] = (
    *((channel, ((sigma, 0, 0),)) for channel in (0, 1, 2) for sigma in (1, 2, 4)),  # Gaussians
    *((0, ((sigma, 2, 0), (sigma, 0, 2))) for sigma in (1, 2, 4, 8)),  # Laplacians of Gaussians
    *((0, ((sigma, *order),)) for sigma in (2, 4) for order in ((1, 0), (0, 1))),  # derivatives of Gaussians
)
_LEAST_SCALE = 1e-30  # of squared distances: by less, float32 has no quotient
_ROUNDING = (
    1e-3  # a filter whose responses (of Lab, 0 to 100) deviate less saw no difference in the fitted images
)


class SPMKTexton(TransformerMixin, BaseEstimator):
    """How strongly each of 1024 textons is present in each cell of a spatial pyramid.

    1. Responses of Winn, Criminisi and Minka's 17 filters at every `step`-th pixel: Gaussians of sigma 1, 2, 4 on
       L, a and b, Laplacians of Gaussians of sigma 1, 2, 4, 8 and first derivatives of sigma 2, 4, both ways, on
       L; borders are reflected; each filter scaled to variance 1 over the fitted images. (Chosen over the
       Leung-Malik and MR8 banks as it sees colour too, and is separable.)
    2. `words` textons by k-means on seeded responses of the fitted images.
    3. A response counts for the `nearest` textons, with weights exp(-d^2 / (softness m)) that sum to 1; d its
       distance to the texton, m the mean d^2 of fitted responses to their nearest texton (localised soft
       assignment: the maximum of hard assignments would be a presence bit).
    4. In each cell of 1 x 1, 2 x 2, ... 2^(levels-1) x 2^(levels-1) over the image, each texton's maximum.
    5. Each level is scaled to sum to the pyramid match kernel's weight of it: 1/4, 1/4 and 1/2 of three levels.

    - Cells are in the order of levels, within one row by row, textons within a cell. Rows sum to 1, so their
      intersection is 1 - |x - y|_1 / 2.
    - Images of different sizes have rows of one length; a filter's size is in pixels.

    Differs from the paper in: it says no more than "SPMK texton features with max pooling", 1024; the bank, the
    assignment and the scaling of levels are ours.

    Args:
        words: Textons, at least 2.
        levels: Of the pyramid, 1 to 5.
        step: Pixels between responses.
        nearest: Textons that a response counts for.
        softness: > 0; how far beyond the nearest ones.
        images: From how many images, at most, textons are learned; seeded.
        samples: From how many responses, at most, evenly over these.
        seed: Of both draws and of k-means.
        batch_size: Images in one piece of work.
        n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
    Attributes:
        words_: (words, 17) float32, of scaled responses; after `fit`, as all below.
        scales_: (2, 17) float32, each filter's mean and standard deviation.
        spread_: m.
    Shape:
        images (N, 3, H, W) uint8 (array, memory map or tensor) or an object with `len` and `batch(indices)` ->
        (N, words (4^levels - 1) / 3) float32, 21,504 by default.
    Raises:
        ValueError: if images are not that, or are smaller than `step` pixels a cell; if a parameter is out of
            its range; from `fit`, if there are fewer responses than textons.
        NotFittedError: from `transform` before `fit`.
    Example:
        >>> images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
        >>> SPMKTexton(words=16).fit_transform(images).shape
        (4, 336)

    References:
        Lazebnik, Schmid and Ponce, Beyond Bags of Features: Spatial Pyramid Matching, CVPR 2006.
        Winn, Criminisi and Minka, Object Categorization by Learned Universal Visual Dictionary, ICCV 2005.
        Liu, Wang and Liu, In Defense of Soft-assignment Coding, ICCV 2011.
    """

    default_kernel: ClassVar[str] = "intersection"  # by which GoldenFeatures compares histograms
    distance: ClassVar[str] = "intersection"
    seen: ClassVar[str] = "unlabelled images"  # what fit learns from, as a table says

    def __init__(
        self,
        *,
        words: int = 1024,
        levels: int = 3,
        step: int = 8,
        nearest: int = 5,
        softness: float = 1.0,
        images: int = 1000,
        samples: int = 100_000,
        seed: int = 0,
        batch_size: int = 8,
        n_jobs: int | None = None,
    ) -> None:
        self.words = words
        self.levels = levels
        self.step = step
        self.nearest = nearest
        self.softness = softness
        self.images = images
        self.samples = samples
        self.seed = seed
        self.batch_size = batch_size
        self.n_jobs = n_jobs

    def fit(self, images: Any, y: Any = None) -> Self:
        """Learn the textons from a seeded sample of the images."""
        rows = self._checked(images)
        sample = sampled_descriptors(
            lambda batch: filter_responses(batch, self.step).flatten(1, 2).numpy(),
            rows,
            images=self.images,
            samples=self.samples,
            seed=self.seed,
        )
        if len(sample) < self.words:
            raise ValueError(
                f"got {len(sample)} filter responses, expected at least words={self.words}: give more or larger "
                "images, or lower words or step"
            )
        deviation = sample.std(axis=0, dtype=np.float64)
        scales = np.stack(
            [sample.mean(axis=0, dtype=np.float64), np.where(deviation > _ROUNDING, deviation, 1)]
        )
        scaled = (sample - scales[0]) / scales[1]
        self.scales_ = scales.astype(np.float32)
        self.words_ = codebook(scaled, self.words, self.seed)
        distances = self._distances(
            torch.from_numpy(scaled[:: max(1, len(scaled) // 10_000)].astype(np.float32))
        )
        self.spread_ = float(distances.amin(1).double().mean())
        return self

    def transform(self, images: Any, *, progress: Progress | None = None) -> Features:
        """The pyramids (N, F); ``progress`` is called as progress(task, images done, images in all)."""
        check_is_fitted(self, msg="got %(name)s before fit(images), expected its textons learned")
        self._checked(images)
        return describe_batches(
            self._describe,
            images,
            task="SPMKTexton",
            batch_size=self.batch_size,
            n_jobs=self.n_jobs,
            progress=progress,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "spread_")

    def _distances(self, scaled: Tensor) -> Tensor:
        """Squared, of scaled responses (n, 17) to the textons -> (n, words)."""
        words = torch.from_numpy(self.words_)
        squares = torch.addmm(words.square().sum(1), scaled, words.T, alpha=-2)
        return squares.add_(scaled.square().sum(1, keepdim=True)).clamp_(min=0)

    def _describe(self, images: Images) -> Features:
        features: Features = self._pyramids(filter_responses(images, self.step)).numpy()
        return features

    def _pyramids(self, responses: Tensor) -> Tensor:
        """Of responses (n, rows, columns, 17) -> (n, F)."""
        count, down, across, filters = responses.shape
        mean, deviation = torch.from_numpy(self.scales_)
        distances = self._distances(((responses - mean) / deviation).reshape(-1, filters))
        # (n rows columns, nearest) both
        near, words = distances.topk(min(self.nearest, self.words), largest=False)
        scale = max(float(self.softness) * (self.spread_ or 1.0), _LEAST_SCALE)
        weights = torch.softmax(near / -scale, dim=1)
        side = 2 ** (self.levels - 1)
        cells = (torch.arange(down) * side // down)[:, None] * side + torch.arange(across) * side // across
        places = torch.arange(count)[:, None] * side**2 + cells.flatten()  # (n, rows columns)
        pooled = torch.zeros(count * side**2 * self.words)
        pooled.scatter_reduce_(
            0, (places.reshape(-1, 1) * self.words + words).flatten(), weights.flatten(), "amax"
        )
        levels = [pooled.view(count, side, side, self.words)]
        while levels[0].shape[1] > 1:  # four cells make one of the level above
            half = levels[0].shape[1] // 2
            levels.insert(0, levels[0].view(count, half, 2, half, 2, self.words).amax((2, 4)))
        parts = [
            level.flatten(1) * (weight / level.sum((1, 2, 3)))[:, None]
            for level, weight in zip(levels, level_weights(self.levels), strict=True)
        ]
        return torch.cat(parts, dim=1)

    def _checked(self, images: Any) -> ImageRows:
        check_whole("words", self.words, minimum=2)
        check_whole("levels", self.levels, minimum=1, below=6)
        for name in ("step", "nearest", "images", "samples", "batch_size"):
            check_whole(name, getattr(self, name), minimum=1)
        check_whole("seed", self.seed, minimum=0, below=2**32)
        check_number("softness", self.softness, above=0)
        rows = ImageRows(images)
        side = self.step * 2 ** (self.levels - 1)
        check_side(rows, side, "one response a cell: lower step or levels")
        return rows


def level_weights(levels: int) -> list[float]:
    """The pyramid match kernel's: 1 / 2^L of level 0, 1 / 2^(L - l + 1) of level l, L = levels - 1; their sum is 1."""
    finest = levels - 1
    return [0.5**finest, *(0.5 ** (finest - level + 1) for level in range(1, levels))]


def filter_responses(images: Images, step: int) -> Tensor:
    """Of the 17 filters at every step-th pixel: (n, 3, H, W) -> (n, H // step, W // step, 17) float32."""
    lab = _lab(images)
    height, width = images.shape[2] // step, images.shape[3] // step
    responses = torch.zeros((len(images), len(FILTERS), height, width))
    along: dict[tuple[int, float, int], Tensor] = {}  # rows filtered: (n, H, W // step)
    for number, (channel, terms) in enumerate(FILTERS):
        for sigma, down, across in terms:
            if (channel, sigma, across) not in along:
                columns = _filter_matrix(images.shape[3], step, sigma, across)
                along[channel, sigma, across] = lab[:, channel] @ columns.T
            rows = _filter_matrix(images.shape[2], step, sigma, down)
            responses[:, number] += rows @ along[channel, sigma, across]
    return responses.movedim(1, -1)


def _lab(images: Images) -> Tensor:
    """scikit-image's `rgb2lab`, in float32: (n, 3, H, W) -> (n, 3, H, W)."""
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    linear = rgb2xyz(greys)[:, 1].astype(np.float32)  # of each value: the gamma undone
    to_xyz = xyz_from_rgb / xyz_tristimulus_values(illuminant="D65", observer="2")[:, None]
    xyz = torch.einsum(
        "xc,nchw->nxhw", torch.from_numpy(to_xyz.astype(np.float32)), torch.from_numpy(linear[images])
    )
    x, y, z = torch.where(xyz > 0.008856, xyz.pow(1 / 3), 7.787 * xyz + 16 / 116).unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


@functools.lru_cache(64)
def _filter_matrix(length: int, step: int, sigma: float, order: int) -> Tensor:
    """A Gaussian's derivative along an axis, taken at every step-th pixel: (length // step, length)."""
    matrix = gaussian_filter1d(np.eye(length), sigma, axis=0, order=order, mode="reflect")
    return torch.from_numpy(matrix[step // 2 :: step][: length // step].astype(np.float32))
