"""The uniform triplet draw on class labels."""

import torch
from torch import Tensor

RANDOM_BITS = 62  # the width of the random numbers that `uniform_below` and `UniformTriplets.draw` take
_HALF = RANDOM_BITS // 2


def uniform_below(bits: Tensor, bound: Tensor) -> Tensor:
    """Turn random bits into whole numbers uniform over 0, ..., bound - 1.

    floor(bits * bound / 2**62), computed exactly in int64 (two halves, as the product needs 93 bits): the
    same on every device, never `bound` itself, and no value's probability is further than 2**-62 from 1 /
    bound.

    Args:
        bits: Uniform over 0, ..., 2**62 - 1.
        bound: At least 1, below 2**31.
    Shape:
        bits (...) long, bound long, broadcast against each other.
    """
    high, low = bits >> _HALF, bits & ((1 << _HALF) - 1)
    return (high * bound + (low * bound >> _HALF)) >> _HALF


class UniformTriplets:
    """Uniform positives and negatives for queries, given labels.

    A query's positive is uniform over the other images of its class, its negative uniform over all images of
    the other classes. The labels are sorted once, so that a class is one block of the sorted order: a
    positive is a place in the query's block that skips the query, a negative a place outside it. Memory
    O(images + triplets).

    - `queries` are the images that have both a positive and a negative, ascending; there may be none.
    - With `reference_labels`, positives and negatives index the references, and every reference of the
      query's class is a positive.

    Args:
        labels: The images' classes; any integers.
        reference_labels: The references' classes; None: the images are their own references, and none is its
            own positive.
    Shape:
        labels (N,), reference_labels (M,) integer tensors.
    Raises:
        ValueError: if labels are not 1-D integers.
    Example:
        >>> triplets = UniformTriplets(torch.tensor([7, 7, 9]))
        >>> triplets.queries
        tensor([0, 1])
        >>> bits = torch.randint(1 << RANDOM_BITS, (2, 2))
        >>> triplets.draw(triplets.queries, bits)  # with 3 images there is no choice
        (tensor([1, 0]), tensor([2, 2]))
    """

    def __init__(self, labels: Tensor, reference_labels: Tensor | None = None) -> None:
        labels = checked_labels(labels, "labels")
        own = reference_labels is None
        reference = (
            labels if reference_labels is None else checked_labels(reference_labels, "reference_labels")
        )
        blocks, self._order = torch.sort(reference.to(labels.device), stable=True)
        # (N,) where the image's class begins in the sorted order.
        self._start = torch.searchsorted(blocks, labels)
        self._count = torch.searchsorted(blocks, labels, right=True) - self._start  # (N,) and how long it is
        if own:
            place = torch.empty_like(self._order)
            place[self._order] = torch.arange(len(place), device=place.device)
            self._skip = place - self._start  # (N,) the image's own place in its block: not a positive
        else:
            self._skip = self._count  # past the end: nothing to skip
        self._positives = self._count - int(own)  # (N,) how many to choose from
        self._negatives = len(reference) - self._count
        self.queries = torch.nonzero((self._positives > 0) & (self._negatives > 0)).squeeze(1)

    def draw_queries(self, bits: Tensor) -> Tensor:
        """Draw as many queries as there are random numbers, uniform over `queries`."""
        return self.queries[uniform_below(bits, torch.tensor(len(self.queries)))]

    def draw(self, queries: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a positive and a negative for each query.

        Args:
            queries: Taken from `queries`, in any order, repeated at will.
            bits: Random numbers, uniform over 0, ..., 2**62 - 1, on the labels' device.
        Shape:
            queries (...) long, bits (2, ...) long, broadcast -> 2 tensors of the broadcast shape, long.
        """
        start = self._start[queries]
        positive = uniform_below(bits[0], self._positives[queries])
        positive += positive >= self._skip[queries]
        negative = uniform_below(bits[1], self._negatives[queries])
        negative += (negative >= start) * self._count[queries]
        return self._order[positive + start], self._order[negative]


def checked_labels(labels: Tensor, name: str) -> Tensor:
    """The labels (N,) as long; ValueError, calling them by this name, if they are no integer vector."""
    if labels.ndim != 1:
        raise ValueError(f"{name}: got shape {tuple(labels.shape)}, expected one class per image, shape (N,)")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name}: got {labels.dtype}, expected integer classes; convert them with .long()")
    return labels.long().contiguous()
