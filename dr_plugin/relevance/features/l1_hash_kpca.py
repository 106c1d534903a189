"""One embedding of several features by weighted minhash and kernel PCA, ref. [14] of the paper."""

import os
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.decomposition import KernelPCA
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from dr_plugin.checks import as_number, check_number, check_path, check_whole, shown
from dr_plugin.relevance.classes import Labels, checked_labels
from dr_plugin.relevance.distances import triplet_distances
from dr_plugin.relevance.feature_rows import checked_blocks
from dr_plugin.relevance.feature_store import cached_features
from dr_plugin.relevance.features.batches import Progress
from dr_plugin.relevance.image_rows import ImageRows
from dr_plugin.relevance.max_margin import NothingSeparatesError, max_margin
from dr_plugin.relevance.min_hash import Codes, HashParameters, collisions, hash_parameters, min_hash
from dr_plugin.relevance.named import named_transformers
from dr_plugin.relevance.training_triplets import TrainingTriplets

Features = npt.NDArray[Any]  # (N, F)
Weights = npt.NDArray[np.float64]  # (K,)

_CHUNK = 512  # images whose base features are in memory at once
_UNFITTED = "got %(name)s before fit(images), expected it fitted"


class L1HashKPCA(TransformerMixin, BaseEstimator):
    """1000 numbers an image from several non-negative features that are compared by L1 distance.

    1. Each feature's rows get one number more, what they lack of the largest sum of a fitted row (0, where a new row
       has more): with rows of one sum, sum min / sum max is a falling function of the L1 distance. (HOG, whose rows
       differ in sum, tells classes apart no better than by chance by sum min / sum max as it is.)
    2. Choice: with d_k the L1 distance of these rows of feature k over its mean, the weights w >= 0 that minimise
       mean_t max(0, 1 - w.(d(q, n) - d(q, p)))^2 + penalty |w|^2 over seeded class triplets t of the fitted images.
       Features with a weight of at least `share` of the largest are the "L1 visual features". Without labels all
       are, of equal weight.
    3. Weighted minhash (Ioffe) of these, each times its weight over its mean distance, side by side: the share of
       `hashes` that agree estimates sum min / sum max of two images, of standard error at most 1 / (2 sqrt(hashes)).
    4. Kernel PCA of that kernel over at most `images` of the fitted images; another image is placed by how often
       its hashes agree with theirs.

    - Fitting sees at most `images` images, a seeded choice, whatever it is given.
    - Transformers among the features that are fitted stay as they are; of others clones are fitted, on the choice.
    - A feature whose distances are all 0 is left out; where all are, all are kept, and every row is 0.
    - `FisherVector` is no candidate, as its numbers have signs, nor `Wavelet`, whose rows are compared by a distance
      of their own.
    - The hashes' parameters take 12 bytes a hash and number of the kept features: 290 MB by default, of 64 x 64
      images. An instance holds them; its pickle does not, and draws them again in a second.

    Differs from the paper in: the features to choose from are fewer than its golden feature's; the weights are
    learned from class labels and not from ratings; it gives no number of hashes nor of images for the kernel PCA.

    Args:
        features: Transformers of images, or names of classes of `dr_plugin.relevance.features`, whose features are
            non-negative.
        hashes: H.
        components: Of the embedding, at most; it has no more than the fitted images less one.
        images: At most so many are fitted; at least 2.
        share: Of the largest weight, 0 to 1.
        triplets: How many to learn weights from.
        penalty: On the squared weights, > 0; 1 is the margin.
        seed: Of the choice, the triplets and the hashes.
        cache: A folder for the features of the fitted images; None: they stay in memory.
        n_jobs: Processes that compute those, as everywhere in scikit-learn.
    Attributes:
        sums_: K largest sums of a fitted row.
        weights_: (K,) float64, their sum 1, 0 for a feature that is not kept; after `fit`, as all below.
        scales_: (K,) float64, by which each feature is multiplied.
        codes_: (M, H) int32, of the fitted images.
        kernel_pca_: scikit-learn's.
        features_: The transformers, fitted.
    Shape:
        images (N, 3, H, W) uint8 or an object with `len` and `batch(indices)`, such as PackedImages; labels (N,) ->
        (N, min(components, M - 1)) float32.
    Raises:
        ValueError: if an argument is none of these; if images or labels are not; if a feature holds a number below
            0 or not finite; if labels leave no triplet, or no feature tells classes apart.
        NotFittedError: from `transform` before `fit`.
    Example:
        >>> kpca = L1HashKPCA(["LABHistogram", "HOG"])  # doctest: +SKIP
        >>> kpca.fit(packed, packed.labels).transform(packed).shape  # doctest: +SKIP
        (100000, 1000)

    References:
        Ioffe, Improved Consistent Sampling, Weighted Minhash and L1 Sketching, ICDM 2010.
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.4.
    """

    default_kernel: ClassVar[str] = "cosine"  # by which GoldenFeatures compares rows
    distance: ClassVar[str] = "cosine"  # tells Tiny ImageNet's classes apart better than the Euclidean one
    seen: ClassVar[str] = "class labels"  # what fit learns from, as a table says

    _drawn: tuple[int, int, int]  # of the hashes' parameters: numbers, hashes, seed
    _hash_parameters: HashParameters | None

    def __init__(
        self,
        features: Sequence[str | TransformerMixin] = ("LABHistogram", "HOG", "SPMKTexton", "SIFTHistogram"),
        *,
        hashes: int = 1024,
        components: int = 1000,
        images: int = 3000,
        share: float = 0.05,
        triplets: int = 10_000,
        penalty: float = 1e-3,
        seed: int = 0,
        cache: str | os.PathLike[str] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.features = features
        self.hashes = hashes
        self.components = components
        self.images = images
        self.share = share
        self.triplets = triplets
        self.penalty = penalty
        self.seed = seed
        self.cache = cache
        self.n_jobs = n_jobs

    def fit(self, images: Any, labels: Labels | None = None, *, progress: Progress | None = None) -> Self:
        """Fit the features that need it, choose among them, and learn the embedding.

        Args:
            images: As above.
            labels: Classes, any integers; None: all features are kept.
            progress: Called as progress("<transformer> features", images done, images in all).
        """
        self._check()
        rows = ImageRows(images)
        classes = None if labels is None else checked_labels(labels, len(rows))
        chosen = self._chosen(len(rows))
        pixels = rows.take(chosen)
        fitted = [of if _is_fitted(of) else clone(of).fit(pixels) for of in named_transformers(self.features)]
        features = [
            cached_features(of, pixels, self.cache, n_jobs=self.n_jobs, progress=progress) for of in fitted
        ]
        self.fit_features(features, None if classes is None else classes[chosen])
        self.features_ = fitted
        return self

    def fit_features(self, features: Sequence[Any], labels: Labels | None = None) -> Self:
        """As `fit`, from what the transformers made of the images: K arrays (N, F_k), in the features' order.

        `transform` is then of the transformers as they were given, `transform_features` needs none.
        """
        self._check()
        transformers = named_transformers(self.features)
        arrays = checked_blocks(features, [None] * len(transformers))
        classes = None if labels is None else checked_labels(labels, len(arrays[0]))
        if len(arrays[0]) < 2:
            raise ValueError("got 1 image, expected at least 2 to fit")
        chosen = self._chosen(len(arrays[0]))
        arrays = [array[chosen] for array in arrays]
        sums = [float(_sums(array).max()) for array in arrays]
        filled = [_filled(*of) for of in zip(arrays, sums, strict=True)]
        weights, means = self._weights(filled, None if classes is None else classes[chosen])
        scales = np.divide(weights, means, out=weights.copy(), where=means > 0)
        kept = sum(array.shape[1] for array, scale in zip(filled, scales, strict=True) if scale)
        drawn = (kept, self.hashes, self.seed)
        parameters = hash_parameters(*drawn)
        codes = _codes(arrays, sums, scales, parameters)
        components = min(self.components, len(codes) - 1)
        self.kernel_pca_ = KernelPCA(components, kernel="precomputed", eigen_solver="dense")
        self.kernel_pca_.fit(collisions(codes, codes).astype(np.float64))
        self.weights_, self.scales_, self.codes_, self.features_ = weights, scales, codes, transformers
        self.sums_, self._dimensions = sums, [array.shape[1] for array in arrays]
        self._drawn, self._hash_parameters = drawn, parameters
        return self

    def transform(self, images: Any, *, progress: Progress | None = None) -> npt.NDArray[np.float32]:
        """The embeddings (N, components); ``progress`` is called as progress(task, images done, images in all)."""
        check_is_fitted(self, msg=_UNFITTED)
        rows = ImageRows(images)
        parts = []
        for start in range(0, len(rows), _CHUNK):
            pixels = rows.take(np.arange(start, min(start + _CHUNK, len(rows))))
            kept = zip(self.features_, self.scales_, self._dimensions, strict=True)
            parts.append(
                self.transform_features(
                    [
                        of.transform(pixels) if scale else np.zeros((len(pixels), dimension), np.float32)
                        for of, scale, dimension in kept
                    ]
                )
            )
            if progress is not None:
                progress("L1HashKPCA", start + len(pixels), len(rows))
        return np.concatenate(parts)

    def transform_features(self, features: Sequence[Any]) -> npt.NDArray[np.float32]:
        """As `transform`, from what the transformers made of the images: K arrays (N, F_k)."""
        check_is_fitted(self, msg=_UNFITTED)
        arrays = checked_blocks(features, self._dimensions)
        if self._hash_parameters is None:
            self._hash_parameters = hash_parameters(*self._drawn)
        parts = []
        for start in range(0, len(arrays[0]), _CHUNK):
            some = [array[start : start + _CHUNK] for array in arrays]
            codes = _codes(some, self.sums_, self.scales_, self._hash_parameters)
            embedded = self.kernel_pca_.transform(collisions(codes, self.codes_).astype(np.float64))
            parts.append(embedded.astype(np.float32))
        return np.concatenate(parts)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "codes_")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_hash_parameters": None}

    def _chosen(self, count: int) -> npt.NDArray[np.int64]:
        """Of so many images those that are fitted, ascending."""
        rng = np.random.default_rng((self.seed, 0))
        chosen: npt.NDArray[np.int64] = np.sort(rng.permutation(count)[: self.images])
        return chosen

    def _weights(
        self, arrays: Sequence[Features], labels: npt.NDArray[np.int64] | None
    ) -> tuple[Weights, Weights]:
        """Of each feature: its weight, their sum 1, and its mean distance."""
        if labels is None:
            rng = np.random.default_rng((self.seed, 1))
            triplets = np.stack([rng.permutation(len(arrays[0])) for _ in range(3)], axis=1)
        else:
            drawn = TrainingTriplets(
                len(labels), labels=labels, relevance=None, triplets=None, seed=self.seed, draw={}
            )
            triplets = drawn.take(0, self.triplets)
        pairs = [triplet_distances("manhattan", array, triplets) for array in arrays]
        near, far = (np.stack(of, axis=1).astype(np.float64) for of in zip(*pairs, strict=True))  # (T, K)
        means = (near.mean(axis=0) + far.mean(axis=0)) / 2
        weights = np.where(means > 0, 1.0, 0.0) if means.any() else np.ones_like(means)
        if labels is not None and means.any():
            try:
                weights = max_margin((far - near) / np.where(means > 0, means, 1), self.penalty)
            except NothingSeparatesError as error:
                raise ValueError(
                    "labels: no feature is nearer within classes than across: fit without"
                ) from error
            weights[weights < self.share * weights.max()] = 0
        return weights / weights.sum(), means

    def _check(self) -> None:
        for name, minimum in {"hashes": 1, "components": 1, "images": 2, "triplets": 1, "seed": 0}.items():
            check_whole(name, getattr(self, name), minimum=minimum)
        if not 0 <= as_number(self.share) <= 1:
            raise ValueError(f"share: got {shown(self.share)}, expected a number from 0 to 1")
        check_number("penalty", self.penalty, above=0)
        if self.cache is not None:
            check_path("cache", self.cache)


def _sums(array: Features) -> npt.NDArray[np.float64]:
    sums: npt.NDArray[np.float64] = array.sum(axis=1, dtype=np.float64)
    return sums


def _filled(array: Features, total: float) -> npt.NDArray[np.float32]:
    """The rows with what they lack of this sum as one number more: (N, F) -> (N, F + 1)."""
    lack = np.maximum(0, total - _sums(array))
    return np.concatenate([array, lack[:, None]], axis=1, dtype=np.float32)


def _codes(
    arrays: Sequence[Features], sums: Sequence[float], scales: Weights, parameters: HashParameters
) -> Codes:
    """The hashes of the features of some scale, filled, times it, side by side."""
    kept = [of for of in zip(arrays, sums, scales.astype(np.float32), strict=True) if of[2]]
    parts = []
    for start in range(0, len(arrays[0]), _CHUNK):
        rows = [_filled(array[start : start + _CHUNK], total) * scale for array, total, scale in kept]
        parts.append(min_hash(np.concatenate(rows, axis=1), parameters))
    return np.concatenate(parts)


def _is_fitted(transformer: Any) -> bool:
    try:
        check_is_fitted(transformer)
    except NotFittedError:
        return False
    return True
