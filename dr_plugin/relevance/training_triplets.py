"""The endless sequence of triplets that a similarity is learned from."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dr_plugin.checks import as_array
from dr_plugin.relevance.classes import Labels, checked_labels
from dr_plugin.triplets import (
    RANDOM_BITS,
    ClassLayout,
    RelevantTriplets,
    UniformTriplets,
    as_relevance,
    class_entries,
)
from dr_plugin.triplets.relevances import Indices

CLASSES, RELEVANCE, TRIPLETS = "class labels", "unrated relevance", "given triplets"  # as a table says
_CHUNK = 2**14  # triplets that are drawn at once, from random numbers of their own


class TrainingTriplets:
    """Triplets number 0, 1, 2, ... for a learner: each is known by its number, so that learning can go on anywhere.

    - Given `labels`: uniform ones, see `UniformTriplets`.
    - Given `relevance` too, or alone (graded: all images are one class): in proportion to it, see `RelevantTriplets`.
    - Given `triplets`: these, in their order, and again from the first.

    Args:
        count: N, the images.
        labels: Classes, any integers.
        relevance: An object with len, `pairs` and `total`, or an (N, N) array; 10 bytes for each pair of a class.
        triplets: Query, positive and negative of each.
        seed: Of the draws, at least 0.
        draw: `out_of_class_ratio`, `relevance_threshold`, `relevance_margin`, for a relevance.
    Shape:
        labels (N,), triplets (T, 3).
    Raises:
        ValueError: if neither is given, or triplets with another, if they are not such, or if there is no triplet.
    """

    def __init__(
        self,
        count: int,
        *,
        labels: Labels | None,
        relevance: object | None,
        triplets: npt.ArrayLike | None,
        seed: int,
        draw: dict[str, Any],
    ) -> None:
        if (triplets is None) == (labels is None and relevance is None):
            raise ValueError(
                "labels, relevance, triplets: got "
                f"{'none' if triplets is None else 'triplets and others'}, expected labels, a relevance (with labels "
                "or without), or triplets"
            )
        self._seed, self._held = seed, (-1, np.empty((0, 3), np.int64))
        self._given = None if triplets is None else _checked_triplets(triplets, count)
        self._uniform = self._relevant = None
        if self._given is not None:
            return
        classes = np.zeros(count, np.int64) if labels is None else checked_labels(labels, count)
        if relevance is None:
            self._uniform = UniformTriplets(torch.from_numpy(classes))
            if len(self._uniform.queries) == 0:
                raise ValueError(
                    f"labels: got {len(np.unique(classes))} classes of {count} images, expected at least two classes "
                    "and in one of them two images"
                )
            return
        given = None if labels is None else classes
        values = class_entries(as_relevance(relevance, given, count), given)
        layout = ClassLayout(torch.from_numpy(classes))
        self._relevant = RelevantTriplets(layout, values, zero_relevance_negatives=labels is None, **draw)
        self._relevant.check()

    def take(self, start: int, stop: int) -> Indices:
        """Triplets from number `start` to before `stop`: (stop - start, 3)."""
        if self._given is not None:
            found: Indices = self._given[np.arange(start, stop) % len(self._given)]
            return found
        parts = [
            self._chunk(number)[max(0, start - number * _CHUNK) : stop - number * _CHUNK]
            for number in range(start // _CHUNK, -(-stop // _CHUNK))
        ]
        return np.concatenate(parts)

    def _chunk(self, number: int) -> Indices:
        if self._held[0] != number:
            rng = np.random.default_rng((self._seed, number))

            def bits(shape: tuple[int, ...]) -> torch.Tensor:
                return torch.from_numpy(rng.integers(0, 1 << RANDOM_BITS, shape))

            if self._uniform is not None:
                own = bits((3, _CHUNK))
                queries = self._uniform.draw_queries(own[0])
                drawn = (queries, *self._uniform.draw(queries, own[1:]))
            elif self._relevant is not None:
                drawn = self._relevant.draw(_CHUNK, bits)[:3]
            self._held = number, torch.stack(drawn, dim=1).numpy()
        return self._held[1]


def seen_of(*, labels: object | None, relevance: object | None, triplets: object | None = None) -> str:
    """What who learns from these has seen, as a table says."""
    given = {CLASSES: labels, RELEVANCE: relevance, TRIPLETS: triplets}
    return "; ".join(name for name, data in given.items() if data is not None)


def _checked_triplets(triplets: npt.ArrayLike, count: int) -> Indices:
    array = as_array("triplets", triplets)
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"triplets: got {array.dtype} of shape {array.shape}, expected integers of shape (T, 3), T at least 1: "
            "query, positive, negative"
        )
    wrong = np.flatnonzero(((array < 0) | (array >= count)).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"triplets: triplet {wrong[0]}: got {array[wrong[0]].tolist()}, expected 0 to {count - 1}"
        )
    return array.astype(np.int64)
