"""What the draws and their callers ask of a relevance: r(i, j) of two images and r_i of one; tables as relevances."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dr_plugin.checks import as_array, as_indices, check_length, check_whole, shown

Indices = npt.NDArray[np.int64]  # (n,) image indices of the data set
Values = npt.NDArray[np.float32]

_CHUNK = 2**20  # pairs that are asked for at once
_SYMMETRY = (
    1e-4  # r(i, j) and r(j, i) may differ by so much of the larger: kernels are computed with rounding
)


@runtime_checkable
class Relevance(Protocol):
    """How relevant the images of a data set are to one another, by index.

    r(i, j) >= 0 and finite for two different images of one class, 0 for images of different classes; r(i, i)
    is never asked for. A relevance may also offer `block(members)`, the (n, n) float32 array of all r(i, j)
    among members (with any diagonal), where that is faster than `pairs`.

    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 5.1.
    """

    def __len__(self) -> int:
        """N, the images of the data set."""

    def pairs(self, i: Indices, j: Indices) -> Values:
        """r(i, j) of each pair: (n,), (n,) -> (n,)."""

    def total(self, i: Indices) -> npt.NDArray[np.float64]:
        """Total relevance r_i, the sum of r(i, j) over the other images of its class, eq. (6): (n,) -> (n,)."""


class TableRelevance:
    """Relevance from a table of all pairs, for small data.

    - The diagonal is ignored, and read as 0, and so are the entries of images of different classes; all but
      the diagonal must be numbers nevertheless.
    - A float32 array is not copied: a memory map will do. It must not change afterwards.

    Args:
        table: r(i, j), symmetric, finite and at least 0.
        labels: The images' classes, any integers; None: all images are one class (graded relevance).
    Shape:
        table (N, N), labels (N,).
    Raises:
        ValueError: if the table is not square, is not symmetric (up to rounding), holds something negative,
            infinite (as float32) or NaN, or if labels do not match.
    Example:
        >>> relevance = TableRelevance([[0, 2, 1], [2, 0, 1], [1, 1, 0]], labels=[0, 0, 1])
        >>> relevance.pairs([0, 0], [1, 2])
        array([2., 0.], dtype=float32)
    """

    def __init__(self, table: npt.ArrayLike, labels: npt.ArrayLike | None = None) -> None:
        self._table = _checked_table(table)
        self._classes = _checked_labels(labels, len(self._table))
        self._labelled = labels is not None
        self._totals: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self._table)

    @property
    def labels(self) -> Indices | None:
        """The classes (N,), or None where all images are one."""
        return self._classes if self._labelled else None

    def pairs(self, i: npt.ArrayLike, j: npt.ArrayLike) -> Values:
        """r(i, j) of each pair: (n,), (n,) -> (n,) float32."""
        i, j = as_indices("i", i, len(self)), as_indices("j", j, len(self))
        if len(i) != len(j):
            raise ValueError(f"got {len(i)} i and {len(j)} j, expected as many of each")
        related = (self._classes[i] == self._classes[j]) & (i != j)
        return np.where(related, self._table[i, j], np.float32(0))

    def block(self, members: npt.ArrayLike) -> Values:
        """All r among these images: (n,) -> (n, n) float32, 0 in the diagonal."""
        members = as_indices("members", members, len(self))
        found: Values = self._table[np.ix_(members, members)]
        found[self._classes[members][:, None] != self._classes[members]] = 0
        found[members[:, None] == members] = 0
        return found

    def total(self, i: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Total relevance r_i, the sum of r(i, j) over the other images of i's class, eq. (6): (n,) -> (n,)."""
        if self._totals is None:
            self._totals = np.zeros(len(self))
            for members, block in blocks(self, self.labels):
                self._totals[members] = block.sum(axis=1, dtype=np.float64)
        found: npt.NDArray[np.float64] = self._totals[as_indices("i", i, len(self))]
        return found


