"""Arguments that are whole numbers, refused in one sentence where they are not."""

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


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
