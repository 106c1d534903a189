"""Feature vectors as learners take them: checked once, and some rows at a time."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.checks import as_array

Features = npt.NDArray[Any]  # (N, F)

_CHUNK_BYTES = 2**26  # of the rows that are taken at once
_LARGEST = 1e6  # products of four such numbers can still be summed in float32


def checked_features(features: Any, name: str = "features", dimension: int | None = None) -> Features:
    """The features as an array (N, F) of finite numbers; a memory map stays one and is read once.

    Args:
        features: An array, memory map or tensor.
        name: What an error calls them.
        dimension: F, where it is known.
    Raises:
        ValueError: if they are not numbers from -1e6 to 1e6 of shape (N, F), N and F at least 1.
    """
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        features = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    array: Features = features if isinstance(features, np.ndarray) else as_array(name, features)
    wanted = "F" if dimension is None else str(dimension)
    if (
        array.ndim != 2
        or 0 in array.shape
        or array.dtype.kind not in "fiu"
        or dimension not in (None, array.shape[1])
    ):
        raise ValueError(
            f"{name}: got {array.dtype} of shape {array.shape}, expected numbers of shape (N, {wanted}), "
            "N and F at least 1"
        )
    for rows in pieces(array):
        part = array[rows]
        if float(part.min()) >= -_LARGEST and float(part.max()) <= _LARGEST:  # not so where one is NaN
            continue
        right = np.abs(part.astype(np.float64)) <= _LARGEST
        row = int(np.flatnonzero(~right.all(axis=1))[0])
        raise ValueError(
            f"{name}: row {rows.start + row}: got {part[row][~right[row]][0]:g}, expected numbers from "
            f"-{_LARGEST:g} to {_LARGEST:g}: scale them"
        )
    return array


def checked_blocks(blocks: Sequence[Any], dimensions: Sequence[int | None]) -> list[Features]:
    """Several features of the same images as arrays (N, F_k) of numbers at least 0; a memory map stays one.

    Args:
        blocks: K of them.
        dimensions: F_k of each, where it is known.
    Raises:
        ValueError: if they are not that; each is called features[k].
    """
    if len(blocks) != len(dimensions):
        raise ValueError(f"features: got {len(blocks)} arrays, expected {len(dimensions)}, one a feature")
    names = [f"features[{number}]" for number in range(len(blocks))]
    arrays = [checked_features(*of) for of in zip(blocks, names, dimensions, strict=True)]
    for name, array in zip(names, arrays, strict=True):
        if len(array) != len(arrays[0]):
            raise ValueError(f"{name}: got {len(array)} rows, expected {len(arrays[0])}, as of {names[0]}")
        if array.min() < 0:
            raise ValueError(
                f"{name}: got {array.min():g}, expected numbers at least 0: leave this feature out"
            )
    return arrays


def pieces(features: Features) -> Iterator[slice]:
    """All rows in order, so many at a time as are taken at once."""
    rows = max(1, _CHUNK_BYTES // (8 * features.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(features), rows))


def unit_rows(rows: Features) -> Features:
    """Rows (n, F) of floats, each over its Euclidean length; a row of zeros stays one."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    divided: Features = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return divided