class _WithinClasses:
    """A graded relevance, of any two images, cut to classes: 0 across them, and total relevances of their own."""

    def __init__(self, relevance: Relevance, labels: Indices) -> None:
        self._relevance, self.labels = relevance, labels
        self._totals: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def pairs(self, i: Indices, j: Indices) -> Values:
        found = np.asarray(self._relevance.pairs(i, j), dtype=np.float32)
        return np.where(self.labels[i] == self.labels[j], found, np.float32(0))

    def total(self, i: Indices) -> npt.NDArray[np.float64]:
        if self._totals is None:
            self._totals = np.zeros(len(self))
            for members, block in blocks(self, self.labels):
                np.fill_diagonal(block, 0)
                self._totals[members] = block.sum(axis=1, dtype=np.float64)
        found: npt.NDArray[np.float64] = self._totals[i]
        return found


def as_relevance(relevance: object, labels: npt.ArrayLike | None, count: int) -> Relevance:
    """Take what a user may give as relevance: an object with `pairs` and `total`, or an (N, N) array.

    Args:
        relevance: The object, returned as it is, or a table (array or tensor); see `TableRelevance`. An object whose
            `labels` are None, a graded relevance of any two images, is cut to the classes.
        labels: The classes that the draws go by; None: all images are one class (graded relevance).
        count: N, the images of the data set.
    Raises:
        ValueError: if it is neither, is of another number of images or of other classes, or the table is
            refused.
    """
    check_whole("count", count, minimum=0)
    if isinstance(relevance, Relevance):
        if len(relevance) != count:
            raise ValueError(f"relevance: got one of {len(relevance)} images, expected {count}")
        if labels is None or not hasattr(relevance, "labels"):
            return relevance
        own, given = relevance.labels, _checked_labels(labels, count)
        if own is None:
            return _WithinClasses(relevance, given)
        if not same_classes(_checked_labels(own, count), given):
            raise ValueError(
                "labels: got other classes than the relevance was made with, expected the same: "
                "relevances across its classes are 0"
            )
        return relevance
    if isinstance(relevance, Tensor):
        relevance = relevance.detach().float().cpu().numpy()
    kind, relevance = type(relevance).__name__, as_array("relevance", relevance)
    shape = relevance.shape
    if shape != (count, count):
        raise ValueError(
            f"relevance: got {kind} of shape {shape}, expected an object with len, pairs "
            f"and total, or an array ({count}, {count})"
        )
    return TableRelevance(relevance, labels)


def blocks(relevance: Relevance, labels: npt.ArrayLike | None) -> Iterator[tuple[Indices, Values]]:
    """The relevances of one class after the other, asked of `relevance.block` where there is one.

    Args:
        relevance: Of N images.
        labels: Their classes; None: all images are one class.
    Yields:
        The members of a class (n,), ascending, and all r among them (n, n), with any diagonal. Classes ascend.
    Raises:
        ValueError: if labels do not match, or the relevance gives an array of another shape.
    """
    count = check_length("relevance", relevance, "an object with len, pairs and total")
    classes = _checked_labels(labels, count)
    order = np.argsort(classes, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(classes[order])) + 1):
        if not len(members):
            return  # no images at all
        if len(members) == 1:
            yield members, np.zeros((1, 1), np.float32)
        elif hasattr(relevance, "block"):
            found = np.asarray(relevance.block(members), dtype=np.float32)
            yield members, _of_shape(found, (len(members), len(members)), "block")
        else:
            yield members, _block_by_pairs(relevance, members)


def class_entries(relevance: Relevance, labels: npt.ArrayLike | None, out: Values | None = None) -> Values:
    """All blocks in one row: the values of the entries of `ClassLayout(labels)`, as `RelevantTriplets` takes them.

    Args:
        relevance: Of N images.
        labels: Their classes; None: all images are one class, and the layout's labels are all equal.
        out: Where to write, such as a memory map; None: new memory, 4 bytes for each entry.
    Shape:
        labels (N,), out (E,) -> (E,) float32; E is the sum of the squared sizes of the classes.
    """
    count = check_length("relevance", relevance, "an object with len, pairs and total")
    _, sizes = np.unique(_checked_labels(labels, count), return_counts=True)
    size = int((sizes.astype(np.int64) ** 2).sum())
    entries = np.empty(size, np.float32) if out is None else out
    if not isinstance(entries, np.ndarray) or entries.shape != (size,) or entries.dtype != np.float32:
        raise ValueError(f"out: got {shown(entries)}, expected a float32 array of shape {(size,)}")
    start = 0
    for members, block in blocks(relevance, labels):
        stop = start + len(members) ** 2
        entries[start:stop] = block.ravel()
        start = stop
    return entries


