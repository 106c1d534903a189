"""How far apart two feature vectors are, by the distance that suits the feature."""

import difflib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Features = npt.NDArray[Any]  # (N, F)
Distances = npt.NDArray[np.float32]
Between = Callable[[Features, Features], Distances]  # (n, F), (m, F) -> (n, m)

_ROWS_BYTES = 2**25  # of the feature rows that are taken at once
_CACHED = 2**18  # numbers of y that stay in a core's cache while the rows of x pass by
_SQUARE = 32  # pairs for which a transformer's own distance is asked at once: it only gives all with all


def feature_distances(how: Any, x: Features | Tensor, y: Features | Tensor) -> Distances:
    """All distances of the rows of x with the rows of y.

    - euclidean: |x - y|_2. manhattan: |x - y|_1.
    - cosine: 1 - x.y / (|x| |y|), from 0 to 2.
    - chi2, of histograms: sum_d (x_d - y_d)^2 / (x_d + y_d), a bin that both leave empty counting 0.
    - intersection, of histograms: 1 - sum_d min(x_d, y_d) / max(sum x, sum y).
    - own: the transformer's method `distances`.

    - A zero vector has nothing in common with any, itself included: cosine and intersection are 1.
    - All is computed in float32, the products of euclidean and cosine in float64.

    Args:
        how: One of `DISTANCES`, or a transformer, whose class attribute `distance` is one of them or "own".
        x: Finite numbers; at least 0 for chi2 and intersection.
        y: As x.
    Shape:
        x (n, F), y (m, F) -> (n, m) float32; n and m may be 0.
    Raises:
        ValueError: if the distance is unknown, shapes do not match, or a row holds what its distance does not take.
    Example:
        >>> feature_distances("manhattan", np.array([[0.0, 1.0]]), np.array([[2.0, 1.0], [0.0, 0.0]]))
        array([[2., 1.]], dtype=float32)
    """
    name = distance_name(how)
    left, right = _checked(x, "x", name), _checked(y, "y", name)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"got x {left.shape} and y {right.shape}, expected (n, F) and (m, F)")
    distances = np.empty((len(left), len(right)), np.float32)
    if distances.size == 0:
        return distances
    between: Between = _own(how) if name == "own" else _BETWEEN[name]
    for rows in _pieces(left):
        distances[rows] = between(left[rows], right)
    return distances


def triplet_distances(
    how: Any, features: Features | Tensor, triplets: npt.ArrayLike
) -> tuple[Distances, Distances]:
    """Each triplet's distances query to positive and query to negative, without those of other pairs.

    Args:
        how: As of `feature_distances`.
        features: One row an image.
        triplets: Indices of query, positive and negative.
    Shape:
        features (N, F), triplets (T, 3) -> 2 arrays (T,) float32.
    Raises:
        ValueError: as of `feature_distances`, or if triplets are not indices of features of shape (T, 3).
    Example:
        >>> triplet_distances("euclidean", np.array([[0.0], [1.0], [3.0]]), [[0, 1, 2]])
        (array([1.], dtype=float32), array([3.], dtype=float32))
    """
    name = distance_name(how)
    array = _checked(features, "features", name)
    query, positive, negative = _checked_triplets(triplets, len(array)).T
    return _paired(how, name, array, query, positive), _paired(how, name, array, query, negative)


def distance_name(how: Any) -> str:
    """One of `DISTANCES`, or "own" of a transformer that has a distance of its own; ValueError for all else."""
    name = how if isinstance(how, str) else getattr(how, "distance", None)
    if name == "own" and not isinstance(how, str):
        if not callable(getattr(how, "distances", None)):
            raise ValueError(f"got {how!r} with distance 'own', expected it to have a method distances(x, y)")
        return "own"
    if not isinstance(name, str) or name not in DISTANCES:
        near = difflib.get_close_matches(str(name), DISTANCES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"distance: got {how!r}, expected one of {', '.join(DISTANCES)}, or a transformer whose attribute "
            f"distance is one of them or 'own'{hint}"
        )
    return name


