"""The guard of the paper's rated triplets: known again by what their images show, whatever the files are called."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from dr_plugin.atomic import replacing
from dr_plugin.checks import as_array, check_whole_or_none, shown

from .base import open_rgb
from .packing import rgb_image

Progress = Callable[[str, int, int | None], None]
ImagesAt = Callable[[int], Any] | Sequence[str | os.PathLike[str]]
Triplets = npt.NDArray[np.integer] | Tensor | Sequence[Sequence[int]]

RULE = (
    'the paper says of its rated triplets: "Those triplets are solely used for evaluation." '
    "(Wang et al., CVPR 2014, section 6.2)"
)

# Set on the files themselves, no rating used: see the docstring of `rated_triplets` for what they give.
_TOLERANCE = 8  # of 64 bits, between an image and another copy of it
_LEAST_STEP = 2  # grey levels between neighbours that count as a step down: flat areas keep their bits
_CHUNK = 1024  # images
_FILE = Path(__file__).with_name("rated_fingerprints.npz")


class RatedTripletsError(ValueError):
    """Triplets that are for evaluation only were given to train on.

    Attributes:
        indices: Which of the triplets, (R,) ascending.
    """

    def __init__(self, message: str, indices: npt.NDArray[np.int64]) -> None:
        super().__init__(message)
        self.indices = indices


def rated_triplets(
    images: ImagesAt, triplets: Triplets, *, progress: Progress | None = None, workers: int | None = None
) -> npt.NDArray[np.int64]:
    """Which triplets are of the paper's human-rated evaluation set, by what their images show.

    A triplet is rated if its three images are those of one rated triplet, in whatever roles. Images are
    compared by 64 signs of brightness differences (dHash), whole and cut to the centre square, which survive
    another file format, name, size, shape and strong JPEG compression; copies may differ in 8 signs.

    - Of the rated triplets whose images survive (1,688 of about 14,000; the others are not known) it finds all
      after JPEG at quality 50, all but 1 at 64 x 64 pixels, all but 5 after both. It took none of 1,000,000
      random triplets of Tiny ImageNet's images for rated.
    - A mirrored, turned or otherwise cut image is another one to it.

    Args:
        images: The paths of the images, or a function from an index to one (PIL, uint8 array or tensor).
        triplets: Indices of images: query, positive, negative.
        progress: Called as ``progress("looking for rated triplets", done, images)``.
        workers: Decoding threads; None is one per core, at most 8.
    Shape:
        triplets (T, 3) -> (R,) ascending.
    Raises:
        ValueError: if triplets are not (T, 3) whole numbers, or an image cannot be compared.
        OSError: if an image cannot be read.
    Example:
        >>> rated_triplets(lambda index: Image.new("L", (8, 8), index), [[0, 1, 2]])
        array([], dtype=int64)
    """
    array = _checked(triplets)
    workers = check_whole_or_none("workers", workers, minimum=1)
    listed = isinstance(images, Sequence) and not isinstance(images, str | bytes)
    if not callable(images) and not (listed and array.max(initial=-1) < len(images)):
        raise ValueError(
            f"images: got {shown(images)}, expected a function, or the paths of all images that triplets name"
        )
    if len(array) == 0:
        return np.empty(0, dtype=np.int64)
    distinct, places = np.unique(array, return_inverse=True)
    hashes = fingerprints_of(images, distinct, progress=progress, workers=workers)
    near = _near(hashes)
    places = places.reshape(array.shape)
    known = np.array([index in near for index in range(len(distinct))])
    candidates = np.flatnonzero(known[places].all(axis=1))
    return np.array([row for row in candidates if _is_rated([near[i] for i in places[row]])], dtype=np.int64)


def refuse_rated(
    images: ImagesAt, triplets: Triplets, *, progress: Progress | None = None, workers: int | None = None
) -> None:
    """Raise if any of the triplets is of the paper's human-rated evaluation set; see `rated_triplets`.

    Raises:
        RatedTripletsError: if so; it quotes the rule, counts them and names the first.
    """
    rated = rated_triplets(images, triplets, progress=progress, workers=workers)
    if len(rated):
        refuse(rated, len(triplets), f"at index {rated[0]}")


def refuse(rated: npt.NDArray[np.int64], count: int, first: str) -> NoReturn:
    """Raise the error of some rated triplets among so many."""
    raise RatedTripletsError(
        f"got {len(rated)} rated evaluation triplets among {count} to train on, the first {first}; expected "
        f"none: {RULE}; train on other triplets, and evaluate on these",
        rated,
    )


def fingerprints_of(
    images: ImagesAt,
    indices: npt.NDArray[np.integer] | Sequence[int] | None = None,
    *,
    centre: bool = False,
    progress: Progress | None = None,
    workers: int | None = None,
) -> npt.NDArray[np.uint64]:
    """The 64-bit fingerprint of each image, decoded in threads.

    Bit 8 r + c is set where, of the grey image averaged down to 8 rows of 9, the pixel (r, c) is more than 2
    levels brighter than its right neighbour.

    Args:
        images: Paths, or a function from an index to an image.
        indices: Which images; None: all of the paths.
        centre: Of the centre square only.
        progress: Called as ``progress(task, done, total)``.
        workers: Threads; None is one per core, at most 8.
    Shape:
        (N,) uint64.
    """
    at = images if callable(images) else _opened(images)
    if indices is None:
        if callable(images):
            raise ValueError("indices: got None beside a function, expected which images it is to give")
        indices = range(len(images))
    chosen = [int(index) for index in indices]
    hashes = np.empty(len(chosen), dtype=np.uint64)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(chosen), _CHUNK):
            part = chosen[start : start + _CHUNK]
            hashes[start : start + len(part)] = list(
                pool.map(lambda index: _fingerprint(at(index), centre), part)
            )
            if progress is not None:
                progress("looking for rated triplets", start + len(part), len(chosen))
    return hashes


def write_fingerprints(paths: Sequence[str | os.PathLike[str]], triplets: Triplets, file: Path) -> None:
    """Write what `rated_triplets` knows: the images' fingerprints, and no picture.

    The file in this package was made from the surviving part of the published set, where ``data`` holds its
    images/ and triplets.csv::

        data = SimilarityTriplets("data")
        write_fingerprints(data.paths, data.triplets, Path("dr_plugin/datasets/rated_fingerprints.npz"))

    Args:
        paths: The images.
        triplets: Indices of images, (T, 3).
        file: Is written whole or not at all.
    """
    hashes = np.stack([fingerprints_of(paths, centre=centre) for centre in (False, True)])  # (2, N)
    smallest = np.min_scalar_type(len(paths))
    with replacing(file) as stream:
        np.savez(stream, hashes=hashes, triplets=_checked(triplets).astype(smallest))


@functools.cache
def _rated() -> tuple[npt.NDArray[np.float32], dict[int, list[tuple[int, ...]]]]:
    """The known images' signs, (2 K, 64): whole, then centre; and the rated triplets that each image is in."""
    with np.load(_FILE, allow_pickle=False) as stored:
        hashes, triplets = stored["hashes"], stored["triplets"]
    triplets_of: dict[int, list[tuple[int, ...]]] = {}
    for row in triplets.tolist():
        for image in set(row):
            triplets_of.setdefault(image, []).append(tuple(row))
    return _signs(hashes.reshape(-1)), triplets_of


