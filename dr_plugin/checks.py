"""Arguments that are numbers, refused in one sentence where they are not."""

import math
from typing import Any

import numpy as np


def check_whole(name: str, value: Any, *, minimum: int, below: int | None = None) -> int:
    """`value`, Python's or numpy's, as an int.

    Raises:
        ValueError: if it is no whole number in [minimum, below).
    """
    if not _is_whole(value) or value < minimum or (below is not None and value >= below):
        limit = "" if below is None else f" and below {below}"
        raise ValueError(f"{name}: got {value!r}, expected a whole number, at least {minimum}{limit}")
    return int(value)


def check_whole_or_none(name: str, value: Any, *, minimum: int) -> int | None:
    """As `check_whole`, where None is an answer too."""
    if value is not None and (not _is_whole(value) or value < minimum):
        raise ValueError(f"{name}: got {value!r}, expected a whole number, at least {minimum}, or None")
    return None if value is None else int(value)


def check_number(name: str, value: Any, *, above: float | None = None, minimum: float | None = None) -> float:
    """`value`, Python's or numpy's, as a float.

    Raises:
        ValueError: if it is no finite number, not above `above`, or below `minimum`.
    """
    known = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if (
        not known
        or not math.isfinite(value)
        or (above is not None and value <= above)
        or (minimum is not None and value < minimum)
    ):
        limits = [] if above is None else [f"above {above:g}"]
        limits += [] if minimum is None else [f"at least {minimum:g}"]
        raise ValueError(f"{name}: got {value!r}, expected a finite number {' and '.join(limits)}".rstrip())
    return float(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
