"""A data set of images decoded once into a memory-mapped array, from which whole batches are taken."""

import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dr_plugin.atomic import locked
from dr_plugin.checks import check_path, check_whole_or_none, check_wholes

from .pack_files import checksums_of, map_images, read_pack
from .packing import (
    ImageSource,
    Indices,
    Progress,
    Source,
    checked_indices,
    write_pack,
)

_LOG = logging.getLogger(__name__)
_CHECKED = 512  # images at once


class PackedImages(Dataset[tuple[Tensor, int]]):
    """Images and labels in a memory-mapped uint8 array (N, 3, H, W), taken a whole batch at a time.

    `PackedImages.build(dataset, folder)` makes the folder or finds it made; `PackedImages(folder)` opens what
    was built. A batch is one copy of 3 H W contiguous bytes an image. Channels come first because gathers and
    arithmetic, BatchAugment's work, are several times faster on that layout than on (N, H, W, 3).

    - It is a plain data set of (uint8 (3, H, W) tensor, int) for a `DataLoader` too; workers reopen the map.
    - Negative indices are refused, not counted from the end.
    - Each image is held against its checksum when it is first taken; a damaged one is an error, never a batch.

    Args:
        folder: Holds meta.json, and the array as a .npy file that meta.json names.
    Raises:
        ValueError: if the folder holds no whole pack.
    Example:
        >>> packed = PackedImages.build(TinyImageNet("data"), "cache/train")  # doctest: +SKIP
        >>> images, labels = packed.batch([5, 7, 5])  # (3, 3, 64, 64) uint8, (3,) long    # doctest: +SKIP
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = check_path("folder", folder).resolve()
        meta = read_pack(self.folder)
        self._fingerprint = meta["fingerprint"]
        self._shape = tuple(meta["shape"])
        self._images = map_images(self.folder, self._fingerprint, self._shape)
        self._checksums = checksums_of(meta)
        self._checked = np.zeros(len(self._images), bool)  # shared with subsets
        self._rows = np.arange(len(self._images))  # a subset has fewer
        self.labels = torch.tensor(meta["labels"], dtype=torch.long)
        self.class_names = meta["class_names"]
        self.class_ids = meta["class_ids"]

    @classmethod
    def build(
        cls,
        dataset: ImageSource,
        folder: str | os.PathLike[str],
        *,
        size: int | None = None,
        indices: Indices | None = None,
        progress: Progress | None = None,
        workers: int | None = None,
    ) -> Self:
        """Pack the data set into the folder, or reuse what is there if it was made from the same source.

        The source is the same if these are: class, transforms (their repr), labels, class names, size,
        indices, and every file's path below the files' common folder, size and modification time. Without
        files the items are read and hashed: all of them up to 4,096, of more only as many evenly spaced ones.

        A pack is whole or not there at all, whenever the process is killed; processes that build in one
        folder at once wait for one another.

        Args:
            dataset: What to pack, one item an image; random transforms would be frozen, so leave them out.
            folder: Where to; one pack a folder, an older one is replaced.
            size: Resize the shorter side to this (antialiased) and crop the centre to a square; None: leave
                the images as they are, which have to be of one size.
            indices: Which items, in this order; None is all.
            progress: Called as progress("packing images", done, total).
            workers: Decoding threads; 1 decodes in the calling thread; None is one per core, at most 8.
        Raises:
            ValueError: if an image cannot be decoded (the first ten are named) or differs in size, or an
                argument is out of its range.
        """
        folder = check_path("folder", folder)
        workers = check_whole_or_none("workers", workers, minimum=1, below=2**31)
        source = Source.of(dataset, indices, size)
        if workers is None:
            workers = min(8, os.cpu_count() or 1)
        fingerprint = source.fingerprint()
        if (packed := cls._built(folder, fingerprint)) is not None:
            return packed
        with locked(folder):
            packed = cls._built(folder, fingerprint, tell=True)  # by another process, while this one waited?
            if packed is None:
                write_pack(source, folder, fingerprint, progress, workers)
                packed = cls(folder)
            return packed

    @classmethod
    def _built(cls, folder: Path, fingerprint: str, *, tell: bool = False) -> Self | None:
        """The folder's pack if it is whole and of this source; one that is not whole may be told of."""
        try:
            packed = cls(folder)
        except (FileNotFoundError, ValueError) as error:
            if tell and (folder / "meta.json").exists():
                _LOG.warning("%s", error)
            return None
        return packed if packed._fingerprint == fingerprint else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self._images.shape[2], self._images.shape[3]

    def batch(self, indices: Indices, *, pin: bool = False) -> tuple[Tensor, Tensor]:
        """The images (B, 3, H, W) uint8 and labels (B,) long at these indices; pin: in page-locked memory.

        Raises:
            IndexError: if an index is out of range.
            ValueError: if the indices are no list of integers, or an image's pixels are not those that were packed.
        """
        chosen = checked_indices(indices, len(self))
        images = torch.empty((len(chosen), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=pin)
        # "clip" only skips numpy's second copy of the result; the bounds are checked.
        rows = self._rows[chosen]
        np.take(self._images, rows, axis=0, out=images.numpy(), mode="clip")
        if not self._checked[rows].all():
            self._check(images.numpy(), rows)
        return images, self.labels[torch.from_numpy(chosen)]

    def check(self, progress: Progress | None = None) -> None:
        """Hold all images against their checksums now; called as progress("checking images", done, total).

        Raises:
            ValueError: if an image's pixels are not those that were packed.
        """
        for start in range(0, len(self), _CHECKED):
            stop = min(start + _CHECKED, len(self))
            self.batch(np.arange(start, stop))
            if progress is not None:
                progress("checking images", stop, len(self))

    def _check(self, images: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64]) -> None:
        """Those of a batch that were not taken before."""
        for place in np.flatnonzero(~self._checked[rows]).tolist():
            if zlib.crc32(images[place]) != self._checksums[rows[place]]:
                raise ValueError(
                    f"{self.folder}: the pixels of image {rows[place]} are not those that were packed, the disk or a "
                    "copy has damaged them; remove this folder, and it is built again"
                )
        self._checked[rows] = True

    def subset(self, indices: Indices) -> Self:
        """These images only, in this order, on the same memory map; labels and class names stay."""
        chosen = checked_indices(indices, len(self))
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        view._rows = self._rows[chosen]
        view.labels = self.labels[torch.from_numpy(chosen)]
        return view

    def select_classes(self, labels: Sequence[int]) -> Self:
        """The images with these labels only, relabelled 0, 1, ... in the order given, with names to match."""
        labels = check_wholes("labels", labels, minimum=0)
        if not labels or len(set(labels)) != len(labels):
            raise ValueError(f"labels: got {labels}, expected different labels, at least one")
        if unknown := [label for label in labels if label >= len(self.class_names)]:
            raise ValueError(f"labels: got {unknown}, expected labels from 0 to {len(self.class_names) - 1}")
        new = torch.full((len(self.class_names),), -1)
        new[list(labels)] = torch.arange(len(labels))
        view = self.subset((new[self.labels] >= 0).nonzero()[:, 0])
        view.labels = new[view.labels]
        view.class_names = [self.class_names[label] for label in labels]
        view.class_ids = [self.class_ids[label] for label in labels]
        return view

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._images = map_images(self.folder, self._fingerprint, self._shape)
