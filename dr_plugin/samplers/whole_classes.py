"""Triplets of a data set whose relevances are all at hand."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dr_plugin.samplers.class_rows import Indices, Progress, class_rows
from dr_plugin.samplers.packaged import RandomBits
from dr_plugin.triplets import ClassLayout, Relevance, RelevantTriplets, TripletDraw

Flags = npt.NDArray[np.bool_]

_AT_ONCE = 2**14  # triplets that are drawn together: small draws would take far longer
MAX_ENTRIES = 2**29  # relevances in the table, which takes 10 bytes for each: 5 GiB


class WholeClasses:
    """Draws from a table of all relevances within classes, several batches at once.

    Args:
        classes: Of each image, 0, 1, ... (N,); all 0 where `graded`.
        graded: Whether an out-of-class negative is an image of relevance 0 to the query.
        size: Triplets a batch.
        batches_per_epoch: Which the last draw of an epoch does not go beyond.
        draw: Further arguments of `RelevantTriplets`.
    Raises:
        ValueError: if the table would be too large, the relevance is refused, or a kind of triplet does not exist.
    """

    def __init__(
        self,
        relevance: Relevance,
        classes: Indices,
        *,
        graded: bool,
        size: int,
        batches_per_epoch: int,
        seed: int,
        draw: dict[str, Any],
        progress: Progress | None = None,
    ) -> None:
        layout = ClassLayout(torch.from_numpy(classes))
        if layout.size > MAX_ENTRIES:
            raise ValueError(_too_large(layout, graded))
        values = np.empty(layout.size, np.float32)
        start = 0
        for _, _, rows in class_rows(relevance, classes, progress):
            values[start : start + rows.size] = rows.ravel()
            start += rows.size
        self._triplets = RelevantTriplets(layout, values, zero_relevance_negatives=graded, **draw)
        self._triplets.check()
        self._relevance, self._classes, self._graded = relevance, classes, graded
        self._size, self._seed, self._batches = size, seed, batches_per_epoch
        # The last that were drawn: epoch and first batch, triplets, and which of them are in class.
        self._drawn: tuple[tuple[int, int], TripletDraw, Flags] | None = None

    def batch(self, epoch: int, index: int) -> TripletDraw:
        """Batch `index` of `epoch`; what was rejected and discarded counts for the first of those drawn together."""
        together = max(1, _AT_ONCE // self._size)
        first = index - index % together
        if self._drawn is None or self._drawn[0] != (epoch, first):
            draw = self._triplets.draw(
                self._size * min(together, self._batches - first), RandomBits(self._seed, epoch, first)
            )
            self._drawn = (epoch, first), draw, self._in_class(draw)
        _, drawn, in_class = self._drawn
        part = slice((index - first) * self._size, (index - first + 1) * self._size)
        inside = int(np.count_nonzero(in_class[part]))
        counters = {"accepted": self._size, "in_class": inside, "out_of_class": self._size - inside}
        lost = {name: drawn.counters[name] if index == first else 0 for name in ("rejected", "discarded")}
        triplets = drawn.query[part], drawn.positive[part], drawn.negative[part]
        return TripletDraw(*triplets, counters={**counters, **lost, "inexact": 0})

    def _in_class(self, draw: TripletDraw) -> Flags:
        query, negative = draw.query.numpy(), draw.negative.numpy()
        if self._graded:
            return np.asarray(self._relevance.pairs(query, negative)) > 0
        same: Flags = self._classes[query] == self._classes[negative]
        return same


def _too_large(layout: ClassLayout, graded: bool) -> str:
    images, most = len(layout.queries), int(MAX_ENTRIES**0.5)
    if graded:
        return (
            f"labels: got None for {images:,} images, expected at most {most:,}: every pair is held then; give "
            "labels to compare within classes, or fewer images"
        )
    return (
        f"capacity: got None for classes of up to {int(layout.count.max()):,} images, {layout.size:,} relevances in "
        f"all, expected at most {MAX_ENTRIES:,}; give a capacity"
    )
