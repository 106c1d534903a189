"""Whether one model ranks the same triplets better than another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from dr_plugin.metrics.resampling import (
    Groups,
    bootstrap_interval,
    check_resampling,
    cluster_sums,
    one_per_triplet,
)


@dataclass(frozen=True)
class PairedTest:
    """What ``paired_test`` found.

    Attributes:
        difference: Mean of first less second: by how much the first one's similarity precision is higher.
        low: Lower end of the difference's bootstrap interval; NaN where there is only one triplet or group.
        high: Upper end of the interval.
        p_value: Two-sided and exact, of a difference at least this large if neither model were better.
        first_only: Triplets that the first ranks better.
        second_only: Triplets that the second ranks better.
        n: Triplets in all.
    """

    difference: float
    low: float
    high: float
    p_value: float
    first_only: int
    second_only: int
    n: int


def paired_test(
    first_right: Tensor | NDArray[Any],
    second_right: Tensor | NDArray[Any],
    *,
    groups: Groups | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedTest:
    """Two models on the same triplets: difference of their precisions, its interval, and an exact p-value.

    If neither is better, each triplet's difference d_t (with ``groups``, each group's sum of them) could as well have
    had the other sign: p = P(|sum_g s_g d_g| >= |sum_g d_g|), signs s_g = +-1 fair and independent. The distribution
    is computed, not sampled.

    - Without groups and without ties this is McNemar's exact test.
    - Models that agree on every triplet: p = 1.
    - Time grows with the square of the triplets that differ, if there are ties or groups: the paper's 1,688 take about
      a millisecond, 100,000 about two seconds on one core.

    Args:
        first_right: For each triplet 1 where the first model ranks it right, 1/2 for a tie, else 0: ``triplets_right``.
        second_right: The same of the second model.
        groups: What each triplet belongs to, as its text query; signs and resamples then go by group.
        confidence: Of the interval.
        resamples: Of the bootstrap that gives the interval.
        seed: Of the bootstrap.
    Shape:
        (T,) and (T,), groups of length T -> PairedTest.
    Raises:
        ValueError: if the shapes differ, there is no triplet, or a value is none of 0, 1/2 and 1.
    Example:
        >>> import torch
        >>> first = torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 0.5])
        >>> second = torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 0.5])
        >>> result = paired_test(first, second)
        >>> result.difference, result.first_only, result.second_only, round(result.p_value, 5)  # (1 + 6) / 2^5
        (0.5, 5, 1, 0.21875)

    References:
        McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 1947.
        Fisher, The Design of Experiments, 1935, section 21 (the sign-flip test).
    """
    check_resampling(confidence, resamples, seed)
    first, second = one_per_triplet(first_right=first_right, second_right=second_right)
    for name, values in (("first_right", first), ("second_right", second)):
        other = ~torch.isin(values.double(), torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        if other.any():
            raise ValueError(f"{name}: got {values[other][0].item()}, expected 0, 0.5 (a tie) or 1")
    differences = (first.double() - second.double()).numpy()
    sums, counts = cluster_sums(differences, np.ones_like(differences), groups)
    low, high = bootstrap_interval(sums, counts, confidence=confidence, resamples=resamples, seed=seed)
    return PairedTest(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=_sign_flip_p((2 * sums).round().astype(np.int64)),  # halves become whole numbers
        first_only=int((differences > 0).sum()),
        second_only=int((differences < 0).sum()),
        n=len(differences),
    )


def _sign_flip_p(sums: NDArray[np.int64]) -> float:
    """P(|sum of the sums with fair signs| >= |their sum|).

    The k sums of one size d add up to d (2 Binomial(k, 1/2) - k); the sizes are independent, so their distributions
    are convolved. All terms are positive: tiny p-values keep their digits, which a convolution by FFT would lose.

    Time is linear with one size, as McNemar's, and else at most quadratic in the sum of the sizes.
    """
    sizes, numbers = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    distribution = np.ones(1)  # of the sum of those with a positive sign
    for size, number in zip(sizes.tolist(), numbers.tolist(), strict=True):
        steps = np.zeros(size * number + 1)
        steps[::size] = binom.pmf(np.arange(number + 1), number, 0.5)
        distribution = np.convolve(distribution, steps)
    total = int(np.abs(sums).sum())
    reached = np.abs(2 * np.arange(total + 1) - total) >= abs(int(sums.sum()))
    return min(1.0, float(distribution[reached].sum()))
