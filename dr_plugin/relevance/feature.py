"""Relevance from feature vectors."""

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.checks import as_array, as_indices, check_seed, shown
from dr_plugin.relevance.base import BaseRelevance, Values, checked_values, digest
from dr_plugin.relevance.classes import Labels
from dr_plugin.triplets.kernels import (
    Kernel,
    bandwidth_distances,
    check_kernel,
    has_bandwidth,
    median_bandwidth,
)
from dr_plugin.triplets.relevances import Indices

Features = npt.NDArray[Any]  # (N, D)
UserKernel = Callable[[Features, Features], Any]  # (n, D), (m, D) -> (n, m)

_ROWS_BYTES = 2**26  # of the feature rows that are taken at once
_SAMPLED_PAIRS = 10_000  # from which a bandwidth is estimated
_LARGEST = 1e15  # whose square can still be summed in float32
_SQUARE = 32  # pairs for which a user's kernel is asked at once: it can only give all with all


class FeatureRelevance(BaseRelevance):
    """How alike two images' feature vectors are, by a kernel, within a class; 0 across classes.

    Rows are read as they are needed: a memory map stays on disk (and is opened again where it is pickled to a
    worker), and no more than a class's features and relevances are in memory at once. Where relevances are
    drawn from again and again, store them: `StoredRelevance.build`.

    - Named kernels (see `dr_plugin.triplets.kernels.Kernel`) are symmetric; a kernel of the user's need not
      be: the draws ask for k(query, other).
    - `bandwidth=None` of gaussian and laplacian is the median distance above 0 of 10,000 seeded pairs of
      different images of one class (image uniform among those that have a partner, partner uniform). Copies
      are left out; where all are copies, or there is no pair, it is 1.
    - `pairs` of a user's kernel cost 32 times what they must, as it only gives all with all: prefer `block`,
      or store.

    Args:
        features: Finite numbers, one row an image; a tensor is taken to the CPU.
        labels: Classes, any integers; None: all images are one class (graded relevance).
        kernel: "gaussian", "laplacian", "cosine", "intersection" (features at least 0), or a function
            (x (n, D), y (m, D)) -> (n, m) on arrays, such as `sklearn.metrics.pairwise.chi2_kernel`.
        bandwidth: h > 0 of gaussian and laplacian; None: the median.
        seed: Of the pairs whose median is taken.
    Attributes:
        bandwidth: The one in use; None where the kernel has none.
    Shape:
        features (N, D), labels (N,).
    Raises:
        ValueError: if features are not numbers of shape (N, D), N and D at least 1, from -1e15 ("intersection":
            0) to 1e15; if labels do not match; if kernel or bandwidth is none; from any method, if a user's
            kernel gives another shape, or numbers not finite and at least 0.
    Example:
        >>> relevance = FeatureRelevance(np.array([[0.0], [1.0], [3.0]]), [0, 0, 0], bandwidth=1.0)
        >>> relevance.pairs([0, 0], [1, 2]).round(3)
        array([0.607, 0.011], dtype=float32)
        >>> relevance.total([0]).round(3)
        array([0.618])
    """

    def __init__(
        self,
        features: Features | Tensor,
        labels: Labels | None = None,
        *,
        kernel: str | UserKernel = "gaussian",
        bandwidth: float | None = None,
        seed: int = 0,
    ) -> None:
        seed = check_seed(seed)
        if not callable(kernel):
            check_kernel(kernel, bandwidth)
        elif bandwidth is not None:
            raise ValueError(f"bandwidth: got {shown(bandwidth)} with a kernel of yours, expected None")
        self.features = _as_features(features)
        super().__init__(len(self.features), labels)
        _check_numbers(self.features, at_least_0=isinstance(kernel, str) and kernel == "intersection")
        self._kernel: Kernel | UserKernel
        if callable(kernel):
            self._kernel = kernel
        else:
            if has_bandwidth(kernel):
                bandwidth = self._median(kernel, seed) if bandwidth is None else float(bandwidth)
            self._kernel = Kernel(kernel, bandwidth)
        self.bandwidth = bandwidth

    def cross(self, queries: Features | Tensor, j: npt.ArrayLike) -> Values:
        """How alike images that are not in the data set are to images j of any class: (Q, D), (n,) -> (Q, n).

        For a model's ranking of new images against the relevance; the new images have no class here.
        """
        queries, j = _as_features(queries), as_indices("j", j, len(self))
        if queries.shape[1] != self.features.shape[1]:
            raise ValueError(f"queries: got {queries.shape}, expected (Q, {self.features.shape[1]})")
        _check_numbers(
            queries, at_least_0=isinstance(self._kernel, Kernel) and self._kernel.name == "intersection"
        )
        return self._values(queries, j)

    def fingerprint(self) -> bytes | None:
        """Of features, labels, kernel and bandwidth; None with a kernel of the user's."""
        if not isinstance(self._kernel, Kernel):
            return None
        return digest(repr(self._kernel).encode(), self.features, self.classes.number)

    def _rectangle(self, i: Indices, j: Indices) -> Values:
        rows = self.features[i]
        return self._between(rows, rows) if j is i else self._values(rows, j)

    def _pairs(self, i: Indices, j: Indices) -> Values:
        values = np.empty(len(i), np.float32)
        if isinstance(self._kernel, Kernel):
            for s in self._pieces(len(i)):
                values[s] = self._kernel.paired(
                    _rows(self.features[i[s]]), _rows(self.features[j[s]])
                ).numpy()
            return values
        for start in range(0, len(i), _SQUARE):
            s = slice(start, start + _SQUARE)
            values[s] = self._between(self.features[i[s]], self.features[j[s]]).diagonal()
        return values

    def _values(self, x: Features, j: Indices) -> Values:
        """The kernel of rows x (n, D) with those of the images j (m,) -> (n, m)."""
        values = np.empty((len(x), len(j)), np.float32)
        for s in self._pieces(len(j)) if len(x) else []:
            values[:, s] = self._between(x, self.features[j[s]])
        return values

    def _between(self, x: Features, y: Features) -> Values:
        if not isinstance(self._kernel, Kernel):
            return checked_values(self._kernel(x, y), (len(x), len(y)), "kernel(x, y)")
        rows = _rows(x)
        values: Values = self._kernel(rows, rows if y is x else _rows(y)).float().numpy()
        return values

    def _pieces(self, count: int) -> list[slice]:
        """Of so many rows as are taken at once."""
        rows = max(1, _ROWS_BYTES // (8 * self.features.shape[1]))
        return [slice(start, start + rows) for start in range(0, count, rows)]

    def _median(self, kernel: str, seed: int) -> float:
        rng = np.random.default_rng(seed)
        sizes = self.classes.sizes[self.classes.number]
        candidates = np.flatnonzero(sizes > 1)
        if len(candidates) == 0:
            return 1.0
        i = rng.choice(candidates, _SAMPLED_PAIRS)
        number, place = self.classes.number[i], self.classes.place[i]
        other = rng.integers(0, sizes[i] - 1)
        j = self.classes.order[self.classes.start[number] + other + (other >= place)]
        distances = [
            bandwidth_distances(kernel, _rows(self.features[i[s]]), _rows(self.features[j[s]]))
            for s in self._pieces(len(i))
        ]
        return float(median_bandwidth(torch.cat(distances)))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        features = self.features
        if isinstance(features, np.memmap) and isinstance(features.base, mmap.mmap) and features.filename:
            order = "C" if features.flags.c_contiguous else "F"
            state["features"] = None
            state["_map"] = (features.filename, features.dtype, "r", features.offset, features.shape, order)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        map_of = state.pop("_map", None)
        self.__dict__.update(state)
        if map_of is not None:
            self.features = np.memmap(*map_of)


def _as_features(features: Features | Tensor) -> Features:
    """The features as an array (N, D) of numbers; a memory map stays one."""
    if isinstance(features, Tensor):
        features = features.detach().cpu()
        features = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    array = features if isinstance(features, np.ndarray) else as_array("features", features)
    if array.ndim != 2 or 0 in array.shape[1:] or array.dtype.kind not in "fiu":
        raise ValueError(
            f"features: got {array.dtype} of shape {array.shape}, expected numbers of shape (N, D), D at least 1"
        )
    return array


def _check_numbers(features: Features, at_least_0: bool) -> None:
    """Read the features once; ValueError names the first row that is refused."""
    rows = max(1, _ROWS_BYTES // features[:1].nbytes) if len(features) else 1
    for start in range(0, len(features), rows):
        part = features[start : start + rows]
        right = np.abs(part) <= np.float64(_LARGEST)
        if at_least_0:
            right &= part >= 0
        if not right.all():
            row = start + int(np.flatnonzero(~right.all(axis=1))[0])
            least = "0, for 'intersection'," if at_least_0 else f"-{_LARGEST:g}"
            raise ValueError(
                f"features: row {row}: got {features[row][~right[row - start]][0]:g}, expected numbers from {least} "
                f"to {_LARGEST:g}"
            )


def _rows(rows: Features) -> Tensor:
    """Taken rows as a tensor of a dtype that kernels compute in."""
    small = rows.dtype.kind == "f" and rows.dtype.itemsize <= 4
    return torch.from_numpy(np.ascontiguousarray(rows, np.float32 if small else np.float64))
