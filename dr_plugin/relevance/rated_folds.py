"""What is learned from human ratings, and only out of fold: folds of rated triplets, and golden features on them."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dr_plugin.checks import check_seed, check_whole
from dr_plugin.relevance.max_margin import NothingSeparatesError, max_margin
from dr_plugin.triplets.groups import triplet_groups
from dr_plugin.triplets.relevances import Indices

Progress = Callable[[str, int, int | None], None]
Similarities = npt.NDArray[np.floating]
Weights = npt.NDArray[np.float64]

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def grouped_folds(
    text_queries: Sequence[str], triplets: npt.ArrayLike, n_folds: int = 10, seed: int = 0
) -> Indices:
    """A fold for each rated triplet, so that no text query and no image is in two folds.

    Triplets that share a text query or an image, directly or over others, form a group (the connected components).
    Groups go to folds whole, the largest first, each to the fold that has the fewest triplets so far; groups of one
    size are in seeded order. So folds differ by no more than the largest group.

    Args:
        text_queries: One a triplet.
        triplets: Query, positive and negative, as numbers of images.
        n_folds: At least 2.
        seed: At least 0.
    Shape:
        text_queries (T,), triplets (T, 3) -> (T,) int64, 0 to n_folds - 1.
    Raises:
        ValueError: if an argument is none of these, or there are fewer groups than folds.
    Example:
        >>> grouped_folds(["cat", "cat", "dog", "car"], [[0, 1, 2], [3, 4, 5], [6, 7, 8], [8, 9, 10]], n_folds=2)
        array([1, 1, 0, 0])

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.2.
    """
    images = _checked_triplets(triplets)
    if isinstance(text_queries, str) or len(text_queries) != len(images):
        raise ValueError(
            f"text_queries: got {len(text_queries)}, expected one for each of {len(images)} triplets"
        )
    check_whole("n_folds", n_folds, minimum=2)
    check_seed(seed)
    group = triplet_groups(text_queries, images)
    sizes = np.bincount(group)
    if len(sizes) < n_folds:
        raise ValueError(
            f"n_folds: got {n_folds} for {len(sizes)} groups of triplets that share neither text query nor image, "
            "expected no more folds than groups"
        )
    folds: Indices = _dealt(sizes, n_folds, seed)[group]
    return folds


class OutOfFoldGolden(BaseEstimator):
    """The paper's golden feature on rated triplets: max-margin weights of K similarities, each fold's from the others.

    s(q, i) = sum_k w_k z_k(q, i), z_k being similarity k less its mean, over its standard deviation. A fold's w >= 0
    (see `max_margin`), means and deviations come from the rated triplets of the other folds only, by `grouped_folds`:
    no text query and no image of the fold has been seen. What a row of a table that shows it has seen is in `seen`.

    - `penalty=None` chooses one of `PENALTIES` for each fold by folds of its training triplets alone, grouped in the
      same way: the one that ranks most of them right, out of these inner folds; of equals the largest.
    - A similarity that is the same for all training pairs has z = 0, by an infinite deviation.
    - Equal similarities of positive and negative give margin 0: no order.

    Differs from the paper in: its ratings for learning are not those of its evaluation, and were not published.

    Args:
        n_folds: At least 2.
        penalty: On the squared weights, > 0 (1 is the margin); None: chosen as above.
        inner_folds: At least 2; as many as there are groups where these are fewer.
        seed: Of the folds.
    Attributes:
        folds_: (T,) int64, each triplet's fold.
        weights_: (n_folds, K), of the standardised similarities; after `fit`, as all here.
        means_, deviations_: (n_folds, K).
        penalties_: (n_folds,).
        margins_: (T,) out of fold, s(q, p) - s(q, n): above 0 where the order is the rated one.
        text_query_folds_: The fold of each text query, a dictionary.
    Shape:
        positive, negative (T, K): s_k(q, p) and s_k(q, n) of each rated triplet (for a distance, its negative).
    Raises:
        ValueError: if an argument is out of range, shapes do not match, a number is not finite, there are too few
            groups, or no similarity orders the training triplets of a fold better than chance.
    Example:
        >>> rng = np.random.default_rng(0)
        >>> positive, negative = rng.normal([1.0, 0.0], 1, (200, 2)), rng.normal(0, 1, (200, 2))
        >>> triplets = np.arange(600).reshape(200, 3)
        >>> golden = OutOfFoldGolden(n_folds=4).fit(positive, negative, [str(t) for t in range(200)], triplets)
        >>> golden.seen, golden.weights_.shape, bool((golden.weights_[:, 0] > golden.weights_[:, 1]).all())
        ('ratings, out of fold', (4, 2), True)

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, sections 6.1 and 6.4.
    """

    seen: ClassVar[str] = "ratings, out of fold"

    def __init__(
        self, *, n_folds: int = 10, penalty: float | None = None, inner_folds: int = 5, seed: int = 0
    ) -> None:
        self.n_folds = n_folds
        self.penalty = penalty
        self.inner_folds = inner_folds
        self.seed = seed

    def fit(
        self,
        positive: Similarities,
        negative: Similarities,
        text_queries: Sequence[str],
        triplets: npt.ArrayLike,
        *,
        progress: Progress | None = None,
    ) -> Self:
        """Learn each fold's weights from the other folds.

        Args:
            positive, negative: As above.
            text_queries: One a triplet.
            triplets: Query, positive and negative (T, 3), as numbers of images.
            progress: Called as progress("golden folds", folds done, n_folds).
        """
        penalties = self._penalties()
        positive, negative = _checked(positive, "positive"), _checked(negative, "negative")
        images = _checked_triplets(triplets)
        if not len(positive) == len(negative) == len(images) or positive.shape != negative.shape:
            raise ValueError(
                f"positive, negative, triplets: got {positive.shape}, {negative.shape} and {images.shape}, expected "
                "(T, K), (T, K) and (T, 3)"
            )
        folds = grouped_folds(text_queries, images, self.n_folds, self.seed)
        text = np.asarray(text_queries, dtype=str)
        found: list[tuple[Weights, Weights, Weights, float]] = []
        for fold in range(self.n_folds):
            train = folds != fold
            penalty = penalties[0]
            if len(penalties) > 1:
                penalty = self._chosen(positive[train], negative[train], text[train], images[train])
            mean, deviation, weights = _learned(positive[train], negative[train], penalty)
            found.append((mean, deviation, weights, penalty))
            if progress is not None:
                progress("golden folds", fold + 1, self.n_folds)
        self.means_, self.deviations_, self.weights_, self.penalties_ = map(
            np.array, zip(*found, strict=True)
        )
        self.folds_ = folds
        self.text_query_folds_ = dict(zip(text.tolist(), folds.tolist(), strict=True))
        self.margins_ = ((positive - negative) / self.deviations_[folds] * self.weights_[folds]).sum(axis=1)
        return self

    def distances(self, similarities: Similarities, folds: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """-s of queries to any images, each query with the weights of its own fold, which has not seen it.

        Distances of queries of different folds are not on one scale: rank within a query.

        Args:
            similarities: s_k(q, i) of each of Q queries to n images.
            folds: Of each query: `folds_` of its triplet, or `text_query_folds_` of its text query.
        Shape:
            similarities (Q, n, K), folds (Q,) -> (Q, n) float32.
        """
        check_is_fitted(self, msg="got %(name)s before fit, expected it fitted")
        values, folds = np.asarray(similarities, dtype=np.float64), np.asarray(folds)
        wanted = (len(folds), self.weights_.shape[1])
        if values.ndim != 3 or (values.shape[0], values.shape[2]) != wanted or not np.isfinite(values).all():
            raise ValueError(
                f"similarities: got shape {values.shape}, expected finite numbers ({wanted[0]}, n, {wanted[1]})"
            )
        if folds.dtype.kind not in "iu" or ((folds < 0) | (folds >= len(self.weights_))).any():
            raise ValueError(
                f"folds: got {folds.tolist()}, expected numbers of folds, 0 to {len(self.weights_) - 1}"
            )
        factors = self.weights_[folds] / self.deviations_[folds]  # (Q, K)
        constant = (factors * self.means_[folds]).sum(axis=1)
        found: npt.NDArray[np.float32] = constant[:, None] - np.einsum("qnk,qk->qn", values, factors)
        return found.astype(np.float32)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")

    def _chosen(
        self,
        positive: Similarities,
        negative: Similarities,
        text_queries: npt.NDArray[np.str_],
        images: Indices,
    ) -> float:
        """The penalty that ranks most of these triplets right, out of folds of their own."""
        count = min(self.inner_folds, int(triplet_groups(text_queries, images).max()) + 1)
        if count < 2:
            raise ValueError(
                "penalty: got None, but the training triplets of a fold share text queries or images, all of them: "
                "there are no inner folds to choose it by; expected a number"
            )
        groups = grouped_folds(text_queries.tolist(), images, count, self.seed)
        right = np.zeros(len(PENALTIES))
        for fold in range(count):
            train, test = groups != fold, groups == fold
            for number, penalty in enumerate(PENALTIES):
                _, deviation, weights = _learned(positive[train], negative[train], penalty)
                margins = (positive[test] - negative[test]) @ (weights / deviation)
                right[number] += np.count_nonzero(margins > 0)
        return PENALTIES[len(PENALTIES) - 1 - int(right[::-1].argmax())]

    def _penalties(self) -> tuple[float, ...]:
        """Those to choose from; ValueError if an argument is out of range."""
        check_whole("n_folds", self.n_folds, minimum=2)
        check_whole("inner_folds", self.inner_folds, minimum=2)
        if self.penalty is None:
            return PENALTIES
        if (
            isinstance(self.penalty, bool)
            or not isinstance(self.penalty, int | float)
            or not 0 < self.penalty < np.inf
        ):
            raise ValueError(
                f"penalty: got {self.penalty!r}, expected a finite number above 0, or None to choose one"
            )
        return (float(self.penalty),)


def _dealt(sizes: Indices, n_folds: int, seed: int) -> Indices:
    """The fold of each group, of these sizes."""
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of_group, filled = np.empty(len(sizes), np.int64), np.zeros(n_folds, np.int64)
    for number in order:
        fold = int(filled.argmin())
        fold_of_group[number] = fold
        filled[fold] += sizes[number]
    return fold_of_group


def _learned(
    positive: Similarities, negative: Similarities, penalty: float
) -> tuple[Weights, Weights, Weights]:
    """Mean, deviation and weight of each similarity (K,), from training triplets."""
    both = np.concatenate((positive, negative))
    mean, deviation = both.mean(axis=0), both.std(axis=0)
    # A deviation below this is rounding, not a difference of images: the similarity is out, by a scale without end.
    deviation = np.where(deviation > 1e-6 * np.maximum(1, np.abs(mean)), deviation, np.inf)
    try:
        return mean, deviation, max_margin((positive - negative) / deviation, penalty)
    except NothingSeparatesError as error:
        raise ValueError(
            "positive, negative: got no similarity that is larger for positives than for negatives in the mean of a "
            "fold's training triplets, expected one: are they distances, or the answers exchanged?"
        ) from error


def _checked(similarities: Any, name: str) -> Weights:
    array = np.asarray(similarities)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise ValueError(f"{name}: got {array.dtype} of shape {array.shape}, expected finite numbers (T, K)")
    return array.astype(np.float64)


def _checked_triplets(triplets: npt.ArrayLike) -> Indices:
    images = np.asarray(triplets)
    if images.ndim != 2 or images.shape[1] != 3 or len(images) == 0 or images.dtype.kind not in "iu":
        raise ValueError(
            f"triplets: got {images.dtype} of shape {images.shape}, expected integers (T, 3), T at least 1"
        )
    return images.astype(np.int64)
