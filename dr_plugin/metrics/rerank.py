"""The top of a ranking, put in the order of another similarity."""

import torch
from torch import Tensor


def rerank(indices: Tensor, similarities: Tensor) -> Tensor:
    """Put the first R of each query's neighbours in the order of similarities, the most similar first.

    A search that is cheap finds K neighbours, and a similarity that is dear, such as that of PDDM's unit
    (`unit.candidates(query, gallery, indices)`), orders them.

    - Equal similarities keep the order that they had.
    - R < K: the neighbours after the first R stay where they are.

    Args:
        indices: Each query's neighbours, nearest first.
        similarities: Of each query to its first R neighbours, higher is more.
    Shape:
        (Q, K) long and (Q, R) float, R <= K -> (Q, K) long.
    Raises:
        ValueError: if the shapes do not fit, or a similarity is NaN: it has no place in an order.
    Example:
        >>> import torch
        >>> neighbors = torch.tensor([[7, 3, 5, 9]])
        >>> rerank(neighbors, torch.tensor([[0.1, 0.8, 0.3]]))
        tensor([[3, 5, 7, 9]])
    """
    if indices.ndim != 2 or similarities.ndim != 2 or len(indices) != len(similarities):
        raise ValueError(
            f"similarities: got {tuple(similarities.shape)} for indices {tuple(indices.shape)}, expected (Q, R) for "
            "(Q, K), a row for each query"
        )
    reach = similarities.shape[1]
    if reach > indices.shape[1]:
        raise ValueError(
            f"similarities: got {reach} a query, expected at most {indices.shape[1]}, the neighbours at hand"
        )
    if bool(similarities.isnan().any()):
        raise ValueError("similarities: got NaN, expected numbers: it has no place in an order")
    order = similarities.argsort(dim=1, descending=True, stable=True)
    return torch.cat([indices[:, :reach].gather(1, order), indices[:, reach:]], dim=1)
