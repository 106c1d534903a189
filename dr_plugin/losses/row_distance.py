"""PML's distances of given pairs of rows, without the matrix of all pairs."""

from collections.abc import Callable
from functools import partial

import torch
from pytorch_metric_learning.distances import DotProductSimilarity, LpDistance, SNRDistance
from pytorch_metric_learning.distances.base_distance import BaseDistance
from torch import Tensor

from dr_plugin.triplets.embedding import check_size


def row_distance(distance: BaseDistance, expected: str) -> Callable[[Tensor, Tensor], Tensor]:
    """`distance` of row i to row i of prepared embeddings: entry (i, i) of the matrix that PML computes.

    Args:
        expected: What the error says of a distance that is not known by rows.
    Raises:
        ValueError: if the distance is not known by rows.
    """
    kind = type(distance)
    if isinstance(distance, BaseDistance) and kind.forward is BaseDistance.forward:
        # By what computes the matrix: a subclass that computes another one is not taken for its base.
        if kind.compute_mat is LpDistance.compute_mat:
            return lambda first, second: _lp(first - second, distance.p, distance.power)
        for known in (DotProductSimilarity, SNRDistance):
            if kind.compute_mat is known.compute_mat:
                rows = partial(known.pairwise_distance, distance)
                return lambda first, second: _power(rows(first, second), distance.power)
    raise ValueError(f"distance: got {kind.__name__}, expected {expected}")


def prepared(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
    """What `distance.forward` does before it computes the matrix: checks, normalisation, statistics.

    Raises:
        ValueError: if the references are of another size.
    """
    check_size(embeddings, ref_emb)
    distance.reset_stats()
    distance.check_shapes(embeddings, ref_emb)
    query = distance.maybe_normalize(embeddings)
    reference = query if ref_emb is embeddings else distance.maybe_normalize(ref_emb)
    distance.set_default_stats(embeddings, ref_emb, query, reference)
    return query, reference


def _lp(difference: Tensor, p: float, power: float) -> Tensor:
    # Not LpDistance.pairwise_distance, which adds an eps to the difference and takes no power.
    if p == power == 2:
        return difference.square().sum(dim=1)
    return _power(torch.linalg.vector_norm(difference, ord=p, dim=1), power)


def _power(distances: Tensor, power: float) -> Tensor:
    return distances if power == 1 else distances**power
