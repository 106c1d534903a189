"""How a data set becomes a pack on disk: its fingerprint, its decoding, and the writing of its two files."""

import base64
import hashlib
import json
import operator
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from dr_plugin.atomic import replacing, write_json
from dr_plugin.checks import as_indices, check_length, check_whole_or_none

from .pack_files import FORMAT, Meta, checksum, images_file

Progress = Callable[[str, int, int | None], None]
Indices = Tensor | npt.NDArray[Any] | Sequence[int]
Pixels = npt.NDArray[np.uint8]

_CHUNK = 16  # images that one task of the thread pool decodes
_HASHED_ITEMS = 4096  # how many items a fingerprint reads at most where there are no files to look at
_NAMED = 10  # how many undecodable images an error names


class ImageSource(Protocol):
    """What can be packed: items (PIL image or uint8 array or tensor, label), indexed from 0.

    `labels` (or `targets`), `class_names` (or `classes`), `class_ids` and `paths` (or `samples`) are used
    where they exist, one label and one path an item: our data sets and torchvision's `ImageFolder` have them.
    """

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]:
        """Image and label."""


class Source(NamedTuple):
    """The items to pack, and how; `paths` and `labels` are those of the whole data set."""

    dataset: ImageSource
    indices: npt.NDArray[np.int64]
    size: int | None
    paths: list[str] | None
    labels: npt.NDArray[np.int64] | None
    class_names: list[str] | None
    class_ids: list[str] | None

    @classmethod
    def of(cls, dataset: ImageSource, indices: Indices | None, size: int | None) -> "Source":
        """Collect and check what the data set says of itself; nothing is decoded."""
        count = check_length("dataset", dataset, "images and labels that are taken by index")
        chosen = np.arange(count) if indices is None else checked_indices(indices, count)
        if len(chosen) == 0:
            raise ValueError("got no images to pack, expected at least one")
        size = check_whole_or_none("size", size, minimum=1, below=2**31)
        paths = getattr(dataset, "paths", None)
        if paths is None and (samples := getattr(dataset, "samples", None)) is not None:
            paths = [sample[0] for sample in samples]
        labels = _first_attribute(dataset, "labels", "targets")
        for name, values in (("paths", paths), ("labels", labels)):
            if values is not None and len(values) != count:
                raise ValueError(f"{name}: got {len(values)} for {count} images, expected one each")
        return cls(
            dataset,
            chosen,
            size,
            None if paths is None else [os.fspath(path) for path in paths],
            None if labels is None else np.asarray(labels, dtype=np.int64),
            _names(_first_attribute(dataset, "class_names", "classes")),
            _names(_first_attribute(dataset, "class_ids", "classes")),
        )

    def fingerprint(self) -> str:
        """A hash that changes when what would be packed changes."""
        kind = type(self.dataset)
        transforms = [repr(getattr(self.dataset, name, None)) for name in ("transform", "target_transform")]
        about = [FORMAT, kind.__module__, kind.__qualname__, len(self.dataset), self.size, transforms]
        digest = hashlib.sha256(json.dumps([*about, self.class_names, self.class_ids]).encode())
        digest.update(self.indices.tobytes())
        if self.labels is not None:
            digest.update(self.labels[self.indices].tobytes())
        if self.paths is not None:
            paths = [self.paths[index] for index in self.indices]
            # Paths count below their common folder: moving that folder changes nothing.
            common = len(os.path.commonpath({os.path.dirname(path) for path in paths}))
            for path in paths:
                stat = os.stat(path)
                digest.update(b"%s\0%d\0%d\0" % (os.fsencode(path[common:]), stat.st_size, stat.st_mtime_ns))
        else:
            count = len(self.indices)
            spaced = np.linspace(0, count - 1, min(count, _HASHED_ITEMS), dtype=np.int64)
            for index in self.indices[spaced].tolist():
                pixels, label = self.decode(index)
                digest.update(repr((pixels.shape, label)).encode() + pixels.tobytes())
        return digest.hexdigest()

    def decode(self, index: int) -> tuple[Pixels, int]:
        """The pixels (3, H, W) and the label of one item."""
        image: Any = None
        try:
            image, label = self.dataset[index]
            label = operator.index(label)
            if label < 0 or (self.class_names is not None and label >= len(self.class_names)):
                raise ValueError(f"got label {label}, expected 0 to the number of class names - 1")
            return pixels_of(image, self.size), label
        except Exception as error:  # whatever a data set raises, the file that it raises for has to be named
            if isinstance(image, Image.Image):
                image.close()  # PML's data sets leave files open, and the error would keep them so
            name = self.name(index)
            raise ValueError(str(error) if name in str(error) else f"{name}: {error}") from error

    def decode_all(self, workers: int) -> Iterator[tuple[Pixels, int] | ValueError]:
        """Every item in order, or why it cannot be had; threads run a bounded number of chunks ahead."""
        indices = self.indices.tolist()
        chunks = (indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK))
        if workers == 1:
            for chunk in chunks:
                yield from self._decode_chunk(chunk)
            return
        with ThreadPoolExecutor(workers) as pool:
            ahead: deque[Future[list[tuple[Pixels, int] | ValueError]]] = deque()
            for chunk in chunks:
                ahead.append(pool.submit(self._decode_chunk, chunk))
                if len(ahead) > 2 * workers:
                    yield from ahead.popleft().result()
            for future in ahead:
                yield from future.result()

    def _decode_chunk(self, indices: list[int]) -> list[tuple[Pixels, int] | ValueError]:
        items: list[tuple[Pixels, int] | ValueError] = []
        for index in indices:
            try:
                items.append(self.decode(index))
            except ValueError as error:
                items.append(error)
        return items

    def name(self, index: int) -> str:
        """What an error calls this item."""
        return f"item {index}" if self.paths is None else self.paths[index]


