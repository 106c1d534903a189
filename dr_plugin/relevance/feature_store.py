"""Features of a data set's images, computed in chunks, and kept on disk.

A store is a folder with one file, `features-<fingerprint>.npy`. It takes its name when it is whole, and the
name says what it was made of.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt
from sklearn.utils.parallel import Parallel, delayed

from dr_plugin.atomic import locked, replacing
from dr_plugin.relevance.base import digest
from dr_plugin.relevance.image_rows import ImageRows, Images

Progress = Callable[[str, int, int | None], None]
Features = npt.NDArray[Any]  # (N, F)

_FORMAT = 1  # part of the fingerprint: to be raised when the way that features are kept changes
_PROBED = 4  # images whose features are part of the fingerprint
_NOT_FEATURES = ("n_jobs", "batch_size", "verbose")  # parameters that change how, not what is computed


class ImageTransformer(Protocol):
    """What makes features of images: as in scikit-learn, such as those of `dr_plugin.relevance.features`."""

    def transform(self, images: Images, /) -> Any:
        """Features (n, F) of images (n, 3, H, W), those of an image not depending on the other images."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All parameters by name."""


class StoredFeatures:
    """Features (N, F) of a data set's images in a memory map.

    `StoredFeatures.build(transformer, images, folder)` computes them or finds them computed;
    `StoredFeatures(folder)` opens what was built. Pickled to a worker, it opens the map again.

    Args:
        folder: Holds one whole store.
    Attributes:
        features: The memory map, read-only.
    Raises:
        ValueError: if the folder holds none.
    Example:
        >>> packed = PackedImages("cache/train")  # doctest: +SKIP
        >>> StoredFeatures.build(HOG(), packed, "cache/hog", n_jobs=-1).features.shape  # doctest: +SKIP
        (100000, 1764)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()
        found = sorted(self.folder.glob("features-*.npy"))
        if len(found) != 1:
            raise ValueError(
                f"{self.folder}: got {len(found)} stores of features, expected one: make it with StoredFeatures.build"
            )
        self._file = found[0]
        self._open()

    @classmethod
    def build(
        cls,
        transformer: ImageTransformer,
        images: Any,
        folder: str | os.PathLike[str],
        *,
        dtype: Literal["float32", "float16"] = "float32",
        n_jobs: int | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Compute the features of all images into the folder, or reuse what is there if it is of the same.

        The same is: every pixel; the transformer's class and parameters (by their repr, but for n_jobs,
        batch_size and verbose); what it makes of four of the images, which tells of anything else, such as
        what it has learned, or another version of it; and dtype.

        A store is whole or not there at all, whenever the process is killed; processes that build in one
        folder at once wait for one another.

        Args:
            transformer: What makes features of images; one that learns must have learned.
            images: uint8 (N, 3, H, W), an array, memory map or tensor; or an object with `len` and
                `batch(indices)`, such as `PackedImages`.
            folder: Where to; one store a folder, an older one is replaced.
            dtype: "float16" takes half the room.
            n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
            progress: Called as progress("<transformer> features", images done, images in all).
        Raises:
            ValueError: if images are not that; if a feature is not finite (in dtype); if the transformer
                gives anything but one row of numbers an image, of one length.
        """
        if dtype not in ("float32", "float16"):
            raise ValueError(f"dtype: got {dtype!r}, expected 'float32' or 'float16'")
        rows, folder = _as_rows(images), Path(folder)
        name = f"features-{_fingerprint(transformer, rows, dtype)}.npy"
        if (stored := cls._built(folder, name)) is not None:
            return stored
        with locked(folder):
            stored = cls._built(folder, name)  # by another process, while this one waited?
            if stored is None:
                _write(folder / name, _parts(transformer, rows, dtype, n_jobs, progress), len(rows))
                stored = cls(folder)
            return stored

    @classmethod
    def _built(cls, folder: Path, name: str) -> Self | None:
        """The folder's store if it is whole and of this name."""
        try:
            stored = cls(folder)
        except (FileNotFoundError, ValueError):
            return None
        return stored if stored._file.name == name else None

    def __len__(self) -> int:
        return len(self.features)

    def _open(self) -> None:
        try:
            self.features: np.memmap[Any, Any] = np.load(self._file, mmap_mode="r", allow_pickle=False)
        except (EOFError, ValueError) as error:
            raise ValueError(
                f"{self._file}: got a file that is not whole ({error}): build it again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "features"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def compute_features(
    transformer: ImageTransformer,
    images: Any,
    *,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> npt.NDArray[np.float32]:
    """The features (N, F) in memory; arguments and errors as of `StoredFeatures.build`."""
    return np.concatenate(list(_parts(transformer, _as_rows(images), "float32", n_jobs, progress)))


def cached_features(
    transformer: ImageTransformer,
    images: Any,
    cache: str | os.PathLike[str] | None,
    *,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """The features (N, F), in memory, or of a store in a folder of the transformer's own in `cache`."""
    if cache is None:
        return compute_features(transformer, images, n_jobs=n_jobs, progress=progress)
    folder = Path(cache) / folder_name(transformer)
    return StoredFeatures.build(transformer, images, folder, n_jobs=n_jobs, progress=progress).features


def folder_name(transformer: ImageTransformer) -> str:
    """A name for the transformer's folder beside those of others: its class, and a hash of its parameters."""
    return f"{type(transformer).__name__}-{digest(_parameters(transformer).encode()).hex()[:8]}"


def _as_rows(images: Any) -> ImageRows:
    return images if isinstance(images, ImageRows) else ImageRows(images)


def _parameters(transformer: ImageTransformer) -> str:
    parameters = [
        (name, repr(value))
        for name, value in sorted(transformer.get_params(deep=True).items())
        if not name.endswith(_NOT_FEATURES)
    ]
    return repr((type(transformer).__module__, type(transformer).__qualname__, parameters))


def _fingerprint(transformer: ImageTransformer, rows: ImageRows, dtype: str) -> str:
    about = repr((_FORMAT, _parameters(transformer), dtype))
    spaced = np.linspace(0, len(rows) - 1, min(len(rows), _PROBED)).astype(np.int64)
    probed = _transformed(transformer, rows.take(spaced), dtype)
    return digest(about.encode(), probed, rows.digest).hex()[:32]


def _transformed(transformer: ImageTransformer, images: Images, dtype: str) -> Features:
    """The features of one chunk in dtype, checked."""
    features = np.asarray(transformer.transform(images))
    right = features.ndim == 2 and len(features) == len(images) and features.size > 0
    if not right or features.dtype.kind not in "fiu":
        raise ValueError(
            f"{type(transformer).__name__}: got features {features.dtype} of shape {features.shape}, expected "
            f"({len(images)}, F) numbers"
        )
    largest = np.finfo(dtype).max
    if not (np.abs(features) <= largest).all():
        raise ValueError(
            f"{type(transformer).__name__}: got a feature that is not finite or above {largest:g}, expected "
            f"finite {dtype} features"
        )
    return features.astype(dtype)


def _parts(
    transformer: ImageTransformer, rows: ImageRows, dtype: str, n_jobs: int | None, progress: Progress | None
) -> Iterator[Features]:
    """The features chunk by chunk, in order."""
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")
    done, length = 0, None
    for part in jobs(delayed(_transformed)(transformer, chunk, dtype) for chunk in rows.chunks()):
        length = part.shape[1] if length is None else length
        if part.shape[1] != length:
            raise ValueError(
                f"{type(transformer).__name__}: got rows of {part.shape[1]} after rows of {length} features, "
                "expected one length"
            )
        yield part
        done += len(part)
        if progress is not None:
            progress(f"{type(transformer).__name__} features", done, len(rows))


def _write(path: Path, parts: Iterator[Features], count: int) -> None:
    """Make the folder hold this file of features and no other; the caller holds the folder's lock.

    By plain sequential writes, not through a map: a full disk is then an OSError and not a SIGBUS.
    """
    with replacing(path) as file:
        for part in parts:
            if file.tell() == 0:
                shape = (count, part.shape[1])
                header = {"descr": part.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(part.tobytes())
        for other in path.parent.glob(
            "features-*.npy"
        ):  # before the new one is there: there is never more than one
            other.unlink()
    for leftover in path.parent.glob("features-*.partial"):  # of a killed build
        leftover.unlink()