def _block_by_pairs(relevance: Relevance, members: Indices) -> Values:
    block = np.zeros((len(members), len(members)), np.float32)
    rows = max(1, _CHUNK // len(members))
    for start in range(0, len(members), rows):
        part = members[start : start + rows]
        different = part[:, None] != members
        row, column = np.nonzero(different)
        found = np.asarray(relevance.pairs(part[row], members[column]), dtype=np.float32)
        block[start : start + rows][different] = _of_shape(found, row.shape, "pairs")
    return block


def _of_shape(values: Values, shape: tuple[int, ...], name: str) -> Values:
    if values.shape != shape:
        raise ValueError(f"relevance.{name}: got shape {values.shape}, expected {shape}")
    return values


def same_classes(one: Indices, other: Indices) -> bool:
    """Whether two labellings (n,) put the same images together."""
    return np.array_equal(_firsts(one), _firsts(other))


def _firsts(classes: Indices) -> Indices:
    """The first image of each image's class: the same for two labellings if they have the same classes."""
    _, first, number = np.unique(classes, return_index=True, return_inverse=True)
    found: Indices = first[number]
    return found


def _checked_labels(labels: npt.ArrayLike | None, count: int) -> Indices:
    if labels is None:
        return np.zeros(count, np.int64)
    array = as_array("labels", labels)
    if array.shape != (count,) or (count and not np.issubdtype(array.dtype, np.integer)):
        raise ValueError(
            f"labels: got {array.dtype} of shape {array.shape}, expected an integer for each image, ({count},)"
        )
    return array.astype(np.int64)


def _checked_table(table: npt.ArrayLike) -> Values:
    array = as_array("relevance", table)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.dtype.kind not in "fiub":
        raise ValueError(
            f"relevance: got a table of {array.dtype}, shape {array.shape}, expected numbers of shape (N, N)"
        )
    with np.errstate(over="ignore"):  # what is too large for float32 is infinite below
        array = array.astype(np.float32, copy=False)
    for start, part, other in _strips(array):
        if wrong := _first(other & ~((part >= 0) & np.isfinite(part)), start):
            raise ValueError(
                f"relevance: got r{wrong} = {array[wrong]}, expected every r finite and at least 0"
            )
    for start, part, other in _strips(array):
        mirrored = array[:, start : start + len(part)].T
        with np.errstate(invalid="ignore"):  # the diagonal may hold anything
            apart = np.abs(part - mirrored) > _SYMMETRY * np.maximum(part, mirrored)
        if wrong := _first(other & apart, start):
            raise ValueError(
                f"relevance: got r{wrong} = {array[wrong]} and r{wrong[::-1]} = {array[wrong[::-1]]}, "
                "expected a symmetric table"
            )
    return array


def _strips(table: Values) -> Iterator[tuple[int, Values, npt.NDArray[np.bool_]]]:
    """Some rows at a time: the first's number, the rows (n, N), and where they are not the diagonal."""
    rows = max(1, _CHUNK // max(1, len(table)))
    for start in range(0, len(table), rows):
        part = table[start : start + rows]
        yield start, part, np.arange(start, start + len(part))[:, None] != np.arange(len(table))


def _first(wrong: npt.NDArray[np.bool_], start: int) -> tuple[int, int] | None:
    """Row and column of the first that is wrong, in a part of the table that begins at row `start`."""
    if not wrong.any():
        return None
    row, column = np.unravel_index(int(wrong.argmax()), wrong.shape)
    return start + int(row), int(column)