def write_pack(
    source: Source, folder: Path, fingerprint: str, progress: Progress | None, workers: int
) -> None:
    """Make the folder hold this source's pack and no other; the caller holds the folder's lock."""
    images = images_file(folder, fingerprint)
    with replacing(images) as file:
        labels, checksums, shape = _write_images(file, source, progress, workers)
    class_names = source.class_names or source.class_ids or [str(label) for label in range(max(labels) + 1)]
    meta = Meta(
        format=FORMAT,
        fingerprint=fingerprint,
        bytes=images.stat().st_size,
        shape=shape,
        checksums=base64.b64encode(np.array(checksums, "<u4").tobytes()).decode(),
        labels=labels,
        class_names=class_names,
        class_ids=source.class_ids or class_names,
    )
    write_json(folder / "meta.json", {**meta, "crc32": checksum(meta)})
    for path in folder.glob("images-*"):  # an older pack, or what a killed build left
        if path != images:
            path.unlink()


def _write_images(
    file: IO[bytes], source: Source, progress: Progress | None, workers: int
) -> tuple[list[int], list[int], list[int]]:
    """Write the .npy file and return the labels, the images' checksums and the array's shape.

    By plain sequential writes, not through a map: a full disk is then an OSError and not a SIGBUS.
    """
    labels: list[int] = []
    checksums: list[int] = []
    failures: list[ValueError] = []
    count = len(source.indices)
    shape: tuple[int, ...] = ()
    for done, item in enumerate(source.decode_all(workers), start=1):
        if isinstance(item, ValueError):
            failures.append(item)  # and decode on, to name all that fail
        else:
            pixels, label = item
            if not shape:
                shape = pixels.shape
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            if pixels.shape != shape:
                name = source.name(source.indices.item(done - 1))
                raise ValueError(_other_size(name, pixels.shape, shape))
            file.write(content := pixels.tobytes())
            labels.append(label)
            checksums.append(zlib.crc32(content))
        if progress is not None and (done % _CHUNK == 0 or done == count):
            progress("packing images", done, count)
    if failures:
        named = "; ".join(str(error) for error in failures[:_NAMED])
        more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
        message = f"{len(failures)} of {count} images cannot be packed: {named}{more}"
        raise ValueError(message) from failures[0]
    return labels, checksums, [count, *shape]


def checked_indices(indices: Indices, count: int) -> npt.NDArray[np.int64]:
    """The indices as (B,) int64, all of them in 0..count-1."""
    # A copy: torch warns of arrays that are only read.
    return as_indices("indices", indices.cpu() if isinstance(indices, Tensor) else indices, count).copy()


def pixels_of(image: Any, size: int | None) -> Pixels:
    """An image's RGB pixels (3, H, W); size: the shorter side resized to this, the centre cropped to a square."""
    image = rgb_image(image)
    if size is not None:
        image = functional.center_crop(functional.resize(image, [size]), [size])
    return np.asarray(image).transpose(2, 0, 1)


def rgb_image(image: Any) -> Image.Image:
    """The image as 8-bit RGB; greyscale becomes three equal channels."""
    if isinstance(image, Tensor):
        image = image.numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image  # a tensor has its channels first
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,)):
            raise ValueError(f"got {image.dtype} pixels {image.shape}, expected uint8 with 1 or 3 channels")
        image = Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"got {type(image).__name__}, expected a PIL image or a uint8 array or tensor")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"got {image.mode!r} pixels, expected 8 bits a channel: convert the images first")
    return image.convert("RGB")


def _other_size(name: str, shape: Sequence[int], expected: Sequence[int]) -> str:
    got, want = (f"{height} x {width} pixels" for _, height, width in (shape, expected))
    return f"{name}: got {got}, expected {want} as in the first image: pass size to make all images one size"


def _first_attribute(dataset: ImageSource, *names: str) -> Any:
    return next((value for name in names if (value := getattr(dataset, name, None)) is not None), None)


def _names(names: Any) -> list[str] | None:
    return None if names is None else [str(name) for name in names]
