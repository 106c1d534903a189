"""The linear embedding of Table 2: a learned projection of features that are at hand."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from dr_plugin.checks import check_whole
from dr_plugin.losses import DeepRankingLoss
from dr_plugin.relevance.feature_rows import checked_features, pieces, unit_rows
from dr_plugin.relevance.training_triplets import seen_of
from dr_plugin.samplers import ReservoirTripletSampler, UniformTripletSampler

Progress = Callable[[str, int, int | None], None]
Features = npt.NDArray[Any]  # (N, F)

_REPORTED = 50  # steps from one call of progress to the next


def normalized_blocks(blocks: Sequence[Features]) -> npt.NDArray[np.float32]:
    """Features side by side, each row of each block over its length: K x (N, F_k) -> (N, sum F_k) float32.

    So each block has the same say in the squared Euclidean distance. A row of zeros stays one.

    Raises:
        ValueError: if there are none, they are not of the same images, or one is not features.
    """
    checked = [checked_features(block, f"block {number}") for number, block in enumerate(blocks)]
    if len({len(block) for block in checked}) != 1:
        raise ValueError(
            f"blocks: got {[block.shape for block in checked]}, expected (N, F) each, of the same N"
        )
    found = np.empty((len(checked[0]), sum(block.shape[1] for block in checked)), np.float32)
    start = 0
    for block in checked:
        for rows in pieces(block):
            found[rows, start : start + block.shape[1]] = unit_rows(block[rows].astype(np.float64))
        start += block.shape[1]
    return found


class LinearEmbedding(TransformerMixin, BaseEstimator):
    """y = Wx / |Wx|, W (size, F) trained by the ranking loss (3) on triplets of the training images.

    For Table 2's "single-scale & visual feature": x is the network's embedding and the visual features side by side
    (`normalized_blocks`), which stay as they are. Triplets are those of `UniformTripletSampler`, or, given a
    relevance, of `ReservoirTripletSampler`. The optimiser is the paper's, SGD with Nesterov's momentum and weight
    decay (of its lambda |W|^2, 2 lambda); the rate falls to 0 along a cosine.

    - W begins as a random orthogonal matrix: with `size` at least F the distances begin as those of x / |x|.
    - A row x of zeros has y = 0.
    - Rows are read as they are needed: a memory map stays on disk.
    - On one machine, with one number of threads, the same arguments give the same W to the bit.

    Differs from the paper in: it says no more of this row than that it is a linear embedding; sizes, rates and the
    number of triplets are ours, and so is the weight decay of 1e-4: the paper's lambda, .001, would make it .002.

    Args:
        size: Of the embedding, at least 1.
        steps: Batches, at least 1.
        batch_size: Images a batch, three for each triplet: a multiple of 3.
        learning_rate: At the start, > 0.
        momentum: 0 to below 1.
        weight_decay: At least 0.
        gap: g of (3), > 0.
        out_of_class_ratio, relevance_threshold, relevance_margin, capacity: Of `ReservoirTripletSampler`.
        seed: Of W and the draws, at least 0.
        device: Where to train.
    Attributes:
        weights_: W, (size, F) float32; after `fit`, as the next.
        losses_: (steps,) float32, each batch's loss before its step.
        seen: What it learned from: "class labels", "unrated relevance" or both, joined by "; ".
    Shape:
        features (N, F), labels (N,) -> embeddings (n, size) float32.
    Raises:
        ValueError: if an argument is out of range, features are not numbers from -1e6 to 1e6, labels do not match,
            there are no triplets, or the weights overflow; from `transform`, before `fit`, or if F is another.
    Example:
        >>> labels = np.arange(60) % 3
        >>> features = np.eye(3)[labels] + np.random.default_rng(0).normal(size=(60, 3))
        >>> LinearEmbedding(size=2, steps=50).fit(features, labels).transform(features).shape
        (60, 2)

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.5.
    """

    distance: ClassVar[str] = "euclidean"
    default_kernel: ClassVar[str] = "gaussian"

    weights_: npt.NDArray[np.float32]
    losses_: npt.NDArray[np.float32]
    seen: str

    def __init__(
        self,
        size: int = 512,
        *,
        steps: int = 5_000,
        batch_size: int = 384,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        gap: float = 0.2,
        out_of_class_ratio: float = 0.2,
        relevance_threshold: float | None = None,
        relevance_margin: float = 0.0,
        capacity: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.size = size
        self.steps = steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.gap = gap
        self.out_of_class_ratio = out_of_class_ratio
        self.relevance_threshold = relevance_threshold
        self.relevance_margin = relevance_margin
        self.capacity = capacity
        self.seed = seed
        self.device = device

    def fit(
        self,
        features: Features,
        labels: Any = None,
        *,
        relevance: Any = None,
        progress: Progress | None = None,
    ) -> Self:
        """Train W.

        Args:
            features: Of the training images.
            labels: Their classes, any integers; None only with a (graded) relevance.
            relevance: r(i, j) of them: an object with len, `pairs` and `total`, or an (N, N) array.
            progress: Called as progress("linear embedding", steps done, steps).
        """
        self._check_arguments()
        loss_of = DeepRankingLoss(gap=self.gap)
        features = checked_features(features)
        sampler = self._sampler(len(features), labels, relevance)
        weights, optimizer, schedule = self._start(features.shape[1])
        losses: list[Tensor] = []
        for step, batch in enumerate(sampler, 1):
            images, places = np.unique(np.asarray(batch), return_inverse=True)  # each image is taken once
            rows = torch.from_numpy(np.asarray(features[images], np.float32)).to(self.device)
            embeddings = torch.nn.functional.normalize(rows @ weights.T, dim=1)
            triplets = torch.from_numpy(places.reshape(-1, 3)).to(self.device).unbind(dim=1)
            loss = loss_of(embeddings, indices_tuple=triplets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            if progress is not None and (step % _REPORTED == 0 or step == self.steps):
                progress("linear embedding", step, self.steps)
        learned = weights.detach().cpu().numpy()
        if not np.isfinite(learned).all():
            raise ValueError(
                f"learning_rate: got {self.learning_rate}, with which the weights overflowed: lower it"
            )
        self.weights_, self.losses_ = learned, torch.stack(losses).cpu().numpy()
        self.seen = seen_of(labels=labels, relevance=relevance)
        return self

    def transform(self, features: Features, *, progress: Progress | None = None) -> npt.NDArray[np.float32]:
        """The embeddings (n, size); ``progress`` is called as progress(task, rows done, rows in all)."""
        check_is_fitted(self, msg="got %(name)s before fit(features, labels), expected it fitted")
        features = checked_features(features, dimension=self.weights_.shape[1])
        found = np.empty((len(features), len(self.weights_)), np.float32)
        for rows in pieces(features):
            found[rows] = unit_rows(np.asarray(features[rows], np.float32) @ self.weights_.T)
            if progress is not None:
                progress("linear embedding", min(rows.stop, len(features)), len(features))
        return found

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_")

    def _start(self, dimension: int) -> tuple[torch.nn.Parameter, torch.optim.SGD, LRScheduler]:
        """W as it begins, and what changes it."""
        start = torch.empty(self.size, dimension)
        torch.nn.init.orthogonal_(start, generator=torch.Generator().manual_seed(self.seed))
        weights = torch.nn.Parameter(start.to(self.device))
        optimizer = torch.optim.SGD(
            [weights],
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.momentum > 0,
            weight_decay=self.weight_decay,
        )
        return weights, optimizer, CosineAnnealingLR(optimizer, self.steps)

    def _sampler(
        self, count: int, labels: Any, relevance: Any
    ) -> UniformTripletSampler | ReservoirTripletSampler:
        if labels is None and relevance is None:
            raise ValueError("labels, relevance: got neither, expected labels, a relevance, or both")
        given = labels if labels is not None else relevance
        if not hasattr(given, "__len__") or len(given) != count:
            got = len(given) if hasattr(given, "__len__") else repr(given)
            raise ValueError(
                f"{'labels' if labels is not None else 'relevance'}: got {got}, expected one for each of "
                f"{count} rows of features"
            )
        common: dict[str, Any] = {
            "batch_size": self.batch_size,
            "batches_per_epoch": self.steps,
            "seed": self.seed,
        }
        if relevance is None:
            return UniformTripletSampler(labels, **common)
        return ReservoirTripletSampler(
            labels,
            relevance,
            capacity=self.capacity,
            out_of_class_ratio=self.out_of_class_ratio,
            relevance_threshold=self.relevance_threshold,
            relevance_margin=self.relevance_margin,
            **common,
        )

    def _check_arguments(self) -> None:
        for name, minimum in (("size", 1), ("steps", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), minimum=minimum)
        for name, least, below, wanted in (
            ("learning_rate", math.ulp(0.0), math.inf, "above 0"),
            ("momentum", 0.0, 1.0, "at least 0 and below 1"),
            ("weight_decay", 0.0, math.inf, "at least 0"),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) < below:
                raise ValueError(f"{name}: got {value!r}, expected a finite number {wanted}")
