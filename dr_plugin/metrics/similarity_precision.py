"""Similarity precision: how many rated triplets a distance ranks right."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dr_plugin.checks import shown
from dr_plugin.metrics.resampling import (
    Groups,
    bootstrap_interval,
    check_resampling,
    cluster_sums,
    one_per_triplet,
)

Ties = Literal["half", "wrong", "left_out"]


@dataclass(frozen=True)
class SimilarityPrecision:
    """A similarity precision with its bootstrap interval; ``float()`` of it is the value.

    Attributes:
        value: The share ranked right, 0..1.
        low: Lower end of the interval; NaN where there is only one triplet or group, or no resample counts any.
        high: Upper end of the interval.
        right: Triplets whose positive is strictly nearer.
        wrong: Triplets whose negative is strictly nearer.
        tied: Triplets whose two distances are equal.
        n: Triplets that the value is a share of: all, or all but the tied with ties="left_out".
    """

    value: float
    low: float
    high: float
    right: int
    wrong: int
    tied: int
    n: int

    def __float__(self) -> float:
        return self.value


def similarity_precision(
    positive_distances: Tensor | NDArray[Any],
    negative_distances: Tensor | NDArray[Any],
    *,
    ties: Ties = "half",
    groups: Groups | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> SimilarityPrecision:
    """Share of the triplets whose positive is nearer to the query than the negative, with a bootstrap interval.

    1/T sum_t [D(q_t, p_t) < D(q_t, n_t)], and what ``ties`` gives where the two are equal.

    - Random distances give 1/2; distances that are all equal (a collapsed model) give 1/2 too with ties="half", and
      0 with "wrong".
    - The interval is the percentile bootstrap's. Triplets of one text query share images and raters' moods: as
      ``groups`` they are drawn together, and the interval is as wide as it should be.

    Args:
        positive_distances: D(q, p) of each triplet; any distance, smaller is nearer.
        negative_distances: D(q, n) of each triplet.
        ties: What equal distances count: "half" a right one, as much as a "wrong" one, or "left_out" of both counts.
        groups: What each triplet belongs to, as its text query (names or ids); resampled whole. None: each by itself.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap; the same input gives the same interval.
    Shape:
        (T,) and (T,), of any numeric type, groups of length T -> SimilarityPrecision.
    Raises:
        ValueError: if the shapes differ, there is no triplet, a distance is complex, NaN or infinite, groups cannot be
            sorted, or ties="left_out" leaves none.
    Example:
        >>> import torch
        >>> near, far = torch.tensor([0.1, 0.2, 0.9, 0.5]), torch.tensor([0.4, 0.3, 0.2, 0.5])
        >>> result = similarity_precision(near, far)
        >>> result.value, result.right, result.wrong, result.tied
        (0.625, 2, 1, 1)
        >>> similarity_precision(near, far, ties="wrong").value
        0.5

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.3.
        Efron, Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not isinstance(ties, str) or ties not in ("half", "wrong", "left_out"):
        raise ValueError(f"got ties={shown(ties)}, expected 'half', 'wrong' or 'left_out'")
    check_resampling(confidence, resamples, seed)
    right = triplets_right(positive_distances, negative_distances).numpy()
    tied = right == 0.5
    counted = np.where(tied, float(ties != "left_out"), 1.0)
    if not counted.any():
        raise ValueError(
            f"got {len(right)} triplets, all tied, with ties='left_out', expected one that is ranked: "
            "see whether the embeddings are all equal"
        )
    values = np.where(tied, 0.5 * (ties == "half"), right)
    sums, counts = cluster_sums(values, counted, groups)
    low, high = bootstrap_interval(sums, counts, confidence=confidence, resamples=resamples, seed=seed)
    return SimilarityPrecision(
        value=float(values.sum() / counted.sum()),
        low=low,
        high=high,
        right=int((right == 1).sum()),
        wrong=int((right == 0).sum()),
        tied=int(tied.sum()),
        n=int(counted.sum()),
    )


def triplets_right(
    positive_distances: Tensor | NDArray[Any], negative_distances: Tensor | NDArray[Any]
) -> Tensor:
    """1 for each triplet whose positive is strictly nearer, 1/2 for a tie, else 0; what ``paired_test`` compares.

    Shape:
        (T,) and (T,) -> (T,) float64, on the CPU.
    Raises:
        ValueError: as ``similarity_precision``.
    Example:
        >>> import torch
        >>> triplets_right(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])).tolist()
        [1.0, 0.5, 0.0]
    """
    near, far = one_per_triplet(positive_distances=positive_distances, negative_distances=negative_distances)
    return 0.5 * ((near < far).double() + (near <= far).double())
