"""Images wherever they are, some at a time as arrays."""

import functools
import hashlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dr_plugin.checks import as_array

Images = npt.NDArray[np.uint8]  # (n, 3, H, W)

_CHUNK_BYTES = 2**22  # of the images that one piece of work takes


@runtime_checkable
class ImageBatches(Protocol):
    """Images that are taken by index, as `PackedImages` are."""

    def __len__(self) -> int:
        """N."""

    def batch(self, indices: Any, /) -> tuple[Any, Any]:
        """The images (n, 3, H, W) uint8 at these indices, and their labels."""


class ImageRows:
    """The images of an array or of an object with `batch`, some at a time, as arrays.

    Args:
        images: uint8 (N, 3, H, W), an array, memory map or tensor; or an `ImageBatches`.
    Raises:
        ValueError: if they are not that, or there is none.
    """

    def __init__(self, images: Any) -> None:
        self._batches = images if isinstance(images, ImageBatches) else None
        if self._batches is None:
            images = images.detach().cpu() if isinstance(images, Tensor) else images
            array = images if isinstance(images, np.ndarray) else as_array("images", images)
            images = self._array = _checked_images(array)
        self._count = len(images)
        if self._count == 0:
            raise ValueError("got no images, expected at least one")

    def __len__(self) -> int:
        return self._count

    def take(self, indices: npt.NDArray[np.int64]) -> Images:
        """The images at these indices: (n,) -> (n, 3, H, W)."""
        if self._batches is None:
            return np.ascontiguousarray(self._array[indices])
        images = self._batches.batch(indices)[0]
        return _checked_images(np.asarray(images.cpu() if isinstance(images, Tensor) else images))

    def chunks(self) -> Iterator[Images]:
        """All images in order, as many at a time as make a piece of work."""
        rows = max(1, _CHUNK_BYTES // self.take(np.zeros(1, np.int64)).nbytes)
        for start in range(0, len(self), rows):
            yield self.take(np.arange(start, min(start + rows, len(self))))

    @functools.cached_property
    def digest(self) -> bytes:
        """A hash of all pixels: some seconds for 100,000 images of 64 x 64."""
        total = hashlib.blake2b(digest_size=32)
        for chunk in self.chunks():
            total.update(repr(chunk.shape).encode() + chunk.tobytes())
        return total.digest()


def _checked_images(images: npt.NDArray[Any]) -> Images:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8 or 0 in images.shape[2:]:
        raise ValueError(
            f"images: got {images.dtype} of shape {images.shape}, expected uint8 (N, 3, H, W), channels first"
        )
    return images
