"""What the reservoirs take from a stream, checked before anything is changed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dr_plugin.checks import as_array

Array = npt.NDArray[Any]


def checked_items(items: npt.ArrayLike) -> Array:
    """(n,) of any type."""
    array = as_array("items", items)
    if array.ndim != 1:
        raise ValueError(f"items: got shape {array.shape}, expected one dimension, an item an entry")
    if array.dtype.kind == "V":
        raise ValueError(f"items: got {array.dtype}, expected a plain type: numbers, strings or objects")
    return array


def checked_integers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """(n,) int64."""
    array = as_array(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name}: got shape {array.shape}, expected one dimension")
    if array.size == 0:
        return np.empty(0, np.int64)
    if not np.issubdtype(array.dtype, np.integer) or not np.can_cast(array.dtype, np.int64):
        raise ValueError(f"{name}: got {array.dtype}, expected integers that fit in int64")
    return array.astype(np.int64, copy=False)


def checked_labels(labels: npt.ArrayLike, count: int) -> npt.NDArray[np.int64]:
    """(count,) int64, at least 0."""
    array = checked_integers("labels", labels)
    if len(array) != count:
        raise ValueError(f"labels: got {len(array)} for {count} items, expected one an item")
    check_labels_from_0(array)
    return array


def check_labels_from_0(labels: npt.NDArray[np.int64]) -> None:
    """Refuses negative labels."""
    if len(labels) and labels.min() < 0:
        index = int(np.argmax(labels < 0))
        raise ValueError(f"labels: got {labels[index]} at index {index}, expected classes 0, 1, ...")


def checked_weights(weights: npt.ArrayLike, count: int) -> Array:
    """(count,) of real numbers, finite and at least 0; in their own type, as a copy of a long stream is large."""
    array = as_array("weights", weights)
    if array.shape != (count,):
        raise ValueError(f"weights: got shape {array.shape} for {count} items, expected ({count},)")
    if count and not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f"weights: got {array.dtype}, expected real numbers")
    if count and not (array.min() >= 0 and array.max() < np.inf):  # NaN fails the first
        index = int(np.argmin((array >= 0) & (array < np.inf)))
        raise ValueError(
            f"weights: got {array[index]} at index {index}, expected finite numbers, at least 0 (0: never chosen)"
        )
    return array


def summed(weights: Array, total: float) -> float:
    """`total` and the sum of the weights, refused if float64 cannot hold it."""
    with np.errstate(over="ignore"):
        total = float(total + weights.sum(dtype=np.float64))
    if total == np.inf:
        raise ValueError(
            "weights: got a sum beyond float64, expected less; only ratios matter, so scale all down"
        )
    return total


def check_state(state: Mapping[str, Any], fixed: Mapping[str, Any], keys: set[str]) -> None:
    """Refuses a state that lacks keys, or that was taken of a reservoir built otherwise."""
    if missing := sorted((keys | fixed.keys()) - state.keys()):
        raise ValueError(f"reservoir state: got no {', '.join(missing)}; expected what state_dict() gives")
    for name, expected in fixed.items():
        if state[name] != expected:
            raise ValueError(
                f"reservoir state: {name}: got {state[name]!r}, expected {expected!r}; build the same reservoir"
            )
