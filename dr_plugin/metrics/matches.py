"""What the metrics and searches at k share: k itself, which neighbours are right, and averages over queries."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dr_plugin.checks import check_whole, shown

Reduction = Literal["mean", "none", "class"]


def check_k(k: Any, most: int, why: str) -> int:
    """``k``, Python's or numpy's, as an int; a ValueError that says why unless it is in 1..most."""
    number = check_whole("k", k, minimum=1)
    if number > most:
        raise ValueError(f"k: got {number}, expected at most {most}: {why}")
    return number


def right_neighbors(neighbor_labels: Tensor, query_labels: Tensor, k: int) -> Tensor:
    """Which of each query's first k neighbours are of its class.

    Shape:
        neighbor_labels (Q, K) integer, nearest first; query_labels (Q,) integer -> (Q, k) bool.
    Raises:
        ValueError: if k is not in 1..K (dividing by k would then give a wrong number), if there is no
            query, if the shapes do not fit together or the labels are not integers.
    """
    if neighbor_labels.ndim != 2 or query_labels.ndim != 1 or len(neighbor_labels) != len(query_labels):
        raise ValueError(
            f"got neighbor_labels {tuple(neighbor_labels.shape)} and query_labels "
            f"{tuple(query_labels.shape)}, expected (Q, K) and (Q,)"
        )
    for name, labels in (("neighbor_labels", neighbor_labels), ("query_labels", query_labels)):
        if labels.is_floating_point() or labels.is_complex():
            raise ValueError(f"got {name} of {labels.dtype}, expected integers: floats merge large class ids")
    if len(query_labels) == 0:
        raise ValueError(
            "query_labels: got no queries, expected at least one: the mean of nothing is not a number"
        )
    k = check_k(k, neighbor_labels.shape[1], "the neighbours at hand")
    return neighbor_labels[:, :k] == query_labels[:, None]


def averaged(counts: Tensor, out_of: int, query_labels: Tensor, reduction: Reduction) -> Tensor:
    """Counts (or values) per query, each out of ``out_of``, as one mean, as they are, or as a mean for each class.

    Sums of counts are taken over integers and divided once, so no rounding builds up over many queries.

    Shape:
        counts (Q,) long or float32, query_labels (Q,) integer -> () for "mean", (Q,) for "none", and for "class"
        (C,) in the order of ``torch.unique(query_labels)``; float32.
    """
    if not isinstance(reduction, str) or reduction not in get_args(Reduction):
        raise ValueError(f"got reduction={shown(reduction)}, expected 'mean', 'none' or 'class'")
    if reduction == "none":
        return counts / out_of
    if reduction == "mean":
        return counts.sum() / (len(counts) * out_of)
    classes, place, sizes = torch.unique(query_labels, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(classes), dtype=counts.dtype, device=counts.device).index_add_(0, place, counts)
    return sums.div(sizes * out_of)
