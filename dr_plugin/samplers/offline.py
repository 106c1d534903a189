"""Batches of triplets that were chosen beforehand, read from an array or a file."""

import csv
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dr_plugin.checks import as_array, check_flag, check_whole
from dr_plugin.samplers.packaged import (
    Labels,
    PackagedTripletSampler,
    RandomBits,
    as_classes,
    check_batch_size,
)
from dr_plugin.triplets import RANDOM_BITS

Array = npt.NDArray[np.int64]
OfflineTriplets = Sequence[Sequence[int]] | npt.NDArray[np.integer] | Tensor | str | os.PathLike[str]
Weights = Sequence[float] | npt.NDArray[np.floating] | Tensor

_ROLES = ("query", "positive", "negative")
_DIGITS = 18  # any such number fits int64


class OfflineTripletSampler(PackagedTripletSampler):
    """Batches of given triplets: a flat list query, positive, negative, query, ... of a data set's indices.

    For PML's `MetricLossOnly(sampler=...)` with the miner `EmbeddingsAlreadyPackagedAsTriplets`.

    - Without `batches_per_epoch` and weights, each epoch gives each triplet once, in an order of its own; the
      last batch is smaller where the triplets do not fill it, or left out with `drop_last`.
    - With `batches_per_epoch`, all batches are full and the passes over the triplets run on from one epoch
      into the next: each triplet once a pass.
    - With weights, each triplet is drawn independently, in proportion to its weight.

    Batch b of epoch e depends on (seed, e, b) and the arguments only, and can be had directly: `batch(e, b)`.
    To resume, see `UniformTripletSampler`.

    Args:
        triplets: Query, positive and negative as indices of the data set's images; or a csv file of them, one
            a line, with a header that names these columns (others are not read) or with three columns alone.
        batch_size: Images a batch, three for each triplet: a positive multiple of 3.
        labels: One for each image of the data set; only their number is used, to check the indices.
        weights: One for each triplet, at least 0, not all 0; None: no draws, see above.
        shuffle: False: the triplets' own order, in each pass.
        drop_last: Leave out a last batch that is not full; without shuffle, its triplets are never given. Not together
            with `batches_per_epoch`, where all batches are full.
        batches_per_epoch: Batches an epoch; None: as many as the triplets fill.
        seed: At least 0.
    Attributes:
        triplets: (T, 3) int64.
    Shape:
        triplets (T, 3), labels (N,), weights (T,) -> lists of batch_size ints.
    Raises:
        ValueError: if the triplets are none, no whole numbers, out of range or name one image twice (all with
            the first one's place), or if another argument is out of range.
    Example:
        >>> sampler = OfflineTripletSampler([[0, 1, 2], [3, 4, 5], [1, 0, 5]], batch_size=6, shuffle=False)
        >>> list(sampler)
        [[0, 1, 2, 3, 4, 5], [1, 0, 5]]
    """

    def __init__(
        self,
        triplets: OfflineTriplets,
        *,
        batch_size: int,
        labels: Labels | None = None,
        weights: Weights | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        batches_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        batch_size = check_batch_size(batch_size)
        shuffle, drop_last = check_flag("shuffle", shuffle), check_flag("drop_last", drop_last)
        if drop_last and batches_per_epoch is not None:
            raise ValueError(
                f"drop_last: got True with batches_per_epoch={batches_per_epoch}, expected only one of them: with "
                "batches_per_epoch all batches are full"
            )
        images = None if labels is None else len(as_classes(labels))
        self.triplets = _checked(triplets, images)
        self._upper_ends = None if weights is None else _upper_ends(weights, len(self.triplets))
        self._aligned = batches_per_epoch is None and weights is None
        self._shuffle = shuffle
        self._order: tuple[int, Array] | None = None  # of the pass last asked for
        size, count = batch_size // 3, len(self.triplets)
        if batches_per_epoch is None:
            batches_per_epoch = count // size if drop_last else -(-count // size)
            if batches_per_epoch == 0:
                raise ValueError(
                    f"batch_size: got {batch_size}, expected at most {3 * count}, the {count} triplets' images, or "
                    "drop_last=False"
                )
        super().__init__(
            int(self.triplets.max()) + 1 if images is None else images,
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            seed=seed,
            same={
                "shuffle": shuffle,
                "drop_last": drop_last,
                "aligned": self._aligned,
                "triplets_crc32": zlib.crc32(self.triplets.tobytes()),
                "weights_crc32": 0 if self._upper_ends is None else zlib.crc32(self._upper_ends.tobytes()),
            },
        )
        self.drop_last = drop_last

    def batch(self, epoch: int, index: int) -> list[int]:
        """Batch `index` of `epoch`: query, positive, negative, query, ...

        Raises:
            ValueError: if the epoch has no such batch.
        """
        epoch = check_whole("epoch", epoch, minimum=0)
        index = check_whole("index", index, minimum=0, below=self.batches_per_epoch)
        size, count = self.batch_size // 3, len(self.triplets)
        if self._upper_ends is not None:
            chosen = _drawn(self._upper_ends, RandomBits(self.seed, epoch, index)((size,)))
        elif self._aligned:
            chosen = self._pass(epoch)[index * size : (index + 1) * size]
        else:
            start = (epoch * self.batches_per_epoch + index) * size
            chosen = np.concatenate(list(self._run_on(start, start + size, count)))
        batch: list[int] = self.triplets[chosen].reshape(-1).tolist()
        return batch

    def _run_on(self, start: int, stop: int, count: int) -> Iterator[Array]:
        """Places start to stop - 1 of all passes, one after the other."""
        for number in range(start // count, (stop - 1) // count + 1):
            first = number * count
            yield self._pass(number)[max(start - first, 0) : stop - first]

    def _pass(self, number: int) -> Array:
        """The order of the triplets in a pass over them."""
        if not self._shuffle:
            return np.arange(len(self.triplets))
        if self._order is None or self._order[0] != number:
            bits = RandomBits(self.seed, number)((len(self.triplets),)).numpy()
            self._order = number, np.argsort(bits, kind="stable")
        return self._order[1]


def _drawn(upper_ends: npt.NDArray[np.float64], bits: Tensor) -> Array:
    uniform = bits.numpy() / 2.0**RANDOM_BITS
    # uniform may round up to 1: the last triplet with a weight ends there, those of weight 0 behind it as well.
    last = np.searchsorted(upper_ends, 1.0)
    return np.minimum(np.searchsorted(upper_ends, uniform, side="right"), last).astype(np.int64)


def _upper_ends(weights: Weights, count: int) -> npt.NDArray[np.float64]:
    """Where each triplet's share of 0..1 ends."""
    array = as_array("weights", weights.float().cpu() if isinstance(weights, Tensor) else weights)
    if array.shape != (count,) or array.dtype.kind not in "fiub":
        raise ValueError(
            f"weights: got {array.dtype} of shape {array.shape}, expected ({count},), one for each triplet"
        )
    if not np.isfinite(array).all() or (array < 0).any() or not array.any():
        raise ValueError(
            "weights: got NaN, infinite, negative or no positive ones, expected finite ones, at least 0"
        )
    ends = np.cumsum(array / array.max())
    return np.asarray(ends / ends[-1])


def _checked(triplets: OfflineTriplets, images: int | None) -> Array:
    """The triplets (T, 3), each three different images of the data set."""
    if isinstance(triplets, str | os.PathLike):
        array, places = _read(Path(triplets).expanduser())
    else:
        array = as_array("triplets", triplets.cpu() if isinstance(triplets, Tensor) else triplets)
        places = None
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iu" or len(array) == 0:
        raise ValueError(
            f"triplets: got {array.dtype} of shape {array.shape}, expected whole numbers of shape (T, 3), T at least 1"
        )
    query, positive, negative = array.T
    most, limit = np.iinfo(np.int64).max, "at least 0 and below 2^63"
    if images is not None:
        most, limit = images - 1, f"0 to {images - 1}"
    outside = ((array < 0) | (array > most)).any(1)  # before uint64 is cast, which would wrap
    twice = (query == positive) | (query == negative) | (positive == negative)
    for wrong, wanted in ((outside, f"indices of images, {limit}"), (twice, "three different images")):
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            place = f"triplet {first}" if places is None else places[first]
            raise ValueError(
                f"triplets: got {array[first].tolist()} ({place}), the first of {int(wrong.sum())} such; "
                f"expected {wanted}: leave out or correct them"
            )
    return array.astype(np.int64)


def _read(path: Path) -> tuple[Array, list[str]]:
    """The csv's triplets, and the file and line of each."""
    if not path.is_file():
        raise ValueError(f"triplets: got {str(path)!r}, expected a csv file of indices")
    rows, places = [], []
    columns: list[int] | None = None
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        for line in filter(None, reader):
            place = f"{path}:{reader.line_num}"
            if columns is None:
                columns = _columns(line, place)
                if not _is_whole(line):
                    continue
            cells = [line[at] for at in columns if at < len(line)]
            if len(cells) < 3 or not _is_whole(cells):
                raise ValueError(
                    f"triplets: got {','.join(line)!r} ({place}), expected three whole numbers of at most "
                    f"{_DIGITS} digits"
                )
            rows.append([int(cell) for cell in cells])
            places.append(place)
    if not rows:
        raise ValueError(f"triplets: got no triplet in {path}, expected at least one")
    return np.array(rows, dtype=np.int64), places


def _columns(line: list[str], place: str) -> list[int]:
    """Where query, positive and negative stand, by the first line: a header, or three numbers."""
    names = [cell.strip() for cell in line]
    if len(line) == 3 and _is_whole(line):
        return [0, 1, 2]
    if any(names.count(role) != 1 for role in _ROLES):
        raise ValueError(
            f"triplets: got {','.join(names)!r} ({place}), expected a header with {', '.join(_ROLES)}, or three "
            "whole numbers a line"
        )
    return [names.index(role) for role in _ROLES]


def _is_whole(cells: list[str]) -> bool:
    digits = [cell.strip().removeprefix("-") for cell in cells]
    return all(each.isdecimal() and len(each.lstrip("0")) <= _DIGITS for each in digits)
