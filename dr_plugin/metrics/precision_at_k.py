"""Precision at k."""

from torch import Tensor

from dr_plugin.metrics.matches import Reduction, averaged, right_neighbors


def precision_at_k(
    neighbor_labels: Tensor, query_labels: Tensor, k: int, *, reduction: Reduction = "mean"
) -> Tensor:
    """Fraction of the k nearest neighbours that are of the query's class, averaged over queries.

    P@k = 1/Q sum_q 1/k sum_{i <= k} [label of neighbour i = label of q]

    - The divisor is always k: with fewer than k neighbours at hand it is refused, never computed on less.
    - A query whose class the gallery does not hold counts, with 0.
    - A class with fewer than k images in the gallery cannot reach 1.

    Args:
        neighbor_labels: Labels of each query's neighbours, nearest first.
        query_labels: Labels of the queries; integers of any size.
        k: How many neighbours to look at, 1..K.
        reduction: "mean" over queries; "none", one value a query; "class", the mean over the queries of each
            class, in the order of ``torch.unique(query_labels)`` (the weakest class has the smallest value).
    Shape:
        (Q, K) and (Q,) integer -> () for "mean", (Q,) for "none", (C,) for "class", float32.
    Raises:
        ValueError: if k > K or k < 1, there is no query, the shapes do not fit, labels are not integers.
    Example:
        >>> import torch
        >>> neighbor_labels = torch.tensor([[7, 7, 3], [3, 7, 7]])
        >>> precision_at_k(neighbor_labels, torch.tensor([7, 3]), k=2)
        tensor(0.7500)
        >>> precision_at_k(neighbor_labels, torch.tensor([7, 3]), k=2, reduction="class")  # classes 3, 7
        tensor([0.5000, 1.0000])
    """
    right = right_neighbors(neighbor_labels, query_labels, k)
    return averaged(right.sum(1), k, query_labels, reduction)
