"""What every relevance-weighted draw takes and gives, whole classes or a stream: parameters and triplets."""

import math
from numbers import Real
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Weighting = Literal["relevance", "uniform"]


class NoTripletError(ValueError):
    """What is at hand gives no triplet of a wanted kind, or hardly ever one."""


class TripletDraw(NamedTuple):
    """Triplets, and what it took to draw them.

    Attributes:
        query, positive, negative: (T,) long. The triplets are independent and in no order.
        counters: `accepted` triplets (= T), those of them `in_class` and `out_of_class`; `rejected` in-class
            negatives that failed (8), and triplets `discarded` after `max_trials` of these.
    """

    query: Tensor
    positive: Tensor
    negative: Tensor
    counters: dict[str, int]


def check_draw(
    *,
    out_of_class_ratio: float,
    relevance_threshold: float | None,
    relevance_margin: float,
    weighting: str,
    max_trials: int,
) -> None:
    """ValueError unless these can be a draw's parameters."""
    if not _is_number(out_of_class_ratio) or not 0 <= out_of_class_ratio <= 1:
        raise ValueError(f"out_of_class_ratio: got {out_of_class_ratio!r}, expected a number from 0 to 1")
    if relevance_threshold is not None and not (_is_number(relevance_threshold) and relevance_threshold > 0):
        raise ValueError(
            f"relevance_threshold: got {relevance_threshold!r}, expected a finite number above 0, "
            "or None for no threshold"
        )
    if not _is_number(relevance_margin) or relevance_margin < 0:
        raise ValueError(f"relevance_margin: got {relevance_margin!r}, expected a finite number, at least 0")
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting: got {weighting!r}, expected one of {', '.join(get_args(Weighting))}")
    if isinstance(max_trials, bool) or not isinstance(max_trials, int) or max_trials < 1:
        raise ValueError(f"max_trials: got {max_trials!r}, expected a whole number, at least 1")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
