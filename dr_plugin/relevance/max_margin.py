"""Weights of similarities, learned from triplets by their margin."""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

Weights = npt.NDArray[np.float64]  # (K,)


class NothingSeparatesError(ValueError):
    """No similarity is larger for positives than for negatives on the whole, so all weights are 0."""


def max_margin(nearer: npt.NDArray[np.floating], penalty: float) -> Weights:
    """The weights w >= 0 that minimise mean_t max(0, 1 - w.x_t)^2 + penalty |w|^2.

    x_t = s(q, p) - s(q, n) of each of K similarities: how much nearer triplet t's positive is than its negative.
    The problem is strictly convex, so there is one answer; it is found by L-BFGS-B.

    - A similarity that orders the triplets no better than by chance gets a weight near 0, or 0.
    - The weights of x, scaled as one, and penalty are tied: compare their ratios.

    Args:
        nearer: Finite.
        penalty: > 0.
    Shape:
        nearer (T, K) -> (K,) float64.
    Raises:
        NothingSeparatesError: if no similarity is larger for positives than for negatives on the whole: w is 0.
        RuntimeError: if the minimum is not found to 1e-3 of a weight.
    Example:
        >>> max_margin(np.array([[1.0, 0.0], [1.0, -1.0]]), penalty=1.0)
        array([0.5, 0. ])

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.4.
    """
    nearer = nearer.astype(np.float64)
    count = nearer.shape[1]

    def objective(weights: Weights) -> tuple[float, Weights]:
        slack = np.maximum(0, 1 - nearer @ weights)
        gradient = 2 * penalty * weights - 2 * slack @ nearer / len(nearer)
        return float(slack @ slack / len(nearer) + penalty * weights @ weights), gradient

    found = minimize(
        objective,
        np.zeros(count),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * count,
        options={"ftol": 1e-14, "gtol": 1e-8, "maxiter": 1000},
    )
    weights: Weights = found.x
    # At the minimum a step down the gradient, cut off at 0, leads nowhere.
    if np.abs(weights - np.maximum(0, weights - objective(weights)[1])).max() > 1e-3:
        raise RuntimeError(
            f"the weights were not found to 1e-3 with penalty={penalty:g} ({found.message}): a larger one helps"
        )
    if not weights.any():
        raise NothingSeparatesError(
            "got no similarity that is larger for positives than for negatives on the whole"
        )
    return weights
