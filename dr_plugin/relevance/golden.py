"""The paper's golden feature: a weighted linear combination of the similarities of several features."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import TransformerMixin
from sklearn.exceptions import NotFittedError

from dr_plugin.checks import as_array, as_indices, as_number, check_path, check_seed, check_whole, shown
from dr_plugin.relevance.base import BaseRelevance, Values, digest
from dr_plugin.relevance.classes import Classes, Labels
from dr_plugin.relevance.feature import FeatureRelevance, UserKernel
from dr_plugin.relevance.feature_store import (
    ImageTransformer,
    cached_features,
    compute_features,
)
from dr_plugin.relevance.image_rows import ImageRows
from dr_plugin.relevance.max_margin import NothingSeparatesError, max_margin
from dr_plugin.relevance.named import named_transformers
from dr_plugin.triplets import RANDOM_BITS, UniformTriplets
from dr_plugin.triplets.kernels import check_kernel
from dr_plugin.triplets.relevances import Indices

Progress = Callable[[str, int, int | None], None]
Weights = npt.NDArray[np.float64]  # (K,)

_SCALED_PAIRS = 10_000  # from which a similarity's scale is estimated
_MANY = 4096  # images from which on processes pay
_ROUNDING = 1e-6  # a standard deviation below this is float32's rounding, not a difference of images


class GoldenFeatures(BaseRelevance):
    """r(i, j) = sum_k w_k s_k(i, j) / sum_k w_k within a class, 0 across: several features' similarities in one.

    s_k is a kernel of feature k, brought to the scale of the others: z is the kernel's value less its mean, over
    its standard deviation, both over 10,000 seeded pairs of different images of one class; s_k = ln(1 + e^z). That
    keeps the order and r >= 0; it is nearly z for pairs more alike than most, and goes to 0 for those less alike.
    (Unscaled, HOG's kernel gives most pairs of a class .5 to .7, and draws by r would be nearly uniform.)

    `weights` is one of

    - "equal";
    - "learned": those that best tell the classes of the fitted images apart, by max-margin: the w >= 0 that minimise
      mean_t max(0, 1 - w.(s(q, p) - s(q, n)))^2 + penalty |w|^2 over seeded triplets t, the query uniform over the
      images that have a partner, the positive over the rest of its class, the negative over the other classes;
    - numbers, one a feature.

    Weights are learned from class labels, never from rated triplets: the paper keeps those for evaluation. Where you
    have ratings, learn out of fold, and pass the numbers.

    - A kernel that is the same for all pairs has z = 0.
    - Features are those of the transformers as they are: one that learns must have learned.

    Differs from the paper in: its golden feature combines more features, and its weights are learned on rated
    triplets; the scale is ours, the paper gives none.

    Args:
        features: Transformers of images, or names of classes of `dr_plugin.relevance.features`.
        kernels: One a feature, as of `FeatureRelevance`; None, also for one of them: the transformer's
            `default_kernel` (a histogram's "intersection"), else "gaussian" with the median bandwidth.
        weights: As above.
        triplets: How many to learn weights from.
        penalty: On the squared weights, > 0; 1 is the margin.
        seed: Of all draws.
        cache: A folder for features; None: they stay in memory.
        n_jobs: Processes that compute features of more than 4,096 images; None is 1, -1 all cores.
    Attributes:
        weights_: (K,) float64, their sum 1; after `fit`, as all below.
        similarities_: K `FeatureRelevance`, without classes.
        scales_: (K, 2) float64, each kernel's mean and standard deviation.
    Shape:
        images (N, 3, H, W) uint8 or an object with `len` and `batch(indices)`, such as PackedImages; labels (N,).
    Raises:
        ValueError: if an argument is none of these; from `fit`, if images or labels are not, or weights are to be
            learned where no class has two images, there is one class only, or no feature tells classes apart; from
            all else, before `fit`.
    Example:
        >>> golden = GoldenFeatures(weights="learned", cache="cache/features")  # doctest: +SKIP
        >>> golden.fit(packed, packed.labels).weights_  # doctest: +SKIP
        array([0.55, 0.45])
        >>> stored = StoredRelevance.build(golden, "cache/relevance")  # doctest: +SKIP

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, sections 5.1 and 6.4.
    """

    def __init__(
        self,
        features: Sequence[str | TransformerMixin] = ("LABHistogram", "HOG"),
        *,
        kernels: Sequence[str | UserKernel | None] | None = None,
        weights: Literal["equal", "learned"] | Sequence[float] = "equal",
        triplets: int = 20_000,
        penalty: float = 1e-3,
        seed: int = 0,
        cache: str | os.PathLike[str] | None = None,
        n_jobs: int | None = -1,
    ) -> None:
        self.features = named_transformers(features)
        self.kernels = _kernels(kernels, self.features)
        self.weights = _weights(weights, len(self.features))
        triplets = check_whole("triplets", triplets, minimum=1)
        seed = check_seed(seed)
        if not 0 < as_number(penalty) < math.inf:
            raise ValueError(f"penalty: got {shown(penalty)}, expected a finite number above 0")
        self.triplets, self.penalty, self.seed, self.n_jobs = triplets, float(penalty), seed, n_jobs
        self.cache = None if cache is None else check_path("cache", cache)

    def fit(self, images: Any, labels: Labels | None, *, progress: Progress | None = None) -> Self:
        """Become the relevance of these images: compute or find their features, then scales and weights.

        Args:
            images: As above.
            labels: Classes, any integers; None: all images are one class (graded relevance).
            progress: Called as progress("<transformer> features", images done, images in all).
        """
        rows = ImageRows(images)
        classes = Classes(labels, len(rows))
        triplets = self._class_triplets(classes) if self.weights == "learned" else None
        similarities = [
            self._similarity(transformer, kernel, rows, classes, progress)
            for transformer, kernel in zip(self.features, self.kernels, strict=True)
        ]
        i, j = _class_pairs(classes, _SCALED_PAIRS, self.seed)
        scales = np.array([_scale(similarity.pairs(i, j)) for similarity in similarities])
        if triplets is not None:
            query, positive, negative = triplets
            nearer = [
                _scaled(of.pairs(query, positive), scale) - _scaled(of.pairs(query, negative), scale)
                for of, scale in zip(similarities, scales, strict=True)
            ]
            weights = _learned(np.stack(nearer, axis=1), self.penalty)
        else:
            weights = np.array([1.0] * len(similarities) if self.weights == "equal" else self.weights)
        super().__init__(len(rows), classes.labels)
        self.similarities_, self.scales_, self.weights_ = similarities, scales, weights / weights.sum()
        return self

    def cross(self, images: Any, j: npt.ArrayLike) -> Values:
        """How relevant fitted images j (n,) are to Q images, fitted or not, whatever their classes: (Q, n).

        The features of images are computed anew in each call.
        """
        j, rows = as_indices("j", j, len(self)), ImageRows(images)
        queries = (compute_features(of, rows, n_jobs=self._jobs(rows)) for of in self.features)
        parts = zip(self.similarities_, queries, strict=True)
        return self._combined(similarity.cross(query, j) for similarity, query in parts)

    def fingerprint(self) -> bytes | None:
        """Of features, labels, kernels, scales and weights; None with a kernel of the user's."""
        parts = [similarity.fingerprint() for similarity in self.similarities_]
        known = [part for part in parts if part is not None]
        return digest(*known, self.classes.number, self.scales_, self.weights_) if known == parts else None

    def _pairs(self, i: Indices, j: Indices) -> Values:
        return self._combined(similarity.pairs(i, j) for similarity in self.similarities_)

    def _rectangle(self, i: Indices, j: Indices) -> Values:
        return self._combined(similarity.rectangle(i, j) for similarity in self.similarities_)

    def _combined(self, kernels: Iterable[Values]) -> Values:
        """The weighted sum of the scaled similarities, of each kernel's values."""
        parts = zip(self.weights_, kernels, self.scales_, strict=True)
        combined: Values = np.sum(
            [np.float32(weight) * _scaled(values, scale) for weight, values, scale in parts], axis=0
        )
        return combined

    def _similarity(
        self,
        transformer: ImageTransformer,
        kernel: str | UserKernel,
        rows: ImageRows,
        classes: Classes,
        progress: Progress | None,
    ) -> FeatureRelevance:
        """One feature's, of any two images; its bandwidth is that of pairs of one class."""
        jobs = self._jobs(rows)
        features = cached_features(transformer, rows, self.cache, n_jobs=jobs, progress=progress)
        in_class = FeatureRelevance(features, classes.labels, kernel=kernel, seed=self.seed)
        return FeatureRelevance(features, kernel=kernel, bandwidth=in_class.bandwidth)

    def _class_triplets(self, classes: Classes) -> list[Indices]:
        """Query, positive and negative (T,) from which weights are learned."""
        triplets = UniformTriplets(torch.from_numpy(classes.number))
        if len(triplets.queries) == 0:
            raise ValueError(
                f"labels: got {len(classes)} classes of up to {classes.sizes.max()} images, expected at least two "
                "classes and in one of them two images, to learn weights: or choose weights='equal'"
            )
        rng = np.random.default_rng((self.seed, 1))
        bits = torch.from_numpy(rng.integers(0, 1 << RANDOM_BITS, (3, self.triplets)))
        queries = triplets.draw_queries(bits[0])
        return [images.numpy() for images in (queries, *triplets.draw(queries, bits[1:]))]

    def _jobs(self, rows: ImageRows) -> int | None:
        return self.n_jobs if len(rows) > _MANY else 1

    def __getattr__(self, name: str) -> Any:
        if name in ("classes", "labels", "similarities_", "scales_", "weights_"):  # not there before `fit`
            raise NotFittedError("got GoldenFeatures before fit(images, labels), expected them fitted")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _class_pairs(classes: Classes, count: int, seed: int) -> tuple[Indices, Indices]:
    """Different images of one class, (n,) each: uniform over the images that have a partner, and over partners."""
    rng = np.random.default_rng((seed, 0))
    others = classes.sizes[classes.number] - 1
    candidates = np.flatnonzero(others)
    if len(candidates) == 0:
        return candidates, candidates
    i = rng.choice(candidates, count)
    place = rng.integers(0, others[i])
    place += place >= classes.place[i]
    return i, classes.order[classes.start[classes.number[i]] + place]


def _learned(nearer: Values, penalty: float) -> Weights:
    try:
        return max_margin(nearer, penalty)
    except NothingSeparatesError as error:
        raise ValueError(
            "weights: got 'learned', but no feature is more alike within classes than across: choose 'equal'"
        ) from error


def _scale(values: Values) -> tuple[float, float]:
    """Mean and standard deviation; 1 where there is no deviation."""
    if len(values) == 0:
        return 0.0, 1.0
    deviation = float(values.std(dtype=np.float64))
    return float(values.mean(dtype=np.float64)), deviation if deviation > _ROUNDING else 1.0


def _scaled(values: Values, scale: npt.NDArray[np.float64]) -> Values:
    """ln(1 + e^z) of the standardised values."""
    mean, deviation = scale.astype(np.float32)
    scaled: Values = np.logaddexp(np.float32(0), (values - mean) / deviation)
    return scaled


def _kernels(
    kernels: Sequence[str | UserKernel | None] | None, transformers: Sequence[Any]
) -> list[str | UserKernel]:
    """One a transformer."""
    if kernels is not None and (not isinstance(kernels, list | tuple) or len(kernels) != len(transformers)):
        raise ValueError(f"kernels: got {shown(kernels)}, expected {len(transformers)}, one a feature")
    given = [None] * len(transformers) if kernels is None else kernels
    found = [
        getattr(transformer, "default_kernel", "gaussian") if kernel is None else kernel
        for transformer, kernel in zip(transformers, given, strict=True)
    ]
    for kernel in found:
        if not callable(kernel):
            check_kernel(kernel)
    return found


def _weights(weights: str | Sequence[float], count: int) -> str | list[float]:
    """How weights are had, or the weights, one a feature."""
    if isinstance(weights, str) and weights in ("equal", "learned"):
        return weights
    array = as_array("weights", weights)
    right = array.shape == (count,) and array.dtype.kind in "fiu"
    if not right or not ((array >= 0) & np.isfinite(array)).all() or not array.any():
        raise ValueError(
            f"weights: got {shown(weights)}, expected 'equal', 'learned' or a finite number for each of the "
            f"{count} features, at least 0, not all 0"
        )
    return [float(weight) for weight in array]
