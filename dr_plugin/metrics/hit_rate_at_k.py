"""Hit rate at k, for relevances that are no class labels."""

import math
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_plugin.checks import as_number, shown
from dr_plugin.metrics.matches import check_k


def hit_rate_at_k(
    relevance: Tensor | NDArray[Any],
    k: int,
    *,
    threshold: float = 0.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Share of the queries with at least one relevant image among the k nearest.

    1/Q sum_q [some neighbour i <= k has relevance > threshold]

    - With "relevant" meaning "of the query's class" this is ``recall_at_k``, which metric learning calls recall. It is
      not information retrieval's recall, the share of all relevant images that are found.
    - A query without any relevant image counts, with 0.

    Args:
        relevance: Of each query's neighbours, nearest first: True where relevant, or a grade.
        k: How many neighbours to look at, 1..K.
        threshold: A grade above this is relevant; of no effect on booleans.
        reduction: "mean" over queries; "none", 0 or 1 for each query.
    Shape:
        (Q, K) bool, integer or float -> () for "mean", (Q,) for "none", float32.
    Raises:
        ValueError: if k is not in 1..K, there is no query, the relevance is not (Q, K) or holds NaN.
    Example:
        >>> import torch
        >>> relevance = torch.tensor([[0.0, 0.7, 0.0], [0.0, 0.0, 0.2]])
        >>> hit_rate_at_k(relevance, k=2)
        tensor(0.5000)
        >>> hit_rate_at_k(relevance, k=3), hit_rate_at_k(relevance, k=3, threshold=0.5)
        (tensor(1.), tensor(0.5000))
    """
    values = torch.as_tensor(relevance)
    if values.ndim != 2 or values.is_complex() or len(values) == 0:
        raise ValueError(
            f"got relevance {tuple(values.shape)} of {values.dtype}, expected (Q, K) bool or numbers, Q > 0"
        )
    k = check_k(k, values.shape[1], "the neighbours at hand")
    threshold = as_number(threshold)
    if math.isnan(threshold):
        raise ValueError("threshold: got no number, expected one that relevances can be compared with")
    if not isinstance(reduction, str) or reduction not in ("mean", "none"):
        raise ValueError(f"got reduction={shown(reduction)}, expected 'mean' or 'none'")
    if values.is_floating_point() and values.isnan().any():
        raise ValueError("relevance: got NaN, expected numbers")
    relevant = values if values.dtype == torch.bool else values > threshold
    hits = relevant[:, :k].any(1)
    return hits.sum() / len(hits) if reduction == "mean" else hits.float()
