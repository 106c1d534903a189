"""What every relevance of ours shares: classes, checks, totals and blocks, in pieces of bounded size."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from dr_plugin.checks import as_indices
from dr_plugin.relevance.classes import Classes, Labels
from dr_plugin.triplets.relevances import Indices

Values = npt.NDArray[np.float32]

_STRIP = 2**24  # entries of the largest rectangle that is made at once: 64 MiB
_PAIRS = 2**20  # pairs that are computed at once


class BaseRelevance(ABC):
    """A relevance from which a subclass has only to compute the pairs of one class.

    A subclass writes `_pairs`, and `_rectangle` where many pairs at once are faster. Both are asked only for
    images of one class, `_pairs` never for an image with itself and never for nothing. The rest follows:

    - r is 0 across classes, whatever the subclass would say; r(i, i) is 0, and so in no total.
    - Totals are sums in float64 of the float32 values, computed when first asked for, and kept: for the whole
      class at once, or, where a class has more than 4096 images, for the images that were asked for.
    - The draws ask for r(query, other) and need no symmetry. Where r is not symmetric, r_i sums over r(i, .).

    Args:
        count: N, the images of the data set.
        labels: Their classes, any integers; None: all images are one class (graded relevance).
    Shape:
        labels (N,).
    Raises:
        ValueError: if labels do not match.
    """

    def __init__(self, count: int, labels: Labels | None) -> None:
        self.classes = Classes(labels, count)
        self._totals = np.full(count, np.nan)

    def __len__(self) -> int:
        return len(self.classes.number)

    @property
    def labels(self) -> Indices | None:
        """The classes (N,) int64, or None where all images are one."""
        return self.classes.labels

    @abstractmethod
    def _pairs(self, i: Indices, j: Indices) -> Values:
        """r(i, j) of pairs of different images, each of one class: (n,), (n,) -> (n,), n >= 1."""

    def _rectangle(self, i: Indices, j: Indices) -> Values:
        """r of every i with every j, all of one class: (n,), (m,) -> (n, m); what it says of i == j is ignored.

        In a block, i and j are one object, so that what they share need not be computed twice.
        """
        values = np.zeros((len(i), len(j)), np.float32)
        rows = max(1, _PAIRS // len(j))
        for start in range(0, len(i), rows):
            different = i[start : start + rows, None] != j
            first, second = np.nonzero(different)
            if len(first):
                values[start : start + rows][different] = self._in_pieces(i[start + first], j[second])
        return values

    def fingerprint(self) -> bytes | None:
        """What changes when any r(i, j) may have changed, for stored copies; None where that cannot be told."""
        return None

    def pairs(self, i: npt.ArrayLike, j: npt.ArrayLike) -> Values:
        """r(i, j) of each pair: (n,), (n,) -> (n,) float32."""
        i, j = as_indices("i", i, len(self)), as_indices("j", j, len(self))
        if len(i) != len(j):
            raise ValueError(f"got {len(i)} i and {len(j)} j, expected as many of each")
        asked = (self.classes.number[i] == self.classes.number[j]) & (i != j)
        values = np.zeros(len(i), np.float32)
        if asked.all():
            return self._in_pieces(i, j) if len(i) else values
        if asked.any():
            values[asked] = self._in_pieces(i[asked], j[asked])
        return values

    def rectangle(self, i: npt.ArrayLike, j: npt.ArrayLike) -> Values:
        """r of every i with every j: (n,), (m,) -> (n, m) float32."""
        i, j = as_indices("i", i, len(self)), as_indices("j", j, len(self))
        values = np.zeros((len(i), len(j)), np.float32)
        rows, columns = self.classes.number[i], self.classes.number[j]
        for number in np.intersect1d(rows, columns):
            of_rows, of_columns = np.flatnonzero(rows == number), np.flatnonzero(columns == number)
            i_part = i[of_rows]
            j_part = i_part if j is i else j[of_columns]
            part = self._rectangle(i_part, j_part)
            part[i_part[:, None] == j_part] = 0
            if part.shape == values.shape:
                return part
            values[np.ix_(of_rows, of_columns)] = part
        return values

    def block(self, members: npt.ArrayLike) -> Values:
        """All r among these images: (n,) -> (n, n) float32, 0 in the diagonal."""
        members = as_indices("members", members, len(self))
        return self.rectangle(members, members)

    def strips(self, i: Indices, j: Indices) -> Iterator[tuple[Indices, Values]]:
        """The rectangle of i and j in strips of bounded size: some of i (n,), with their rows (n, m)."""
        rows = max(1, _STRIP // max(1, len(j)))
        if len(i) <= rows:
            yield i, self.rectangle(i, j)
            return
        for start in range(0, len(i), rows):
            yield i[start : start + rows], self.rectangle(i[start : start + rows], j)

    def total(self, i: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Total relevance r_i, the sum of r(i, j) over the other images of i's class, eq. (6): (n,) -> (n,)."""
        i = as_indices("i", i, len(self))
        missing = np.unique(i[np.isnan(self._totals[i])])
        for number in np.unique(self.classes.number[missing]):
            members = self.classes.members(number)
            whole = len(members) ** 2 <= _STRIP
            asked = members if whole else missing[self.classes.number[missing] == number]
            for rows, strip in self.strips(asked, members):
                self._totals[rows] = strip.sum(axis=1, dtype=np.float64)
        return self._totals[i]

    def _in_pieces(self, i: Indices, j: Indices) -> Values:
        if len(i) <= _PAIRS:
            return self._pairs(i, j)
        pieces = range(0, len(i), _PAIRS)
        return np.concatenate([self._pairs(i[s : s + _PAIRS], j[s : s + _PAIRS]) for s in pieces])


def checked_values(values: Any, shape: tuple[int, ...], source: str) -> Values:
    """What a user's function gave, as float32 of this shape, finite and at least 0."""
    found = np.asarray(values)
    if found.shape != shape or found.dtype.kind not in "fiub":
        raise ValueError(f"{source}: got {found.dtype} of shape {found.shape}, expected numbers {shape}")
    with np.errstate(over="ignore"):  # what is too large is infinite below
        found = found.astype(np.float32)  # a copy: the caller may change it
    if not (found >= 0).all() or not np.isfinite(found).all():
        wrong = found[~((found >= 0) & np.isfinite(found))][0]
        raise ValueError(f"{source}: got {wrong}, expected every relevance finite (float32) and at least 0")
    return found


def digest(*parts: bytes | npt.NDArray[Any]) -> bytes:
    """A hash of bytes and arrays (dtype, shape and content; a memory map is read through)."""
    total = hashlib.blake2b(digest_size=32)
    for part in parts:
        if isinstance(part, bytes):
            total.update(len(part).to_bytes(8, "little") + part)
            continue
        total.update(repr((part.dtype.str, part.shape)).encode())
        rows = max(1, 2**24 // max(1, part[:1].nbytes))
        for start in range(0, len(part), rows):
            total.update(np.ascontiguousarray(part[start : start + rows]).data)
    return total.digest()
