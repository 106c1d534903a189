"""OASIS, ref. [3] of the paper: a bilinear similarity learned online from triplets."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import get_blas_funcs
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from dr_plugin.checks import as_number, check_flag, check_seed, check_whole, shown
from dr_plugin.relevance.classes import Labels
from dr_plugin.relevance.feature_rows import Features, checked_features, pieces, unit_rows
from dr_plugin.relevance.training_triplets import TrainingTriplets, seen_of

Progress = Callable[[str, int, int | None], None]
Matrix = npt.NDArray[Any]  # (F, F), float32 or float64

PROJECTIONS = (None, "symmetric", "psd")
_BLOCK = 128  # triplets whose scores are computed at once
_REPORTED = 32  # blocks from one call of progress to the next


class OASIS(TransformerMixin, BaseEstimator):
    """S(p, q) = p'Wq, learned by the passive-aggressive online algorithm of ref. [3], on features of images.

    From W = I, at each triplet (p, p+, p-), with loss l = max(0, 1 - S(p, p+) + S(p, p-)) and V = p (p+ - p-)':
    W <- W + tau V, tau = min(aggressiveness, l / ||V||^2). The triplets are

    - given `labels`: uniform, a positive of the query's class and a negative of another;
    - given a `relevance` with labels (or graded, alone): in proportion to it, as the paper's relevance training data;
    - given `triplets`: these, in their order, and again from the first.

    It is exact, but not computed triplet by triplet: p'W(p+ - p-) of a block of triplets is one matrix product with
    the W at its start, to which each update s made since adds tau_s (p_t.p_s) (p+_s - p-_s).(p+_t - p-_t), numbers of
    two Gram matrices; then W is updated by the whole block at once. So no triplet costs a pass over W.

    - V = 0 (a query of zeros, or p+ equal to p-) changes nothing.
    - The margin is 1, so the scale of the features matters: `normalize`, or give unit rows.
    - Rows are read as they are needed: a memory map stays on disk.
    - Computed in float64 if the features are, else in float32.
    - It may stand where a transformer's features go on to be compared: `transform` gives them as they are, and
      `distances` compares them.

    Args:
        aggressiveness: C > 0, the largest step.
        steps: Triplets that `fit` learns from, at least 1.
        projection: Of the learned W: None; "symmetric", (W + W') / 2; "psd", the nearest symmetric one without
            negative eigenvalues. What `partial_fit` goes on from is W itself.
        normalize: Take each row over its Euclidean length.
        out_of_class_ratio, relevance_threshold, relevance_margin: Of triplets drawn by a relevance, as of
            `ReservoirTripletSampler`.
        seed: Of the draws, at least 0.
    Attributes:
        weights_: W, (F, F).
        steps_: Triplets learned from so far.
        updates_: Those of them that cost something, and changed W.
        seen: What they came from: "class labels", "unrated relevance", "given triplets", joined by "; ".
    Shape:
        features (N, F), labels (N,), triplets (T, 3) -> similarities (n, m).
    Raises:
        ValueError: from `fit`, if an argument is out of range, features are not numbers from -1e6 to 1e6, or there are
            no triplets; from all else, before `fit`, or if the features are of another F.
    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = np.arange(40) % 2
        >>> features = np.stack([labels - 0.5, 3 * rng.normal(size=40)], axis=1)  # the second tells nothing
        >>> oasis = OASIS(steps=5_000).fit(features, labels)
        >>> bool(oasis.weights_[0, 0] > 10 * abs(oasis.weights_[1, 1]))
        True
        >>> oasis.similarities(features[:2], features).shape
        (2, 40)

    References:
        Chechik, Sharma, Shalit and Bengio, Large Scale Online Learning of Image Similarity Through Ranking, JMLR 2010.
    """

    distance: ClassVar[str] = "own"

    weights_: Matrix
    steps_: int
    updates_: int
    seen: str
    _weights: Matrix  # before the projection, in Fortran order; where there is none, weights_ itself

    def __init__(
        self,
        *,
        aggressiveness: float = 0.1,
        steps: int = 1_000_000,
        projection: str | None = None,
        normalize: bool = False,
        out_of_class_ratio: float = 0.2,
        relevance_threshold: float | None = None,
        relevance_margin: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.aggressiveness = aggressiveness
        self.steps = steps
        self.projection = projection
        self.normalize = normalize
        self.out_of_class_ratio = out_of_class_ratio
        self.relevance_threshold = relevance_threshold
        self.relevance_margin = relevance_margin
        self.seed = seed

    def fit(
        self,
        features: Features,
        labels: Labels | None = None,
        *,
        relevance: object | None = None,
        triplets: npt.ArrayLike | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from `steps` triplets, from the identity on.

        Args:
            features: Of the training images.
            labels: Their classes, any integers.
            relevance: r(i, j) of them: an object with len, `pairs` and `total`, or an (N, N) array.
            triplets: Query, positive and negative, as rows of the features.
            progress: Called as progress("OASIS", triplets done, triplets in all).
        """
        data = {"labels": labels, "relevance": relevance, "triplets": triplets}
        return self._learn(features, data, self.steps, None, progress)

    def partial_fit(
        self,
        features: Features,
        labels: Labels | None = None,
        *,
        relevance: object | None = None,
        triplets: npt.ArrayLike | None = None,
        steps: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Go on where the last call stopped, in W and in the sequence of triplets; the first call begins.

        On the same data, calls of `partial_fit` give what one `fit` of as many steps gives: up to rounding, and to
        the bit where each but the last has a multiple of 128 steps.

        Args:
            steps: Triplets of this call; None: `steps` of the constructor.
            features, labels, relevance, triplets, progress: As of `fit`.
        """
        data = {"labels": labels, "relevance": relevance, "triplets": triplets}
        start = self if self.__sklearn_is_fitted__() else None
        return self._learn(features, data, self.steps if steps is None else steps, start, progress)

    def transform(self, features: Features) -> Features:
        """The features as they are, to be compared by `distances`: (N, F), in the dtype of `weights_`."""
        given = self._checked(features, "features")
        return np.array(given, dtype=self.weights_.dtype)

    def similarities(self, x: Features, y: Features) -> Features:
        """S of each of x with each of y: (n, F), (m, F) -> (n, m), in the dtype of `weights_`."""
        x, y = self._checked(x, "x"), self._checked(y, "y")
        found = np.empty((len(x), len(y)), self.weights_.dtype)
        for rows in pieces(x):
            images = self._rows(x[rows]) @ self.weights_
            for columns in pieces(y):
                found[rows, columns] = images @ self._rows(y[columns]).T
        return found

    def distances(self, x: Features, y: Features) -> Features:
        """-S, the nearer the smaller: (n, F), (m, F) -> (n, m)."""
        found = self.similarities(x, y)
        return np.negative(found, out=found)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")

    def _learn(
        self,
        features: Features,
        data: dict[str, Any],
        steps: int,
        start: "OASIS | None",
        progress: Progress | None,
    ) -> Self:
        self._check_arguments(steps)
        steps = int(steps)  # numpy's might overflow
        features = checked_features(features, dimension=None if start is None else len(start.weights_))
        draw = {
            name: getattr(self, name)
            for name in ("out_of_class_ratio", "relevance_threshold", "relevance_margin")
        }
        source = TrainingTriplets(len(features), seed=self.seed, draw=draw, **data)
        if start is None:
            dtype = np.float64 if features.dtype == np.float64 else np.float32
            weights: Matrix = np.eye(features.shape[1], dtype=dtype, order="F")
            done = updates = 0
        else:
            weights, done, updates = start._weights.copy(order="F"), start.steps_, start.updates_
        first, end = done, done + steps
        while done < end:
            stop = min(end, done + _BLOCK)
            query, positive, negative = (
                self._rows(features[rows], weights.dtype) for rows in source.take(done, stop).T
            )
            positive -= negative
            updates += learn_block(weights, query, positive, float(self.aggressiveness))
            done = stop
            if progress is not None and (done == end or done % (_BLOCK * _REPORTED) == 0):
                progress("OASIS", done - first, steps)
        if not np.isfinite(weights).all():
            raise ValueError(
                "features: got so large ones that the weights overflowed: scale them, or normalize=True"
            )
        self._weights, self.steps_, self.updates_ = weights, done, updates
        self.weights_ = _projected(weights, self.projection)
        before = [] if start is None else start.seen.split("; ")
        self.seen = "; ".join(dict.fromkeys([*before, *seen_of(**data).split("; ")]))
        return self

    def _rows(self, rows: Features, dtype: Any = None) -> Features:
        """Taken rows as they are computed with; a copy where they are a part of something else."""
        found = np.array(rows, dtype=self.weights_.dtype if dtype is None else dtype, order="C")
        return unit_rows(found) if self.normalize else found

    def _checked(self, features: Features, name: str) -> Features:
        check_is_fitted(self, msg="got %(name)s before fit(features, labels), expected it fitted")
        return checked_features(features, name, len(self.weights_))

    def _check_arguments(self, steps: int) -> None:
        check_whole("steps", steps, minimum=1)
        check_seed(self.seed)
        if not 0 < as_number(self.aggressiveness) < math.inf:
            raise ValueError(
                f"aggressiveness: got {shown(self.aggressiveness)}, expected a finite number above 0"
            )
        if not isinstance(self.projection, str | None) or self.projection not in PROJECTIONS:
            raise ValueError(f"projection: got {shown(self.projection)}, expected None, 'symmetric' or 'psd'")
        check_flag("normalize", self.normalize)


def learn_block(weights: Matrix, query: Features, difference: Features, aggressiveness: float) -> int:
    """One step of OASIS for each triplet in turn, on W in place.

    Args:
        weights: W, in Fortran order.
        query: p of each triplet.
        difference: p+ - p- of each, in the dtype of W, as the queries.
        aggressiveness: C.
    Shape:
        weights (F, F), query (B, F), difference (B, F).
    Returns:
        How many triplets changed W.
    """
    scores = np.einsum("tf,tf->t", query @ weights, difference)  # S(p, p+) - S(p, p-) before the block
    alike = query @ query.T
    # (s, t): what a step of rate 1 at s adds to the score of t; (t, t): ||V_t||^2.
    alike *= difference @ difference.T
    rates = np.zeros_like(scores)
    for t, square in enumerate(alike.diagonal().tolist()):
        loss = 1.0 - float(scores[t])
        if loss > 0 and square > 0:
            rates[t] = rate = min(aggressiveness, loss / square)
            scores[t + 1 :] += rate * alike[t, t + 1 :]
    changed = np.flatnonzero(rates)
    if len(changed):
        steps = difference[changed]
        steps *= rates[changed, None]
        gemm = get_blas_funcs("gemm", (weights,))
        # Transposed, both are in Fortran order: nothing is copied, W included.
        gemm(1.0, query[changed].T, steps.T, beta=1.0, c=weights, trans_b=True, overwrite_c=True)
    return len(changed)


def _projected(weights: Matrix, projection: str | None) -> Matrix:
    if projection is None:
        return weights
    symmetric: Matrix = (weights + weights.T) / 2
    if projection == "symmetric":
        return symmetric
    values, vectors = np.linalg.eigh(symmetric.astype(np.float64))
    found: Matrix = ((vectors * np.maximum(values, 0)) @ vectors.T).astype(weights.dtype)
    return found
