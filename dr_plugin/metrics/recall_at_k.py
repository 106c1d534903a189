"""Recall at k, in retrieval's sense."""

from collections.abc import Sequence

from torch import Tensor

from dr_plugin.checks import check_wholes
from dr_plugin.metrics.matches import Reduction, averaged, right_neighbors


def recall_at_k(
    neighbor_labels: Tensor, query_labels: Tensor, k: int, *, reduction: Reduction = "mean"
) -> Tensor:
    """Fraction of the queries that have at least one image of their class among the k nearest.

    R@k = 1/Q sum_q [some neighbour i <= k has the label of q]

    This is metric learning's R@1, R@2, R@4, ..., not the share of all relevant images that were found; it
    is never below precision at the same k, and at k = 1 the two are equal.

    Args:
        neighbor_labels: Labels of each query's neighbours, nearest first.
        query_labels: Labels of the queries; integers of any size.
        k: How many neighbours to look at, 1..K.
        reduction: As in ``precision_at_k``.
    Shape:
        (Q, K) and (Q,) integer -> () for "mean", (Q,) for "none", (C,) for "class", float32.
    Raises:
        ValueError: if k > K or k < 1, there is no query, the shapes do not fit, labels are not integers.
    Example:
        >>> import torch
        >>> neighbor_labels = torch.tensor([[7, 7, 3], [5, 3, 7]])
        >>> recall_at_k(neighbor_labels, torch.tensor([7, 3]), k=1)
        tensor(0.5000)
        >>> recall_at_k(neighbor_labels, torch.tensor([7, 3]), k=2)
        tensor(1.)
    """
    right = right_neighbors(neighbor_labels, query_labels, k)
    return averaged(right.any(1).long(), 1, query_labels, reduction)


def recalls_at_k(
    neighbor_labels: Tensor,
    query_labels: Tensor,
    ks: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    reduction: Reduction = "mean",
) -> dict[int, Tensor]:
    """``recall_at_k`` for each k, by default for those that papers print.

    Shape:
        (Q, K) and (Q,) integer -> for each k () for "mean", (Q,) for "none", (C,) for "class", float32.
    Raises:
        ValueError: as ``recall_at_k``, for any of the ks; if there are none.
    Example:
        >>> import torch
        >>> recalls_at_k(torch.tensor([[7, 7, 3], [5, 3, 7]]), torch.tensor([7, 3]), ks=(1, 2))
        {1: tensor(0.5000), 2: tensor(1.)}
    """
    numbers = check_wholes("ks", ks, minimum=1)
    if not numbers:
        raise ValueError("got no ks, expected at least one")
    return {k: recall_at_k(neighbor_labels, query_labels, k, reduction=reduction) for k in numbers}