def _near(hashes: npt.NDArray[np.uint64]) -> dict[int, set[int]]:
    """For each of the images that looks like known ones, these."""
    known, _ = _rated()
    count = len(known) // 2
    near: dict[int, set[int]] = {}
    for start in range(0, len(hashes), _CHUNK):
        # Equal signs less different ones: a matrix product is the fastest way to count them.
        products = _signs(hashes[start : start + _CHUNK]) @ known.T
        for image, other in zip(*np.nonzero(products >= 64 - 2 * _TOLERANCE), strict=True):
            near.setdefault(start + int(image), set()).add(int(other) % count)
    return near


def _is_rated(near: list[set[int]]) -> bool:
    """Whether three images can be those of one rated triplet, each another of its three."""
    _, triplets_of = _rated()
    return any(
        all(known in candidates for known, candidates in zip(order, near, strict=True))
        for image in near[0]
        for triplet in triplets_of.get(image, ())
        for order in permutations(triplet)
    )


def _signs(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """(N,) uint64 -> (N, 64), -1 or 1."""
    bits = np.unpackbits(hashes.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1)
    return bits.astype(np.float32) * 2 - 1


def _fingerprint(image: Any, centre: bool) -> np.uint64:
    grey = rgb_image(image).convert("L")
    if centre:
        side = min(grey.size)
        left, top = ((length - side) // 2 for length in grey.size)
        grey = grey.crop((left, top, left + side, top + side))
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)  # 8 rows of 9
    steps = small[:, :-1] - small[:, 1:] > _LEAST_STEP
    return np.uint64(np.packbits(steps, bitorder="little").view("<u8")[0])


def _opened(paths: Sequence[str | os.PathLike[str]]) -> Callable[[int], Image.Image]:
    return lambda index: open_rgb(os.fspath(paths[index]))


def _checked(triplets: Triplets) -> npt.NDArray[np.int64]:
    array = as_array("triplets", triplets.cpu() if isinstance(triplets, Tensor) else triplets)
    if array.size == 0:
        return np.empty((0, 3), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iu" or array.min() < 0:
        raise ValueError(
            f"triplets: got {array.dtype} of shape {array.shape}, expected indices of images, at least 0, (T, 3)"
        )
    return array.astype(np.int64)
