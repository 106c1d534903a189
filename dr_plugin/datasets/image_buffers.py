"""Per-class buffers of encoded images under a byte budget."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dr_plugin.reservoirs import ClassReservoirs

from .shard_reader import Sample

OVERHEAD = (
    512  # bytes that an image costs beside its own: objects, table entries, its place in the reservoirs
)
READING_PARTS = 16  # one of so many parts of the budget is for images that were read and not yet offered
_CHUNK = 64  # images that are offered at once


class ImageBuffers:
    """A weighted reservoir of encoded images for each class, all within one byte budget.

    An image costs its encoded bytes, its feature's and 512 more. The rule: 1/16 of the budget is for what is being
    read; the rest is shared equally by the classes seen so far, and a class that costs more than its share loses its
    smallest keys. So a new class shrinks all buffers, and what a small class leaves of its share stays unused. What
    is held never costs more than the budget.

    Images are known by their place in the stream, 0, 1, ...; classes are numbered in the order of their appearance.

    Args:
        byte_budget: At least 1.
        seed: Of the reservoirs.
    """

    def __init__(self, byte_budget: int, seed: Sequence[int]) -> None:
        self.byte_budget = byte_budget
        self.reservoirs = ClassReservoirs(1, total_capacity=2**62, seed=seed)
        self.bytes = 0  # what all images here cost, read ones included
        self._samples: dict[int, Sample] = {}
        self._classes: dict[int, int] = {}  # label -> number
        self._spent = np.zeros(0, np.int64)  # (C,) what the class's buffer costs
        self._read: list[
            tuple[int, int, float, int]
        ] = []  # of images not yet offered: place, class, weight, cost
        self._read_bytes = 0
        self._second_pass = False

    def __getitem__(self, place: int) -> Sample:
        return self._samples[place]

    def add(self, place: int, sample: Sample, weight: float) -> None:
        """Stream one image of positive weight; it counts from the next `flush` on, which may be this one's.

        Raises:
            ValueError: if the budget is too small for the image.
        """
        cost, room = cost_of(sample), self.byte_budget // READING_PARTS
        if cost > room:
            raise ValueError(
                f"byte_budget: got {self.byte_budget} bytes a loader worker and 1/{READING_PARTS} of it for reading, "
                f"but {sample.name} takes {cost}; expected at least {READING_PARTS * cost} a worker"
            )
        if self._read_bytes + cost > room or len(self._read) == _CHUNK:
            self.flush()
        if place in self._samples:  # since the pass before
            cost = 0
        else:
            self._samples[place] = sample
            self._read_bytes += cost
            self.bytes += cost
        self._read.append((place, self._classes.setdefault(sample.label, len(self._classes)), weight, cost))

    def flush(self) -> None:
        """Offer what was read to the buffers."""
        if not self._read:
            return
        places, classes, weights, costs = (np.array(column) for column in zip(*self._read, strict=True))
        if len(self._classes) > len(self._spent):
            self._spent = np.pad(self._spent, (0, len(self._classes) - len(self._spent)))
            self._evict()  # before there are arrays for more classes
        self._fit(classes)
        np.add.at(self._spent, classes, costs)
        stream = self.reservoirs.refresh if self._second_pass else self.reservoirs.extend
        stream(places, classes, weights)
        self._read.clear()
        self._read_bytes = 0
        self._evict()

    def new_pass(self) -> None:
        """Every image was streamed once since the last call: they come again, in the same order."""
        self.flush()
        self.reservoirs.new_pass()
        self._second_pass = True

    def lacks(self, out_of_class_ratio: float) -> str | None:
        """What is missing for a triplet to be drawn."""
        sizes = self.reservoirs.sizes
        if not (sizes >= 2).any():
            return f"got {len(sizes)} classes, none with two images, expected some: there are no positives"
        if out_of_class_ratio > 0 and np.count_nonzero(sizes) < 2:
            return "got one class only, expected at least two: there are no out-of-class negatives"
        if out_of_class_ratio < 1 and not (sizes >= 3).any():
            return "got no class with three images, expected some: there are no in-class negatives"
        return None

    def features(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """(n, F)."""
        return np.stack([self._samples[place].feature for place in places.tolist()])  # type: ignore[misc]

    def _fit(self, incoming: npt.NDArray[np.int64]) -> None:
        """Make the reservoirs' arrays as wide as the largest buffer needs, that nothing is lost but by `_evict`."""
        sizes = np.bincount(incoming, minlength=len(self._spent))
        sizes[: self.reservoirs.classes] += self.reservoirs.sizes
        needed, capacity = int(sizes.max()), self.reservoirs.capacity
        if not needed <= capacity <= 4 * needed + _CHUNK:
            self.reservoirs.resize(needed + needed // 2)

    def _evict(self) -> None:
        """Hold every class to its share of the budget."""
        limit = self.byte_budget - self.byte_budget // READING_PARTS
        share = limit // len(self._classes)
        sizes = self.reservoirs.sizes
        over = np.flatnonzero(self._spent[: len(sizes)] > share)
        for number in over.tolist():
            places, spent = self.reservoirs.held(number).tolist(), int(self._spent[number])
            while spent > share:
                spent -= cost_of(self._samples[places.pop()])
            if len(places) < 2:
                raise ValueError(
                    f"byte_budget: got {self.byte_budget} bytes a loader worker, of which each of the "
                    f"{len(self._classes)} classes has {share}: too few for two images of one class; raise it"
                )
            sizes[number], self._spent[number] = len(places), spent
        if len(over):
            for place in self.reservoirs.keep(sizes).tolist():
                self.bytes -= cost_of(self._samples.pop(place))


def cost_of(sample: Sample) -> int:
    """What an image counts for in the budget, in bytes."""
    return len(sample.image) + OVERHEAD + (0 if sample.feature is None else sample.feature.nbytes)
