"""The relevances of a class, some rows at a time."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from dr_plugin.triplets import Relevance

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
Progress = Callable[[str, int, int | None], None]

_ENTRIES = 2**24  # that are asked for at once: 64 MiB


def class_rows(
    relevance: Relevance, classes: Indices, progress: Progress | None = None
) -> Iterator[tuple[Indices, Indices, Values]]:
    """All r within classes, in pieces of bounded size, classes, rows and entries ascending, 0 in the diagonal.

    Args:
        classes: Of each image, 0, 1, ... (N,).
        progress: Called as progress("reading relevances", images done, N).
    Yields:
        Some images of a class (n,), all its images (m,), and r (n, m).
    Raises:
        ValueError: if the relevance gives another shape, or something negative, infinite or NaN.
    """
    order = np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(classes))
    done = 0
    for members in np.split(order, ends[:-1]):
        rows = max(1, _ENTRIES // max(1, len(members)))
        for start in range(0, len(members), rows):
            images = members[start : start + rows]
            values = _rows(relevance, images, members)
            values[np.arange(len(images)), start + np.arange(len(images))] = 0
            yield images, members, _checked(values)
            done += len(images)
            if progress is not None:
                progress("reading relevances", done, len(classes))


def _rows(relevance: Relevance, images: Indices, members: Indices) -> Values:
    """(n, m), any diagonal; a copy."""
    shape = len(images), len(members)
    if shape == (1, 1):
        return np.zeros(shape, np.float32)
    if len(images) == len(members) and hasattr(relevance, "block"):
        found = np.asarray(relevance.block(members))
    elif hasattr(relevance, "rectangle"):
        found = np.asarray(relevance.rectangle(images, members))
    else:
        row, column = np.nonzero(images[:, None] != members)
        pairs = np.asarray(relevance.pairs(images[row], members[column]))
        if pairs.shape != row.shape:
            raise ValueError(f"relevance: got shape {pairs.shape} for {len(row)} pairs, expected {row.shape}")
        found = np.zeros(shape, np.float32)
        found[row, column] = pairs
    if found.shape != shape:
        raise ValueError(f"relevance: got a block of shape {found.shape}, expected {shape}")
    with np.errstate(over="ignore"):  # what is too large is infinite, and refused
        return found.astype(np.float32)


def _checked(values: Values) -> Values:
    if not (values.min() >= 0 and values.max() < np.inf):  # NaN fails the first
        wrong = values[~((values >= 0) & (values < np.inf))][0]
        raise ValueError(f"relevance: got {wrong}, expected every r finite (as float32) and at least 0")
    return values
