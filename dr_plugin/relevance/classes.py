"""Where the images of each class are."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dr_plugin.checks import as_array, check_whole
from dr_plugin.triplets.relevances import Indices

Labels = Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor


class Classes:
    """The images of a data set, class by class.

    Args:
        labels: Any integers; None: all images are one class.
        count: N, the images.
    Attributes:
        labels: (N,) int64, or None.
        number: (N,) int64, each image's class as 0..C-1, in the order of the labels.
        order: (N,) int64, the images, class after class, ascending within each.
        start: (C + 1,) int64, where in `order` the classes begin.
        place: (N,) int64, each image's place among those of its class.
        sizes: (C,) int64, the images of each class.
    Raises:
        ValueError: if labels are not 1-D integers, one for each image, or if there are no images.
    """

    def __init__(self, labels: Labels | None, count: int) -> None:
        if check_whole("count", count, minimum=0) < 1:
            raise ValueError("got no images, expected at least one")
        self.labels = None if labels is None else checked_labels(labels, count)
        if self.labels is None:
            self.number = np.zeros(count, np.int64)
        else:
            self.number = np.unique(self.labels, return_inverse=True)[1].astype(np.int64)
        self.order = np.argsort(self.number, kind="stable")
        self.sizes = np.bincount(self.number).astype(np.int64)
        self.start = np.concatenate([[0], np.cumsum(self.sizes)])
        self.place = np.empty(count, np.int64)
        self.place[self.order] = np.arange(count) - self.start[self.number[self.order]]

    def __len__(self) -> int:
        """C, the classes."""
        return len(self.sizes)

    def __iter__(self) -> Iterator[Indices]:
        return (self.members(number) for number in range(len(self)))

    @property
    def first(self) -> Indices:
        """(N,) the first image of each image's class: equal for two data sets if their classes are."""
        images: Indices = self.order[self.start[self.number]]
        return images

    def members(self, number: int) -> Indices:
        """The images of a class, ascending."""
        return self.order[self.start[number] : self.start[number + 1]]


def checked_labels(labels: Labels, count: int) -> Indices:
    """The labels as (count,) int64."""
    array = as_array("labels", labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"labels: got {array.dtype} of shape {array.shape}, expected an integer for each image, ({count},)"
        )
    return array.astype(np.int64)
