"""Triplets of a data set that streams through reservoirs, pass after pass."""

from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from dr_plugin.reservoirs import ClassReservoirs
from dr_plugin.samplers.class_rows import Indices, Progress, class_rows
from dr_plugin.triplets import Relevance, TripletDraw
from dr_plugin.triplets.streamed import BYSTANDER, NoTripletError, StreamedTriplets

_NEEDED = (
    16  # draws by weight that a triplet takes, more or less: what does not fit or satisfy is drawn again
)
_MOST = 2**17  # triplets of a pass
_TRIED = 4  # times that a pass is streamed, where the reservoirs held no triplet of a wanted kind


class ReservoirPasses:
    """Streams the images' numbers through new reservoirs for every so many batches, which are then drawn at once.

    A pass depends on (seed, epoch, pass) and the data only.

    Args:
        classes: Of each image, 0, 1, ... (N,).
        capacity: Images held of each class.
        exact: As in `StreamedTriplets`.
        triplets_per_image: Triplets of a pass for each image streamed; None: so many that most draws are exact.
        size: Triplets a batch.
        batches_per_epoch: More are not drawn at once.
        draw: Further arguments of `StreamedTriplets`.
    Attributes:
        batches_per_pass: At least 1.
    Raises:
        ValueError: if the relevance is refused, or a kind of triplet does not exist.
    """

    def __init__(
        self,
        relevance: Relevance,
        classes: Indices,
        *,
        capacity: int,
        exact: bool,
        triplets_per_image: float | None,
        size: int,
        batches_per_epoch: int,
        seed: int,
        draw: dict[str, Any],
        progress: Progress | None = None,
    ) -> None:
        self._relevance, self._classes, self._draw, self._seed = relevance, classes, draw, seed
        self._exact = exact
        self._images, self._size = np.arange(len(classes)), size
        uniform = draw["weighting"] == "uniform"
        self._totals = _checked_totals(relevance, self._images)
        sizes = np.bincount(classes)
        self._largest = int(sizes.max())
        self._capacity = min(capacity, self._largest)
        self._check_kinds(draw["out_of_class_ratio"])
        weights = np.bincount(classes, self._totals)[classes] > 0 if uniform else self._totals
        self._weights = np.where(weights > 0, weights, BYSTANDER)
        bounds = self._largest_ratios(progress)
        self._bounds = None if uniform else bounds
        if triplets_per_image is not None:
            triplets = float(triplets_per_image) * len(classes)
        elif self._capacity == self._largest:  # nothing is ever lost
            triplets = np.inf
        else:
            triplets = np.minimum(sizes, capacity).sum() / _NEEDED
        self.batches_per_pass = max(1, min(int(min(triplets, _MOST) / size), batches_per_epoch))
        self._drawn: tuple[tuple[int, int], list[TripletDraw]] | None = None  # the last pass

    def batch(self, epoch: int, index: int) -> TripletDraw:
        """Batch `index` of `epoch`."""
        number, place = divmod(index, self.batches_per_pass)
        if self._drawn is None or self._drawn[0] != (epoch, number):
            self._drawn = (epoch, number), self._pass(epoch, number)
        return self._drawn[1][place]

    def _pass(self, epoch: int, number: int) -> list[TripletDraw]:
        key = (self._seed, epoch, number)
        if self._capacity == self._largest:  # all is held, every time
            return self._stream((*key, 0))
        with suppress(NoTripletError):
            return self._stream((*key, 0))
        for attempt in range(1, _TRIED):
            with suppress(NoTripletError):
                return [_inexact(draw) for draw in self._stream((*key, attempt))]
        return [_inexact(draw) for draw in self._stream((*key, _TRIED))]

    def _stream(self, key: tuple[int, ...]) -> list[TripletDraw]:
        count = int(self._classes.max()) + 1
        reservoirs = ClassReservoirs(
            self._capacity, count, total_capacity=count * self._capacity, seed=(*key, 0)
        )
        reservoirs.extend(self._images, self._classes, self._weights)
        draws = StreamedTriplets(
            reservoirs,
            self._relevance.pairs,
            weights=self._totals.take,
            bounds=None if self._bounds is None else self._bounds.take,
            exact=self._exact,
            **self._draw,
        )
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((*key, 1))))
        return draws.draw_batches(self.batches_per_pass, self._size, rng)

    def _largest_ratios(self, progress: Progress | None) -> npt.NDArray[np.float64]:
        """For each query, the largest min(T_p, r(q, x)) / r_x of its class, (N,); and that (8) can be satisfied."""
        ratios, ordered = np.zeros(len(self._images)), False
        threshold, margin = self._draw["relevance_threshold"], self._draw["relevance_margin"]
        for images, members, values in class_rows(self._relevance, self._classes, progress):
            capped = (
                values
                if threshold is None
                else values.clip(max=min(threshold, float(np.finfo(values.dtype).max)))
            )
            totals = np.where(self._totals[members] > 0, self._totals[members], np.inf)
            ratios[images] = (capped / totals).max(axis=1)
            lowest = np.where(values > 0, values, np.inf).min(axis=1)
            if self._draw["weighting"] == "uniform":  # which draws what is relevant to none, too
                lowest[(values == 0).sum(axis=1) > 1] = 0  # one 0 is the image with itself
            differ = values.max(axis=1).astype(np.float64) - lowest
            ordered |= bool(((differ > 0) & (differ >= margin)).any())
        if not ordered and self._draw["out_of_class_ratio"] < 1:
            raise ValueError(
                f"out_of_class_ratio: got {self._draw['out_of_class_ratio']}, but no image has two others in its class "
                f"whose relevances differ, by relevance_margin={margin} or more: expected 1, or a smaller margin"
            )
        return ratios

    def _check_kinds(self, ratio: float) -> None:
        """That there is a class to draw each wanted kind of triplet from, as far as sizes can tell."""
        most = int(np.bincount(self._classes, self._totals > 0).max())
        count = len(np.unique(self._classes))
        if most < 2 or (ratio > 0 and count < 2) or (ratio < 1 and most < 3):
            raise ValueError(
                f"labels: got {count} classes with at most {most} images of one relevant to another, expected at "
                f"least {2 if ratio == 1 else 3} such images of one class, and another class for out-of-class "
                f"negatives (out_of_class_ratio={ratio})"
            )


def _checked_totals(relevance: Relevance, images: Indices) -> npt.NDArray[np.float64]:
    totals = np.array(relevance.total(images), np.float64)
    if totals.shape != images.shape or not ((totals >= 0) & (totals < np.inf)).all():
        raise ValueError(
            f"relevance.total: got shape {totals.shape}, least {totals.min(initial=0)}, expected {images.shape} finite "
            "numbers, at least 0"
        )
    return totals


def _inexact(draw: TripletDraw) -> TripletDraw:
    """A draw from buffers that were chosen for what they hold."""
    return draw._replace(counters=draw.counters | {"inexact": draw.counters["accepted"]})
