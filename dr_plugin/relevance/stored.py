"""Relevances computed once and kept on disk, class by class.

A store is a folder with `blocks-<fingerprint>.npy`, all r of class after class; `images-<fingerprint>.npz`,
labels and totals; and `meta.json`, which is written last and makes them count. The files' names tie them to
it: no meta.json is read with another build's numbers.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from dr_plugin.atomic import locked, replacing
from dr_plugin.checks import as_indices, check_path, check_whole, shown
from dr_plugin.relevance.base import BaseRelevance, Values, checked_values, digest
from dr_plugin.relevance.classes import Classes, Labels
from dr_plugin.triplets.relevances import Indices, Relevance, blocks

Progress = Callable[[str, int, int | None], None]

_FORMAT = 1  # part of the fingerprint: to be raised when the files change
MAX_BYTES = 16 * 2**30  # what a store may take unless it is allowed more


class StoredRelevance(BaseRelevance):
    """Relevances in a memory map on disk, each had by index arithmetic.

    `StoredRelevance.build(relevance, folder)` makes the folder or finds it made; `StoredRelevance(folder)` opens
    what was built. A class of n images takes 4 n^2 bytes: 200 MB for 200 classes of 500 images. Pickled to a
    worker, it opens the map again.

    Args:
        folder: Holds meta.json and the files that it names.
    Raises:
        ValueError: if the folder holds no whole store.
    Example:
        >>> features = np.load("features.npy", mmap_mode="r")  # doctest: +SKIP
        >>> relevance = FeatureRelevance(features, labels)  # doctest: +SKIP
        >>> stored = StoredRelevance.build(relevance, "cache/relevance")  # doctest: +SKIP
        >>> stored.pairs([0, 0], [1, 2])  # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = check_path("folder", folder).resolve()
        self._fingerprint = _read_meta(self.folder)
        with np.load(_images_file(self.folder, self._fingerprint), allow_pickle=False) as images:
            totals, labels = images["totals"], images.get("labels")
        super().__init__(len(totals), labels)
        self._totals = totals
        self._open()

    @classmethod
    def build(
        cls,
        relevance: Relevance,
        folder: str | os.PathLike[str],
        *,
        labels: Labels | None = None,
        key: str | None = None,
        max_bytes: int = MAX_BYTES,
        progress: Progress | None = None,
    ) -> Self:
        """Store a relevance in the folder, or reuse what is there if it was made from the same.

        The same is: what `relevance.fingerprint()` gives (features, labels, parameters), and the key. A user's
        function or kernel has no fingerprint: name it by a key, and change the key when you change it.

        A store is whole or not there at all, whenever the process is killed; processes that build in one
        folder at once wait for one another.

        Args:
            relevance: Any relevance. No more than 64 MiB of a `BaseRelevance` are in memory at once, of another
                no more than its largest class.
            folder: Where to; one store a folder, an older one is replaced.
            labels: The classes; None: the relevance's own `labels`, or one class of all images if it has none.
            key: What to tell this relevance from others by, beside its fingerprint.
            max_bytes: Refuse to write more; N images of one class (graded relevance) take 4 N^2.
            progress: Called as progress("storing relevances", images done, images in all).
        Raises:
            ValueError: if labels do not match or are not the relevance's, there is neither fingerprint nor
                key, more than `max_bytes` would be written, or a relevance is not finite and at least 0.
        """
        if not isinstance(relevance, Relevance):
            raise ValueError(
                f"relevance: got {shown(relevance)}, expected an object with len, pairs and total"
            )
        if not isinstance(key, str | None):
            raise ValueError(f"key: got {shown(key)}, expected a name, or None")
        max_bytes = check_whole("max_bytes", max_bytes, minimum=0)
        folder = check_path("folder", folder)
        classes = _classes(relevance, labels)
        needed = 4 * sum(int(size) ** 2 for size in classes.sizes)
        if needed > max_bytes:
            raise ValueError(
                f"max_bytes: got {max_bytes:,}, expected at least {needed:,} for classes of up to "
                f"{classes.sizes.max():,} images: allow more, or use the relevance unstored"
            )
        fingerprint = _fingerprint(relevance, classes, key)
        if (stored := cls._built(folder, fingerprint)) is not None:
            return stored
        with locked(folder):
            stored = cls._built(folder, fingerprint)  # by another process, while this one waited?
            if stored is None:
                _write(relevance, classes, folder, fingerprint, progress)
                stored = cls(folder)
            return stored

    @classmethod
    def _built(cls, folder: Path, fingerprint: str) -> Self | None:
        """The folder's store if it is whole and of this relevance."""
        try:
            stored = cls(folder)
        except (FileNotFoundError, ValueError):
            return None
        return stored if stored._fingerprint == fingerprint else None

    def fingerprint(self) -> bytes | None:
        """Of what was stored."""
        return self._fingerprint.encode()

    def total(self, i: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Total relevance r_i, eq. (6), as stored: (n,) -> (n,)."""
        totals: npt.NDArray[np.float64] = self._totals[as_indices("i", i, len(self))]
        return totals

    def _open(self) -> None:
        blocks = np.load(_blocks_file(self.folder, self._fingerprint), mmap_mode="r", allow_pickle=False)
        self._blocks: Values = blocks.view(np.ndarray)
        # (C + 1,) of each class's block.
        self._begin = np.concatenate([[0], np.cumsum(self.classes.sizes**2)])

    def _pairs(self, i: Indices, j: Indices) -> Values:
        values: Values = self._blocks[self._row(i) + self.classes.place[j]]
        return values

    def _rectangle(self, i: Indices, j: Indices) -> Values:
        number = self.classes.number[i[0]]
        members = self.classes.members(number)
        if len(i) == len(j) == len(members) and (i == members).all() and (j == members).all():
            return self._blocks[self._begin[number] : self._begin[number + 1]].reshape(len(i), -1).copy()
        values: Values = self._blocks[self._row(i)[:, None] + self.classes.place[j]]
        return values

    def _row(self, i: Indices) -> Indices:
        """Where in the blocks the rows of these images begin."""
        number = self.classes.number[i]
        row: Indices = self._begin[number] + self.classes.place[i] * self.classes.sizes[number]
        return row

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_blocks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _classes(relevance: Relevance, labels: Labels | None) -> Classes:
    """The classes to store by; ValueError if they are not those of the relevance."""
    own = getattr(relevance, "labels", None)
    classes = Classes(own if labels is None else labels, len(relevance))
    if own is not None and not np.array_equal(Classes(own, len(relevance)).first, classes.first):
        raise ValueError("labels: got other classes than the relevance's own, expected the same, or None")
    return classes


def _fingerprint(relevance: Relevance, classes: Classes, key: str | None) -> str:
    offered = getattr(relevance, "fingerprint", None)
    own = offered() if offered is not None else None
    if own is None and key is None:
        raise ValueError(
            f"key: got None with a {type(relevance).__name__} that has no fingerprint, expected a key that "
            "changes whenever its relevances do"
        )
    kind = f"{type(relevance).__module__}.{type(relevance).__qualname__}"
    about = json.dumps([_FORMAT, kind, key]).encode()
    return digest(about, own or b"", b"graded" if classes.labels is None else classes.labels).hex()


def _write(
    relevance: Relevance, classes: Classes, folder: Path, fingerprint: str, progress: Progress | None
) -> None:
    """Make the folder hold this store and no other; the caller holds the folder's lock."""
    values, images = _blocks_file(folder, fingerprint), _images_file(folder, fingerprint)
    totals = np.empty(len(relevance), np.float64)
    done = 0
    with replacing(values) as file:
        # By plain sequential writes, not through a map: a full disk is then an OSError and not a SIGBUS.
        shape = (int((classes.sizes**2).sum()),)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for rows, members, given in _strips(relevance, classes):
            strip = _checked(given, rows, members)
            totals[rows] = strip.sum(axis=1, dtype=np.float64)
            file.write(strip.astype("<f4", copy=False).tobytes())
            done += len(rows)
            if progress is not None:
                progress("storing relevances", done, len(relevance))
    with replacing(images) as file:
        arrays: dict[str, Any] = (
            {"totals": totals} if classes.labels is None else {"totals": totals, "labels": classes.labels}
        )
        np.savez(file, **arrays)
    with replacing(folder / "meta.json") as file:
        sizes = [values.stat().st_size, images.stat().st_size]  # a truncated file is not taken for whole
        file.write(json.dumps({"format": _FORMAT, "fingerprint": fingerprint, "bytes": sizes}).encode())
    for path in (*folder.glob("blocks-*"), *folder.glob("images-*")):  # older, or what a killed build left
        if path not in (values, images):
            path.unlink()


def _strips(relevance: Relevance, classes: Classes) -> Iterator[tuple[Indices, Indices, Values]]:
    """Class after class in its rows (n,), the class (m,), and their relevances (n, m)."""
    if isinstance(relevance, BaseRelevance):
        for members in classes:
            for rows, strip in relevance.strips(members, members):
                yield rows, members, strip
    else:
        for members, block in blocks(relevance, classes.labels):
            yield members, members, block


def _checked(strip: Values, rows: Indices, members: Indices) -> Values:
    values, shape = np.array(strip), (len(rows), len(members))
    if values.shape == shape:
        values[rows[:, None] == members] = 0  # a relevance may say anything of an image with itself
    return checked_values(values, shape, "relevance")


def _read_meta(folder: Path) -> str:
    """The fingerprint that meta.json names; ValueError unless the files that it names are whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        fingerprint: str = meta["fingerprint"]
        files = _blocks_file(folder, fingerprint), _images_file(folder, fingerprint)
        whole = meta["format"] == _FORMAT and meta["bytes"] == [file.stat().st_size for file in files]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: got no whole store ({error}): make one with StoredRelevance.build"
        ) from error
    if not whole:
        raise ValueError(f"{folder}: got a store that is truncated or of another format: build it again")
    return fingerprint


def _blocks_file(folder: Path, fingerprint: str) -> Path:
    return folder / f"blocks-{fingerprint[:16]}.npy"


def _images_file(folder: Path, fingerprint: str) -> Path:
    return folder / f"images-{fingerprint[:16]}.npz"
