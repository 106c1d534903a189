"""Triplets that rank: of each query a positive and a few negatives, chosen by their similarity to it."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from dr_plugin.checks import check_choice, check_flag, check_whole
from dr_plugin.triplets.embedding import at_least_float32, check_size
from dr_plugin.triplets.references import itself
from dr_plugin.triplets.tuples import nan_first, rank_order
from dr_plugin.triplets.uniform import checked_labels, uniform_below

Choose = Literal["most_similar", "least_similar"]
Positive = Literal["least_similar", "most_similar", "random", "every"]
Triplets = tuple[Tensor, Tensor, Tensor]


class MatrixDistance(Protocol):
    """What is needed of PML's `BaseDistance`."""

    is_inverted: bool  # a similarity

    def __call__(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """(B, D), (M, D) -> (B, M)."""


@dataclass(frozen=True)
class RankedTriplets:
    """Of each query that has both: a positive, and the `negatives` most (or least) similar negatives by rank.

    By `per_class`, each class has one negative, its image most similar to the query, and the ranks are of classes:
    otherwise several of the most similar images are of one class.

    - Fewer negatives (classes) than asked for: those that there are. No positive, or no negative: no triplet of that
      query.
    - Equal distances rank by the lower index. A distance that is NaN comes first, so that the loss shows it.

    Args:
        negatives: How many for each query; at least 1.
        choose: "most_similar", or "least_similar": the bottom of the list that similarity makes; by class: each
            class's most similar image, of the bottom classes.
        positive: "least_similar" (the hardest), "most_similar", "random" (uniform), or "every": each positive with
            the same negatives.
        per_class: Whether a class has at most one negative; else images are ranked whatever their class.
    Raises:
        ValueError: if an argument is none of these.
    Example:
        >>> distances = torch.tensor([[0.0, 0.1, 0.5, 0.3]])  # of one query to itself and three others
        >>> itself = torch.tensor([[True, False, False, False]])
        >>> labels = torch.tensor([0, 0, 1, 2])
        >>> RankedTriplets().of(distances, labels[:1], labels, itself)
        (tensor([0, 0]), tensor([1, 1]), tensor([3, 2]))
    """

    negatives: int = 5
    choose: Choose = "most_similar"
    positive: Positive = "least_similar"
    per_class: bool = True

    def __post_init__(self) -> None:
        check_whole("negatives", self.negatives, minimum=1)
        check_choice("choose", self.choose, get_args(Choose))
        check_choice("positive", self.positive, get_args(Positive))
        check_flag("per_class", self.per_class)

    def of(
        self,
        distances: Tensor,
        labels: Tensor,
        ref_labels: Tensor,
        itself: Tensor,
        random_bits: Tensor | None = None,
    ) -> Triplets:
        """The triplets: by query, then by positive, then by the negative's rank, the most similar first.

        Args:
            distances: Lower is more similar.
            itself: Where a reference is the query itself, and no positive of it.
            random_bits: For a "random" positive; uniform over 0, ..., 2**62 - 1.
        Shape:
            distances, itself (B, M), labels (B,), ref_labels (M,) integer, random_bits (B,) -> 3 tensors (T,) long.
        """
        labels, ref_labels = checked_labels(labels, "labels"), checked_labels(ref_labels, "ref_labels")
        same = labels.unsqueeze(1) == ref_labels  # (B, M)
        among = ~same
        if self.per_class:
            among = _nearest_of_class(nan_first(distances), among, ref_labels)
        chosen = _lowest(_keys(distances, self.choose), among, self.negatives)
        row, negative = chosen.nonzero(as_tuple=True)
        order = rank_order(distances[row, negative], row)
        negative = negative[order]  # row by row as before
        query, positive = self._positives(distances, same & ~itself, random_bits).nonzero(as_tuple=True)
        count = chosen.sum(1)
        repeats = count[query]
        pair = torch.arange(len(query), device=query.device).repeat_interleave(repeats)  # (T,)
        place = torch.arange(len(pair), device=pair.device) - (repeats.cumsum(0) - repeats)[pair]
        query, positive = query[pair], positive[pair]
        return query, positive, negative[(count.cumsum(0) - count)[query] + place]

    def _positives(self, distances: Tensor, among: Tensor, random_bits: Tensor | None) -> Tensor:
        """(B, M) bool."""
        if self.positive == "every":
            return among
        if self.positive != "random":
            return _lowest(_keys(distances, self.positive), among, 1)
        if random_bits is None:
            raise ValueError("random_bits: got none, expected (B,) whole numbers for a random positive")
        number = uniform_below(random_bits.to(among.device), among.sum(1))  # of the query's positives
        return among & (among.cumsum(1) == number.unsqueeze(1) + 1)


@torch.no_grad()
def compare(distance: MatrixDistance, embeddings: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Distances by which to rank, lower for the more similar, and where a reference is the query itself.

    Where the references are other tensors than the embeddings (a memory, say), a reference is the query itself if
    its embedding equals the query's to the bit.

    Shape:
        embeddings (B, D), references (M, D) -> (B, M) in float32 at least, (B, M) bool.
    Raises:
        ValueError: if the references are of another size.
    """
    check_size(embeddings, references)
    with torch.autocast(embeddings.device.type, enabled=False):
        first = at_least_float32(embeddings)
        second = first if references is embeddings else at_least_float32(references)
        dtype = torch.promote_types(first.dtype, second.dtype)
        matrix = distance(first.to(dtype), second.to(dtype))
    return -matrix if distance.is_inverted else matrix, itself(embeddings, references)


def _nearest_of_class(keys: Tensor, among: Tensor, labels: Tensor) -> Tensor:
    """Where, of each row, each class's lowest key is `among` these, equal ones at the left: (B, M) -> (B, M) bool."""
    classes, of = labels.unique(return_inverse=True)  # (C,), (M,)
    of = of.expand_as(keys)
    keys = keys.masked_fill(~among, torch.inf)
    best = keys.new_full((len(keys), len(classes)), torch.inf).scatter_reduce_(1, of, keys, "amin")  # (B, C)
    lowest = among & (keys == best.gather(1, of))
    end = keys.shape[1]
    place = torch.arange(end, device=keys.device).expand_as(keys)
    first = place.new_full(best.shape, end).scatter_reduce_(1, of, place.masked_fill(~lowest, end), "amin")
    return lowest & (place == first.gather(1, of))


def _lowest(keys: Tensor, among: Tensor, count: int) -> Tensor:
    """Where the `count` lowest keys of each row are `among` these, equal ones from the left: (B, M) -> (B, M) bool."""
    if keys.numel() == 0:
        return among
    keys = keys.masked_fill(~among, torch.inf)
    count = min(count, keys.shape[1])
    # topk does not say which of equal keys it takes: it only tells the last one's key.
    last = keys.topk(count, dim=1, largest=False).values[:, -1:]
    below, tied = keys < last, (keys == last) & among
    room = count - below.sum(1, keepdim=True)
    return below | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))


def _keys(distances: Tensor, which: str) -> Tensor:
    return nan_first(distances if which == "most_similar" else -distances)
