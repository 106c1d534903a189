"""Whether nearer images are the more relevant ones: the order within a class that class labels say nothing of."""

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 24  # of one (queries, n, n) comparison


def concordance(distances: Tensor, relevance: Tensor) -> Tensor:
    """Share of the pairs of gallery images that the distances order as the relevances do, for each query.

    Over the pairs (a, b) with r(q, a) > r(q, b): 1 where D(q, a) < D(q, b), 1/2 where the distances are equal, else 0;
    their mean. This is the concordance index, and the paper's similarity precision (section 6.3) over all triplets
    (q, a, b) that the relevances order. Random distances give 1/2.

    - A query all of whose relevances are equal has no such pair: NaN.

    Args:
        distances: Smaller is nearer.
        relevance: Larger is more relevant.
    Shape:
        distances (Q, n), relevance (Q, n) -> (Q,) float64.
    Raises:
        ValueError: if the shapes differ, are not 2-D, or a value is NaN.
    Example:
        >>> concordance(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.9, 0.1, 0.5]]))
        tensor([0.6667], dtype=torch.float64)

    References:
        Harrell et al., Evaluating the Yield of Medical Tests, JAMA 1982.
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 6.3.
    """
    _check(distances, relevance)
    parts = [
        (right.double().sum((1, 2)) + 0.5 * tied.double().sum((1, 2))) / ordered.double().sum((1, 2))
        for ordered, right, tied, _ in _pairs(distances, relevance)
    ]
    return torch.cat(parts) if parts else distances.new_zeros(0, dtype=torch.float64)


def concordance_score(distances: Tensor, relevance: Tensor, radius: Tensor) -> Tensor:
    """Pairs ordered right less pairs ordered wrong, among those with an image within the radius, for each query.

    With the distance of the K-th nearest of these images as the radius this is the paper's score-at-top-K (section 6.3)
    over all triplets (q, a, b) with r(q, a) > r(q, b), per query instead of in all, if the images are what the paper
    calls the query's pool: those found for the same text query. Equal distances count neither way.

    Args:
        distances: Smaller is nearer.
        relevance: Larger is more relevant.
        radius: A pair counts if the smaller of its two distances is at most this.
    Shape:
        distances (Q, n), relevance (Q, n), radius (Q,) -> (Q,) float64.
    Raises:
        ValueError: as `concordance`, and if radius has another shape.
    Example:
        >>> concordance_score(torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([0.15]))
        tensor([2.], dtype=torch.float64)
    """
    _check(distances, relevance)
    if radius.shape != distances.shape[:1]:
        raise ValueError(
            f"radius: got shape {tuple(radius.shape)}, expected ({len(distances)},), one a query"
        )
    parts = []
    for ordered, right, tied, rows in _pairs(distances, relevance):
        near = distances[rows] <= radius[rows, None]
        counted = near[:, :, None] | near[:, None, :]
        wrong = ordered & ~right & ~tied
        parts.append((right & counted).double().sum((1, 2)) - (wrong & counted).double().sum((1, 2)))
    return torch.cat(parts) if parts else distances.new_zeros(0, dtype=torch.float64)


def _pairs(distances: Tensor, relevance: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """For some queries at a time, (q, n, n): a more relevant than b; and then nearer; or as near; and which queries."""
    step = max(1, _CHUNK_ELEMENTS // max(1, distances.shape[1] ** 2))
    for start in range(0, len(distances), step):
        rows = slice(start, start + step)
        ordered = relevance[rows, :, None] > relevance[rows, None, :]
        first, second = distances[rows, :, None], distances[rows, None, :]
        yield ordered, ordered & (first < second), ordered & (first == second), rows


def _check(distances: Tensor, relevance: Tensor) -> None:
    if distances.ndim != 2 or distances.shape != relevance.shape:
        raise ValueError(
            f"got distances {tuple(distances.shape)} and relevance {tuple(relevance.shape)}, expected one shape (Q, n)"
        )
    for name, values in (("distances", distances), ("relevance", relevance)):
        if values.isnan().any():
            raise ValueError(f"{name}: got NaN, expected numbers")
