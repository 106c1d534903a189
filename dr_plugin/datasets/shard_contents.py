"""What goes into shards: images, labels, relevances and features, checked and encoded."""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from dr_plugin.checks import as_array
from dr_plugin.triplets import as_relevance

from .shard_reader import IMAGE_SUFFIXES

_CHUNK = 256  # images that are taken from the source, and relevances that are asked for, at once

Indices = npt.NDArray[np.int64]


class BatchSource(Protocol):
    """Images by index, as `PackedImages` gives them."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, indices: Indices, /) -> tuple[Any, Any]:
        """Images (B, 3, H, W) uint8, and what is not looked at."""


class Contents(NamedTuple):
    """Images as paths, or as what gives a batch of them, and one label, relevance and feature each."""

    paths: list[Path] | None
    batch: Callable[[Indices], tuple[Any, Any]] | None
    labels: Indices
    totals: npt.NDArray[np.float64] | None
    features: npt.NDArray[Any] | None

    @classmethod
    def of(cls, images: Any, labels: Any, relevance: object, features: Any) -> "Contents":
        """Check what `write_shards` was given; no image is read."""
        paths, batch, count = _images(images)
        if count == 0:
            raise ValueError("images: got none, expected at least one")
        classes = as_array("labels", labels.cpu() if isinstance(labels, Tensor) else labels)
        if classes.shape != (count,) or classes.dtype.kind not in "iu":
            raise ValueError(
                f"labels: got {classes.dtype} {classes.shape}, expected one integer for each of {count} images"
            )
        classes = classes.astype(np.int64)
        return cls(paths, batch, classes, _totals(relevance, classes), _features(features, count))

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self, about: object) -> str:
        """A hash that changes when what would be written changes."""
        digest = hashlib.sha256(repr(about).encode())
        for array in (self.labels, self.totals, self.features):
            digest.update(
                b"-" if array is None else repr((array.dtype, array.shape)).encode() + array.tobytes()
            )
        if self.paths is not None:
            for path in self.paths:
                stat = path.stat()
                digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path), stat.st_size, stat.st_mtime_ns))
        else:
            for _, pixels in self._pixels(np.arange(len(self))):
                digest.update(repr(pixels.shape).encode() + pixels.tobytes())
        return digest.hexdigest()

    def samples(self, members: Indices) -> Iterator[dict[str, str | bytes]]:
        """The samples of these images, as WebDataset's `TarWriter` takes them."""
        width = len(str(len(self) - 1))
        for index, suffix, image in self._encoded(members):
            sample: dict[str, str | bytes] = {"__key__": f"{index:0{width}}", suffix: image}
            sample["cls"] = b"%d" % self.labels[index]
            if self.totals is not None:
                sample["json"] = json.dumps({"relevance": float(self.totals[index])}).encode()
            if self.features is not None:
                file = io.BytesIO()
                np.save(file, self.features[index], allow_pickle=False)
                sample["npy"] = file.getvalue()
            yield sample

    def _encoded(self, members: Indices) -> Iterator[tuple[int, str, bytes]]:
        """Index, suffix and bytes."""
        if self.paths is None:
            for index, pixels in self._pixels(members):
                yield index, "png", encode_png(pixels.transpose(1, 2, 0))
        else:
            for index in members.tolist():
                path = self.paths[index]
                yield index, path.suffix[1:].lower(), path.read_bytes()

    def _pixels(self, members: Indices) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
        """Index and pixels (3, H, W)."""
        if self.batch is not None:
            for start in range(0, len(members), _CHUNK):
                chunk = members[start : start + _CHUNK]
                yield from zip(chunk.tolist(), np.asarray(self.batch(chunk)[0]), strict=True)


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3) as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _images(images: Any) -> tuple[list[Path] | None, Callable[[Indices], tuple[Any, Any]] | None, int]:
    paths = getattr(images, "paths", images)
    if isinstance(paths, list | tuple) and all(isinstance(path, str | os.PathLike) for path in paths):
        for path in map(Path, paths):
            if path.suffix[1:].lower() not in IMAGE_SUFFIXES:
                raise ValueError(
                    f"images: got {path}, expected a suffix of {', '.join(sorted(IMAGE_SUFFIXES))}"
                )
        return [Path(path) for path in paths], None, len(paths)
    if hasattr(images, "batch"):
        return None, images.batch, len(images)
    array = as_array("images", images.cpu() if isinstance(images, Tensor) else images)
    if array.ndim != 4 or array.shape[1] != 3 or array.dtype != np.uint8 or 0 in array.shape[2:]:
        raise ValueError(
            f"images: got {array.dtype} {array.shape}, expected uint8 (N, 3, H, W), a PackedImages, or image files"
        )
    return None, lambda indices: (array[indices], None), len(array)


def _totals(relevance: object, classes: Indices) -> npt.NDArray[np.float64] | None:
    if relevance is None:
        return None
    count = len(classes)
    checked = as_relevance(relevance, classes, count)
    parts = np.array_split(np.arange(count), -(-count // _CHUNK))
    totals = np.concatenate([np.asarray(checked.total(part), np.float64) for part in parts])
    wrong = ~(np.isfinite(totals) & (totals >= 0))
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(
            f"relevance: got r_i = {totals[index]} of image {index}, expected finite, at least 0"
        )
    return totals


def _features(features: Any, count: int) -> npt.NDArray[Any] | None:
    if features is None:
        return None
    rows = as_array("features", features)
    if rows.ndim != 2 or len(rows) != count or rows.dtype.kind not in "fiu":
        raise ValueError(f"features: got {rows.dtype} {rows.shape}, expected numbers of shape ({count}, F)")
    for start in range(0, count, _CHUNK):
        good = np.isfinite(rows[start : start + _CHUNK]).all(axis=1)
        if not good.all():
            raise ValueError(f"features: got one that is not finite, of image {start + int(np.argmin(good))}")
    return rows
