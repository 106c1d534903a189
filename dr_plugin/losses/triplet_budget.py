"""A uniform sample of triplets that are counted, never enumerated."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Triplets = tuple[Tensor, Tensor, Tensor]  # query, positive, negative, (T,) long each


class NumberedTriplets(Protocol):
    """Triplets that have numbers, from 0 to len - 1."""

    def __len__(self) -> int:
        """How many there are."""

    def at(self, numbers: Tensor) -> Triplets:
        """Those of the given numbers."""


class ListedTriplets:
    """Triplets given one by one."""

    def __init__(self, query: Tensor, positive: Tensor, negative: Tensor) -> None:
        self._triplets = query, positive, negative

    def __len__(self) -> int:
        return len(self._triplets[0])

    def at(self, numbers: Tensor) -> Triplets:
        """Those of the given numbers."""
        query, positive, negative = (part[numbers] for part in self._triplets)
        return query, positive, negative


class JoinedTriplets:
    """A positive pair and a negative pair of the same query: PML's reading of pairs where triplets are due.

    Shape:
        query, positive (P,), negative_query, negative (N,) long.
    """

    def __init__(self, query: Tensor, positive: Tensor, negative_query: Tensor, negative: Tensor) -> None:
        ordered, order = torch.sort(negative_query, stable=True)
        self._query, self._positive, self._negative = query, positive, negative[order]
        self._start = torch.searchsorted(ordered, query)  # (P,) where the query's negative pairs begin
        self._ends = (torch.searchsorted(ordered, query, right=True) - self._start).cumsum(0)
        self._count = _last(self._ends)

    def __len__(self) -> int:
        return self._count

    def at(self, numbers: Tensor) -> Triplets:
        """Those of the given numbers: by positive pair, then by negative pair."""
        pair, rest = _divide(numbers, self._ends)
        return self._query[pair], self._positive[pair], self._negative[self._start[pair] + rest]


class LabelTriplets:
    """All triplets of the labels: a reference of the query's class and a reference of another class.

    Args:
        itself: Where each query lies among the references, which is no positive of its own; None: nowhere.
    Shape:
        labels (B,), ref_labels (M,), itself (B,) long.
    """

    def __init__(self, labels: Tensor, ref_labels: Tensor, itself: Tensor | None) -> None:
        ordered, self._order = torch.sort(ref_labels, stable=True)
        start = torch.searchsorted(ordered, labels)
        count = torch.searchsorted(ordered, labels, right=True) - start
        self._query = torch.arange(len(labels), device=labels.device).repeat_interleave(count)  # (P,)
        block = count.cumsum(0) - count  # where a query's pairs begin
        place = torch.arange(len(self._query), device=labels.device) + (start - block)[self._query]
        positive = self._order[place]
        if itself is not None:
            other = positive != itself[self._query]
            self._query, positive = self._query[other], positive[other]
        self._positive, self._start, self._skip = positive, start, count
        self._ends = (len(ref_labels) - count)[self._query].cumsum(0)
        self._count = _last(self._ends)

    def __len__(self) -> int:
        return self._count

    def at(self, numbers: Tensor) -> Triplets:
        """Those of the given numbers: by query, then by positive, then by negative."""
        pair, rest = _divide(numbers, self._ends)
        query = self._query[pair]
        rest += (rest >= self._start[query]) * self._skip[query]  # past the query's own class
        return query, self._positive[pair], self._order[rest]


def at_most(
    budget: int | None, sources: Sequence[NumberedTriplets], generator: torch.Generator, device: torch.device
) -> Triplets:
    """All triplets of the sources, or a uniform sample of `budget` where there are more.

    The triplets' numbers are cut into `budget` equal parts, and one is drawn from each: every triplet comes equally
    often (a triplet that a cut goes through may come twice), and no query gets much more or less than its share.

    Args:
        generator: Draws the sample; not touched where all triplets are taken.
        device: Where the sources are.
    """
    total = sum(len(source) for source in sources)
    if budget is None or total <= budget:
        parts = [source.at(torch.arange(len(source), device=device)) for source in sources]
    else:
        # (k total + u) // budget, u uniform below total: each number has just `budget` of the budget x total values.
        offsets = torch.randint(total, (budget,), generator=generator, device=generator.device)
        numbers = (torch.arange(budget, device=offsets.device) * total + offsets) // budget
        numbers = numbers.to(device)
        parts, first = [], 0
        for source in sources:
            chosen = (numbers >= first) & (numbers < first + len(source))
            parts.append(source.at(numbers[chosen] - first))
            first += len(source)
    query, positive, negative = (torch.cat(column) for column in zip(*parts, strict=True))
    return query, positive, negative


def _divide(numbers: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The part in which each number lies, and its place there, given where the parts end."""
    part = torch.searchsorted(ends, numbers, right=True)
    begin = torch.cat([ends.new_zeros(1), ends])[part]
    return part, numbers - begin


def _last(ends: Tensor) -> int:
    return int(ends[-1]) if len(ends) else 0
