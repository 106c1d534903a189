"""Triplets read as tuples: one query, one positive, and their negatives."""

from typing import NamedTuple

import torch
from torch import Tensor


class Tuples(NamedTuple):
    """Tuples of a query, a positive and one or more negatives.

    Attributes:
        query, positive: (G,) of each tuple.
        size: (G,) how many negatives it has.
        of: (T,) the tuple of each negative, ascending.
        negative: (T,)
    """

    query: Tensor
    positive: Tensor
    size: Tensor
    of: Tensor
    negative: Tensor

    def ranks(self, distances: Tensor) -> Tensor:
        """Each negative's place in its tuple, 0 for the lowest distance or NaN, equal ones as they stand: (T,)."""
        place = torch.arange(len(self.of), device=self.of.device) - (self.size.cumsum(0) - self.size)[self.of]
        ranks = torch.empty_like(place)
        ranks[rank_order(distances, self.of)] = place
        return ranks

    def lowest(self, count: int, distances: Tensor) -> "Tuples":
        """Of each tuple the `count` negatives of lowest distance (T,), all where there are no more."""
        kept = self.ranks(distances) < count
        return self._replace(size=self.size.clamp(max=count), of=self.of[kept], negative=self.negative[kept])


def as_tuples(query: Tensor, positive: Tensor, negative: Tensor, references: int) -> Tuples:
    """The tuples of (T,) triplets: by query, then by positive, and within one by negative; none twice.

    Args:
        references: How many there are: more than any index of a positive or a negative.
    """
    # Indices of a narrower dtype would overflow in the one number for each triplet below.
    query, positive, negative = query.long(), positive.long(), negative.long()
    # One number for each triplet, in their order: below 2**63 for any batch that fits in memory.
    pairs, negative = _divided(
        torch.unique((query * references + positive) * references + negative), references
    )
    pair, of, size = torch.unique_consecutive(pairs, return_inverse=True, return_counts=True)
    return Tuples(*_divided(pair, references), size, of, negative)


def rank_order(distances: Tensor, group: Tensor) -> Tensor:
    """The order by group, within it by distance, NaN first, equal ones as given: (T,), (T,) -> (T,) long."""
    order = torch.argsort(nan_first(distances), stable=True)
    return order[torch.argsort(group[order], stable=True)]


def nan_first(values: Tensor) -> Tensor:
    """NaN as the lowest value, so that what is not a number is chosen and shows in the loss."""
    return values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _divided(numbers: Tensor, by: int) -> tuple[Tensor, Tensor]:
    return numbers // by, numbers % by