def _paired(how: Any, name: str, features: Features, i: Features, j: Features) -> Distances:
    """Of rows i (T,) with rows j (T,): (T,)."""
    distances = np.empty(len(i), np.float32)
    if name == "own":
        between = _own(how)
        for start in range(0, len(i), _SQUARE):
            s = slice(start, start + _SQUARE)
            distances[s] = between(features[i[s]], features[j[s]]).diagonal()
        return distances
    rows = max(1, _ROWS_BYTES // features[:1].nbytes) if len(features) else 1
    for start in range(0, len(i), rows):
        s = slice(start, start + rows)
        distances[s] = _PAIRED[name](*(torch.from_numpy(features[of[s]]) for of in (i, j))).numpy()
    return distances


def _pieces(features: Features) -> list[slice]:
    """Of so many rows as are taken at once."""
    rows = max(1, _ROWS_BYTES // features[:1].nbytes)
    return [slice(start, start + rows) for start in range(0, len(features), rows)]


def _own(transformer: Any) -> Between:
    """The transformer's method, its result checked."""

    def between(x: Features, y: Features) -> Distances:
        distances = np.asarray(transformer.distances(x, y))
        if distances.shape != (len(x), len(y)) or not np.isfinite(distances).all():
            raise ValueError(
                f"{type(transformer).__name__}.distances: got {distances.shape}, expected finite numbers of shape "
                f"{(len(x), len(y))}"
            )
        return distances.astype(np.float32, copy=False)

    return between


# Paired distances: (..., F) and (..., F) that broadcast -> (...).


def _euclidean(x: Tensor, y: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(x - y, dim=-1)
    return length


def _manhattan(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).abs_().sum(-1)


def _chi2(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square_().div_((x + y).clamp_(min=torch.finfo(x.dtype).tiny)).sum(-1)


def _intersection(x: Tensor, y: Tensor) -> Tensor:
    largest = torch.maximum(x.sum(-1), y.sum(-1))
    share = torch.minimum(x, y).sum(-1) / largest.clamp(min=torch.finfo(x.dtype).tiny)
    return (1 - share).clamp_(min=0)


def _cosine(x: Tensor, y: Tensor) -> Tensor:
    return (1 - (_unit(x) * _unit(y)).sum(-1)).clamp_(0, 2).float()


# All distances: (n, F), (m, F) -> (n, m).


def _row_by_row(paired: Callable[[Tensor, Tensor], Tensor]) -> Between:
    def between(x: Features, y: Features) -> Distances:
        distances = torch.empty(len(x), len(y))
        rows = _writable(x)
        columns = max(1, _CACHED // x.shape[1])
        for start in range(0, len(y), columns):
            part = _writable(y[start : start + columns])
            for row, out in zip(rows, distances[:, start : start + columns], strict=True):
                out.copy_(paired(row, part))
        return distances.numpy()

    return between


def _all_intersection(x: Features, y: Features) -> Distances:
    common = torch.from_numpy(_in_common(x, y))
    sums = [torch.from_numpy(rows.sum(axis=1)) for rows in (x, y)]
    largest = torch.maximum(sums[0][:, None], sums[1]).clamp_(min=torch.finfo(torch.float32).tiny)
    distances: Distances = (1 - common / largest).clamp_(min=0).numpy()
    return distances


def _all_euclidean(x: Features, y: Features) -> Distances:
    left, right = (torch.from_numpy(rows.astype(np.float64)) for rows in (x, y))
    squares = torch.addmm(right.square().sum(1), left, right.T, alpha=-2)  # |x - y|^2 = |x|^2 - 2 x.y + |y|^2
    distances: Distances = squares.add_(left.square().sum(1)[:, None]).clamp_(min=0).sqrt_().float().numpy()
    return distances


def _all_cosine(x: Features, y: Features) -> Distances:
    left, right = (torch.from_numpy(rows.astype(np.float64)) for rows in (x, y))
    products = _unit(left) @ _unit(right).T
    distances: Distances = (1 - products).clamp_(0, 2).float().numpy()
    return distances


def _writable(rows: Features) -> Tensor:
    """As a tensor; of a memory map that is only read, a copy, as torch warns of all else."""
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, or 0 where they are 0, in float64, where no square of a float32 overflows or vanishes."""
    x = x.double()
    unit: Tensor = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)
    return unit


_PAIRED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": _euclidean,
    "manhattan": _manhattan,
    "chi2": _chi2,
    "intersection": _intersection,
    "cosine": _cosine,
}
_in_common = _row_by_row(lambda x, y: torch.minimum(x, y).sum(-1))
_BETWEEN: dict[str, Between] = {name: _row_by_row(paired) for name, paired in _PAIRED.items()}
_BETWEEN |= {"euclidean": _all_euclidean, "cosine": _all_cosine, "intersection": _all_intersection}

DISTANCES = tuple(_PAIRED)
_HISTOGRAMS = ("chi2", "intersection")  # of numbers that are at least 0


def _checked(features: Features | Tensor, what: str, name: str) -> Features:
    """As finite float32 (n, F)."""
    if isinstance(features, Tensor):
        features = features.detach().cpu().float().numpy()
    array = np.asarray(features)
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{what}: got {array.dtype} of shape {array.shape}, expected numbers of shape (n, F), F at least 1"
        )
    array = np.ascontiguousarray(array, np.float32)
    right = np.isfinite(array) & (array >= 0) if name in _HISTOGRAMS else np.isfinite(array)
    if not right.all():
        row = int(np.flatnonzero(~right.all(axis=1))[0])
        least = f" that are at least 0, for {name!r}" if name in _HISTOGRAMS else ""
        raise ValueError(
            f"{what}: row {row}: got {array[row][~right[row]][0]:g}, expected finite numbers{least}"
        )
    return array


def _checked_triplets(triplets: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    array = np.asarray(triplets)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iu":
        raise ValueError(
            f"triplets: got {array.dtype} of shape {array.shape}, expected whole numbers of shape (T, 3): query, "
            "positive, negative"
        )
    if array.size and (array.min() < 0 or array.max() >= count):
        raise ValueError(
            f"triplets: got indices from {array.min()} to {array.max()}, expected 0 to {count - 1}, of {count} rows"
        )
    return array.astype(np.int64, copy=False)
