"""Arguments of every kind, refused in one sentence where they are not what they should be."""

import math
import os
from collections.abc import Iterable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SHOWN = 100  # characters of a value in an error
_BEYOND = 2**63  # what neither numpy nor torch can count
_SEEDS = 2**128


def shown(value: Any) -> str:
    """The value as an error shows it: in one line, not too long."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0:
        return f"{type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def check_whole(name: str, value: Any, *, minimum: int, below: int | None = None) -> int:
    """`value`, Python's or numpy's, as an int.

    Raises:
        ValueError: if it is no whole number in [minimum, below), or needs more than 63 bits.
    """
    if not _is_whole(value) or not minimum <= int(value) < (below or _BEYOND):
        limit = _limit(value, below)
        raise ValueError(f"{name}: got {shown(value)}, expected a whole number, at least {minimum}{limit}")
    return int(value)


def check_seed(value: Any) -> int:
    """A seed of numpy's generators, which take as many bits as `SeedSequence().entropy` has."""
    return check_whole("seed", value, minimum=0, below=_SEEDS)


def check_whole_or_none(name: str, value: Any, *, minimum: int, below: int | None = None) -> int | None:
    """As `check_whole`, where None is an answer too."""
    if value is not None and not (_is_whole(value) and minimum <= int(value) < (below or _BEYOND)):
        limit = _limit(value, below)
        raise ValueError(
            f"{name}: got {shown(value)}, expected a whole number, at least {minimum}{limit}, or None"
        )
    return None if value is None else int(value)


def check_number(name: str, value: Any, *, above: float | None = None, minimum: float | None = None) -> float:
    """`value`, Python's or numpy's, as a float.

    Raises:
        ValueError: if it is no finite number, not above `above`, or below `minimum`.
    """
    number = as_number(value)
    if (
        not math.isfinite(number)
        or (above is not None and number <= above)
        or (minimum is not None and number < minimum)
    ):
        limits = [] if above is None else [f"above {above:g}"]
        limits += [] if minimum is None else [f"at least {minimum:g}"]
        raise ValueError(
            f"{name}: got {shown(value)}, expected a finite number {' and '.join(limits)}".rstrip()
        )
    return number


def as_number(value: Any) -> float:
    """`value`, Python's or numpy's, as a float; NaN where it is no real number, or is too large for one."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def check_flag(name: str, value: Any) -> bool:
    """`value`, Python's or numpy's, as a bool; ValueError if it is none."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: got {shown(value)}, expected True or False")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """ValueError unless `value` is one of the choices."""
    names = list(choices)
    if not isinstance(value, str) or value not in names:
        raise ValueError(f"{name}: got {shown(value)}, expected one of {', '.join(names)}")


def as_array(name: str, values: Any) -> npt.NDArray[Any]:
    """`values` as an array of whatever type; ValueError if they are rows of several lengths."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name}: got {shown(values)}, expected an array, or rows of one length") from error


def as_indices(name: str, values: Any, count: int) -> npt.NDArray[np.int64]:
    """`values` as (n,) int64, all of them in 0..count-1.

    Raises:
        ValueError: if they are no list of whole numbers.
        IndexError: if one is out of range.
    """
    array = as_array(name, values)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, np.int64)  # an empty list has no integer type
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name}: got {array.dtype} of shape {array.shape}, expected integers of shape (n,)")
    if array.min() < 0 or array.max() >= count:
        outside = array[(array < 0) | (array >= count)][0]
        raise IndexError(f"{name}: got {outside}, expected 0 to {count - 1}")
    return array.astype(np.int64, copy=False)


def check_wholes(name: str, values: Any, *, minimum: int, below: int = 2**31) -> list[int]:
    """Whole numbers, in a list, tuple, range or one-dimensional array, as a list of ints; there may be none.

    Raises:
        ValueError: if they are in something else, or one is not in [minimum, below).
    """
    if not isinstance(values, list | tuple | range) and getattr(values, "ndim", 0) != 1:
        raise ValueError(f"{name}: got {shown(values)}, expected whole numbers in a list or a tuple")
    return [check_whole(name, value, minimum=minimum, below=below) for value in values]


def check_per_channel(name: str, values: Any) -> tuple[float, float, float]:
    """Three finite numbers, in a list or tuple, as floats; ValueError if they are something else."""
    numbers = [as_number(value) for value in values] if isinstance(values, list | tuple) else []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name}: got {shown(values)}, expected three finite numbers, one per channel")
    return numbers[0], numbers[1], numbers[2]


def check_length(name: str, value: Any, expected: str) -> int:
    """How long `value` is; ValueError, which says what is expected, if it has no length."""
    try:
        return len(value)
    except TypeError as error:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}") from error


def check_path(name: str, value: Any) -> Path:
    """`value` as a path; ValueError if it can be none."""
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"{name}: got {shown(value)}, expected a path")
    return Path(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _limit(value: Any, below: int | None) -> str:
    """What to say of the upper limit: of one that holds for all, only where it is passed."""
    if below is None:
        return " and below 2^63" if _is_whole(value) and value >= _BEYOND else ""
    return f" and below {below}" if below < _BEYOND else f" and below 2^{below.bit_length() - 1}"
